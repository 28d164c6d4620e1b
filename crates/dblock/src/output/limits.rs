//! The limits that operators have set, in lists.

use std::collections::BTreeMap;

use database_locks::{LockInfo, LockName};

/// The limits, by the names of their semaphores.
pub(crate) struct Limits(pub(crate) BTreeMap<LockName, u32>);

impl Limits {
    /// The limit of the semaphore that this permit is of.
    pub(super) fn of(&self, permit: &LockInfo) -> Option<u32> {
        self.0.get(&permit.name).copied()
    }

    /// The semaphores that need a line of their own, since none of their permits is listed: those
    /// that are paused, or `all`.
    pub(super) fn without_permits<'a>(
        &'a self,
        listed: &'a [LockInfo],
        all: bool,
    ) -> impl Iterator<Item = (&'a LockName, u32)> {
        let is_listed = |name: &LockName| {
            let mut permits = listed.iter().filter(|row| row.slot.is_some());
            permits.any(|permit| permit.name == *name)
        };
        let limits = self.0.iter().map(|(name, limit)| (name, *limit));
        limits.filter(move |(name, limit)| (all || *limit == 0) && !is_listed(name))
    }
}

/// The state of a semaphore none of whose permits is listed.
pub(super) fn limit_state(limit: u32) -> &'static str {
    match limit {
        0 => "paused",
        _ => "free",
    }
}
