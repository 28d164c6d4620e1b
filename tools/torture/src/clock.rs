//! The clock of the histories.

use rustix::time::{ClockId, clock_gettime};

/// Microseconds of the boot-time clock, which is the same for all processes of the machine and
/// counts through a suspend. A direct system call: faketime does not change it.
pub fn now() -> u64 {
    micros(ClockId::Boottime)
}

/// By how many seconds the wall clock of this process differs from the machine's.
pub fn skew() -> i64 {
    #[allow(
        clippy::disallowed_methods,
        reason = "the wall clock is what is examined"
    )]
    let shown = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64);
    (shown - micros(ClockId::Realtime) as i64) / 1_000_000
}

fn micros(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
