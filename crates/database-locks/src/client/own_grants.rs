//! The grants of this process: those that it holds, those that it requests, and those that it
//! releases.
//!
//! A caller with the same `locked_by` preempts a grant of another process, but waits for one of its
//! own: see [`Lock::preempt`](crate::Lock::preempt). A waiter that finds a grant of its own
//! [`Client`](crate::client::Client) need not announce itself, since the release wakes its queue;
//! and it must not take it for one of another process. The row contains such a grant before its
//! guard exists, and after the guard is gone. A forked child has no grants of its parent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::runtime::fork::PerProcess;
use protocol::GrantId;

/// The number of released grants that are remembered: the answer to a try may be taken after the
/// release of the grant that it found.
const RELEASED: usize = 1_024;

/// The number of a client in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientNumber(u32);

impl ClientNumber {
    pub(crate) fn next() -> Self {
        static LATEST: AtomicU32 = AtomicU32::new(0);
        Self(LATEST.fetch_add(1, Ordering::Relaxed))
    }
}

/// What is known of one grant.
#[derive(Debug, Default)]
struct Known {
    /// The number of [`OwnGrant`]s.
    own: u32,
    /// The number of requests and releases under way, all of this client.
    under_way: u32,
    client: Option<ClientNumber>,
}

/// All [`Locks`](crate::Locks) share it, because two of them may use the same table.
#[derive(Debug, Default)]
struct Grants {
    known: HashMap<GrantId, Known>,
    /// The latest first.
    released: VecDeque<(GrantId, ClientNumber)>,
}

impl Grants {
    /// Change what is known, and forget a grant of which nothing is.
    fn change(&mut self, grant: GrantId, change: impl FnOnce(&mut Known)) {
        let known = self.known.entry(grant).or_default();
        change(known);
        if known.own == 0 && known.under_way == 0 {
            self.known.remove(&grant);
        }
    }
}

fn all() -> MutexGuard<'static, Grants> {
    static ALL: PerProcess<Mutex<Grants>> = PerProcess::new();
    ALL.lock()
}

/// While it lives, this grant counts as one of this process.
#[derive(Debug)]
pub(crate) struct OwnGrant {
    grant: GrantId,
    is_request: bool,
}

impl OwnGrant {
    pub(crate) fn new(grant: GrantId) -> Self {
        all().change(grant, |known| known.own += 1);
        let is_request = false;
        Self { grant, is_request }
    }

    /// A grant that this client requests: the row may contain it from now on.
    pub(crate) fn requested(grant: GrantId, client: ClientNumber) -> Self {
        all().change(grant, |known| {
            known.own += 1;
            known.under_way += 1;
            known.client = Some(client);
        });
        let is_request = true;
        Self { grant, is_request }
    }
}

impl Drop for OwnGrant {
    fn drop(&mut self) {
        all().change(self.grant, |known| {
            known.own = known.own.saturating_sub(1);
            let requests = u32::from(self.is_request);
            known.under_way = known.under_way.saturating_sub(requests);
        });
    }
}

/// While it lives, this client releases a grant: the row may contain it still. The end of the
/// release wakes the queue before this is dropped.
#[derive(Debug)]
pub(crate) struct Releasing {
    grant: GrantId,
    client: ClientNumber,
}

impl Releasing {
    pub(crate) fn new(grant: GrantId, client: ClientNumber) -> Self {
        all().change(grant, |known| {
            known.under_way += 1;
            known.client = Some(client);
        });
        Self { grant, client }
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        let (mut all, mut is_last) = (all(), false);
        all.change(self.grant, |known| {
            known.under_way = known.under_way.saturating_sub(1);
            is_last = known.under_way == 0;
        });
        if is_last {
            all.released.truncate(RELEASED - 1);
            all.released.push_front((self.grant, self.client));
        }
    }
}

/// Whether the grant id of a row is one that this process holds or requests.
pub(crate) fn is_own_grant(grant: &str) -> bool {
    GrantId::parse(grant).is_some_and(|grant| {
        let all = all();
        all.known.get(&grant).is_some_and(|known| known.own > 0)
    })
}

/// Whether this client requests this grant, releases it, or has just released it.
pub(crate) fn is_in_transition(grant: GrantId, client: ClientNumber) -> bool {
    let all = all();
    let known = all.known.get(&grant);
    known.is_some_and(|known| known.under_way > 0 && known.client == Some(client))
        || all.released.contains(&(grant, client))
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

    #[test]
    fn a_grant_is_in_transition_from_its_request_to_its_guard_and_from_its_release_on() {
        let (grant, client, other) = (
            random_grant_id().unwrap(),
            ClientNumber::next(),
            ClientNumber::next(),
        );
        let requested = OwnGrant::requested(grant, client);
        assert!(is_in_transition(grant, client) && !is_in_transition(grant, other));
        let held = OwnGrant::new(grant);
        drop(requested);
        assert!(!is_in_transition(grant, client) && is_own_grant(grant.as_str()));
        let releasing = Releasing::new(grant, client);
        drop(held);
        assert!(is_in_transition(grant, client) && !is_own_grant(grant.as_str()));
        drop(releasing);
        assert!(is_in_transition(grant, client) && !is_in_transition(grant, other));
        for _ in 0..RELEASED {
            drop(Releasing::new(random_grant_id().unwrap(), client));
        }
        assert!(!is_in_transition(grant, client), "it is forgotten");
    }

    #[test]
    fn a_grant_that_was_handed_over_is_not_in_transition() {
        let (grant, client) = (random_grant_id().unwrap(), ClientNumber::next());
        drop(OwnGrant::requested(grant, client));
        assert!(!is_in_transition(grant, client));
    }
}
