//! What holds on every engine: each test is written once and run on each of them. The tests share
//! one server of each engine.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

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
mod forced;
mod guard;
mod late_replies;
mod least;
mod listing;
mod other_writers;
mod passing;
mod pruning;
mod refused;
mod rubbish;
mod shapes;
mod take_over;
mod testing;
mod tickets;
mod triggers;
