//! What the core logs, passed on to Python's `logging`.
//!
//! Through the courier, so that a record never makes the thread that logs it wait for the GIL.

use std::fmt::{self, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::courier;

/// Python's numbers for the levels.
fn number(level: &Level) -> usize {
    match *level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

/// Records below this are not even made.
static LEAST: AtomicUsize = AtomicUsize::new(30);
/// Records that Python has not taken yet.
static WAITING: AtomicUsize = AtomicUsize::new(0);
/// How many may wait. An interpreter that gives up the GIL to nobody must not fill the memory.
const MOST_WAITING: usize = 10_000;

/// Pass on records from this level on; called when a lock is acquired, since only then is the GIL at
/// hand to ask what Python wants to hear.
#[pyfunction]
pub(crate) fn set_log_level(level: usize) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(ToPython);
        // Taken already only where another part of this very extension took it.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
    LEAST.store(level, Ordering::Relaxed);
}

struct ToPython;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToPython {
    /// What is wanted changes, so nothing is to be remembered of it.
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event()
            && metadata.target().starts_with("database_locks")
            && number(metadata.level()) >= LEAST.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if WAITING.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            WAITING.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let level = number(event.metadata().level());
        let mut said = Said::default();
        event.record(&mut said);
        courier::tell(move |py| {
            WAITING.fetch_sub(1, Ordering::Relaxed);
            let log = PyModule::import(py, "database_locks._log")?;
            let told = (
                level,
                said.message,
                said.name,
                said.token,
                said.holder,
                said.rest,
            );
            log.call_method1("record", told).map(drop)
        });
    }
}

/// The message and fields of one event.
#[derive(Default)]
struct Said {
    message: String,
    name: Option<String>,
    token: Option<i64>,
    holder: Option<String>,
    /// `key=value`, in order.
    rest: String,
}

impl Said {
    fn also(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let space = if self.rest.is_empty() { "" } else { " " };
        let _ = write!(self.rest, "{space}{}={value}", field.name());
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.also(field, format_args!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "lock.name" => self.name = Some(value.into()),
            "lock.holder" => self.holder = Some(value.into()),
            // The message names it, and keeps it on its line.
            "lock.now_holder" => {}
            _ => self.also(field, format_args!("{value}")),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match field.name() {
            "lock.token" => self.token = Some(value),
            _ => self.also(field, format_args!("{value}")),
        }
    }
}
