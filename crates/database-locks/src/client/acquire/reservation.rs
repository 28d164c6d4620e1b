//! Keeps a wait for several locks from starving: for a time, other waiters of this process let it
//! go first.
//!
//! Each of the locks may be free often, and all of them never at once. So a wait for several
//! *reserves* its locks from time to time, within this process alone: callers that want one of them
//! then wait, as long as they do not give up, while holders end their work. In the database nothing
//! is held.
//!
//! The reservations take a quarter of the time, and grow with the wait, so that holders that hold
//! for longer end within one too. A wait for several lets the reservations of older waits go first.
//! They end by themselves, so no two waits can block each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::queue::Queues;
use crate::runtime::clock;
use protocol::{BootInstant, LockName};

/// A wait that lasts for less reserves nothing.
const FIRST: Duration = Duration::from_millis(200);
/// The longest time from one reservation to the next.
const LONGEST_PERIOD: Duration = Duration::from_secs(40);
/// A reservation takes this part of the period that it begins.
const PART: u32 = 4;

/// The reservations of one wait. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Reservation {
    queues: Queues,
    names: Vec<LockName>,
    /// Grows from wait to wait.
    number: u64,
    since: BootInstant,
    active: bool,
    wake: Arc<Notify>,
}

/// Whether a wait that has lasted for `waited` reserves its locks, and how long it goes on so.
fn phase(waited: Duration) -> (bool, Duration) {
    if waited < FIRST {
        return (false, FIRST - waited);
    }
    let (mut begin, mut period) = (FIRST, FIRST);
    while waited >= begin + period {
        begin += period;
        period = (period * 2).min(LONGEST_PERIOD);
    }
    let (within, reserved) = (waited - begin, period / PART);
    match reserved.checked_sub(within) {
        Some(left) if !left.is_zero() => (true, left),
        _ => (false, period - within),
    }
}

impl Reservation {
    pub(super) fn new(queues: &Queues, names: Vec<LockName>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self {
            queues: queues.clone(),
            names,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            since: clock::now(),
            active: false,
            wake: Arc::default(),
        }
    }

    /// Begin or end a reservation if it is time. Returns whether there is one, and how long it is
    /// until the next change.
    pub(super) fn update(&mut self) -> (bool, Duration) {
        let now = clock::now();
        let (active, left) = phase(now - self.since);
        if active && !self.active {
            self.queues
                .reserve(&self.names, self.number, now + left, &self.wake);
        } else if self.active && !active {
            self.queues.end_reservation(&self.names, self.number);
        }
        self.active = active;
        (active, left)
    }

    /// How long the locks are reserved for older waits.
    pub(super) fn by_older(&self) -> Duration {
        let names = self.names.iter();
        let left = names.map(|name| self.queues.reserved(name, self.number));
        left.max().unwrap_or_default()
    }

    /// Wait until a lock that is reserved may be free.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.active {
            self.queues.end_reservation(&self.names, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn reservations_grow_with_the_wait_and_take_a_quarter_of_the_time() {
        assert_eq!(phase(ms(0)), (false, ms(200)));
        assert_eq!(phase(ms(200)), (true, ms(50)));
        assert_eq!(phase(ms(250)), (false, ms(150)));
        assert_eq!(phase(ms(400)), (true, ms(100)));
        let (mut at, mut reserved, mut longest) = (ms(200), Duration::ZERO, Duration::ZERO);
        while at < Duration::from_secs(3_600) {
            let (active, left) = phase(at);
            assert!(!left.is_zero());
            if active {
                reserved += left;
                longest = longest.max(left);
            }
            at += left;
        }
        let part = reserved.as_secs_f64() / at.as_secs_f64();
        assert!((0.24..0.26).contains(&part), "{part}");
        assert_eq!(longest, LONGEST_PERIOD / PART);
    }

    #[tokio::test]
    async fn a_reserved_lock_holds_back_single_waiters_and_younger_waits_for_several() {
        let queues = Queues::default();
        let names: Vec<LockName> = ["a", "b"].map(|name| LockName::new(name).unwrap()).into();
        let slot = queues.join(&names[0]);
        let reservation = |since| {
            let mut reservation = Reservation::new(&queues, names.clone());
            reservation.since = since;
            reservation
        };
        let now = clock::now();
        let (mut older, younger) = (reservation(now - ms(55_000)), reservation(now));
        assert!(slot.head_start().is_zero() && !queues.is_busy(&names[1]));
        assert!(older.update().0);
        assert!(!slot.head_start().is_zero() && queues.is_busy(&names[1]));
        assert!(!younger.by_older().is_zero() && older.by_older().is_zero());
        // A caller that tries once is not held back.
        assert!(queues.head_start(&names[1]).is_zero());
        queues.wake(&names[1]);
        older.woken().await;
        drop(older);
        assert!(slot.head_start().is_zero() && !queues.is_busy(&names[1]));
        slot.woken().await;
    }
}
