//! What a run did, in numbers.

use std::collections::BTreeMap;

use crate::check::evidence::Evidence;
use crate::check::grants::{End, Write, grants, writes};
use crate::check::guarded::{GuardedNumbers, guarded_numbers};
use crate::history::What;
use crate::target::Mode;

/// What a run did, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Grants.
    pub grants: usize,
    /// Those to readers.
    pub shared: usize,
    /// Losses that holders were notified of.
    pub losses: usize,
    /// Writes in the database.
    pub writes: usize,
    /// Writes that the fence refused.
    pub refused: usize,
    /// COMMITs whose outcome the process never learned.
    pub unknown: usize,
    /// The writes to the guarded table.
    pub guarded: GuardedNumbers,
}

/// The numbers of a run.
pub fn numbers(evidence: &Evidence) -> Numbers {
    let grants = grants(&evidence.events);
    let writes = writes(&evidence.events, &grants);
    let ended = |write: &&Write, wanted| matches!(write.end, Some((_, end)) if end == wanted);
    Numbers {
        guarded: guarded_numbers(evidence, &grants),
        grants: grants.len(),
        shared: grants.iter().filter(|g| g.mode == Mode::Shared).count(),
        losses: grants.iter().filter(|grant| grant.lost.is_some()).count(),
        writes: evidence.rows.len(),
        refused: writes.values().filter(|w| ended(w, End::Refused)).count(),
        unknown: writes
            .values()
            .filter(|w| {
                w.committing.is_some() && !ended(w, End::Committed) && !ended(w, End::Refused)
            })
            .count(),
    }
}

/// The grants of each process; a process that was started again counts as one.
pub fn grants_per_process(evidence: &Evidence) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for event in &evidence.events {
        let (name, _) = event
            .process
            .split_once('.')
            .unwrap_or((&event.process, ""));
        let share = shares.entry(name.to_owned()).or_default();
        *share += usize::from(matches!(event.what, What::Granted { .. }));
    }
    shares
}
