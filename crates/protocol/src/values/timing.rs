//! The durations of a lease: ttl, renewal period, margin.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::values::{invalid::InvalidSetting, text::Human};

/// What an acquire grants at most, so that one whose reply was lost holds the lock no longer.
pub const MAX_FIRST_GRANT: Duration = Duration::from_secs(30);
/// How long a call to the database may take before it counts as unanswered.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a lease without end is renewed unless told otherwise: nothing runs out, but this is
/// how its holder learns that it was freed by force.
const ENDLESS_RENEW_EVERY: Duration = Duration::from_secs(10);
/// What `margin` is at most by default, up to a ttl of five minutes.
const USUAL_MARGIN: Duration = Duration::from_secs(3);

/// The length of a lease: finite or infinite.
///
/// Parsed from `500ms`, `30s`, `5m`, `2h`, `1d`, `inf`, or bare seconds (`30`, `1.5`).
///
/// ```
/// use std::time::Duration;
/// use database_locks::Ttl;
///
/// assert_eq!("1.5".parse::<Ttl>()?, Ttl::from(Duration::from_millis(1500)));
/// assert_eq!("inf".parse::<Ttl>()?, Ttl::Infinite);
/// # Ok::<(), database_locks::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// The lease ends this long after each renewal, by the database's clock.
    Finite(Duration),
    /// The lease never ends: if its holder dies, the lock stays held until it is released by force.
    Infinite,
}

impl Ttl {
    /// The shortest one. Below it, one slow round trip loses the lease.
    pub const MIN: Duration = Duration::from_millis(100);
    /// The longest finite one: ten years of 365.25 days.
    pub const MAX: Duration = Duration::from_secs(315_576_000);
}

impl From<Duration> for Ttl {
    fn from(length: Duration) -> Self {
        Self::Finite(length)
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finite(length) => Human(*length).fmt(f),
            Self::Infinite => f.write_str("without end"),
        }
    }
}

impl FromStr for Ttl {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        match text.trim() {
            "inf" => Ok(Self::Infinite),
            text => parse_duration(text).map(Self::Finite),
        }
    }
}

/// Parse a duration: `500ms`, `30s`, `5m`, `2h`, `1d`, or bare seconds; fractions are allowed.
///
/// # Errors
///
/// [`InvalidSetting`] for anything else.
///
/// # Example
///
/// ```
/// use std::time::Duration;
///
/// assert_eq!(database_locks::parse_duration("2h")?, Duration::from_secs(7200));
/// # Ok::<(), database_locks::Error>(())
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, InvalidSetting> {
    let refuse = || {
        let allowed = "a number with ms, s, m, h or d (500ms, 30s, 5m, 2h, 1d), or bare seconds";
        InvalidSetting::new(
            "duration",
            format!("`{}`", text.chars().take(40).collect::<String>()),
            allowed,
        )
    };
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(refuse()),
    };
    // `f64` would take `+3`, `.5` and `1e3` as well.
    if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(refuse());
    }
    let number: f64 = digits.parse().map_err(|_| refuse())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| refuse())
}

/// The durations that shape a lease. None of them is a point in time: the database's clock decides
/// when a lease ends, ours only how long we trust it.
///
/// | setting       | measured against                       | default                     | allowed                   |
/// |---------------|----------------------------------------|-----------------------------|---------------------------|
/// | `ttl`         | database clock, from the last renewal  | 30 s                        | 100 ms to 10 years, or endless |
/// | `renew_every` | boot-time clock, from the last success | `ttl / 3` (endless: 10 s)   | 10 ms to `(ttl - margin) / 2`  |
/// | `margin`      | boot-time clock, before `ttl` ends     | `ttl / 10`, at most 3 s or `ttl / 100` | less than `ttl / 2` |
///
/// A longer `margin` tells the holder of a loss earlier and tolerates a clock of this machine that
/// runs slower than the database's: by default by 1 % at least. Of a shorter `renew_every` the cost
/// is one statement for all locks of the process each time, the gain more tries before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    ttl: Ttl,
    renew_every: Option<Duration>,
    margin: Duration,
    /// What the caller said, for another ttl.
    given: (Renewing, Option<Duration>),
}

/// When a lease is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Renewing {
    /// A third of the ttl; 10 s for an infinite one.
    #[default]
    ByDefault,
    /// This long after the last success.
    Every(Duration),
    /// Not at all.
    Never,
}

impl Timing {
    /// Check the settings and the rules between them.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] names the setting and its bounds.
    pub fn new(
        ttl: Ttl,
        renewing: Renewing,
        margin: Option<Duration>,
    ) -> Result<Self, InvalidSetting> {
        let given = (renewing, margin);
        let longest = match ttl {
            Ttl::Infinite => None,
            Ttl::Finite(length) if (Ttl::MIN..=Ttl::MAX).contains(&length) => Some(length),
            Ttl::Finite(length) => {
                let allowed = "100ms to 10 years, or endless";
                return Err(InvalidSetting::new(
                    "ttl",
                    Human(length).to_string(),
                    allowed,
                ));
            }
        };
        let margin = match (margin, longest) {
            (Some(margin), Some(ttl)) if margin >= ttl / 2 => {
                let allowed = format!("less than half of the ttl of {}", Human(ttl));
                return Err(InvalidSetting::new(
                    "margin",
                    Human(margin).to_string(),
                    allowed,
                ));
            }
            (Some(margin), _) => margin,
            (None, Some(ttl)) => (ttl / 10).min(USUAL_MARGIN.max(ttl / 100)),
            (None, None) => USUAL_MARGIN,
        };
        let most = longest.map(|ttl| (ttl - margin) / 2);
        let renew_every = match renewing {
            Renewing::Never => None,
            Renewing::ByDefault => Some(match (longest, most) {
                (Some(ttl), Some(most)) => (ttl / 3).min(most),
                _ => ENDLESS_RENEW_EVERY,
            }),
            Renewing::Every(every) => {
                let least = Duration::from_millis(10);
                if every < least || most.is_some_and(|most| every > most) {
                    let allowed = match (longest, most) {
                        (Some(ttl), Some(most)) => format!(
                            "10ms to {} with a ttl of {} and a margin of {}",
                            Human(most),
                            Human(ttl),
                            Human(margin)
                        ),
                        _ => "10ms at least".to_owned(),
                    };
                    return Err(InvalidSetting::new(
                        "renew_every",
                        Human(every).to_string(),
                        allowed,
                    ));
                }
                Some(every)
            }
        };
        Ok(Self {
            ttl,
            renew_every,
            margin,
            given,
        })
    }

    /// The same settings with another ttl. What was left to default is derived anew; a margin that
    /// was given has to go with it; a period that was given is kept unless it is too long for it.
    pub fn with_ttl(&self, ttl: Ttl) -> Result<Self, InvalidSetting> {
        let (renewing, margin) = self.given;
        let by_default = match renewing {
            Renewing::Never => Renewing::Never,
            Renewing::ByDefault | Renewing::Every(_) => Renewing::ByDefault,
        };
        let derived = Self::new(ttl, by_default, margin)?;
        let kept = Self::new(ttl, renewing, margin).unwrap_or(derived);
        Ok(Self {
            given: self.given,
            ..kept
        })
    }

    /// The length of the lease from each renewal.
    pub fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// What the acquire itself asks for.
    pub fn first_grant(&self) -> Duration {
        match self.ttl {
            Ttl::Finite(length) => length.min(MAX_FIRST_GRANT),
            Ttl::Infinite => MAX_FIRST_GRANT,
        }
    }

    /// Whether a renewal has to confirm the rest of it.
    pub fn is_confirmed_later(&self) -> bool {
        self.ttl != Ttl::Finite(self.first_grant())
    }

    /// The period of renewals; none: the lease is not renewed.
    pub fn renew_every(&self) -> Option<Duration> {
        self.renew_every
    }

    /// How much earlier than the database a holder stops trusting a lease of this length.
    ///
    /// Never more than half: the first grant of a long lease is short, and would otherwise be
    /// distrusted from its beginning. One that is longer than the ttl, for a transaction that
    /// lasts, has the share of it that the longest have by default.
    pub fn margin_of(&self, length: Duration) -> Duration {
        let share = match self.ttl {
            Ttl::Finite(ttl) if length > ttl => length / 100,
            _ => Duration::ZERO,
        };
        self.margin.max(share).min(length / 2)
    }

    /// How long a lease has to be for a holder to trust it for so long.
    pub fn length_for(&self, trusted: Duration) -> Duration {
        // A hundredth of what comes out.
        let share = trusted / 99;
        trusted.saturating_add(self.margin.max(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn defaults_follow_the_ttl() {
        let t = Timing::new(secs(30).into(), Renewing::ByDefault, None).unwrap();
        assert_eq!((t.renew_every(), t.margin), (Some(secs(10)), secs(3)));
        let t = Timing::new(secs(3600).into(), Renewing::ByDefault, None).unwrap();
        assert_eq!((t.renew_every(), t.margin), (Some(secs(1200)), secs(36)));
        assert_eq!(t.first_grant(), MAX_FIRST_GRANT);
    }

    #[test]
    fn a_wide_margin_shortens_the_default_period() {
        let t = Timing::new(secs(11).into(), Renewing::ByDefault, Some(secs(5))).unwrap();
        assert_eq!(t.renew_every(), Some(secs(3)));
    }

    #[test]
    fn another_ttl_keeps_the_margin_and_the_period_that_were_given() {
        let given = Timing::new(secs(30).into(), Renewing::Every(secs(5)), Some(secs(8))).unwrap();
        let longer = given.with_ttl(secs(600).into()).unwrap();
        assert_eq!(
            (longer.renew_every(), longer.margin),
            (Some(secs(5)), secs(8))
        );
        let refused = given.with_ttl(secs(15).into()).unwrap_err().to_string();
        assert!(
            refused.contains("`margin` is 8s, must be less than half"),
            "{refused}"
        );
        let often = Timing::new(secs(30).into(), Renewing::Every(secs(12)), None).unwrap();
        let shorter = often.with_ttl(secs(9).into()).unwrap();
        assert_eq!(shorter.renew_every(), Some(secs(3)));
        let again = shorter.with_ttl(secs(30).into()).unwrap();
        assert_eq!(again.renew_every(), Some(secs(12)));
        let by_default = Timing::new(secs(30).into(), Renewing::ByDefault, None).unwrap();
        let longer = by_default.with_ttl(secs(600).into()).unwrap();
        assert_eq!(
            (longer.renew_every(), longer.margin),
            (Some(secs(200)), secs(6))
        );
        let never = Timing::new(secs(30).into(), Renewing::Never, None).unwrap();
        assert_eq!(
            never.with_ttl(secs(600).into()).unwrap().renew_every(),
            None
        );
    }

    #[test]
    fn rules_between_settings_are_refused_with_their_numbers() {
        let said = |t: Result<Timing, InvalidSetting>| t.unwrap_err().to_string();
        let ten = Ttl::from(secs(10));
        assert!(said(Timing::new(secs(0).into(), Renewing::Never, None)).contains("100ms"));
        assert!(said(Timing::new(ten, Renewing::ByDefault, Some(secs(5)))).contains("half"));
        let said = said(Timing::new(ten, Renewing::Every(secs(5)), None));
        assert_eq!(
            said,
            "`renew_every` is 5s, must be 10ms to 4.5s with a ttl of 10s and a margin of 1s"
        );
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let ms = |text: &str| parse_duration(text).map(|d| d.as_millis()).ok();
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("1.5"), Some(1500));
        assert_eq!(ms(" 2m "), Some(120_000));
        assert_eq!(ms("1d"), Some(86_400_000));
        for bad in [
            "",
            "s",
            "-1s",
            "+1",
            "1e3",
            "1w",
            "NaN",
            "inf",
            "1 2",
            "9999999999999999999999d",
        ] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }
}
