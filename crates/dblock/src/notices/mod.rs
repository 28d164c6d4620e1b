//! Notices on stderr: what is waited for, and when the database is away.
//!
//! The library reports both as `tracing` events. They are told apart by level, target and fields; the
//! text of an event is only printed. Events arrive on any thread. They are printed by a task of the
//! main thread, where SIGTTOU is blocked while CMD has the terminal.

use std::collections::BTreeSet;
use std::fmt;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks::{LockName, Ttl};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::args::Detail;
use crate::output;

/// How long a wait takes before a terminal is told what it is for.
const WORTH_A_NOTICE: Duration = Duration::from_secs(1);
/// The least time from one such notice to the next, which comes only with another holder.
const NEXT_NOTICE: Duration = Duration::from_secs(60);

/// What is away: the database for a wait, or for the renewals of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    Wait,
    Renewals,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Began(Outage),
    Ended(Outage),
    /// The lock is lost; the command itself says how.
    Loss,
    /// A wait, and who has the lock.
    Wait,
    /// A file of settings is passed over.
    Warning,
    Other,
}

/// One event of the library.
#[derive(Debug)]
struct Report {
    level: Level,
    part: Part,
    fields: Fields,
}

impl Report {
    /// By level and fields, which are stable, unlike the text.
    fn topic(&self) -> Topic {
        let fields = &self.fields;
        match (self.level, fields.event.as_deref()) {
            _ if fields.loss => Topic::Loss,
            (_, Some("unavailable")) => Topic::Began(Outage::Wait),
            (_, Some("available")) => Topic::Ended(Outage::Wait),
            (Level::WARN, None) if fields.leases => Topic::Began(Outage::Renewals),
            (Level::INFO, None) if fields.outage.is_some() || fields.grant => {
                Topic::Ended(Outage::Renewals)
            }
            (Level::WARN, _) if self.part == Part::Settings => Topic::Warning,
            _ if self.part == Part::Acquire => Topic::Wait,
            _ => Topic::Other,
        }
    }
}

/// A part of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It acquires.
    Acquire,
    /// It reads the URL, and the files for what that leaves out.
    Settings,
    Other,
}

/// The part of the library that a target is, if it is one.
///
/// Not that which releases: the command reports that itself, and nothing goes on in the background of
/// a process that ends.
fn part_of(target: &str) -> Option<Part> {
    let mut modules = target.split("::");
    match (modules.next(), modules.next(), modules.next()) {
        (Some("database_locks"), Some("release"), _) => None,
        (Some("database_locks"), Some("acquire"), _) => Some(Part::Acquire),
        (Some("database_locks"), Some("store"), Some("url")) => Some(Part::Settings),
        (Some("database_locks"), ..) => Some(Part::Other),
        _ => None,
    }
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    event: Option<String>,
    holder: Option<String>,
    held_for: Option<Duration>,
    outage: Option<Duration>,
    /// It says how many leases are not renewed.
    leases: bool,
    /// It is about one grant.
    grant: bool,
    loss: bool,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            "event" => self.event = Some(value.to_owned()),
            "lock.holder" => self.holder = Some(value.to_owned()),
            "lock.lost_reason" => self.loss = true,
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "lock.held_ms" => self.held_for = Some(Duration::from_millis(value)),
            "outage_ms" => self.outage = Some(Duration::from_millis(value)),
            "locks" => self.leases = true,
            _ => {}
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match field.name() {
            "lock.token" => self.grant = true,
            _ => self.record_u64(field, value.unsigned_abs()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

/// Passes the library's events on to the task that prints.
struct Collector {
    queue: mpsc::UnboundedSender<Message>,
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let least = match part_of(metadata.target()) {
            // Who holds the lock is reported there.
            Some(Part::Acquire) => Level::DEBUG,
            Some(Part::Settings | Part::Other) => Level::INFO,
            None => return false,
        };
        metadata.is_event() && *metadata.level() <= least
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let Some(part) = part_of(metadata.target()) else {
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *metadata.level();
        let report = Report {
            level,
            part,
            fields,
        };
        // The task is gone at the end of the process only.
        let _ = self.queue.send(Message::Report(report));
    }

    // No span is enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Debug)]
enum Message {
    Waiting(LockName),
    Held,
    Report(Report),
    Flush(oneshot::Sender<()>),
}

/// Tells the printing task where a command has got to.
#[derive(Debug)]
pub(crate) struct Notices {
    /// None with `--quiet`.
    queue: Option<mpsc::UnboundedSender<Message>>,
    over: Arc<AtomicBool>,
}

impl Notices {
    /// Collect the library's events from now on. A process does this once, within its runtime.
    pub(crate) fn start(detail: Detail) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        if detail == Detail::Quiet {
            output::be_quiet();
            return Self { queue: None, over };
        }
        let (queue, messages) = mpsc::unbounded_channel();
        let collector = Collector {
            queue: queue.clone(),
        };
        // It fails only where there is another one already.
        let _ = tracing::subscriber::set_global_default(collector);
        let printer = Printer::new(detail == Detail::Verbose, Arc::clone(&over));
        tokio::spawn(printer.run(messages));
        Self {
            queue: Some(queue),
            over,
        }
    }

    /// From now on this lock is waited for.
    pub(crate) fn waiting(&self, name: &LockName) {
        self.send(Message::Waiting(name.clone()));
    }

    /// The wait is over: the lock is held.
    pub(crate) fn held(&self) {
        self.send(Message::Held);
    }

    /// The lock is lost or released: renewals that fail are of no interest any more.
    pub(crate) fn over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Wait until all that was reported so far is printed.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        self.send(Message::Flush(done));
        // Without a task that prints the sender is dropped at once.
        let _ = flushed.await;
    }

    fn send(&self, message: Message) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(message);
        }
    }
}

/// Decides which report is worth a line.
struct Printer {
    verbose: bool,
    on_terminal: bool,
    over: Arc<AtomicBool>,
    /// The lock that is waited for or held.
    name: Option<LockName>,
    /// When a terminal is told what is waited for.
    due: Option<Instant>,
    told: Option<Instant>,
    /// Who has the lock, as last reported, since when.
    holder: Option<(String, Option<Instant>)>,
    /// An outage that was told: where it was found, and when.
    outage: Option<(Outage, Instant)>,
    /// Warnings that were told: each connect may repeat them.
    warnings: BTreeSet<String>,
}

impl Printer {
    fn new(verbose: bool, over: Arc<AtomicBool>) -> Self {
        Self {
            verbose,
            on_terminal: std::io::stderr().is_terminal(),
            over,
            name: None,
            due: None,
            told: None,
            holder: None,
            outage: None,
            warnings: BTreeSet::new(),
        }
    }

    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        loop {
            let due = self.due;
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = sleep_until(due.unwrap_or_else(now)), if due.is_some() => {
                    self.tell_wait();
                    continue;
                }
            };
            match message {
                Some(Message::Report(report)) => self.report(&report),
                Some(Message::Waiting(name)) => {
                    self.name = Some(name);
                    self.due = self.on_terminal.then(|| now() + WORTH_A_NOTICE);
                }
                Some(Message::Held) => {
                    self.due = None;
                    self.end_outage(Outage::Wait, None);
                }
                Some(Message::Flush(done)) => {
                    let _ = done.send(());
                }
                None => return,
            }
        }
    }

    fn report(&mut self, report: &Report) {
        let (topic, fields) = (report.topic(), &report.fields);
        let over = self.over.load(Ordering::Relaxed);
        let told = match topic {
            Topic::Loss => return,
            Topic::Began(Outage::Renewals) | Topic::Ended(Outage::Renewals) if over => return,
            Topic::Began(outage) => self.begin_outage(outage, fields),
            Topic::Ended(outage) => self.end_outage(outage, fields.outage),
            Topic::Warning => {
                if self.warnings.insert(fields.message.clone()) {
                    output::notice(&fields.message);
                }
                return;
            }
            Topic::Wait if fields.holder.is_some() => {
                self.held_by(fields);
                false
            }
            Topic::Wait | Topic::Other => false,
        };
        if self.verbose && !told {
            self.print(&detailed(fields));
        }
    }

    /// The database has answered who has the lock.
    fn held_by(&mut self, fields: &Fields) {
        self.end_outage(Outage::Wait, None);
        let seen = now();
        let since = fields.held_for.and_then(|age| seen.checked_sub(age));
        let another = self.holder.as_ref().map(|(holder, _)| holder) != fields.holder.as_ref();
        self.holder = fields.holder.clone().map(|holder| (holder, since));
        if let Some(told) = self.told.filter(|_| another && self.on_terminal) {
            self.due = Some(seen.max(told + NEXT_NOTICE));
        }
    }

    /// Answers whether it printed a line: only the first report of an outage is one.
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
        let lasted = Ttl::from(lasted.unwrap_or_else(|| began.elapsed()));
        self.print(&match outage {
            Outage::Renewals => format!("renewals get through again, after {lasted}"),
            Outage::Wait => format!("the database answers again, after {lasted}"),
        });
        true
    }

    fn tell_wait(&mut self) {
        self.due = None;
        self.told = Some(now());
        // An outage has been told.
        let Some(name) = self.name.as_ref().filter(|_| self.outage.is_none()) else {
            return;
        };
        let held = match &self.holder {
            Some((holder, since)) => {
                let age = since.map(|since| format!(" for {}", Ttl::from(since.elapsed())));
                format!(", held by {holder}{}", age.unwrap_or_default())
            }
            None => String::new(),
        };
        output::notice(&format!("waiting for lock `{name}`{held}"));
    }

    /// Print a line that names the lock.
    fn print(&self, said: &str) {
        let lock = self.name.as_ref().map(|name| format!("lock `{name}`"));
        match lock.filter(|lock| !said.contains(lock)) {
            Some(lock) => output::notice(&format!("{lock}: {said}")),
            None => output::notice(said),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "no lease is measured by it")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// An event with who holds the lock.
fn detailed(fields: &Fields) -> String {
    let holder = fields.holder.as_ref().map(|who| format!(" ({who}"));
    let Some(holder) = holder else {
        return fields.message.clone();
    };
    let age = fields
        .held_for
        .map(|age| format!(" for {}", Ttl::from(age)));
    format!("{}{holder}{})", fields.message, age.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACQUIRE: &str = "database_locks::acquire";
    const HELD: &str = "database_locks::held";

    /// What the collector makes of the events.
    fn reports(emit: impl FnOnce()) -> Vec<Report> {
        let (queue, mut messages) = mpsc::unbounded_channel();
        tracing::subscriber::with_default(Collector { queue }, emit);
        let next = || messages.try_recv().ok();
        std::iter::from_fn(next)
            .map(|message| match message {
                Message::Report(report) => report,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_events_of_the_library_are_told_apart_by_level_and_fields() {
        let told = reports(|| {
            tracing::warn!(target: ACQUIRE, { event = "unavailable", outage_ms = 0_u64 }, "x");
            tracing::info!(target: ACQUIRE, { event = "available", outage_ms = 5_u64 }, "x");
            tracing::info!(target: ACQUIRE, { event = "waiting", lock.token = 1_i64 }, "x");
            tracing::debug!(target: ACQUIRE, { lock.holder = "b", lock.held_ms = 5_u64 }, "x");
            tracing::warn!(target: HELD, { lock.token = 1_i64, locks = 1_usize }, "x");
            tracing::warn!(target: HELD, { lock.token = 1_i64, locks = 1 }, "x");
            tracing::info!(target: HELD, { outage_ms = 5_u64 }, "x");
            tracing::info!(target: HELD, { lock.token = 1_i64 }, "x");
            tracing::warn!(target: HELD, { lock.token = 1_i64, lock.lost_reason = "forced" }, "x");
            tracing::warn!(target: "database_locks::store::url::libpq", "x");
            tracing::warn!(target: "database_locks::store::postgres", "x");
        });
        let topics: Vec<Topic> = told.iter().map(Report::topic).collect();
        assert_eq!(
            topics,
            [
                Topic::Began(Outage::Wait),
                Topic::Ended(Outage::Wait),
                Topic::Wait,
                Topic::Wait,
                Topic::Began(Outage::Renewals),
                Topic::Began(Outage::Renewals),
                Topic::Ended(Outage::Renewals),
                Topic::Ended(Outage::Renewals),
                Topic::Loss,
                Topic::Warning,
                Topic::Other,
            ]
        );
        let held = &told[3].fields;
        assert_eq!(held.holder.as_deref(), Some("b"));
        assert_eq!(held.held_for, Some(Duration::from_millis(5)));
    }

    #[test]
    fn what_is_not_the_librarys_or_too_detailed_is_left_out() {
        let told = reports(|| {
            tracing::error!(target: "tokio_postgres", "x");
            tracing::warn!(target: "database_locks_other", "x");
            tracing::warn!(target: "database_locks::release", "x");
            tracing::debug!(target: "database_locks::held", "x");
            tracing::trace!(target: "database_locks::acquire", "x");
        });
        assert!(told.is_empty(), "{told:?}");
    }
}
