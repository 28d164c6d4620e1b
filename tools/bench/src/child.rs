//! A row of the tables: a process that acquires and releases when it is told.
//!
//! Each row is a process of its own, in Rust or Python, so that the system calls of one are counted by
//! themselves. Its first line says what it is made of; then it answers the lines of its standard input:
//!
//! | line | what it does | answer |
//! | --- | --- | --- |
//! | `cycles MS` | acquires and releases for so long | `{"acquire": [ns, …], "release": [ns, …]}` |
//! | `count N` | so many cycles, with `getppid` before each call and after the last | `done` |
//! | `acquire`, `release` | that | the monotonic clock before and after, in ns |

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::Killable;

/// How long a process may take to connect, and to answer beyond what it was told to take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured in one round, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    pub(crate) acquire: Vec<f64>,
    pub(crate) release: Vec<f64>,
}

impl Times {
    /// Acquire and release together.
    pub(crate) fn cycles(&self) -> Vec<f64> {
        let pairs = self.acquire.iter().zip(&self.release);
        pairs.map(|(acquire, release)| acquire + release).collect()
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.acquire.extend(other.acquire);
        self.release.extend(other.release);
    }
}

/// Since then, in milliseconds.
pub(crate) fn since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64() * 1e3
}

/// A process that takes locks when it is told.
#[derive(Debug)]
pub(crate) struct Taker {
    process: Killable,
    /// What it is made of, by its own word.
    pub(crate) what: String,
}

impl Taker {
    /// `None`, and a line that says so, where it does not come up.
    pub(crate) fn start(name: &str, command: &Command) -> Option<Self> {
        let process = Killable::spawn_command(command);
        let Some(what) = process.line(PATIENCE) else {
            crate::say(&format!("left out, it does not start: {name}"));
            return None;
        };
        Some(Self { process, what })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn tell(&mut self, line: &str) {
        self.process.send_line(line).expect("the process reads");
    }

    pub(crate) fn hear(&self, within: Duration) -> String {
        self.process.expect_line(within + PATIENCE)
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear(Duration::ZERO)
    }

    /// The answer to `acquire` or `release`: the clock before and after the call.
    pub(crate) fn span(&self) -> (u64, u64) {
        let line = self.hear(Duration::ZERO);
        let span = line
            .split_once(' ')
            .and_then(|(before, after)| Some((before.parse().ok()?, after.parse().ok()?)));
        span.unwrap_or_else(|| panic!("not two times: {line}"))
    }

    pub(crate) fn cycles(&mut self, slice: Duration) -> Times {
        self.tell(&format!("cycles {}", slice.as_millis()));
        let answer: Value = serde_json::from_str(&self.hear(slice)).expect("it answers in JSON");
        let list = |key: &str| -> Vec<f64> {
            let values = answer[key].as_array().into_iter().flatten();
            values
                .filter_map(Value::as_f64)
                .map(|ns| ns / 1e6)
                .collect()
        };
        Times {
            acquire: list("acquire"),
            release: list("release"),
        }
    }
}
