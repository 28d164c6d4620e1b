//! The clock that bounds trust; nothing else in this crate asks for the time.

use std::time::Duration;

use protocol::BootInstant;

/// Now, on a clock that goes on while the machine is suspended.
///
/// `std::time::Instant` stands still during a suspend on Linux: a laptop that was closed for an hour
/// would open up trusting leases that ended fifty-nine minutes ago.
#[cfg(target_os = "linux")]
pub(crate) fn now() -> BootInstant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootInstant::from_boot(Duration::new(
        t.tv_sec.unsigned_abs(),
        t.tv_nsec.unsigned_abs() as u32,
    ))
}

/// Now. Elsewhere than on Linux the monotonic clock has to do; on macOS it runs through suspend.
#[cfg(not(target_os = "linux"))]
pub(crate) fn now() -> BootInstant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    BootInstant::from_boot(Duration::new(
        t.tv_sec.unsigned_abs(),
        t.tv_nsec.unsigned_abs() as u32,
    ))
}

/// The longest that a sleeper may sleep without looking at the clock again.
///
/// The runtime's timers count on a clock that stops during a suspend. After one, a lease that has
/// ended meanwhile is noticed at most this much later by those who wait for its loss; those who ask
/// learn it at once.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// Sleep until then; a suspend of the machine counts.
pub(crate) async fn sleep_until(then: BootInstant) {
    loop {
        let left = then - now();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_NAP)).await;
    }
}

/// Sleep for so long. No time is none: the runtime makes at least a millisecond of it, which each connection and
/// each try that is made once had to wait for.
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
