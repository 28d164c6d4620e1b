//! Polls held locks where releases are not notified, with one statement for all of them.
//!
//! After a part of its pause each waiter registers here for the rest of it. The first waiter whose
//! pause ends polls for all registered waiters in one read-only statement. The waiters of a process
//! thus soon poll together. A single waiter polls in its own task.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::store::{api::StoreError, measured::Measured};
use protocol::{Holder, LockName, REQUEST_TIMEOUT};

/// A waiter registers after this part of its pause: a quarter. In the first part, the poll of
/// another waiter would be too early for it.
///
/// Jitter shortens pauses down to 0.6 of the longest. If two groups of waiters poll in alternation,
/// one of them is at least 0.3 of a pause behind the other. After a quarter they merge; after a
/// half they might not.
pub(super) const UNREGISTERED_PART: u32 = 4;
/// The largest number of locks a poll, which bounds the duration of one statement.
const MAX_BATCH: usize = 1_000;

/// The result of a poll: the holder, or `None` if the lock seems free.
pub(super) type Polled = Result<Option<Holder>, StoreError>;

/// The waiters registered for a poll.
#[derive(Debug)]
pub(crate) struct Poller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Measured,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    name: LockName,
    reply: oneshot::Sender<Polled>,
}

impl Poller {
    pub(crate) fn new(store: Measured) -> Self {
        Self(Arc::new(Shared {
            store,
            waiting: Mutex::default(),
        }))
    }

    /// Poll a lock after `pause`, or earlier together with the poll of another waiter.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels its own poll only: other waiters of the same statement get their
    /// answers.
    pub(crate) async fn next(&self, name: &LockName, pause: Duration) -> Polled {
        let (reply, mut seen) = oneshot::channel();
        let slot = self.0.join(name.clone(), reply);
        let seen = tokio::select! {
            biased;
            seen = &mut seen => seen,
            () = tokio::time::sleep(pause) => {
                let due = self.0.waiting().take(slot.id);
                match due.len() {
                    // Another waiter is polling for this one.
                    0 => {}
                    1 => self.0.poll(due).await,
                    _ => {
                        let shared = Arc::clone(&self.0);
                        tokio::spawn(async move { shared.poll(due).await });
                    }
                }
                seen.await
            }
        };
        // The waiter that polled has stopped with the runtime.
        seen.unwrap_or_else(|_| Err(StoreError::Unavailable("the poll was not sent".into())))
    }
}

/// A registration, removed on drop.
struct PollSlot<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for PollSlot<'_> {
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

    fn join(&self, name: LockName, reply: oneshot::Sender<Polled>) -> PollSlot<'_> {
        let mut waiting = self.waiting();
        waiting.last += 1;
        let id = waiting.last;
        let slot = Slot { id, name, reply };
        waiting.slots.push(slot);
        PollSlot { shared: self, id }
    }

    async fn poll(&self, due: Vec<Slot>) {
        let (names, reply): (Vec<LockName>, Vec<_>) =
            due.into_iter().map(|slot| (slot.name, slot.reply)).unzip();
        let seen: Vec<Polled> = match self.store.holders(&names, REQUEST_TIMEOUT).await {
            Ok(seen) => seen.into_iter().map(Ok).collect(),
            Err(failure) => names.iter().map(|_| Err(failure.duplicate())).collect(),
        };
        for (reply, seen) in reply.into_iter().zip(seen) {
            // The waiter may have stopped waiting.
            let _ = reply.send(seen);
        }
    }
}

impl Waiting {
    /// Remove the slot whose pause has ended and the others to be polled with it. Empty if another
    /// waiter is already polling for it.
    fn take(&mut self, id: u64) -> Vec<Slot> {
        let Some(at) = self.slots.iter().position(|slot| slot.id == id) else {
            return Vec::new();
        };
        let mut due = vec![self.slots.remove(at)];
        due.extend(self.slots.drain(..self.slots.len().min(MAX_BATCH - 1)));
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::grant_id::random_grant_id;
    use crate::store::{self, connect::table::Table};
    use protocol::{AcquireCommand, Outcome};

    const LONG: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_millis(20);

    fn name(text: &str) -> LockName {
        LockName::new(text).unwrap()
    }

    /// A poller of a table in which the lock `held` is held.
    async fn poller(url: &str, held: &str) -> Arc<Poller> {
        let (store, engine) =
            store::open_given(&store::ConnectOptions::url(url), &Table::default()).unwrap();
        let store = Measured::new(store, engine);
        let ask = AcquireCommand {
            name: name(held),
            grant: random_grant_id().unwrap(),
            holder: "me".into(),
            length: LONG,
            not_within: None,
            metadata: "{}".into(),
            expired_version: None,
            kind: protocol::Kind::Exclusive,
        };
        let granted = store.acquire(&[ask], LONG).await.unwrap();
        assert!(matches!(granted[..], [Outcome::Granted { .. }]));
        Arc::new(Poller::new(store))
    }

    type Polling = tokio::task::JoinHandle<Option<String>>;

    async fn poll(poller: &Arc<Poller>, of: &str, pause: Duration) -> Polling {
        let (poller, of) = (Arc::clone(poller), name(of));
        let polling = tokio::spawn(async move {
            let seen = poller.next(&of, pause).await.unwrap();
            seen.map(|by| by.holder.unwrap())
        });
        tokio::task::yield_now().await;
        polling
    }

    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(test);
    }

    #[test]
    fn the_first_whose_time_comes_polls_for_all_and_each_gets_its_own_answer() {
        run(async {
            let poller = poller("memory:polls of all", "held").await;
            let mut late = Vec::new();
            for of in ["held", "free", "held"] {
                late.push(poll(&poller, of, LONG).await);
            }
            let first = poll(&poller, "another", SOON).await;
            assert_eq!(first.await.unwrap(), None);
            let mut holders = Vec::new();
            for polling in late {
                holders.push(polling.await.unwrap());
            }
            let me = || Some("me".to_owned());
            assert_eq!(holders, [me(), None, me()]);
            assert!(poller.0.waiting().slots.is_empty());
        });
    }

    #[test]
    fn a_waiter_that_goes_away_is_forgotten_and_the_others_poll_without_it() {
        run(async {
            let poller = poller("memory:polls of some", "held").await;
            let gone = poll(&poller, "held", SOON * 50).await;
            let stays = poll(&poller, "held", SOON * 100).await;
            gone.abort();
            assert!(gone.await.unwrap_err().is_cancelled());
            assert_eq!(poller.0.waiting().slots.len(), 1);
            assert_eq!(stays.await.unwrap().as_deref(), Some("me"));
        });
    }
}
