//! Background releases under way, and the wait for them at the end of a thread or process.
//!
//! The end of a process stops its background thread, with every release that is not sent yet.
//! `exit`, which a return from `main` calls too, runs the destructors of the calling thread's
//! thread-local values and then the `atexit` handlers, while other threads keep running. So a
//! thread that drops a guard or cancels an acquire gets a thread-local value whose destructor waits
//! for the releases under way. The `atexit` handler ([`process_exit`](super::process_exit))
//! releases the locks that any thread still holds.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use protocol::BootInstant;

use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::{ForkSafe, PerProcess};

/// The longest wait at the end of a thread, and at that of the process.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The pauses of that wait. It polls, since most synchronization is not available in a thread-local
/// destructor.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);
/// The destructors of the thread that ends a process run this shortly before the `atexit` handlers.
const SAME_END: Duration = Duration::from_secs(1);

/// The releases of one [`Client`](crate::client::Client) that are under way.
#[derive(Debug, Default)]
pub(crate) struct PendingReleases(Arc<()>);

impl PendingReleases {
    /// Begin a release. The end of this thread then waits for it.
    pub(crate) fn begin(&self) -> PendingRelease {
        watch_this_thread();
        PendingRelease {
            _of_client: Arc::clone(&self.0),
            _of_process: ForkSafe::new(ReleaseNumber::begin()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// A release that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct PendingRelease {
    _of_client: Arc<()>,
    _of_process: ForkSafe<ReleaseNumber>,
}

/// The numbers of the releases of this process that are under way, in order of their start.
#[derive(Default)]
struct UnderWay {
    numbers: BTreeSet<u64>,
    next: u64,
    /// The latest wait that gave up: when, and on which releases, those below this number.
    given_up: Option<(BootInstant, u64)>,
}

impl UnderWay {
    /// Whether a wait that gives up at this number has to go on.
    ///
    /// It skips what another wait has just given up on. Otherwise a thread that ends the process
    /// would wait twice: in the destructor of its thread-local value, and in the `atexit` handler.
    fn is_pending_below(&self, end: u64, now: BootInstant) -> bool {
        let first = match self.given_up {
            Some((at, number)) if now < at + SAME_END => number,
            _ => 0,
        };
        let oldest = self.numbers.range(first..).next();
        oldest.is_some_and(|oldest| *oldest < end)
    }
}

fn under_way() -> MutexGuard<'static, UnderWay> {
    static UNDER_WAY: PerProcess<Mutex<UnderWay>> = PerProcess::new();
    UNDER_WAY.lock()
}

/// The number of a release that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct ReleaseNumber(u64);

impl ReleaseNumber {
    pub(crate) fn begin() -> Self {
        let mut under_way = under_way();
        let number = under_way.next;
        under_way.next += 1;
        under_way.numbers.insert(number);
        Self(number)
    }
}

impl Drop for ReleaseNumber {
    fn drop(&mut self) {
        under_way().numbers.remove(&self.0);
    }
}

thread_local! {
    static AT_END: AtEnd = const { AtEnd };
}

/// Waits for pending releases when its thread ends, or when its thread ends the process.
struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        // The background thread carries the releases out: waiting on it would deadlock.
        if !runtime::drives_background() {
            wait();
        }
    }
}

/// Make the end of this thread wait for pending releases; `false` if the thread is already past it.
pub(crate) fn watch_this_thread() -> bool {
    AT_END.try_with(|_| ()).is_ok()
}

/// Called after a guard was dropped, possibly by the destructor of another thread-local value.
pub(crate) fn guard_dropped() {
    if !watch_this_thread() && !runtime::drives_background() {
        wait();
    }
}

/// Wait until the releases under way now are done, for at most [`MAX_WAIT`].
pub(crate) fn wait() {
    let mut left = MAX_WAIT;
    // Two passes: a cancelled acquire starts its release only when it notices that it was
    // cancelled.
    for _ in 0..2 {
        let end = under_way().next;
        let mut pause = FIRST_PAUSE;
        while under_way().is_pending_below(end, clock::now()) {
            if left.is_zero() {
                under_way().given_up = Some((clock::now(), end));
                return;
            }
            sleep(pause);
            left = left.saturating_sub(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "it is not the background thread, and this one ends"
)]
fn sleep(pause: Duration) {
    std::thread::sleep(pause);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_does_not_wait_again_for_what_the_end_of_its_thread_gave_up_on() {
        let (now, later) = (clock::now(), Duration::from_secs(60));
        let mut under_way = UnderWay {
            numbers: [3, 5].into(),
            next: 6,
            given_up: Some((now, 4)),
        };
        assert!(!under_way.is_pending_below(5, now), "3 was given up on");
        assert!(under_way.is_pending_below(6, now), "5 is new");
        assert!(under_way.is_pending_below(4, now + later), "another end");
        under_way.given_up = None;
        assert!(under_way.is_pending_below(4, now));
        assert!(!under_way.is_pending_below(3, now));
    }
}
