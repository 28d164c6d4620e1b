//! When a lease is renewed, and how early its holder stops trusting it.

use std::time::Duration;

use crate::values::{invalid::InvalidSetting, text::Human, ttl::Ttl};

/// The longest lease that an acquire asks for.
///
/// If the reply is lost, the lock stays held for no longer than this. A renewal completes a longer
/// lease.
pub const MAX_FIRST_GRANT: Duration = Duration::from_secs(30);
/// The timeout of a request to the database.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The default renewal period of an infinite lease. It cannot expire, and its renewals only detect
/// a release by force.
const INFINITE_RENEW_EVERY: Duration = Duration::from_secs(10);
/// The default margin of a ttl from 30 seconds to five minutes.
const DEFAULT_MARGIN: Duration = Duration::from_secs(3);
/// The shortest renewal period.
const MIN_RENEW_EVERY: Duration = Duration::from_millis(10);

/// The durations that shape a lease. None of them is a point in time: the database's clock decides
/// when a lease ends, the local clock only how long its holder trusts it.
///
/// | setting       | clock            | default                                | allowed                         |
/// |---------------|------------------|----------------------------------------|---------------------------------|
/// | `ttl`         | database         | 30 s                                   | 100 ms to 10 years, or infinite |
/// | `renew_every` | boot-time, local | `ttl / 3` (infinite: 10 s)             | 10 ms to `(ttl - margin) / 2`   |
/// | `margin`      | boot-time, local | `ttl / 10`, at most 3 s or `ttl / 100` | less than `ttl / 2`             |
///
/// `ttl` counts from the last renewal, `renew_every` from the last renewal that succeeded, and
/// `margin` back from the end of the ttl.
///
/// With a longer `margin`, the holder learns of a loss earlier, and its clock may run slower than
/// the database's: by at least 1 % with the default. With a shorter `renew_every`, more renewals
/// are tried before the lease ends; each round of them costs one statement for all locks of the
/// process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    ttl: Ttl,
    renew_every: Option<Duration>,
    margin: Duration,
    /// The settings of the caller, from which those for another ttl are derived.
    given: (Renewing, Option<Duration>),
}

/// When a lease is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Renewing {
    /// Every third of its ttl, or more often if the margin requires it.
    #[default]
    ByDefault,
    /// This long after each renewal that succeeded.
    Every(Duration),
    /// Never: the lease ends after its first ttl.
    Never,
}

impl Timing {
    /// The timing with these settings; `None` is the default margin.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a setting out of the bounds of the table above. None is clamped.
    pub fn new(
        ttl: Ttl,
        renewing: Renewing,
        margin: Option<Duration>,
    ) -> Result<Self, InvalidSetting> {
        let given = (renewing, margin);
        let length = finite(ttl)?;
        let margin = margin_for(length, margin)?;
        let renew_every = period_for(length, renewing, margin)?;
        Ok(Self {
            ttl,
            renew_every,
            margin,
            given,
        })
    }

    /// These settings with another ttl.
    ///
    /// Settings that were left to their defaults are derived anew. A given margin is kept, and is
    /// refused if it does not fit the ttl. A given period is kept for each ttl that it fits, and is
    /// replaced by the default for any other.
    pub fn with_ttl(&self, ttl: Ttl) -> Result<Self, InvalidSetting> {
        let (renewing, margin) = self.given;
        let fallback = match renewing {
            Renewing::Never => Renewing::Never,
            Renewing::ByDefault | Renewing::Every(_) => Renewing::ByDefault,
        };
        let derived = Self::new(ttl, fallback, margin)?;
        let kept = Self::new(ttl, renewing, margin).unwrap_or(derived);
        Ok(Self {
            given: self.given,
            ..kept
        })
    }

    /// The length of the lease.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// The length that the acquire itself asks for.
    pub fn first_grant(&self) -> Duration {
        match self.ttl {
            Ttl::Finite(length) => length.min(MAX_FIRST_GRANT),
            Ttl::Infinite => MAX_FIRST_GRANT,
        }
    }

    /// Whether the acquire grants only the beginning of the ttl, and a renewal has to confirm the
    /// rest.
    pub fn is_confirmed_later(&self) -> bool {
        self.ttl != Ttl::Finite(self.first_grant())
    }

    /// The renewal period; `None` if the lease is not renewed.
    pub fn renew_every(&self) -> Option<Duration> {
        self.renew_every
    }

    /// How much earlier than the database a holder stops trusting a lease of this length.
    ///
    /// It is at most half the length: the first grant of a long lease is short, and would otherwise
    /// not be trusted at all. A lease longer than the ttl, which a long transaction has, gets at
    /// least 1 % of its length, as a long ttl has by default.
    pub fn margin_of(&self, length: Duration) -> Duration {
        let share = match self.ttl {
            Ttl::Finite(ttl) if length > ttl => length / 100,
            _ => Duration::ZERO,
        };
        self.margin.max(share).min(length / 2)
    }

    /// The length of a lease that its holder trusts for `trusted`.
    pub fn length_for(&self, trusted: Duration) -> Duration {
        // 1/99 of the trusted part is 1 % of the whole.
        let share = trusted / 99;
        trusted.saturating_add(self.margin.max(share))
    }
}

/// The length of a ttl, if it is allowed; `None` for an infinite one.
fn finite(ttl: Ttl) -> Result<Option<Duration>, InvalidSetting> {
    match ttl {
        Ttl::Infinite => Ok(None),
        Ttl::Finite(length) if (Ttl::MIN..=Ttl::MAX).contains(&length) => Ok(Some(length)),
        Ttl::Finite(length) => {
            let allowed = "100ms to 10 years, or infinite";
            Err(refused("ttl", length, allowed))
        }
    }
}

/// The margin that was given, if it is allowed, or the default.
fn margin_for(ttl: Option<Duration>, given: Option<Duration>) -> Result<Duration, InvalidSetting> {
    match (given, ttl) {
        (Some(margin), Some(ttl)) if margin >= ttl / 2 => {
            let allowed = format!("less than half of the ttl of {}", Human(ttl));
            Err(refused("margin", margin, allowed))
        }
        (Some(margin), _) => Ok(margin),
        (None, Some(ttl)) => Ok((ttl / 10).min(DEFAULT_MARGIN.max(ttl / 100))),
        (None, None) => Ok(DEFAULT_MARGIN),
    }
}

/// The renewal period: at most half of the trusted part of the ttl, so that a renewal that fails
/// can be tried again before the lease ends.
fn period_for(
    ttl: Option<Duration>,
    renewing: Renewing,
    margin: Duration,
) -> Result<Option<Duration>, InvalidSetting> {
    let bounds = ttl.map(|ttl| (ttl, (ttl - margin) / 2));
    match (renewing, bounds) {
        (Renewing::Never, _) => Ok(None),
        (Renewing::ByDefault, Some((ttl, most))) => Ok(Some((ttl / 3).min(most))),
        (Renewing::ByDefault, None) => Ok(Some(INFINITE_RENEW_EVERY)),
        (Renewing::Every(every), Some((ttl, most))) => {
            if (MIN_RENEW_EVERY..=most).contains(&every) {
                return Ok(Some(every));
            }
            let (most, ttl, margin) = (Human(most), Human(ttl), Human(margin));
            let allowed = format!("10ms to {most} with a ttl of {ttl} and a margin of {margin}");
            Err(refused("renew_every", every, allowed))
        }
        (Renewing::Every(every), None) if every < MIN_RENEW_EVERY => {
            Err(refused("renew_every", every, "10ms at least"))
        }
        (Renewing::Every(every), None) => Ok(Some(every)),
    }
}

fn refused(setting: &'static str, got: Duration, allowed: impl Into<String>) -> InvalidSetting {
    InvalidSetting::new(setting, Human(got).to_string(), allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn default_for(ttl: impl Into<Ttl>) -> Timing {
        Timing::new(ttl.into(), Renewing::ByDefault, None).unwrap()
    }

    #[test]
    fn defaults_follow_the_ttl() {
        for (ttl, every, margin) in [
            (ms(300), ms(100), ms(30)),
            (secs(30), secs(10), secs(3)),
            (secs(300), secs(100), secs(3)),
            (secs(3600), secs(1200), secs(36)),
        ] {
            let timing = default_for(ttl);
            assert_eq!(timing.ttl(), Ttl::Finite(ttl));
            assert_eq!((timing.renew_every(), timing.margin), (Some(every), margin));
        }
        let infinite = default_for(Ttl::Infinite);
        assert_eq!(
            (infinite.renew_every(), infinite.margin),
            (Some(secs(10)), secs(3))
        );
    }

    #[test]
    fn an_acquire_asks_for_30_seconds_at_most() {
        for (ttl, first, later) in [
            (Ttl::Finite(secs(29)), secs(29), false),
            (Ttl::Finite(secs(30)), secs(30), false),
            (Ttl::Finite(secs(31)), secs(30), true),
            (Ttl::Infinite, secs(30), true),
        ] {
            let timing = default_for(ttl);
            assert_eq!(
                (timing.first_grant(), timing.is_confirmed_later()),
                (first, later)
            );
        }
    }

    #[test]
    fn a_wide_margin_shortens_the_default_period() {
        let t = Timing::new(secs(11).into(), Renewing::ByDefault, Some(secs(5))).unwrap();
        assert_eq!(t.renew_every(), Some(secs(3)));
    }

    #[test]
    fn another_ttl_keeps_a_margin_that_was_given() {
        let given = Timing::new(secs(30).into(), Renewing::Every(secs(5)), Some(secs(8))).unwrap();
        let longer = given.with_ttl(secs(600).into()).unwrap();
        assert_eq!(
            (longer.renew_every(), longer.margin),
            (Some(secs(5)), secs(8))
        );
        let refusal = given.with_ttl(secs(15).into()).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "`margin` is 8s, must be less than half of the ttl of 15s"
        );
    }

    #[test]
    fn another_ttl_keeps_a_period_that_was_given_while_it_fits() {
        let often = Timing::new(secs(30).into(), Renewing::Every(secs(12)), None).unwrap();
        let shorter = often.with_ttl(secs(9).into()).unwrap();
        assert_eq!(shorter.renew_every(), Some(secs(3)));
        let again = shorter.with_ttl(secs(30).into()).unwrap();
        assert_eq!(again.renew_every(), Some(secs(12)));
        let never = Timing::new(secs(30).into(), Renewing::Never, None).unwrap();
        assert_eq!(
            never.with_ttl(secs(600).into()).unwrap().renew_every(),
            None
        );
    }

    #[test]
    fn another_ttl_has_defaults_of_its_own() {
        let longer = default_for(secs(30)).with_ttl(secs(600).into()).unwrap();
        assert_eq!(
            (longer.renew_every(), longer.margin),
            (Some(secs(200)), secs(6))
        );
    }

    #[test]
    fn the_bounds_of_each_setting_are_allowed_and_what_is_beyond_them_is_refused() {
        let ten = Ttl::from(secs(10));
        let (every, never) = (Renewing::Every, Renewing::Never);
        let nanosecond = Duration::from_nanos(1);
        for (ttl, renewing, margin, allowed) in [
            (Ttl::MIN.into(), never, None, true),
            ((Ttl::MIN - nanosecond).into(), never, None, false),
            (Ttl::MAX.into(), never, None, true),
            ((Ttl::MAX + nanosecond).into(), never, None, false),
            (ten, never, Some(secs(5) - nanosecond), true),
            (ten, never, Some(secs(5)), false),
            (ten, never, Some(Duration::ZERO), true),
            (Ttl::Infinite, never, Some(secs(1_000_000)), true),
            (ten, every(ms(10)), None, true),
            (ten, every(ms(10) - nanosecond), None, false),
            (ten, every(ms(4_500)), None, true),
            (ten, every(ms(4_500) + nanosecond), None, false),
            (Ttl::Infinite, every(ms(10)), None, true),
            (Ttl::Infinite, every(ms(10) - nanosecond), None, false),
            (Ttl::Infinite, every(secs(1_000_000)), None, true),
        ] {
            let timing = Timing::new(ttl, renewing, margin);
            assert_eq!(timing.is_ok(), allowed, "{ttl:?} {renewing:?} {margin:?}");
            if let (Ok(timing), Renewing::Every(period)) = (timing, renewing) {
                assert_eq!(timing.renew_every(), Some(period));
            }
        }
    }

    #[test]
    fn a_refusal_names_the_setting_and_its_bounds() {
        let message = |ttl: Ttl, renewing, margin| {
            Timing::new(ttl, renewing, margin).unwrap_err().to_string()
        };
        assert_eq!(
            message(secs(0).into(), Renewing::Never, None),
            "`ttl` is 0ms, must be 100ms to 10 years, or infinite"
        );
        assert_eq!(
            message(secs(10).into(), Renewing::ByDefault, Some(secs(5))),
            "`margin` is 5s, must be less than half of the ttl of 10s"
        );
        assert_eq!(
            message(secs(10).into(), Renewing::Every(secs(5)), None),
            "`renew_every` is 5s, must be 10ms to 4.5s with a ttl of 10s and a margin of 1s"
        );
        assert_eq!(
            message(Ttl::Infinite, Renewing::Every(ms(9)), None),
            "`renew_every` is 9ms, must be 10ms at least"
        );
    }

    #[test]
    fn the_margin_is_at_most_half_of_a_grant() {
        let timing = default_for(secs(3600));
        assert_eq!(timing.margin_of(secs(30)), secs(15));
        assert_eq!(timing.margin_of(secs(3600)), secs(36));
    }

    /// A margin of 3 s covers a clock that is 1 % too slow for 300 s, and not for longer.
    #[test]
    fn a_lease_longer_than_its_ttl_has_a_margin_of_one_percent() {
        let timing = default_for(secs(30));
        for (length, margin) in [(29, 3), (30, 3), (299, 3), (300, 3), (400, 4), (1000, 10)] {
            assert_eq!(timing.margin_of(secs(length)), secs(margin), "{length}");
        }
        let own = Timing::new(secs(1000).into(), Renewing::ByDefault, Some(secs(1))).unwrap();
        assert_eq!(
            own.margin_of(secs(1000)),
            secs(1),
            "the margin of the caller"
        );
        assert_eq!(default_for(Ttl::Infinite).margin_of(secs(1000)), secs(3));
    }

    #[test]
    fn the_length_for_some_trust_is_trusted_for_that_long() {
        let timing = default_for(secs(30));
        for trusted in [secs(40), secs(300), secs(5000)] {
            let length = timing.length_for(trusted);
            let covered = length - timing.margin_of(length);
            assert!(
                (trusted..trusted + secs(1)).contains(&covered),
                "{covered:?}"
            );
        }
        assert_eq!(timing.length_for(Duration::MAX), Duration::MAX);
    }
}
