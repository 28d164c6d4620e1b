//! Distributed locks as rows in the SQL database that you already have: PostgreSQL, MySQL, MariaDB,
//! or an SQLite file for one machine.
//!
//! ```
//! use std::time::Duration;
//! use database_locks::Locks;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let url = "memory:";
//! let locks = Locks::connect(url).await?; // postgres://…, mysql://…, sqlite:…, memory:
//! locks.migrate().await?; // once; or `dblock init`
//!
//! // Wait for it, run, and be stopped if it is lost.
//! locks.lock("nightly report").run(async { /* … */ }).await?;
//!
//! // Try once, and go on with the guard in hand.
//! if let Some(guard) = locks.lock("invoices").ttl(Duration::from_secs(10)).try_acquire().await? {
//!     assert!(guard.is_held());
//!     println!("fencing token {}", guard.token());
//!     guard.release().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! # What a guard is worth
//!
//! A [`LockGuard`] is renewed in the background, by one thread for all locks of the process, until it
//! is released or dropped. If it is *lost*, it says so before the database would give the lock to
//! another client: [`is_held`](LockGuard::is_held) never waits, [`lost`](LockGuard::lost) wakes you, and
//! [`Lock::run`] stops your future. Its [`token`](LockGuard::token) grows with each grant; whatever
//! you write to outside of this database can refuse a smaller one. What you write to this database can
//! be [fenced](LockGuard::fence): then it is committed only while the lock is really still held.
//!
//! A database that is restarted or cut off for a while loses no lock that is renewed in time, and
//! waiters outlive it.
//!
//! # Without async
//!
//! [`blocking`] has the same for code that blocks.
//!
//! # Without the lines
//!
//! The attribute [`#[locked("nightly report", ttl = "30s")]`](macro@locked) runs a function under a lock. A
//! function that returns no `Result` panics if the lock is not acquired or is lost.
//!
//! # Features
//!
//! | feature | on | for |
//! | --- | --- | --- |
//! | `macros` | by default | the attribute [`#[locked]`](macro@locked) |
//! | `postgres`, `mysql` (MariaDB too) | | the engines; `memory:` is always there |
//! | `sqlite` | | SQLite, compiled in |
//! | `sqlite-unbundled` | | the same with the system's library, 3.42 or later |
//! | `sqlx-postgres`, `sqlx-mysql`, `sqlx-sqlite` | | the engine, and [fences](LockGuard::fence) for transactions of sqlx 0.9 |
//! | `metrics` | | counters, gauges and histograms through the crate of that name |
//!
#![doc = include_str!("../docs/algorithm.md")]

mod api;
mod client;
#[cfg_attr(
    not(all(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled")),
    allow(dead_code)
)]
pub mod doctor;
mod error;
mod metrics;
mod runtime;
#[cfg_attr(not(feature = "__seam"), allow(unreachable_pub, dead_code))]
mod store;

#[cfg(feature = "macros")]
pub use api::attribute::locked;
pub use api::blocking;
pub use api::builder::LocksBuilder;
pub use api::fence::{Fence, FenceFailure, FenceTransaction, OpenFence, ParamStyle};
pub use api::lock::Lock;
pub use api::locks::{Locks, PreviousHolder};
pub use client::guard::LockGuard;
pub use error::loss::Loss;
pub use error::{BoxError, Error};
pub use protocol::{
    HeldBy, InvalidSetting, ListFilter, LockInfo, LockName, LockState, LostReason, Prune, Ticket,
    Token, Ttl, parse_duration,
};

// The drivers in whose transactions `LockGuard::fence` works, in the versions that it takes.
#[cfg(feature = "mysql")]
pub use mysql_async;
#[cfg(feature = "sqlite-unbundled")]
pub use rusqlite;
#[cfg(any(
    feature = "sqlx-postgres",
    feature = "sqlx-mysql",
    feature = "sqlx-sqlite"
))]
pub use sqlx;
#[cfg(feature = "postgres")]
pub use tokio_postgres;

/// The guide's examples are compiled, and those with a `main` are run.
#[cfg(doctest)]
#[doc = include_str!("../docs/rust.md")]
struct Guide;

/// What `#[locked]` expands to, besides what is public. Not covered by semver.
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod __locked {
    pub use crate::api::attribute::{
        Failure, Finished, Panics, Returned, call, metadata_key, metadata_value, panic,
        require_finished, with_metadata,
    };
}

/// What a face in another language needs besides what is public. Not covered by semver.
#[doc(hidden)]
pub mod __face {
    pub use crate::client::holder::set_program;
    pub use crate::runtime::fork::{PerProcess, generation};

    /// What a face refuses by itself, in the words of the library.
    pub fn config_error(
        setting: &'static str,
        got: impl Into<String>,
        allowed: impl Into<String>,
    ) -> crate::Error {
        crate::Error::config(setting, got, allowed)
    }

    /// The statement that makes the table of an engine: `postgres`, `mysql` or `sqlite`. In place of
    /// `{table}` stands its name, and on MySQL in place of `{collation}` that of names.
    pub fn schema(engine: &str) -> Option<&'static str> {
        match engine {
            "postgres" => Some(include_str!("../schema/postgres.sql")),
            "mysql" => Some(include_str!("../schema/mysql.sql")),
            "sqlite" => Some(include_str!("../schema/sqlite.sql")),
            _ => None,
        }
    }
}

/// To lose a lock on purpose, in tests of programs that use locks. Not covered by semver.
#[doc(hidden)]
pub mod __testing {
    pub use crate::api::testing::{expire, lose, timed_out};
}

/// The store seam, for the contract tests of this repository. Not covered by semver.
#[cfg(feature = "__seam")]
#[doc(hidden)]
pub mod seam {
    pub use protocol::*;

    pub use crate::client::grant_id::random_grant_id;
    pub use crate::store::*;
}
