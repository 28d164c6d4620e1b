//! Which grants are of this process: those that it holds, and those that it is asking for. And which
//! server confirmed each of them last.
//!
//! Whoever comes with the same `locked_by` takes a lock over from another process, and waits for one
//! of its own: see [`Lock::take_over`](crate::Lock::take_over). In a forked child there are none of its
//! parent's.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::runtime::fork::PerProcess;
use protocol::GrantId;

/// A database server, as those that can take each other's place tell themselves apart.
#[cfg(any(feature = "postgres", test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Primary {
    /// The same for a primary and its standbys.
    pub(crate) system: i64,
    /// Goes up when one takes the place of another.
    pub(crate) timeline: u32,
}

#[derive(Debug, Default)]
struct Known {
    /// How often it was said to be ours.
    times: u32,
    #[cfg(any(feature = "postgres", test))]
    confirmed_by: Option<Primary>,
}

/// Of all [`Locks`](crate::Locks) together: two of them may be of the same table.
fn all() -> MutexGuard<'static, HashMap<GrantId, Known>> {
    static ALL: PerProcess<Mutex<HashMap<GrantId, Known>>> = PerProcess::new();
    let Ok(all) = ALL.get_or_try_init(|| Ok::<_, Infallible>(Mutex::default()));
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, this grant counts as one of this process.
#[derive(Debug)]
pub(crate) struct OwnGrant(GrantId);

impl OwnGrant {
    pub(crate) fn new(grant: GrantId) -> Self {
        all().entry(grant).or_default().times += 1;
        Self(grant)
    }
}

impl Drop for OwnGrant {
    fn drop(&mut self) {
        let mut all = all();
        if let Some(known) = all.get_mut(&self.0) {
            known.times -= 1;
            if known.times == 0 {
                all.remove(&self.0);
            }
        }
    }
}

/// Whether a grant id, as it stands in a row, is of this process.
pub(crate) fn is_own_grant(grant: &str) -> bool {
    GrantId::parse(grant).is_some_and(|grant| all().contains_key(&grant))
}

/// This server has granted or renewed these. Of grants that are not ours nothing is kept.
#[cfg(any(feature = "postgres", test))]
pub(crate) fn confirmed(by: Primary, grants: impl Iterator<Item = GrantId>) {
    let mut all = all();
    for grant in grants {
        if let Some(known) = all.get_mut(&grant) {
            known.confirmed_by = Some(by);
        }
    }
}

/// Which server granted or renewed it last, where that is known.
#[cfg(any(feature = "postgres", test))]
pub(crate) fn confirmer(grant: GrantId) -> Option<Primary> {
    all().get(&grant)?.confirmed_by
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::grant_id::random_grant_id;

    #[test]
    fn who_confirmed_it_is_known_for_as_long_as_it_is_ours() {
        let [first, second] = [1, 2].map(|timeline| Primary {
            system: 7,
            timeline,
        });
        let grant = random_grant_id().unwrap();
        confirmed(first, [grant].into_iter());
        assert_eq!(confirmer(grant), None, "not ours");
        let ours = OwnGrant::new(grant);
        confirmed(first, [grant].into_iter());
        confirmed(second, [grant].into_iter());
        assert_eq!(confirmer(grant), Some(second));
        drop(ours);
        assert_eq!(confirmer(grant), None);
    }

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
