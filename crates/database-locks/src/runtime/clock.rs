//! The clock for trust, and the only source of time in this crate.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use protocol::BootInstant;

/// A clock that counts while the machine is suspended.
///
/// On Linux `std::time::Instant` stops during a suspend: after an hour of it, a laptop would trust
/// leases that ended fifty-nine minutes ago.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
/// The monotonic clock, which on macOS counts while the machine is suspended.
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// The present time.
pub(crate) fn now() -> BootInstant {
    let t = clock_gettime(CLOCK);
    BootInstant::from_boot(Duration::new(
        t.tv_sec.unsigned_abs(),
        t.tv_nsec.unsigned_abs() as u32,
    ))
}

/// The longest sleep without reading the clock.
///
/// The runtime's timers use a clock that stops during a suspend. After one, tasks that wait for the
/// loss of an expired lease notice it at most this much later. A guard that is read reports it at
/// once.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Sleep until `then`. A suspend of the machine counts.
pub(crate) async fn sleep_until(then: BootInstant) {
    loop {
        let left = then - now();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

/// Sleep for `pause`. Zero returns at once: the runtime's timer would take at least a millisecond,
/// which would delay each connection and each single try.
pub(crate) async fn sleep(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_goes_on() {
        let before = super::now();
        assert!(super::now() >= before);
        assert!(before > super::BootInstant::ZERO);
    }
}
