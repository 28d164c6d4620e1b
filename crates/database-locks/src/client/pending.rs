//! Releases that are carried out in the background, and the ends of threads and of the process, which
//! wait for them.
//!
//! A process that ends takes its background thread with it, and what that had not sent yet. `exit`,
//! which a return from `main` calls too, runs the destructors of the thread-local values of the thread
//! that calls it, and then what was registered with `atexit`, while the other threads go on. So a thread
//! that drops a guard or gives an acquire up has a thread-local value whose destructor waits; and what is
//! registered releases what any thread still holds, whichever threads have used the library.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::runtime;
use crate::runtime::fork::{Here, PerProcess};

/// The most that the end of a thread waits.
const MOST: Duration = Duration::from_secs(2);
/// The pauses of that wait. A thread-local destructor can count on little more than sleeping.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// A clone exists for as long as one release takes: [`Inner`](crate::client::Inner) has the first.
pub(crate) struct Pending {
    /// Counted by the sender.
    receiver: watch::Receiver<()>,
    _release: Option<Here<Release>>,
}

impl Pending {
    pub(crate) fn new(receiver: watch::Receiver<()>) -> Self {
        Self {
            receiver,
            _release: None,
        }
    }
}

impl Clone for Pending {
    fn clone(&self) -> Self {
        watch_this_thread();
        Self {
            receiver: self.receiver.clone(),
            _release: Some(Here::new(Release::begin())),
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

/// The releases of this process that are under way, numbered as they begin.
#[derive(Default)]
struct UnderWay {
    numbers: BTreeSet<u64>,
    next: u64,
}

fn under_way() -> MutexGuard<'static, UnderWay> {
    static UNDER_WAY: PerProcess<Mutex<UnderWay>> = PerProcess::new();
    let Ok(under_way) = UNDER_WAY.get_or_try_init(|| Ok::<_, Infallible>(Mutex::default()));
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One release, until it is dropped.
pub(crate) struct Release(u64);

impl Release {
    pub(crate) fn begin() -> Self {
        let mut under_way = under_way();
        let number = under_way.next;
        under_way.next += 1;
        under_way.numbers.insert(number);
        Self(number)
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        under_way().numbers.remove(&self.0);
    }
}

thread_local! {
    static AT_END: AtEnd = const { AtEnd };
}

/// Dropped when its thread ends, or when that thread ends the process.
struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        // The thread that carries the releases out would wait for itself.
        if !runtime::drives() {
            wait();
        }
    }
}

/// From now on the end of this thread waits. Whether it has not come already.
pub(crate) fn watch_this_thread() -> bool {
    AT_END.try_with(|_| ()).is_ok()
}

/// A guard was dropped, by the destructor of another thread-local value perhaps.
pub(crate) fn guard_dropped() {
    if !watch_this_thread() && !runtime::drives() {
        wait();
    }
}

/// Wait until the releases that are under way now are done, for [`MOST`].
pub(crate) fn wait() {
    let mut left = MOST;
    // Some begin others: an acquire that was given up begins its release when it has noticed that.
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
