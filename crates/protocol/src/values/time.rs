//! Instants of the boot-time clock.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// An instant of the boot-time clock, which goes on while the machine is suspended.
///
/// It has no relation to any database's clock or any wall clock, and must never leave the process.
///
/// No operation overflows: `+` ends at [`MAX`](Self::MAX), `-` at [`ZERO`](Self::ZERO) or at no
/// time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// The start of the machine.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// An instant that is never reached.
    pub const MAX: Self = Self(Duration::MAX);

    /// The instant this long after the start of the machine.
    pub const fn from_boot(since: Duration) -> Self {
        Self(since)
    }

    /// How long after the start of the machine it is.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// The instant that [`as_nanos`](Self::as_nanos) made a number of.
    pub const fn from_nanos(since_boot: u64) -> Self {
        Self(Duration::from_nanos(since_boot))
    }

    /// A number for an atomic variable: nanoseconds since the start of the machine, `u64::MAX` for
    /// instants after more than 584 years.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long after `earlier` it is; `None` if it is before.
    pub fn checked_duration_since(self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }
}

impl AddAssign<Duration> for BootInstant {
    fn add_assign(&mut self, length: Duration) {
        *self = *self + length;
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;

    fn sub(self, length: Duration) -> Self {
        Self(self.0.saturating_sub(length))
    }
}

impl Sub for BootInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> BootInstant {
        BootInstant::from_boot(Duration::from_secs(secs))
    }

    #[test]
    fn an_instant_and_a_length_make_another_instant() {
        let second = Duration::from_secs(1);
        assert_eq!((at(5) + second, at(5) - second), (at(6), at(4)));
        let mut instant = at(5);
        instant += second;
        assert_eq!(instant, at(6));
        assert_eq!(instant.since_boot(), Duration::from_secs(6));
    }

    #[test]
    fn the_difference_of_two_instants_is_a_length() {
        let seconds = Duration::from_secs(4);
        assert_eq!((at(9) - at(5), at(5) - at(9)), (seconds, Duration::ZERO));
        assert_eq!(at(9).checked_duration_since(at(5)), Some(seconds));
        assert_eq!(at(5).checked_duration_since(at(5)), Some(Duration::ZERO));
        assert_eq!(at(5).checked_duration_since(at(9)), None);
    }

    #[test]
    fn an_instant_fits_into_a_number() {
        let instant = BootInstant::from_nanos(1_000_000_001);
        assert_eq!(instant.since_boot(), Duration::new(1, 1));
        assert_eq!(instant.as_nanos(), 1_000_000_001);
        assert_eq!(BootInstant::MAX.as_nanos(), u64::MAX);
    }

    #[test]
    fn no_operation_overflows() {
        assert_eq!(BootInstant::MAX + Duration::from_nanos(1), BootInstant::MAX);
        assert_eq!(at(5) - Duration::from_secs(6), BootInstant::ZERO);
        assert_eq!(BootInstant::default(), BootInstant::ZERO);
    }
}
