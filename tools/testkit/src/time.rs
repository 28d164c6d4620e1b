//! Waiting with a bound.
#![allow(
    clippy::disallowed_methods,
    reason = "the ban protects leases from a clock that stops; a test measures its own waits"
)]

use std::time::{Duration, Instant};

/// The poll interval: short beside the bounds of tests, long beside one check.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The time by this process's monotonic clock, to measure how long something took.
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds.
pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Blocks this thread.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// Calls `look` until it finds something or `within` has passed.
///
/// Calls it at least once, and once more at the end: on a busy machine the thread may sleep for
/// longer than `within`.
pub fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = now();
    loop {
        let late = start.elapsed() >= within;
        let found = look();
        if found.is_some() || late {
            return found;
        }
        sleep(POLL_INTERVAL);
    }
}

/// Waits until `done` is true; whether it was before `within` had passed.
pub fn wait_until(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    poll(within, || done().then_some(())).is_some()
}
