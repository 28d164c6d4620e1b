//! The queues of this process: the waiters for each lock, first in, first out.
//!
//! Only the first waiter of a queue queries the database; of a semaphore as many as permits were
//! released within the process. They are woken by such a release and by a notification.
//! [`HeadStart`] decides when the first may try, and when a new caller may.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::runtime::clock;
use protocol::{BootInstant, LockName, Token};

use crate::client::acquire::head_start::{HeadStart, Waiters};

/// The number of names that are kept without cleaning up.
const MIN_NAMES: usize = 1_024;

/// The queues of one [`Locks`](crate::Locks), by lock name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues(Arc<Mutex<Names>>);

#[derive(Debug, Default)]
struct Names {
    queues: HashMap<LockName, Queue>,
    /// The number of names after the last clean-up. The next one follows at twice as many, so that
    /// its cost per operation is constant.
    kept: usize,
}

/// The queue of one lock, kept for some time after its last release.
#[derive(Debug, Default)]
struct Queue {
    slots: VecDeque<Arc<Notify>>,
    /// How many permits this process has released and not acquired again since the queue was empty,
    /// or since no permit was free. So many waiters ask at once. 0 for a lock.
    free: usize,
    /// A guard of this process holds the lock, and its release wakes the first waiter.
    held_here: bool,
    head_start: HeadStart,
    /// The token of the latest grant that this process released.
    token: Option<Token>,
    /// The waits for several locks, this one among them, that go first.
    reservations: Vec<Reserved>,
}

/// The lock is reserved for a wait for several locks: see [`Reservation`](super::reservation).
#[derive(Debug)]
struct Reserved {
    by: u64,
    until: BootInstant,
    wake: Arc<Notify>,
}

impl Queue {
    fn wake(&self) {
        for first in self.slots.iter().take(self.free.max(1)) {
            first.notify_one();
        }
        for reserved in &self.reservations {
            reserved.wake.notify_one();
        }
    }

    /// How long the lock is reserved for waits that are older than the one with this number.
    fn reserved(&self, number: u64, now: BootInstant) -> Duration {
        let older = self.reservations.iter().filter(|it| it.by < number);
        let left = older.map(|reserved| reserved.until - now);
        left.max().unwrap_or_default()
    }

    /// How long a waiter for this lock alone still lets others try.
    fn left(&self, now: BootInstant) -> Duration {
        self.head_start.left(now).max(self.reserved(u64::MAX, now))
    }
}

impl Names {
    fn queue(&mut self, name: &LockName, now: BootInstant) -> &mut Queue {
        if self.queues.len() > 2 * self.kept.max(MIN_NAMES) {
            self.queues.retain(|_, queue| {
                !queue.slots.is_empty()
                    || !queue.reservations.is_empty()
                    || queue.head_start.is_recent(now)
            });
            self.kept = self.queues.len();
        }
        self.queues.entry(name.clone()).or_default()
    }
}

impl Queues {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run `change` on the queue of this lock, if there is one.
    fn with<T>(&self, name: &LockName, change: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.names().queues.get_mut(name).map(change)
    }

    /// How long this process lets other processes try first.
    pub(crate) fn head_start(&self, name: &LockName) -> Duration {
        let left = self.with(name, |queue| queue.head_start.left(clock::now()));
        left.unwrap_or_default()
    }

    /// Whether a new caller has to join the queue before it tries.
    pub(crate) fn is_busy(&self, name: &LockName) -> bool {
        let busy = self.with(name, |queue| {
            !queue.slots.is_empty() || !queue.left(clock::now()).is_zero()
        });
        busy.unwrap_or_default()
    }

    /// Reserve these locks until then for the wait for several with this number, which is woken
    /// when one of them may be free.
    pub(super) fn reserve(
        &self,
        names: &[LockName],
        by: u64,
        until: BootInstant,
        wake: &Arc<Notify>,
    ) {
        let (now, mut all) = (clock::now(), self.names());
        for name in names {
            let wake = Arc::clone(wake);
            let reserved = Reserved { by, until, wake };
            all.queue(name, now).reservations.push(reserved);
        }
    }

    /// End a reservation, and wake the waiters that it held back.
    pub(super) fn end_reservation(&self, names: &[LockName], by: u64) {
        for name in names {
            self.with(name, |queue| {
                queue.reservations.retain(|reserved| reserved.by != by);
                queue.wake();
            });
        }
    }

    /// How long this lock is reserved for waits for several that are older than this one.
    pub(super) fn reserved(&self, name: &LockName, number: u64) -> Duration {
        let left = self.with(name, |queue| queue.reserved(number, clock::now()));
        left.unwrap_or_default()
    }

    /// Join the queue at its end.
    pub(crate) fn join(&self, name: &LockName) -> QueueSlot {
        let slot = QueueSlot {
            queues: self.clone(),
            name: name.clone(),
            wake: Arc::default(),
        };
        let mut names = self.names();
        let queue = names.queue(name, clock::now());
        queue.slots.push_back(Arc::clone(&slot.wake));
        slot
    }

    /// Wake the first waiter, because the lock may be free.
    pub(crate) fn wake(&self, name: &LockName) {
        self.with(name, |queue| queue.wake());
    }

    /// This process released a permit: one more waiter may ask.
    pub(crate) fn permit_released(&self, name: &LockName) {
        self.with(name, |queue| {
            queue.free = (queue.free + 1).min(queue.slots.len());
            queue.wake();
        });
    }

    /// This process acquired a permit.
    pub(crate) fn permit_acquired(&self, name: &LockName) {
        self.with(name, |queue| queue.free = queue.free.saturating_sub(1));
    }

    /// No permit was free.
    pub(crate) fn no_permit_free(&self, name: &LockName) {
        self.with(name, |queue| queue.free = 0);
    }

    /// Wake the first waiter of each queue, because notifications may have been missed.
    pub(crate) fn wake_all(&self) {
        self.names().queues.values().for_each(Queue::wake);
    }

    /// The database backend `by` of another process released the lock. `None`: the release may be
    /// one of this process.
    pub(crate) fn notified(&self, name: &LockName, by: Option<i32>) {
        self.with(name, |queue| {
            queue.head_start.notified(by, clock::now());
            queue.wake();
        });
    }

    /// A caller of this process has acquired the lock.
    pub(crate) fn acquired(&self, name: &LockName) {
        self.with(name, |queue| queue.held_here = true);
    }

    /// Another process was seen to hold the lock.
    pub(crate) fn held_elsewhere(&self, name: &LockName) {
        self.with(name, |queue| {
            queue.held_here = false;
            queue.head_start.held_elsewhere(clock::now());
        });
    }

    /// The token that the row still has if no other process acquired the lock in the last pause.
    /// `None` if there is nothing to check.
    pub(crate) fn probe(&self, name: &LockName) -> Option<Token> {
        self.with(name, |queue| {
            queue.token.filter(|_| queue.head_start.take_probe())
        })
        .flatten()
    }

    /// This process released the lock after holding it for `held_for`.
    pub(crate) fn released(
        &self,
        name: &LockName,
        token: Option<Token>,
        waiters: Waiters,
        held_for: Duration,
    ) {
        let now = clock::now();
        let mut names = self.names();
        let queue = match waiters {
            Waiters::None => names.queues.get_mut(name),
            Waiters::Notified | Waiters::Poll => Some(names.queue(name, now)),
        };
        if let Some(queue) = queue {
            (queue.held_here, queue.token) = (false, token);
            queue.head_start.released(waiters, held_for, now);
            queue.wake();
        }
    }

    /// No guard of this process holds the lock any more, without a release in the database.
    pub(crate) fn left(&self, name: &LockName) {
        self.with(name, |queue| {
            queue.held_here = false;
            queue.wake();
        });
    }
}

/// A place in a queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct QueueSlot {
    queues: Queues,
    name: LockName,
    wake: Arc<Notify>,
}

impl QueueSlot {
    /// Wait until this slot is the first, or one of the first of a semaphore; returns whether it was
    /// so at once.
    pub(crate) async fn is_first(&self) -> bool {
        let mut at_once = true;
        while !self.is_front() {
            at_once = false;
            self.woken().await;
        }
        at_once
    }

    pub(super) fn is_front(&self) -> bool {
        let front = self.queues.with(&self.name, |queue| {
            let mut first = queue.slots.iter().take(queue.free.max(1));
            first.any(|first| Arc::ptr_eq(first, &self.wake))
        });
        front.unwrap_or_default()
    }

    /// Wait until the lock may be free.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Wait until the lock may be free, for at most `pause`.
    pub(crate) async fn woken_within(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.woken()).await;
    }

    /// Discard pending wake-ups: the next try is sent after them.
    pub(crate) fn clear(&self) {
        pin!(self.wake.notified()).enable();
    }

    /// Whether a guard of this process holds the lock, so that a try would fail.
    pub(crate) fn is_held_here(&self) -> bool {
        let held = self.queues.with(&self.name, |queue| queue.held_here);
        held.unwrap_or_default()
    }

    /// How long the waiter still lets others try: other processes, see [`Queues::head_start`], and
    /// waits for several locks.
    pub(crate) fn head_start(&self) -> Duration {
        let left = self
            .queues
            .with(&self.name, |queue| queue.left(clock::now()));
        left.unwrap_or_default()
    }

    pub(super) fn name(&self) -> &LockName {
        &self.name
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.queues.with(&self.name, |queue| {
            queue.slots.retain(|slot| !Arc::ptr_eq(slot, &self.wake));
            queue.held_here &= !queue.slots.is_empty();
            queue.free = queue.free.min(queue.slots.len());
            queue.wake();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> (Queues, LockName) {
        (Queues::default(), LockName::new("job").unwrap())
    }

    async fn is_woken(slot: &QueueSlot) -> bool {
        tokio::time::timeout(Duration::from_millis(20), slot.woken())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_queue_moves_up_in_order() {
        let (queues, name) = job();
        let [first, second, third] = [(); 3].map(|()| queues.join(&name));
        assert!(first.is_first().await);
        assert!(!second.is_front());
        drop(second);
        drop(first);
        third.is_first().await;
        assert!(queues.is_busy(&name));
        drop(third);
        assert!(!queues.is_busy(&name));
    }

    #[tokio::test]
    async fn a_release_and_a_notification_wake_the_first_waiter_alone() {
        let (queues, name) = job();
        let (first, second) = (queues.join(&name), queues.join(&name));
        queues.released(&name, None, Waiters::None, Duration::ZERO);
        assert!(is_woken(&first).await && !is_woken(&second).await);
        assert!(first.head_start().is_zero(), "it is handed on directly");
        queues.notified(&name, Some(1));
        first.clear();
        assert!(!is_woken(&first).await, "a later try answers it");
        queues.wake_all();
        assert!(is_woken(&first).await && !is_woken(&second).await);
    }

    #[tokio::test]
    async fn as_many_waiters_ask_as_permits_were_released() {
        let (queues, name) = job();
        let slots = [(); 4].map(|()| queues.join(&name));
        let first = |slots: &[QueueSlot]| slots.iter().filter(|slot| slot.is_front()).count();
        assert_eq!(first(&slots), 1);
        for _ in 0..3 {
            queues.permit_released(&name);
        }
        assert_eq!(first(&slots), 3);
        assert!(is_woken(&slots[2]).await && !is_woken(&slots[3]).await);
        queues.permit_acquired(&name);
        let [granted, rest @ ..] = slots;
        drop(granted);
        assert!(rest[1].is_front() && !rest[2].is_front());
        queues.no_permit_free(&name);
        assert!(rest[0].is_front() && !rest[1].is_front());
        for _ in 0..9 {
            queues.permit_released(&name);
        }
        drop(rest);
        assert_eq!(queues.names().queues[&name].free, 0);
    }

    #[test]
    fn a_new_caller_queues_while_others_have_a_head_start() {
        let (queues, name) = job();
        assert!(!queues.is_busy(&name));
        queues.released(&name, None, Waiters::Notified, Duration::ZERO);
        // So many others go first that there is time to look.
        (0..50).for_each(|other| queues.notified(&name, Some(other)));
        queues.released(&name, None, Waiters::Notified, Duration::ZERO);
        assert!(queues.is_busy(&name) && !queues.head_start(&name).is_zero());
    }

    #[test]
    fn the_first_waiter_need_not_ask_for_what_this_process_holds() {
        let (queues, name) = job();
        let (first, second) = (queues.join(&name), queues.join(&name));
        queues.acquired(&name);
        drop(first);
        assert!(second.is_held_here());
        queues.left(&name);
        assert!(!second.is_held_here());
        queues.acquired(&name);
        queues.released(&name, None, Waiters::None, Duration::ZERO);
        assert!(!second.is_held_here());
        queues.acquired(&name);
        queues.held_elsewhere(&name);
        assert!(!second.is_held_here());
    }

    #[test]
    fn old_names_are_forgotten() {
        let (queues, name) = job();
        let _waits = queues.join(&name);
        let mut names = queues.names();
        let mut now = BootInstant::from_boot(Duration::from_secs(100));
        for i in 0..50_000 {
            // Some 4,000 of them are recent at any time.
            now += Duration::from_millis(1);
            let name = LockName::new(format!("job {i}")).unwrap();
            let queue = names.queue(&name, now);
            queue
                .head_start
                .released(Waiters::Poll, Duration::ZERO, now);
        }
        assert!(names.queues.len() <= 3 * 4_000, "{}", names.queues.len());
        assert!(names.queues.contains_key(&name), "it is waited for");
    }
}
