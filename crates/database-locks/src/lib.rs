//! Distributed locks as rows in the SQL database that an application already has: PostgreSQL,
//! MySQL, MariaDB, or an SQLite file for one machine.
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
//! // Wait for the lock, run the future, and stop it if the lock is lost.
//! locks.lock("nightly report").run(async { /* … */ }).await?;
//!
//! // Try once, and hold the lock by a guard.
//! if let Some(guard) = locks.lock("invoices").ttl(Duration::from_secs(10)).try_acquire().await? {
//!     assert!(guard.is_held());
//!     println!("fencing token {}", guard.token());
//!     guard.release().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! # Guarantees of a guard
//!
//! - **Renewal**: one background thread renews all locks of the process until their [`LockGuard`]s
//!   are released or dropped.
//! - **Loss**: if renewals fail, the guard reports the loss before the database would give the lock
//!   to another client. [`is_held`](LockGuard::is_held) never waits, [`lost`](LockGuard::lost)
//!   resolves, and [`Lock::run`] stops its future. A release by force is the exception: the holder
//!   learns of it at its next renewal.
//! - **Fencing**: the [`token`](LockGuard::token) grows with each grant, so that other systems can
//!   refuse a smaller one. A transaction in the same database can be [fenced](LockGuard::fence): it
//!   commits only while the lock is held.
//! - **Outages**: a restart or a short outage of the database loses no lock that is renewed in
//!   time, and waiters survive it.
//!
//! # Other forms
//!
//! - [`Locks::leader`]: of many processes one leads, and another one takes over when it ends.
//! - [`Locks::semaphore`]: a lock that several holders have at the same time.
//! - [`Locks::all`]: several locks at once, all or none.
//! - [`blocking`]: the same API for code that blocks.
//! - [`#[locked("nightly report", ttl = "30s")]`](macro@locked): runs a function under a lock. A
//!   function that returns no `Result` panics if the lock is not acquired or is lost.
//!
//! # Features
//!
//! | feature | default | for |
//! | --- | --- | --- |
//! | `macros` | on | the attribute [`#[locked]`](macro@locked) |
//! | `postgres`, `mysql` (MariaDB too) | off | the engines; `memory:` is always there |
//! | `sqlite` | off | SQLite, compiled in |
//! | `sqlite-unbundled` | off | SQLite of the system, 3.42 or later |
//! | `sqlx-postgres`, `sqlx-mysql`, `sqlx-sqlite` | off | the engine, and [fences](LockGuard::fence) for transactions of sqlx 0.9 |
//! | `metrics` | off | counters, gauges and histograms through the crate of that name |
//!
#![doc = include_str!("../docs/algorithm.md")]

mod api;
mod client;
#[cfg_attr(
    not(all(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled")),
    allow(dead_code, unused_imports)
)]
pub mod doctor;
mod error;
mod metrics;
mod runtime;
#[cfg_attr(not(feature = "__seam"), allow(unreachable_pub, dead_code))]
mod store;

pub use api::all_locks::AllLocks;
#[cfg(feature = "macros")]
pub use api::attribute::locked;
pub use api::blocking;
pub use api::builder::LocksBuilder;
pub use api::fence::{Fence, FenceFailure, FenceTransaction, OpenFence, ParamStyle};
pub use api::force_release::PreviousHolder;
pub use api::leader::observer::LeaderObserver;
pub use api::leader::{Leader, Term};
pub use api::lock::Lock;
pub use api::lock_set::{LockSet, OpenFences};
pub use api::locks::Locks;
pub use client::guard::LockGuard;
pub use error::loss::Loss;
pub use error::{BoxError, Error};
pub use protocol::{
    HeldBy, InvalidSetting, ListFilter, LockInfo, LockName, LockState, LostReason, Prune,
    Semaphore, TableGuard, Ticket, Token, Ttl, parse_duration,
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

/// The line of a semaphore in the lists of `dblock` and of the Python package. Not covered by semver.
#[doc(hidden)]
pub mod __listing {
    pub use protocol::{limit_state, limit_to_json};
}

/// Functions for the Python extension, besides the public API. Not covered by semver.
#[doc(hidden)]
pub mod __python {
    pub use crate::client::direct::exclude as exclude_from_direct_connections;
    pub use crate::client::holder::set_program;
    pub use crate::runtime::fork::{PerProcess, generation};
    #[cfg(feature = "mysql")]
    pub use crate::store::{guard_triggers, unguard_triggers};

    /// The error for an argument that the extension itself refuses.
    pub fn config_error(
        setting: &'static str,
        got: impl Into<String>,
        allowed: impl Into<String>,
    ) -> crate::Error {
        crate::Error::config(setting, got, allowed)
    }

    /// The statement that creates the table of an engine: `postgres`, `mysql` or `sqlite`.
    /// `{table}` stands for its name, and on MySQL `{collation}` for the collation of names.
    pub fn schema(engine: &str) -> Option<&'static str> {
        match engine {
            "postgres" => Some(include_str!("../schema/postgres.sql")),
            "mysql" => Some(include_str!("../schema/mysql.sql")),
            "sqlite" => Some(include_str!("../schema/sqlite.sql")),
            _ => None,
        }
    }

    /// The statement that puts a table of PostgreSQL under the guard of a lock, for the default table
    /// of locks. `table` is as SQL writes it.
    #[cfg(feature = "postgres")]
    pub fn guard_script(table: &str, lock: &str) -> String {
        crate::store::guard_script(&crate::store::Table::default(), table, lock)
    }

    /// The statement that removes it.
    #[cfg(feature = "postgres")]
    pub fn unguard_script(table: &str) -> String {
        crate::store::unguard_script(&crate::store::Table::default(), table)
    }

    /// As [`schema`], for the table of permits: `{permits}` stands for its name.
    pub fn permit_schema(engine: &str) -> Option<&'static str> {
        match engine {
            "postgres" => Some(include_str!("../schema/postgres_permit.sql")),
            "mysql" => Some(include_str!("../schema/mysql_permit.sql")),
            "sqlite" => Some(include_str!("../schema/sqlite_permit.sql")),
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
