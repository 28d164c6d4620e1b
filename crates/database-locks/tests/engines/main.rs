//! What holds on every engine: each test is written once and run on each of them. The tests share
//! one server of each engine.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

mod api_usage;
mod contract;
mod deadlines;
mod doctor;
mod drain;
mod fence;
mod fence_scripts;
#[cfg(all(
    feature = "sqlx-mysql",
    feature = "sqlx-postgres",
    feature = "sqlx-sqlite"
))]
mod fence_sqlx;
mod fence_statement;
mod fence_user;
mod force_release;
mod guard;
mod guarded;
mod invalid_rows;
mod late_replies;
mod leader;
mod leader_grace;
mod leader_observer;
mod least_privilege;
mod listing;
mod other_writers;
mod pruning;
mod refused_renewals;
mod semaphores;
mod several;
mod shared;
mod shared_fences;
mod spacing;
mod take_over;
mod testing;
mod tickets;
mod transient_errors;
mod triggers;
