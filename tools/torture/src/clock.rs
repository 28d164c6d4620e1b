//! The clock of the histories.

use rustix::time::{ClockId, clock_gettime};

/// Microseconds by the machine's boot-time clock: the same for all its processes, and true through a
/// suspend. Asked of the kernel itself, so that a library that fakes clocks does not reach it.
pub fn now() -> u64 {
    micros(ClockId::Boottime)
}

/// How far the wall clock that this process is shown is from the machine's, in seconds.
pub fn skew() -> i64 {
    #[allow(
        clippy::disallowed_methods,
        reason = "whether it is wrong is what is asked"
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
