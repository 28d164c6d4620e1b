//! Looking at locks that others have, where no release is announced: one look for all of them.
//!
//! Once some of his pause is over a waiter stands here until the rest is. Whoever's time comes first looks
//! for all who stand here, with one read-only statement: of a hundred locks that a process waits for all
//! are soon in each of them. A lone waiter looks for himself, in his own task.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::name::LockName;
use crate::store::{Observed, Occupant, StoreError};

/// The part of a pause in which a look of somebody else would come too early to be of use.
///
/// The pauses of one age differ by jitter, down to 0.6 of the longest. Of two groups that look by turns
/// one is at least 0.3 of it behind the other: at a quarter they become one, at a half they might not.
pub(crate) const ALONE: u32 = 4;
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
    tell: oneshot::Sender<Seen>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.id, &self.name).fmt(f)
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

    /// Look at a lock at the latest after `pause`, or as soon as somebody looks at another.
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
        let place = self.0.join(name.clone(), tell);
        let seen = tokio::select! {
            biased;
            seen = &mut seen => seen,
            () = tokio::time::sleep(pause) => {
                let due = self.0.waiting().take(place.id);
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

    fn join(&self, name: LockName, tell: oneshot::Sender<Seen>) -> Place<'_> {
        let mut waiting = self.waiting();
        waiting.last += 1;
        let id = waiting.last;
        let slot = Slot { id, name, tell };
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
    fn take(&mut self, id: u64) -> Vec<Slot> {
        let Some(at) = self.slots.iter().position(|slot| slot.id == id) else {
            return Vec::new();
        };
        let mut due = vec![self.slots.remove(at)];
        due.extend(self.slots.drain(..self.slots.len().min(MOST - 1)));
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{self, Ask, Outcome, Table};
    use crate::token::GrantId;

    const LONG: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_millis(20);

    fn name(text: &str) -> LockName {
        LockName::new(text).unwrap()
    }

    /// Looks at a table in which this lock is held.
    async fn looks(url: &str, held: &str) -> Arc<Looks> {
        let (store, engine) =
            store::open_given(&store::Given::url(url), &Table::default()).unwrap();
        let store = Observed::new(store, engine);
        let ask = Ask {
            name: name(held),
            grant: GrantId::random().unwrap(),
            holder: "me".into(),
            length: LONG,
            metadata: "{}".into(),
            lapsed: None,
        };
        let granted = store.acquire(&[ask], LONG).await.unwrap();
        assert!(matches!(granted[..], [Outcome::Granted { .. }]));
        Arc::new(Looks::new(store, LONG))
    }

    type Looking = tokio::task::JoinHandle<Option<String>>;

    async fn look(looks: &Arc<Looks>, of: &str, pause: Duration) -> Looking {
        let (looks, of) = (Arc::clone(looks), name(of));
        let looking = tokio::spawn(async move {
            let seen = looks.next(&of, pause).await.unwrap();
            seen.map(|by| by.holder.unwrap())
        });
        tokio::task::yield_now().await;
        looking
    }

    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(test);
    }

    #[test]
    fn the_first_whose_time_comes_looks_for_all_and_each_gets_his_own_answer() {
        run(async {
            let looks = looks("memory:looks of all", "held").await;
            let mut late = Vec::new();
            for of in ["held", "free", "held"] {
                late.push(look(&looks, of, LONG).await);
            }
            let first = look(&looks, "another", SOON).await;
            assert_eq!(first.await.unwrap(), None);
            let mut holders = Vec::new();
            for looking in late {
                holders.push(looking.await.unwrap());
            }
            let me = || Some("me".to_owned());
            assert_eq!(holders, [me(), None, me()]);
            assert!(looks.0.waiting().slots.is_empty());
        });
    }

    #[test]
    fn who_goes_away_is_forgotten_and_the_others_look_without_him() {
        run(async {
            let looks = looks("memory:looks of some", "held").await;
            let gone = look(&looks, "held", SOON).await;
            let stays = look(&looks, "held", SOON * 2).await;
            gone.abort();
            assert!(gone.await.unwrap_err().is_cancelled());
            assert_eq!(looks.0.waiting().slots.len(), 1);
            assert_eq!(stays.await.unwrap().as_deref(), Some("me"));
        });
    }
}
