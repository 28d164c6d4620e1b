//! Whoever is measured, and those that are processes of their own.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{Killable, time};

/// How long a process may take to connect, and to answer beyond what it was told to take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured in one round, in milliseconds. `release` is empty where there is nothing to measure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    pub(crate) acquire: Vec<f64>,
    pub(crate) release: Vec<f64>,
}

impl Times {
    /// Acquire and release together.
    pub(crate) fn cycles(&self) -> Vec<f64> {
        if self.release.is_empty() {
            return self.acquire.clone();
        }
        let pairs = self.acquire.iter().zip(&self.release);
        pairs.map(|(acquire, release)| acquire + release).collect()
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.acquire.extend(other.acquire);
        self.release.extend(other.release);
    }
}

type Run = Box<dyn FnMut(Duration) -> Times>;

/// One row of a table.
pub(crate) struct Contender {
    /// By which it is found again.
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) run: Run,
    /// Where it runs, when that is not here.
    pub(crate) process: Option<u32>,
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl Contender {
    pub(crate) fn new(
        key: impl Into<String>,
        name: impl Into<String>,
        run: impl FnMut(Duration) -> Times + 'static,
    ) -> Self {
        Self {
            key: key.into(),
            name: name.into(),
            run: Box::new(run),
            process: None,
        }
    }

    pub(crate) fn of_process(mut self, process: u32) -> Self {
        self.process = Some(process);
        self
    }
}

/// Since then, in milliseconds.
pub(crate) fn since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64() * 1e3
}

/// Do `one` again and again until the time is over, three times at least.
pub(crate) fn repeat(slice: Duration, mut one: impl FnMut(&mut Times)) -> Times {
    let (began, mut times) = (time::now(), Times::default());
    while began.elapsed() < slice || times.acquire.len() < 3 {
        one(&mut times);
    }
    times
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
    pub(crate) fn start(command: &Command) -> Option<Self> {
        let process = Killable::spawn_command(command);
        let Some(what) = process.line(PATIENCE) else {
            let what: Vec<_> = command.get_args().take(2).collect();
            crate::say(&format!("not measured, it does not start: {what:.80?}"));
            return None;
        };
        Some(Self { process, what })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn tell(&mut self, line: &str) {
        self.process.send_line(line).expect("the taker reads");
    }

    pub(crate) fn hear(&self, within: Duration) -> String {
        self.process.expect_line(within + PATIENCE)
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear(Duration::ZERO)
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
