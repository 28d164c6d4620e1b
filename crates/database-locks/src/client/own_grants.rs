//! The grants of this process: those that it holds, and those that it requests.
//!
//! A caller with the same `locked_by` preempts a grant of another process, but waits for one of its
//! own: see [`Lock::preempt`](crate::Lock::preempt). A forked child has none of its parent's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::runtime::fork::PerProcess;
use protocol::GrantId;

/// The number of [`OwnGrant`]s of each grant. All [`Locks`](crate::Locks) share it, because two of
/// them may use the same table.
fn all() -> MutexGuard<'static, HashMap<GrantId, u32>> {
    static ALL: PerProcess<Mutex<HashMap<GrantId, u32>>> = PerProcess::new();
    ALL.lock()
}

/// While it lives, this grant counts as one of this process.
#[derive(Debug)]
pub(crate) struct OwnGrant(GrantId);

impl OwnGrant {
    pub(crate) fn new(grant: GrantId) -> Self {
        *all().entry(grant).or_default() += 1;
        Self(grant)
    }
}

impl Drop for OwnGrant {
    fn drop(&mut self) {
        let mut all = all();
        if let Some(count) = all.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.0);
            }
        }
    }
}

/// Whether the grant id of a row is one of this process.
pub(crate) fn is_own_grant(grant: &str) -> bool {
    GrantId::parse(grant).is_some_and(|grant| all().contains_key(&grant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::grant_id::random_grant_id;

    #[test]
    fn a_grant_is_ours_for_as_long_as_anybody_says_so() {
        let grant = random_grant_id().unwrap();
        let (asked, held) = (OwnGrant::new(grant), OwnGrant::new(grant));
        drop(asked);
        assert!(is_own_grant(grant.as_str()));
        drop(held);
        assert!(!is_own_grant(grant.as_str()));
    }
}
