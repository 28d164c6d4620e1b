//! Which grants are of this process: those that it holds, and those that it is asking for.
//!
//! Whoever comes with the same `locked_by` takes a lock over from another process, and waits for one
//! of its own: see [`Lock::take_over`](crate::Lock::take_over). In a forked child there are none of its
//! parent's.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fork::PerProcess;
use crate::token::GrantId;

/// Of all [`Locks`](crate::Locks) together: two of them may be of the same table.
fn all() -> MutexGuard<'static, HashMap<GrantId, u32>> {
    static ALL: PerProcess<Mutex<HashMap<GrantId, u32>>> = PerProcess::new();
    let Ok(all) = ALL.get_or_try_init(|| Ok::<_, Infallible>(Mutex::default()));
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, this grant counts as one of this process.
#[derive(Debug)]
pub(crate) struct Ours(GrantId);

impl Ours {
    pub(crate) fn new(grant: GrantId) -> Self {
        *all().entry(grant).or_default() += 1;
        Self(grant)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let mut all = all();
        if let Some(times) = all.get_mut(&self.0) {
            *times -= 1;
            if *times == 0 {
                all.remove(&self.0);
            }
        }
    }
}

/// Whether a grant id, as it stands in a row, is of this process.
pub(crate) fn is_ours(grant: &str) -> bool {
    GrantId::parse(grant).is_some_and(|grant| all().contains_key(&grant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_ours_for_as_long_as_anybody_says_so() {
        let grant = GrantId::random().unwrap();
        let (asked, held) = (Ours::new(grant), Ours::new(grant));
        drop(asked);
        assert!(is_ours(grant.as_str()));
        drop(held);
        assert!(!is_ours(grant.as_str()));
    }
}
