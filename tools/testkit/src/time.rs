//! Waiting with a bound.
#![allow(
    clippy::disallowed_methods,
    reason = "the ban protects leases from a clock that stops and a thread that blocks; a test \
              bounds its own patience and has a thread of its own"
)]

use std::time::{Duration, Instant};

/// How often [`poll`] looks: short beside any bound a test sets, long beside one look.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The time by this process's monotonic clock, to measure how long something took.
pub fn now() -> Instant {
    Instant::now()
}

/// Block this thread.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// Look again and again until `look` finds something or `within` has passed.
///
/// Looks at least once, and once more at the very end: on a busy machine a thread
/// may be away for longer than its bound, and the thing has happened meanwhile.
pub fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = now();
    loop {
        let late = start.elapsed() >= within;
        let found = look();
        if found.is_some() || late {
            return found;
        }
        sleep(LOOK_EVERY);
    }
}

/// Wait until `done` says yes; whether it did before `within` had passed.
pub fn wait_until(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    poll(within, || done().then_some(())).is_some()
}
