//! Metrics, recorded with the crate `metrics`. Without the feature of that name every function here
//! is empty.
//!
//! Lock names are not labels: each distinct name would be a time series, and names may contain ids.
//! Log records contain the name.
#![cfg_attr(
    not(feature = "metrics"),
    allow(
        dead_code,
        unused_variables,
        reason = "unused without the feature `metrics`"
    )
)]

use std::time::Duration;

#[cfg(feature = "metrics")]
use ::metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use protocol::LostReason;

/// The label `engine`: `postgres`, `mysql`, `sqlite` or `memory`.
pub(crate) type Engine = &'static str;

/// Describe each metric to the recorder.
pub(crate) fn describe() {
    #[cfg(feature = "metrics")]
    {
        describe_counter!("database_locks_acquired_total", "Locks acquired");
        describe_counter!(
            "database_locks_not_acquired_total",
            "Acquires that ended without the lock, by reason"
        );
        describe_counter!(
            "database_locks_resumed_total",
            "Locks resumed with a ticket"
        );
        describe_counter!("database_locks_lost_total", "Held locks lost, by reason");
        describe_counter!(
            "database_locks_renewals_total",
            "Renewals of single locks, by result"
        );
        describe_gauge!("database_locks_held", "Locks held now");
        describe_gauge!("database_locks_waiting", "Acquires under way now");
        describe_histogram!(
            "database_locks_wait_seconds",
            Unit::Seconds,
            "How long an acquire took that got the lock"
        );
        describe_histogram!(
            "database_locks_held_seconds",
            Unit::Seconds,
            "How long a lock was held, until it was released, handed over or lost"
        );
        describe_histogram!(
            "database_locks_request_seconds",
            Unit::Seconds,
            "Requests to the database, by operation and result"
        );
    }
}

/// Count an acquire that succeeded.
pub(crate) fn acquired(engine: Engine, waited: Duration) {
    #[cfg(feature = "metrics")]
    {
        counter!("database_locks_acquired_total", "engine" => engine).increment(1);
        histogram!("database_locks_wait_seconds", "engine" => engine).record(waited);
    }
}

/// Count an acquire that ended without the lock.
pub(crate) fn not_acquired(engine: Engine, reason: &'static str) {
    #[cfg(feature = "metrics")]
    counter!("database_locks_not_acquired_total", "engine" => engine, "reason" => reason)
        .increment(1);
}

/// Count a lock that was resumed with its ticket.
pub(crate) fn resumed(engine: Engine) {
    #[cfg(feature = "metrics")]
    counter!("database_locks_resumed_total", "engine" => engine).increment(1);
}

/// Counts an acquire as under way until it is done or dropped. If it is dropped, its caller has given
/// up.
pub(crate) struct Waiting {
    engine: Engine,
    done: bool,
}

impl Waiting {
    pub(crate) fn new(engine: Engine) -> Self {
        #[cfg(feature = "metrics")]
        gauge!("database_locks_waiting", "engine" => engine).increment(1);
        let done = false;
        Self { engine, done }
    }

    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        gauge!("database_locks_waiting", "engine" => self.engine).decrement(1);
        if !self.done {
            not_acquired(self.engine, "given_up");
        }
    }
}

/// Count one more held lock.
pub(crate) fn held(engine: Engine) {
    #[cfg(feature = "metrics")]
    gauge!("database_locks_held", "engine" => engine).increment(1);
}

/// Count one less: released, handed over or lost.
pub(crate) fn ended(engine: Engine, after: Duration) {
    #[cfg(feature = "metrics")]
    {
        gauge!("database_locks_held", "engine" => engine).decrement(1);
        histogram!("database_locks_held_seconds", "engine" => engine).record(after);
    }
}

/// Count a lost lock.
pub(crate) fn lost(engine: Engine, reason: LostReason) {
    #[cfg(feature = "metrics")]
    counter!("database_locks_lost_total", "engine" => engine, "reason" => reason.as_str())
        .increment(1);
}

/// Count renewals by result: `renewed`, `busy`, `unknown` or `lost`.
pub(crate) fn renewals(engine: Engine, result: &'static str, locks: usize) {
    #[cfg(feature = "metrics")]
    if locks > 0 {
        counter!("database_locks_renewals_total", "engine" => engine, "result" => result)
            .increment(locks as u64);
    }
}

/// Record a request to the database and its duration.
pub(crate) fn request(
    engine: Engine,
    operation: &'static str,
    result: &'static str,
    took: Duration,
) {
    #[cfg(feature = "metrics")]
    histogram!(
        "database_locks_request_seconds",
        "engine" => engine, "operation" => operation, "result" => result
    )
    .record(took);
}
