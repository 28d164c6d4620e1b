//! What a run left behind.

use std::collections::BTreeMap;

use crate::history::Event;

/// One committed write, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Under which lock.
    pub lock: String,
    /// Its place in the order of commits under that lock.
    pub place: i64,
    /// The token of the holder that wrote it; 0 where there are none.
    pub token: i64,
    /// Which write.
    pub id: String,
}

/// A time in which somebody, or everybody, could not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Whom it befell; `None`: everybody.
    pub who: Option<String>,
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// It ended the process.
    pub killed: bool,
}

impl Outage {
    /// Whether it delays a process.
    pub(super) fn concerns(&self, who: &str) -> bool {
        self.who.as_deref().is_none_or(|other| other == who)
    }
}

/// All that a run left behind.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What the processes wrote down, in order of time.
    pub events: Vec<Event>,
    /// What they committed.
    pub rows: Vec<Row>,
    /// The counters at the end, each of which began at 0.
    pub counters: BTreeMap<String, i64>,
    /// What was done to them.
    pub outages: Vec<Outage>,
    /// The length of a lease, in microseconds.
    pub ttl: u64,
}
