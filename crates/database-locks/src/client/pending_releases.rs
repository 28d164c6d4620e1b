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

use crate::runtime;
use crate::runtime::fork::{ForkSafe, PerProcess};

/// The longest wait at the end of a thread.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The pauses of that wait. It polls, since most synchronization is not available in a thread-local
/// destructor.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

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
        while under_way()
            .numbers
            .first()
            .is_some_and(|oldest| *oldest < end)
        {
            if left.is_zero() {
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
