//! What a run left behind.

use std::collections::BTreeMap;

use crate::history::Event;

/// A committed write, as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its lock.
    pub lock: String,
    /// Its place in the order of commits under the lock.
    pub place: i64,
    /// The token of its holder; 0 if there is none.
    pub token: i64,
    /// The id of the write.
    pub id: String,
}

/// A committed write to the guarded table, as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedRow {
    /// The id of the write.
    pub id: String,
    /// The token of the grant whose ticket it showed; 0 if it showed none, or an outdated one.
    pub token: i64,
    /// How many writes with lesser tokens it saw.
    pub older: i64,
}

/// A time in which one process, or all, could not make progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The process; `None`: all.
    pub process: Option<String>,
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// Whether it ended the process.
    pub killed: bool,
}

impl Outage {
    /// Whether it delays a process.
    pub(super) fn concerns(&self, process: &str) -> bool {
        self.process.as_deref().is_none_or(|other| other == process)
    }
}

/// A change of a semaphore's limit by the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitChange {
    /// The semaphore.
    pub lock: String,
    /// The new limit; `None`: that of the callers.
    pub limit: Option<u32>,
    /// When the operator asked for it.
    pub from: u64,
    /// From when on no other limit counts.
    pub until: u64,
}

/// The evidence of a run.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The histories, in order of time.
    pub events: Vec<Event>,
    /// The committed writes.
    pub rows: Vec<Row>,
    /// The committed writes to the guarded table.
    pub guarded: Vec<GuardedRow>,
    /// The counters at the end, each of which began at 0.
    pub counters: BTreeMap<String, i64>,
    /// The operator's changes of limits, in order of time.
    pub limits: Vec<LimitChange>,
    /// The outages by faults.
    pub outages: Vec<Outage>,
    /// The length of a lease, in microseconds.
    pub ttl: u64,
}
