//! The process of a case, which acquires and releases on request.
//!
//! Each case, in Rust or Python, has a process of its own, so that its system calls can be counted
//! alone. Its first line describes it; then it answers the requests on its standard input:
//!
//! | request | what it does | answer |
//! | --- | --- | --- |
//! | `cycles MS` | acquires and releases for MS milliseconds | `{"acquire": [ns, …], "release": [ns, …]}` |
//! | `count N` | N cycles, with `getppid` before each call and after the last | `done` |
//! | `acquire`, `release` | one call | the monotonic clock before and after, in ns |

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::ChildProcess;

use crate::console::progress;

/// How long a process may take to connect, and to answer beyond the length of the request.
const PATIENCE: Duration = Duration::from_secs(60);

/// The times of one round, in milliseconds.
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

/// Milliseconds since `then`.
pub(crate) fn since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64() * 1e3
}

/// A process that serves requests.
#[derive(Debug)]
pub(crate) struct Child {
    process: ChildProcess,
    /// Its first line.
    pub(crate) description: String,
}

impl Child {
    /// Starts it; if it does not come up, prints that and returns `None`.
    pub(crate) fn start(name: &str, command: &Command) -> Option<Self> {
        let process = ChildProcess::spawn_command(command);
        let Some(description) = process.line(PATIENCE) else {
            progress(&format!("left out, it does not start: {name}"));
            return None;
        };
        Some(Self {
            process,
            description,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Kills the process by SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill9();
    }

    pub(crate) fn send(&mut self, line: &str) {
        self.process.send_line(line).expect("the process reads");
    }

    pub(crate) fn receive(&self, within: Duration) -> String {
        self.process.expect_line(within + PATIENCE)
    }

    pub(crate) fn request(&mut self, line: &str) -> String {
        self.send(line);
        self.receive(Duration::ZERO)
    }

    /// The answer to `acquire` or `release`: the clock before and after the call.
    pub(crate) fn timestamps(&self) -> (u64, u64) {
        let line = self.receive(Duration::ZERO);
        let span = line
            .split_once(' ')
            .and_then(|(before, after)| Some((before.parse().ok()?, after.parse().ok()?)));
        span.unwrap_or_else(|| panic!("not two times: {line}"))
    }

    pub(crate) fn cycles(&mut self, slice: Duration) -> Times {
        self.send(&format!("cycles {}", slice.as_millis()));
        let answer: Value = serde_json::from_str(&self.receive(slice)).expect("it answers in JSON");
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
