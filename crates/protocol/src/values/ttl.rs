//! The length of a lease, and the notation of durations.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::values::{invalid::InvalidSetting, text::Human};

/// The length of a lease: finite or infinite.
///
/// Written as `500ms`, `30s`, `5m`, `2h`, `1d`, `inf`, or bare seconds (`30`, `1.5`).
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
    /// The shortest ttl. With a shorter one, a single slow round trip would lose the lease.
    pub const MIN: Duration = Duration::from_millis(100);
    /// The longest finite ttl: ten years of 365.25 days.
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

/// Parse a duration: `500ms`, `30s`, `5m`, `2h`, `1d`, or bare seconds; a fraction is allowed.
///
/// # Errors
///
/// [`InvalidSetting`] for any other text.
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
        let start: String = text.chars().take(40).collect();
        InvalidSetting::new("duration", format!("`{start}`"), allowed)
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
    // `f64` would also accept `+3` and `1e3`.
    if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(refuse());
    }
    let number: f64 = digits.parse().map_err(|_| refuse())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [
            ("500ms", 500),
            ("1.5", 1_500),
            ("3s", 3_000),
            (" 2m ", 120_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_millis(), ms, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in [
            "",
            "s",
            "-1s",
            "+1",
            "1e3",
            "1e3s",
            "1w",
            "NaN",
            "inf",
            "1 2",
            "9999999999999999999999d",
        ] {
            let message = parse_duration(bad).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("`duration` is `{bad}`, must")),
                "{message}"
            );
        }
    }

    #[test]
    fn a_ttl_is_a_duration_or_infinite() {
        let two_seconds = Ttl::Finite(Duration::from_secs(2));
        assert_eq!("2s".parse::<Ttl>().unwrap(), two_seconds);
        assert_eq!(" inf ".parse::<Ttl>().unwrap(), Ttl::Infinite);
        assert!("infinite".parse::<Ttl>().is_err());
        assert_eq!(two_seconds.to_string(), "2s");
        assert_eq!(Ttl::Infinite.to_string(), "without end");
    }
}
