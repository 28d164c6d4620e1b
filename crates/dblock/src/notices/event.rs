//! An event of the library, classified by level, module and fields. Its text is only printed.

use std::fmt;
use std::time::Duration;

use database_locks::LockName;
use tokio::sync::oneshot;
use tracing::Level;
use tracing::field::{Field, Visit};

/// A message to the printing task.
#[derive(Debug)]
pub(super) enum Message {
    /// The name, and whether it is that of a semaphore.
    Waiting(LockName, bool),
    Acquired,
    Event(LibraryEvent),
    Flush(oneshot::Sender<()>),
}

/// The operation that an outage of the database affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outage {
    Wait,
    Renewals,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Began(Outage),
    Ended(Outage),
    /// The lock is lost; the command itself reports that.
    Loss,
    /// A wait, and the holder of the lock.
    Wait,
    /// Something for an operator: a file with settings is ignored, or a transaction is in the way.
    Notice,
    Other,
}

/// The part of the library that an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Acquire,
    /// The part that reads the URL, and files for settings that the URL leaves out.
    Settings,
    Other,
}

/// The part that a target (a module path) belongs to; `None` for other crates and for events that
/// are not printed.
pub(super) fn part_of_target(target: &str) -> Option<Part> {
    let modules = target.strip_prefix("database_locks::")?;
    // The command reports its release itself, and does not continue it in the background.
    let parts = [
        ("release", None),
        ("acquire", Some(Part::Acquire)),
        ("url", Some(Part::Settings)),
    ];
    let part = parts
        .into_iter()
        .find(|(name, _)| modules.split("::").any(|module| module == *name));
    part.map_or(Some(Part::Other), |(_, part)| part)
}

#[derive(Debug)]
pub(super) struct LibraryEvent {
    pub(super) level: Level,
    pub(super) part: Part,
    pub(super) fields: Fields,
}

impl LibraryEvent {
    pub(super) fn topic(&self) -> Topic {
        let fields = &self.fields;
        match (self.level, fields.event.as_deref()) {
            _ if fields.loss => Topic::Loss,
            (_, Some("unavailable")) => Topic::Began(Outage::Wait),
            (_, Some("available")) => Topic::Ended(Outage::Wait),
            (Level::WARN, None) if fields.leases => Topic::Began(Outage::Renewals),
            (Level::INFO, None) if fields.outage.is_some() || fields.token => {
                Topic::Ended(Outage::Renewals)
            }
            (Level::WARN, _) if self.part == Part::Settings => Topic::Notice,
            (_, Some("row_locked")) => Topic::Notice,
            _ if self.part == Part::Acquire => Topic::Wait,
            _ => Topic::Other,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) message: String,
    pub(super) event: Option<String>,
    /// The name of the lock.
    pub(super) lock: Option<String>,
    pub(super) holder: Option<String>,
    pub(super) held_for: Option<Duration>,
    /// For how much longer the lock rests after that holder.
    pub(super) rests_for: Option<Duration>,
    pub(super) outage: Option<Duration>,
    /// The event counts leases that are not renewed.
    pub(super) leases: bool,
    /// The event names the token of a grant.
    pub(super) token: bool,
    pub(super) loss: bool,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            "event" => self.event = Some(value.to_owned()),
            "lock.name" => self.lock = Some(value.to_owned()),
            "lock.holder" => self.holder = Some(value.to_owned()),
            "lock.lost_reason" => self.loss = true,
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "lock.held_ms" => self.held_for = Some(Duration::from_millis(value)),
            "lock.rests_ms" => self.rests_for = Some(Duration::from_millis(value)),
            "outage_ms" => self.outage = Some(Duration::from_millis(value)),
            "locks" => self.leases = true,
            _ => {}
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match field.name() {
            "lock.token" => self.token = true,
            _ => self.record_u64(field, value.unsigned_abs()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}
