//! Durations, names and holders as every message shows them.

use std::fmt;
use std::time::Duration;

/// A duration as people say it: `1.5s`, `2m 5s`, `3h 20m`.
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

/// Who has a lock and for how long, in the words of every face.
#[derive(Debug)]
pub struct Holding<'a>(pub &'a str, pub Option<Duration>);

impl fmt::Display for Holding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held by {}", self.0)?;
        self.1
            .map_or(Ok(()), |age| write!(f, " for {}", Human(age)))
    }
}

/// A text within the `Debug` output of something else: quoted, and cut where it is long.
pub struct Short<'a>(pub &'a str);

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 60;
        let escaped: String = self.0.escape_debug().take(MOST + 1).collect();
        match escaped.chars().count() > MOST {
            true => write!(f, "\"{}…\"", escaped.chars().take(MOST).collect::<String>()),
            false => write!(f, "\"{escaped}\""),
        }
    }
}

/// Text that another program chose, which must not look like a line of its own.
pub fn escaped(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().collect(),
        false => String::from(c),
    };
    text.chars().map(escape).collect()
}
