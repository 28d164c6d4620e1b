//! Looking at locks that others have, where no release is announced: one look for all of them.
//!
//! Each waiter says when he wants the next look at his lock. Whoever's time comes first looks for all
//! those whose pause is at least half over: of a hundred locks that a process waits for, all are in one
//! read-only statement, and soon they are always. A lone waiter looks for himself, at once and in his
//! own task.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::{self, Time};
use crate::name::LockName;
use crate::store::{Observed, Occupant, StoreError};

/// How many are looked at together at most: a statement should not take longer than a waiter minds.
const MOST: usize = 1_000;

/// Who has it; none: nobody does as it seems.
type Seen = Result<Option<Occupant>, StoreError>;

/// Those who wait for a look.
#[derive(Debug)]
pub(crate) struct Looks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Observed,
    within: Duration,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    slots: Vec<Slot>,
}

struct Slot {
    id: u64,
    name: LockName,
    /// From when on a look of somebody else comes as well.
    from: Time,
    tell: oneshot::Sender<Seen>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.id, &self.name, self.from).fmt(f)
    }
}

impl Looks {
    /// `within`: how long each look may take.
    pub(crate) fn new(store: Observed, within: Duration) -> Self {
        Self(Arc::new(Shared {
            store,
            within,
            waiting: Mutex::default(),
        }))
    }

    /// Look at a lock after `pause`, or with others when half of it is over.
    ///
    /// # Errors
    ///
    /// Those of the store.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it looks no more; those for whom it looked too get their answers.
    pub(crate) async fn next(&self, name: &LockName, pause: Duration) -> Seen {
        let (tell, mut seen) = oneshot::channel();
        let from = clock::now().saturating_add(pause / 2);
        let place = self.0.join(name.clone(), from, tell);
        let seen = tokio::select! {
            biased;
            seen = &mut seen => seen,
            () = tokio::time::sleep(pause) => {
                let due = self.0.waiting().take(place.id, clock::now());
                match due.len() {
                    // Somebody is just looking for us.
                    0 => {}
                    1 => self.0.look(due).await,
                    _ => drop(tokio::spawn(Arc::clone(&self.0).look_for_all(due))),
                }
                seen.await
            }
        };
        // Whoever looked has stopped, with the runtime.
        seen.unwrap_or_else(|_| Err(StoreError::Unavailable("it was not asked".into())))
    }
}

/// A slot; dropping it gives it up.
struct Place<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared
            .waiting()
            .slots
            .retain(|slot| slot.id != self.id);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, name: LockName, from: Time, tell: oneshot::Sender<Seen>) -> Place<'_> {
        let mut waiting = self.waiting();
        waiting.last += 1;
        let id = waiting.last;
        let slot = Slot {
            id,
            name,
            from,
            tell,
        };
        waiting.slots.push(slot);
        Place { shared: self, id }
    }

    async fn look_for_all(self: Arc<Self>, due: Vec<Slot>) {
        self.look(due).await;
    }

    async fn look(&self, due: Vec<Slot>) {
        let (names, tell): (Vec<LockName>, Vec<_>) =
            due.into_iter().map(|slot| (slot.name, slot.tell)).unzip();
        let seen: Vec<Seen> = match self.store.look(&names, self.within).await {
            Ok(seen) => seen.into_iter().map(Ok).collect(),
            Err(failure) => names.iter().map(|_| Err(failure.again())).collect(),
        };
        for (tell, seen) in tell.into_iter().zip(seen) {
            // He may have gone away.
            let _ = tell.send(seen);
        }
    }
}

impl Waiting {
    /// The one whose time has come, and those whose look it can be. None: somebody else has taken it.
    fn take(&mut self, id: u64, now: Time) -> Vec<Slot> {
        let Some(at) = self.slots.iter().position(|slot| slot.id == id) else {
            return Vec::new();
        };
        let mut due = vec![self.slots.swap_remove(at)];
        let others = self.slots.extract_if(.., |slot| slot.from <= now);
        due.extend(others.take(MOST - 1));
        due
    }
}
