//! The text of durations, names and holders in messages.

use std::fmt;
use std::time::Duration;

/// A duration as people write it: `1.5s`, `2m 5s`, `3h 20m`.
#[derive(Debug)]
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        match secs {
            0 => write!(f, "{}ms", self.0.as_millis()),
            1..10 if self.0.subsec_millis() >= 100 => write!(f, "{:.1}s", self.0.as_secs_f64()),
            1..60 => write!(f, "{secs}s"),
            60..3600 => write!(f, "{}m {}s", secs / 60, secs % 60),
            3600..86_400 => write!(f, "{}h {}m", secs / 3600, secs % 3600 / 60),
            _ => write!(f, "{}d {}h", secs / 86_400, secs % 86_400 / 3600),
        }
    }
}

/// The name of a holder and for how long it has held a lock: `held by web-2 for 4s`.
#[derive(Debug)]
pub struct Holding<'a>(pub &'a str, pub Option<Duration>);

impl fmt::Display for Holding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held by {}", self.0)?;
        self.1
            .map_or(Ok(()), |age| write!(f, " for {}", Human(age)))
    }
}

/// A lock that rests: for how much longer, and after which holder: `resting for another 40s after
/// web-2`.
#[derive(Debug)]
pub struct Resting<'a>(pub &'a str, pub Duration);

impl fmt::Display for Resting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resting for another {} after {}", Human(self.1), self.0)
    }
}

/// A text inside the `Debug` output of another value: quoted, and cut after 60 characters.
pub struct Short<'a>(pub &'a str);

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_CHARS: usize = 60;
        let mut escaped = self.0.escape_debug();
        let shown: String = escaped.by_ref().take(MAX_CHARS).collect();
        let rest = if escaped.next().is_some() { "…" } else { "" };
        write!(f, "\"{shown}{rest}\"")
    }
}

/// The text with its control characters escaped.
///
/// For text from another program, whose line breaks must not begin a line of a log or a terminal.
pub fn escaped(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().collect(),
        false => String::from(c),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_with_its_two_largest_units() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_099, "1s"),
            (1_100, "1.1s"),
            (9_900, "9.9s"),
            (10_500, "10s"),
            (59_999, "59s"),
            (60_000, "1m 0s"),
            (3_599_000, "59m 59s"),
            (3_600_000, "1h 0m"),
            (12_060_000, "3h 21m"),
            (86_399_000, "23h 59m"),
            (86_400_000, "1d 0h"),
            (954_000_000, "11d 1h"),
        ] {
            assert_eq!(Human(Duration::from_millis(ms)).to_string(), text, "{ms}");
        }
    }

    #[test]
    fn the_age_of_a_holding_is_shown_if_it_is_known() {
        let age = Duration::from_secs(4);
        assert_eq!(
            Holding("web-2", Some(age)).to_string(),
            "held by web-2 for 4s"
        );
        assert_eq!(Holding("web-2", None).to_string(), "held by web-2");
    }

    #[test]
    fn a_long_text_is_cut_after_60_characters() {
        let text = "ä".repeat(60);
        assert_eq!(format!("{:?}", Short(&text)), format!("\"{text}\""));
        assert_eq!(
            format!("{:?}", Short(&format!("{text}b"))),
            format!("\"{text}…\"")
        );
        assert_eq!(format!("{:?}", Short("a\"\n")), r#""a\"\n""#);
    }

    #[test]
    fn only_control_characters_are_escaped() {
        assert_eq!(escaped("a\nb\u{7}c \"ä\""), "a\\nb\\u{7}c \"ä\"");
    }
}
