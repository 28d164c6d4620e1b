//! What each process writes down: one JSON object a line, appended, with the time by
//! [`crate::clock::now`].
//!
//! Every line has `t`, `who` and `e`; the others belong to the event.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::clock;

/// One thing that happened, as one process saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was written down, in microseconds.
    pub at: u64,
    /// Which process, with how often it was started: `rust-2.1`.
    pub who: String,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The lock is asked for; `ask` numbers the asking within the process.
    Asked {
        /// Its number.
        request: u64,
        /// Which lock.
        lock: String,
        /// For how long it would wait; `None`: as long as it takes.
        wait: Option<u64>,
    },
    /// It was not got.
    GaveUp {
        /// Of which asking.
        request: u64,
        /// Why.
        why: String,
    },
    /// It was got.
    Granted {
        /// Of which asking.
        request: u64,
        /// The fencing number; 0 where there is none.
        token: i64,
    },
    /// The holder trusted its lock at some moment between `before` and the time of this event, and
    /// `lasting` more from then.
    Trusted {
        /// Which grant.
        request: u64,
        /// Before it asked.
        before: u64,
        /// For how long it would go on without an answer.
        lasting: u64,
    },
    /// The holder was told that it has lost the lock.
    Lost {
        /// Which grant.
        request: u64,
        /// Why, in a word.
        reason: String,
        /// When trust had ended, where the holder knows.
        ended: Option<u64>,
    },
    /// It begins to release, and trusts no longer.
    Releasing {
        /// Which grant.
        request: u64,
    },
    /// The release was answered.
    Released {
        /// Which grant.
        request: u64,
        /// Whether it was carried out.
        ok: bool,
    },
    /// A write began, under a grant.
    Write {
        /// Which grant.
        request: u64,
        /// Which write, unique in the run.
        id: String,
    },
    /// Its COMMIT is about to be sent.
    Committing {
        /// Which write.
        id: String,
    },
    /// Its COMMIT was answered.
    Committed {
        /// Which write.
        id: String,
    },
    /// The fence refused it.
    Refused {
        /// Which write.
        id: String,
        /// Why.
        why: String,
    },
    /// It failed for another reason, a cut connection say. After `Committing` its outcome is unknown.
    Failed {
        /// Which write.
        id: String,
        /// Why.
        why: String,
    },
    /// The wall clock that the process is shown is so many seconds off.
    Clock {
        /// Seconds.
        skew: i64,
    },
}

/// The file of one process.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    who: String,
}

impl Recorder {
    /// Append to the file of a process.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn new(path: &Path, who: &str) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let who = who.to_owned();
        Ok(Self { file, who })
    }

    /// Write one event down, now. In one write: whoever is killed has written it or not.
    ///
    /// # Panics
    ///
    /// When the disk is full: a history with holes proves nothing.
    pub fn write(&mut self, what: &What) {
        let event = Event {
            at: clock::now(),
            who: self.who.clone(),
            what: what.clone(),
        };
        let line = format!("{}\n", event.to_json());
        self.file
            .write_all(line.as_bytes())
            .expect("a history can be written to");
    }
}

impl Event {
    /// As it is written down.
    pub fn to_json(&self) -> Value {
        let mut value = match &self.what {
            What::Asked {
                request,
                lock,
                wait,
            } => {
                json!({"e": "asked", "request": request, "lock": lock, "wait": wait})
            }
            What::GaveUp { request, why } => {
                json!({"e": "gave_up", "request": request, "why": why})
            }
            What::Granted { request, token } => {
                json!({"e": "granted", "request": request, "token": token})
            }
            What::Trusted {
                request,
                before,
                lasting,
            } => json!({"e": "trusted", "request": request, "before": before, "lasting": lasting}),
            What::Lost {
                request,
                reason,
                ended,
            } => {
                json!({"e": "lost", "request": request, "reason": reason, "ended": ended})
            }
            What::Releasing { request } => json!({"e": "releasing", "request": request}),
            What::Released { request, ok } => {
                json!({"e": "released", "request": request, "ok": ok})
            }
            What::Write { request, id } => json!({"e": "write", "request": request, "id": id}),
            What::Committing { id } => json!({"e": "committing", "id": id}),
            What::Committed { id } => json!({"e": "committed", "id": id}),
            What::Refused { id, why } => json!({"e": "refused", "id": id, "why": why}),
            What::Failed { id, why } => json!({"e": "failed", "id": id, "why": why}),
            What::Clock { skew } => json!({"e": "clock", "skew": skew}),
        };
        value["t"] = self.at.into();
        value["who"] = self.who.as_str().into();
        value
    }

    /// Read a line; `None` where it is none, the torn last one of a killed process say.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let number = |key: &str| value[key].as_u64();
        let text = |key: &str| Some(value[key].as_str()?.to_owned());
        let request = || number("request");
        let what = match value["e"].as_str()? {
            "asked" => What::Asked {
                request: request()?,
                lock: text("lock")?,
                wait: number("wait"),
            },
            "gave_up" => What::GaveUp {
                request: request()?,
                why: text("why")?,
            },
            "granted" => What::Granted {
                request: request()?,
                token: value["token"].as_i64()?,
            },
            "trusted" => What::Trusted {
                request: request()?,
                before: number("before")?,
                lasting: number("lasting")?,
            },
            "lost" => What::Lost {
                request: request()?,
                reason: text("reason")?,
                ended: number("ended"),
            },
            "releasing" => What::Releasing {
                request: request()?,
            },
            "released" => What::Released {
                request: request()?,
                ok: value["ok"].as_bool()?,
            },
            "write" => What::Write {
                request: request()?,
                id: text("id")?,
            },
            "committing" => What::Committing { id: text("id")? },
            "committed" => What::Committed { id: text("id")? },
            "refused" => What::Refused {
                id: text("id")?,
                why: text("why")?,
            },
            "failed" => What::Failed {
                id: text("id")?,
                why: text("why")?,
            },
            "clock" => What::Clock {
                skew: value["skew"].as_i64()?,
            },
            _ => return None,
        };
        Some(Self {
            at: number("t")?,
            who: text("who")?,
            what,
        })
    }
}

/// All events of the files `*.jsonl` of a folder, in order of time.
///
/// # Errors
///
/// What reading failed with; or that a line other than the last of a file is none of ours.
pub fn read(folder: &Path) -> std::io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "jsonl") {
            continue;
        }
        let bytes = std::fs::read(&path)?;
        events.extend(
            parse_lines(&String::from_utf8_lossy(&bytes)).map_err(|line| {
                let text = format!("{}: not an event: {line}", path.display());
                std::io::Error::new(std::io::ErrorKind::InvalidData, text)
            })?,
        );
    }
    events.sort_by_key(|event| event.at);
    Ok(events)
}

/// The events of one file. The last line may be torn: its process was killed.
///
/// # Errors
///
/// Another line that is no event.
pub fn parse_lines(text: &str) -> Result<Vec<Event>, String> {
    let mut lines = text.lines().peekable();
    let mut events = Vec::new();
    while let Some(line) = lines.next() {
        match Event::parse(line) {
            Some(event) => events.push(event),
            None if lines.peek().is_none() => {}
            None => return Err(line.to_owned()),
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Event> {
        let id = || "w.1".to_owned();
        let why = || "a \"reason\"".to_owned();
        let whats = [
            What::Asked {
                request: 1,
                lock: "a".into(),
                wait: None,
            },
            What::GaveUp {
                request: 1,
                why: why(),
            },
            What::Granted {
                request: 1,
                token: 7,
            },
            What::Trusted {
                request: 1,
                before: 5,
                lasting: 9,
            },
            What::Lost {
                request: 1,
                reason: "expired".into(),
                ended: Some(11),
            },
            What::Releasing { request: 1 },
            What::Released {
                request: 1,
                ok: true,
            },
            What::Write {
                request: 1,
                id: id(),
            },
            What::Committing { id: id() },
            What::Committed { id: id() },
            What::Refused {
                id: id(),
                why: why(),
            },
            What::Failed {
                id: id(),
                why: why(),
            },
            What::Clock { skew: -300 },
        ];
        let event = |what| Event {
            at: 12,
            who: "rust-0.1".into(),
            what,
        };
        whats.into_iter().map(event).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let events = all();
        let text: String = events
            .iter()
            .map(|e| format!("{}\n", e.to_json()))
            .collect();
        assert_eq!(parse_lines(&text), Ok(events));
    }

    #[test]
    fn a_torn_last_line_is_passed_over_and_no_other() {
        let lines: Vec<String> = all().iter().map(|e| e.to_json().to_string()).collect();
        let torn = format!("{}\n{}", lines[0], &lines[1][..lines[1].len() / 2]);
        assert_eq!(parse_lines(&torn).expect("readable").len(), 1);
        assert!(parse_lines(&format!("{torn}\n{}", lines[2])).is_err());
    }
}
