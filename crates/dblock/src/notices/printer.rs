//! The task that decides which event becomes a line on stderr.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks::LockName;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::event::{Fields, LibraryEvent, Message, Outage, Topic};
use crate::output;
use crate::time::{human, now};

/// How long a wait lasts before a terminal shows the lock.
const FIRST_WAIT_NOTICE: Duration = Duration::from_secs(1);
/// The time until the next such notice, which is printed if the holder has changed.
const NEXT_WAIT_NOTICE: Duration = Duration::from_secs(60);

/// The holder at the latest report.
struct SeenHolder {
    name: String,
    /// Since when it holds the lock.
    since: Option<Instant>,
    /// Until when the lock rests after it.
    rests_until: Option<Instant>,
}

pub(super) struct Printer {
    verbose: bool,
    on_terminal: bool,
    lock_over: Arc<AtomicBool>,
    /// The lock that is waited for or held.
    name: Option<LockName>,
    /// Whether that is a semaphore, of which a permit is wanted.
    is_semaphore: bool,
    /// When the next notice of a wait is due.
    notice_due: Option<Instant>,
    last_notice: Option<Instant>,
    holder: Option<SeenHolder>,
    /// The outage that was reported, and its beginning.
    outage: Option<(Outage, Instant)>,
    /// Warnings that were printed: each connect may repeat them.
    warnings: BTreeSet<String>,
}

impl Printer {
    pub(super) fn new(verbose: bool, lock_over: Arc<AtomicBool>) -> Self {
        Self {
            verbose,
            on_terminal: std::io::stderr().is_terminal(),
            lock_over,
            name: None,
            is_semaphore: false,
            notice_due: None,
            last_notice: None,
            holder: None,
            outage: None,
            warnings: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        loop {
            let due = self.notice_due;
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = sleep_until(due.unwrap_or_else(now)), if due.is_some() => {
                    self.print_wait();
                    continue;
                }
            };
            match message {
                Some(Message::Event(event)) => self.report(&event),
                Some(Message::Waiting(name, is_semaphore)) => {
                    (self.name, self.is_semaphore) = (Some(name), is_semaphore);
                    self.notice_due = self.on_terminal.then(|| now() + FIRST_WAIT_NOTICE);
                }
                Some(Message::Acquired) => {
                    self.notice_due = None;
                    self.end_outage(Outage::Wait, None);
                }
                Some(Message::Flush(done)) => {
                    let _ = done.send(());
                }
                None => return,
            }
        }
    }

    fn report(&mut self, event: &LibraryEvent) {
        let fields = &event.fields;
        let lock_over = self.lock_over.load(Ordering::Relaxed);
        let printed = match event.topic() {
            Topic::Loss => return,
            Topic::Began(Outage::Renewals) | Topic::Ended(Outage::Renewals) if lock_over => return,
            Topic::Began(outage) => self.begin_outage(outage, fields),
            Topic::Ended(outage) => self.end_outage(outage, fields.outage),
            Topic::Notice => {
                if self.warnings.insert(fields.message.clone()) {
                    output::notice(&fields.message);
                }
                return;
            }
            Topic::Wait => {
                self.set_holder(fields);
                false
            }
            Topic::Other => false,
        };
        if self.verbose && !printed {
            self.print(&with_holder(fields));
        }
    }

    /// Records the holder. The database has answered, so an outage has ended.
    fn set_holder(&mut self, fields: &Fields) {
        let Some(holder) = fields.holder.clone() else {
            return;
        };
        // Of several locks, the one that is waited for.
        if let Some(name) = fields
            .lock
            .as_ref()
            .and_then(|name| LockName::new(name).ok())
        {
            self.name = Some(name);
        }
        self.end_outage(Outage::Wait, None);
        let now = now();
        let is_new = self.holder.as_ref().is_none_or(|seen| {
            seen.name != holder || seen.rests_until.is_some() != fields.rests_for.is_some()
        });
        self.holder = Some(SeenHolder {
            name: holder,
            since: fields.held_for.and_then(|age| now.checked_sub(age)),
            rests_until: fields.rests_for.map(|left| now + left),
        });
        if let Some(last) = self.last_notice.filter(|_| is_new && self.on_terminal) {
            self.notice_due = Some(now.max(last + NEXT_WAIT_NOTICE));
        }
    }

    /// Returns whether it printed a line: only the first report of an outage is one.
    fn begin_outage(&mut self, outage: Outage, fields: &Fields) -> bool {
        if self.outage.is_some() {
            return false;
        }
        self.outage = Some((outage, now()));
        self.print(&fields.message);
        true
    }

    fn end_outage(&mut self, outage: Outage, lasted: Option<Duration>) -> bool {
        let Some((_, began)) = self.outage.take_if(|(found, _)| *found == outage) else {
            return false;
        };
        let lasted = human(lasted.unwrap_or_else(|| began.elapsed()));
        self.print(&match outage {
            Outage::Renewals => format!("renewals get through again, after {lasted}"),
            Outage::Wait => format!("the database answers again, after {lasted}"),
        });
        true
    }

    fn print_wait(&mut self) {
        self.notice_due = None;
        self.last_notice = Some(now());
        // The line about the outage already mentions the wait.
        let Some(what) = self.what().filter(|_| self.outage.is_none()) else {
            return;
        };
        let held = match &self.holder {
            Some(SeenHolder {
                name,
                rests_until: Some(end),
                ..
            }) => {
                let left = human(end.saturating_duration_since(now()));
                format!(", resting for another {left} after {name}")
            }
            Some(SeenHolder { name, since, .. }) => {
                let age = since.map(|since| format!(" for {}", human(since.elapsed())));
                format!(", held by {name}{}", age.unwrap_or_default())
            }
            None => String::new(),
        };
        output::notice(&format!("waiting for {what}{held}"));
    }

    /// What is waited for or held.
    fn what(&self) -> Option<String> {
        let name = self.name.as_ref()?;
        Some(match self.is_semaphore {
            true => format!("a permit of `{name}`"),
            false => format!("lock `{name}`"),
        })
    }

    /// Prints a line, with the name of the lock unless the message contains it.
    fn print(&self, message: &str) {
        let is_named = |name: &LockName| message.contains(&format!("`{name}`"));
        match self
            .what()
            .filter(|_| !self.name.as_ref().is_some_and(is_named))
        {
            Some(what) => output::notice(&format!("{what}: {message}")),
            None => output::notice(message),
        }
    }
}

/// The message of an event, with the holder of the lock.
fn with_holder(fields: &Fields) -> String {
    let Some(holder) = &fields.holder else {
        return fields.message.clone();
    };
    let age = fields.held_for.map(|age| format!(" for {}", human(age)));
    format!("{} ({holder}{})", fields.message, age.unwrap_or_default())
}
