//! The history of a process: one JSON object a line, with the time by [`crate::clock::now`].
//!
//! Every line has `t`, `process` and `e`; the other keys depend on the event.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::clock;
use crate::target::Mode;

/// An event, as one process saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was recorded, in microseconds.
    pub at: u64,
    /// The process, with the count of its starts: `rust-2.1`.
    pub process: String,
    /// What happened.
    pub what: What,
}

/// What a write to the guarded table shows to its triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The ticket of the grant under which it is made, which may be lost by then.
    Held,
    /// The ticket of an earlier grant of the same process, which was released, or after which the
    /// process was granted the lock again.
    Outdated,
    /// No ticket.
    Nothing,
}

impl Shown {
    fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Outdated => "outdated",
            Self::Nothing => "nothing",
        }
    }

    fn of(word: &str) -> Option<Self> {
        let all = [Self::Held, Self::Outdated, Self::Nothing];
        all.into_iter().find(|shown| shown.as_str() == word)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The process requests a lock.
    Asked {
        /// The number of the request within the process.
        request: u64,
        /// The lock.
        lock: String,
        /// How it requests it.
        mode: Mode,
        /// How long it would wait; `None`: without a limit.
        wait: Option<u64>,
    },
    /// The request ended without a grant.
    GaveUp {
        /// The request.
        request: u64,
        /// The reason.
        why: String,
    },
    /// The lock was granted.
    Granted {
        /// The request.
        request: u64,
        /// The fencing token; 0 if there is none.
        token: i64,
        /// The slot of a permit.
        slot: Option<u16>,
    },
    /// At some moment between `before` and this event the holder trusted its lock for `lasting`
    /// more.
    Trusted {
        /// The request of the grant.
        request: u64,
        /// The time before the check.
        before: u64,
        /// How long the lease is trusted without another answer.
        lasting: u64,
    },
    /// The holder was notified that the lock is lost.
    Lost {
        /// The request of the grant.
        request: u64,
        /// The reason, in a word.
        reason: String,
        /// When trust had ended, if the holder knows.
        ended: Option<u64>,
    },
    /// The holder begins to release, and trusts no longer.
    Releasing {
        /// The request of the grant.
        request: u64,
    },
    /// The release was answered.
    Released {
        /// The request of the grant.
        request: u64,
        /// Whether the lock was released.
        ok: bool,
    },
    /// A write begins under a grant.
    Write {
        /// The request of the grant.
        request: u64,
        /// The id of the write, unique in the run.
        id: String,
    },
    /// A write to the guarded table begins.
    Guarded {
        /// The request of the grant whose ticket it shows, or the latest request if it shows none.
        request: u64,
        /// The id of the write, unique in the run.
        id: String,
        /// What it shows.
        shown: Shown,
    },
    /// The COMMIT of a write is about to be sent.
    Committing {
        /// The write.
        id: String,
    },
    /// The COMMIT was answered.
    Committed {
        /// The write.
        id: String,
    },
    /// The fence or the guard refused the write.
    Refused {
        /// The write.
        id: String,
        /// The reason.
        why: String,
    },
    /// The write failed for another reason, such as a cut connection. After `Committing` its
    /// outcome is unknown.
    Failed {
        /// The write.
        id: String,
        /// The reason.
        why: String,
    },
    /// The wall clock of the process differs from the machine's.
    Clock {
        /// By how many seconds.
        skew: i64,
    },
}

/// Appends to the history of one process.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    process: String,
}

impl Recorder {
    /// Opens the file of a process.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn new(path: &Path, process: &str) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let process = process.to_owned();
        Ok(Self { file, process })
    }

    /// Records an event, now. One write: a killed process has recorded all of it or nothing.
    ///
    /// # Panics
    ///
    /// If the disk is full: an incomplete history proves nothing.
    pub fn write(&mut self, what: &What) {
        let event = Event {
            at: clock::now(),
            process: self.process.clone(),
            what: what.clone(),
        };
        let line = format!("{}\n", event.to_json());
        self.file
            .write_all(line.as_bytes())
            .expect("a history can be written to");
    }
}

impl Event {
    /// The line of an event.
    pub fn to_json(&self) -> Value {
        let mut value = match &self.what {
            What::Asked {
                request,
                lock,
                mode,
                wait,
            } => {
                let mut asked =
                    json!({"e": "asked", "request": request, "lock": lock, "wait": wait});
                match mode {
                    Mode::Exclusive => {}
                    Mode::Shared => asked["shared"] = true.into(),
                    Mode::Permit(limit) => asked["permits"] = (*limit).into(),
                }
                asked
            }
            What::GaveUp { request, why } => {
                json!({"e": "gave_up", "request": request, "why": why})
            }
            What::Granted {
                request,
                token,
                slot,
            } => {
                json!({"e": "granted", "request": request, "token": token, "slot": slot})
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
            What::Guarded { request, id, shown } => {
                json!({"e": "guarded", "request": request, "id": id, "shown": shown.as_str()})
            }
            What::Committing { id } => json!({"e": "committing", "id": id}),
            What::Committed { id } => json!({"e": "committed", "id": id}),
            What::Refused { id, why } => json!({"e": "refused", "id": id, "why": why}),
            What::Failed { id, why } => json!({"e": "failed", "id": id, "why": why}),
            What::Clock { skew } => json!({"e": "clock", "skew": skew}),
        };
        value["t"] = self.at.into();
        value["process"] = self.process.as_str().into();
        value
    }

    /// Reads a line; `None` if it is incomplete, such as the last line of a killed process.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let number = |key: &str| value[key].as_u64();
        let text = |key: &str| Some(value[key].as_str()?.to_owned());
        let request = || number("request");
        let what = match value["e"].as_str()? {
            "asked" => What::Asked {
                request: request()?,
                lock: text("lock")?,
                mode: match number("permits") {
                    Some(limit) => Mode::Permit(limit.try_into().ok()?),
                    None if value["shared"] == true => Mode::Shared,
                    None => Mode::Exclusive,
                },
                wait: number("wait"),
            },
            "gave_up" => What::GaveUp {
                request: request()?,
                why: text("why")?,
            },
            "granted" => What::Granted {
                request: request()?,
                token: value["token"].as_i64()?,
                slot: number("slot").and_then(|slot| slot.try_into().ok()),
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
            "guarded" => What::Guarded {
                request: request()?,
                id: text("id")?,
                shown: Shown::of(value["shown"].as_str()?)?,
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
            process: text("process")?,
            what,
        })
    }
}

/// Reads all events of the files `*.jsonl` of a folder, in order of time.
///
/// # Errors
///
/// If a file cannot be read, or a line other than the last of a file is no event.
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

/// Reads the events of one file. The last line may be incomplete, if its process was killed.
///
/// # Errors
///
/// Another line that is no event.
fn parse_lines(text: &str) -> Result<Vec<Event>, String> {
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
mod tests;
