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

    /// The semaphores that have a line of their own: those that are paused, and with `all` those none
    /// of whose permits is listed.
    pub(super) fn own_lines<'a>(
        &'a self,
        listed: &'a [LockInfo],
        all: bool,
    ) -> impl Iterator<Item = (&'a LockName, u32)> {
        let limits = self.0.iter().map(|(name, limit)| (name, *limit));
        limits.filter(move |(name, limit)| {
            *limit == 0 || all && permits_of(name, listed).next().is_none()
        })
    }
}

/// The listed permits of a semaphore.
pub(super) fn permits_of<'a>(
    name: &'a LockName,
    listed: &'a [LockInfo],
) -> impl Iterator<Item = &'a LockInfo> {
    let same = move |row: &&LockInfo| row.slot.is_some() && row.name == *name;
    listed.iter().filter(same)
}
