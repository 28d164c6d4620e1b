//! Passes the core's events on to Python's `logging`.
//!
//! Events are queued. A thread of Python takes them from the queue and calls the handlers. So a
//! handler that blocks delays neither the thread that logs nor the report of a loss or of a
//! completed operation. The thread is started by Python, because the interpreter stops its daemon
//! threads wherever they are, and no frame of Rust may be below a handler then.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use database_locks::__python::PerProcess;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::gil_thread;
use crate::sync::{locked, of_process};

const WARNING: usize = 30;

/// Python's numbers for the levels.
fn number(level: &Level) -> usize {
    match *level {
        Level::ERROR => 40,
        Level::WARN => WARNING,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

/// Starts the thread in Python that reads the queue.
static START: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
/// Records below this level are not made.
static LEAST: AtomicUsize = AtomicUsize::new(WARNING);
/// The capacity of the queue, which limits the memory while a handler blocks.
const CAPACITY: usize = 10_000;

/// Pass on records from this level on; `start` starts the reading thread. Called at each acquire,
/// when Python's log level can be read.
#[pyfunction]
pub(crate) fn set_log_level(py: Python<'_>, level: usize, start: Py<PyAny>) {
    let _ = START.get_or_init(py, || start);
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(ToPython);
        // It fails only if another part of this extension has set a subscriber.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
    LEAST.store(level, Ordering::Relaxed);
}

struct ToPython;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToPython {
    /// The level changes, so the answer must not be cached.
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event()
            && metadata.target().starts_with("database_locks")
            && number(metadata.level()) >= LEAST.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = Record::new(number(event.metadata().level()));
        event.record(&mut record);
        if queue().push(record) {
            gil_thread::call(|py| match START.get(py) {
                Some(start) => start.call0(py).map(drop),
                None => Ok(()),
            });
        }
    }
}

/// The records of one process that the handlers have not received yet.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Record>,
    /// Records dropped since the last report of dropped records.
    dropped: usize,
    /// The reading thread runs or is starting.
    has_reader: bool,
    /// The handlers have a record.
    in_hand: bool,
    /// The reading thread is about to ask for the GIL.
    attaching: bool,
    closed: bool,
}

fn queue() -> &'static Queue {
    static QUEUE: PerProcess<Queue> = PerProcess::new();
    of_process(&QUEUE)
}

impl Waiting {
    fn push(&mut self, record: Record) {
        if self.records.len() < CAPACITY {
            self.records.push_back(record);
        } else {
            self.dropped += 1;
        }
    }

    /// The next record. Dropped records are reported when the queue has emptied, or after many.
    fn pop(&mut self) -> Option<Record> {
        let over = self.records.len() <= CAPACITY / 2;
        if self.dropped > 0 && (over || self.dropped >= CAPACITY) {
            return Some(Record::of_dropped(std::mem::take(&mut self.dropped)));
        }
        self.records.pop_front()
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        locked(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a reader has to be started.
    fn push(&self, record: Record) -> bool {
        let mut state = self.state();
        state.push(record);
        self.changed.notify_all();
        !state.closed && !std::mem::replace(&mut state.has_reader, true)
    }

    /// Waits for a record. Never returns once the queue is closed: the thread would ask for the GIL
    /// of an interpreter that is ending.
    fn take(&self) -> Record {
        let mut state = self.state();
        state.in_hand = false;
        self.changed.notify_all();
        loop {
            if !state.closed
                && let Some(record) = state.pop()
            {
                (state.in_hand, state.attaching) = (true, true);
                return record;
            }
            state = self.wait(state);
        }
    }

    fn taken(&self) {
        self.state().attaching = false;
        self.changed.notify_all();
    }

    /// Waits until `done`. Returns `false` after `at_most`.
    fn wait_until(&self, at_most: Duration, done: impl Fn(&Waiting) -> bool) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), at_most, |state| !done(state));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn close(&self, patience: Duration) -> bool {
        let written = self.wait_until(patience, |state| {
            !state.has_reader || (state.records.is_empty() && !state.in_hand)
        });
        self.state().closed = true;
        self.wait_until(patience, |state| !state.attaching);
        written
    }
}

/// The next record, for `record` of `_logging.py`; called by the reading thread.
#[pyfunction]
pub(crate) fn next_record(py: Python<'_>) -> PyResult<(f64, usize, String, Bound<'_, PyDict>)> {
    let record = py.detach(|| queue().take());
    queue().taken();
    let fields = PyDict::new(py);
    for (name, value) in &record.fields {
        match value {
            Value::Int(value) => fields.set_item(name, value)?,
            Value::Text(value) => fields.set_item(name, value)?,
        }
    }
    Ok((record.at, record.level, record.message, fields))
}

/// Wait until the handlers have all records, `patience` seconds at most; then pass on no more.
/// Returns `false` if a handler blocks.
#[pyfunction]
pub(crate) fn close_log(py: Python<'_>, patience: f64) -> bool {
    let patience = Duration::try_from_secs_f64(patience).unwrap_or_default();
    py.detach(|| queue().close(patience))
}

/// The message and fields of one event.
struct Record {
    /// Seconds since 1970, for display.
    at: f64,
    level: usize,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

enum Value {
    Int(i64),
    Text(String),
}

impl Record {
    #[allow(clippy::disallowed_methods, reason = "for display only")]
    fn new(level: usize) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            at: since.unwrap_or_default().as_secs_f64(),
            level,
            message: String::new(),
            fields: Vec::new(),
        }
    }

    fn of_dropped(count: usize) -> Self {
        let mut record = Self::new(WARNING);
        record.message = format!(
            "{count} log records were dropped: the log handlers were slower than the records"
        );
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        record.fields = vec![
            ("event", Value::Text("dropped".into())),
            ("dropped", Value::Int(count)),
        ];
        record
    }

    fn add(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => {
                let _ = write!(self.message, "{value:?}");
            }
            _ => self.add(field, Value::Text(format!("{value:?}"))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }
}
