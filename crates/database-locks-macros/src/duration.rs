//! Durations as people write them, read while compiling.

use std::time::Duration;

/// What may be written, for messages.
pub(crate) const FORM: &str =
    "a number with ms, s, m, h or d (\"500ms\", \"30s\", \"5m\", \"2h\", \"1d\"), or bare seconds";

/// Read a duration as `database_locks::parse_duration` does; a test holds the two together, since
/// this crate cannot depend on that one.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    // `f64` would take `+3` and `1e3` as well.
    if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let number: f64 = digits.parse().ok()?;
    Duration::try_from_secs_f64(number * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_as_the_core_reads_it() {
        for text in [
            "500ms",
            "30s",
            "5m",
            "2h",
            "1d",
            "30",
            "1.5",
            ".5",
            "0",
            " 2m ",
            "0.1ms",
            "3650d",
            "",
            "s",
            "ms",
            "-1s",
            "+1",
            "1e3",
            "1w",
            "NaN",
            "inf",
            "1 2",
            "1..5",
            "1 s",
            "1S",
            "30\n",
            "9999999999999999999999d",
            "٣s",
            "1µs",
        ] {
            assert_eq!(
                parse(text),
                database_locks::parse_duration(text).ok(),
                "{text:?}"
            );
        }
    }
}
