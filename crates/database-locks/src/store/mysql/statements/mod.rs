//! The SQL of MySQL and MariaDB, and the calls that send it.
//!
//! Both servers accept the statements: there is no `RETURNING`, and tokens come back by
//! `LAST_INSERT_ID(…)`, which the server sends along with the number of rows.
//!
//! A statement that writes to an existing row (but for those in `mariadb` and two more for MariaDB)
//! picks the row in a derived table with `FOR UPDATE SKIP LOCKED` and then updates what it picked:
//!
//! - `LIMIT` keeps the server from merging the two, which MySQL refuses (error 1093) and which
//!   would wait for a row that is locked.
//! - `STRAIGHT_JOIN` and `FORCE INDEX` keep the server from reading the table the other way round,
//!   or as a whole, as it does with a small one: that would wait for the rows of other locks.
//!
//! `UTC_TIMESTAMP` is the time at which the statement began. That is as good as the moment itself,
//! since no statement waits.

// First: its macro is part of other statements.
#[macro_use]
pub(crate) mod read;

pub(crate) mod acquire;
pub(crate) mod batch;
pub(crate) mod fence;
pub(crate) mod guarded_table;
pub(crate) mod guarded_table_body;
mod guarded_table_cascades;
pub(crate) mod guarded_table_error;
mod guarded_table_report;
mod guarded_table_target;
pub(crate) mod handover;
pub(crate) mod install;
pub(crate) mod mariadb;
pub(crate) mod permit;
pub(crate) mod prune;
pub(crate) mod release;
pub(crate) mod renew;
pub(crate) mod several;
pub(crate) mod shared;

#[cfg(test)]
use super::cluster;
#[cfg(test)]
use super::connection::session::Session;

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(crate) const PUBLISHED: &[(&str, &str)] = &[
    ("settings of a session", Session::SETTINGS),
    (
        "the insert id, where a trigger hides it",
        Session::INSERTED_ID,
    ),
    ("isolation of a session", Session::ISOLATION),
    ("settings of a session on Galera", Session::CURRENT),
    ("what the server is", Session::VARIABLES),
    ("whether a node of Galera is ready", Session::STATE),
    ("whether a node of Galera replicates", Session::REPLICATED),
    ("whether a node of Galera is connected", Session::CONNECTED),
    ("whether a member of a group is ready", Session::MEMBER),
    ("whether the table is fit", Session::SHAPE),
    ("acquire (MySQL)", Session::ACQUIRE),
    ("acquire (MariaDB)", Session::ACQUIRE_ON_MARIADB),
    ("`{clock}`", cluster::CLOCK),
    ("`{ended}`", cluster::ENDED),
    ("`{ended}` on a cluster", cluster::ENDED_ON_CLUSTER),
    ("`{live}`", cluster::LIVE),
    ("`{live}` on a cluster", cluster::LIVE_ON_CLUSTER),
    ("`{due}`", cluster::DUE),
    ("`{length}`", cluster::LENGTH),
    ("`{length}` on a cluster", cluster::LENGTH_ON_CLUSTER),
    ("`{until}`", cluster::UNTIL),
    ("`{until}` on a cluster", cluster::UNTIL_ON_CLUSTER),
    ("`{writable}`", cluster::WRITABLE),
    ("whether the server can be written to", Session::IS_WRITABLE),
    (
        "check whether another client is making the row (MySQL)",
        Session::PROBE,
    ),
    ("acquire many", Session::ACQUIRE_BATCH),
    (
        "check whether another client is making one of many rows",
        Session::PROBE_BATCH,
    ),
    (
        "find the free ones of many (MariaDB)",
        Session::FREE_ON_MARIADB,
    ),
    ("acquire these (MariaDB)", Session::ACQUIRE_BATCH_ON_MARIADB),
    ("acquire all or none", Session::ACQUIRE_ALL),
    ("make free rows", Session::CREATE_FREE),
    ("make a row, granted", Session::CREATE),
    ("make many rows, granted", Session::CREATE_BATCH),
    ("renew", Session::RENEW),
    ("wait for a row at most", Session::LONGEST_WAIT),
    ("renew, and wait for the row", Session::RENEW_WAITING),
    ("preempt", Session::TAKE_OVER),
    ("resume", Session::RESUME),
    ("resume on a cluster", Session::RESUME_ON_CLUSTER),
    ("release (MySQL)", Session::RELEASE),
    ("release (MariaDB)", Session::RELEASE_ON_MARIADB),
    ("release many", Session::RELEASE_BATCH),
    ("release these (MariaDB)", Session::RELEASE_BATCH_ON_MARIADB),
    ("release by force", Session::FORCE),
    ("read", Session::READ_ONE),
    ("poll many", Session::READ_BATCH),
    ("find the end of a page", Session::PAGE_END),
    ("read a page", Session::READ_PAGE),
    ("acquire a permit", Session::ACQUIRE_PERMIT),
    ("read limits", Session::LIMITS),
    ("set a limit", Session::SET_LIMIT),
    ("acquire, shared", Session::ACQUIRE_SHARED),
    ("check a shared grant", Session::READ_SHARED),
    ("make a row, shared", Session::MAKE_SHARED),
    ("mark a lock as shared", Session::MARK_SHARED),
    ("end a lease that has run out", Session::END_LEASE),
    ("release, shared", Session::RELEASE_SHARED),
    ("read the shared grants", Session::READERS),
    ("delete dead shared grants", Session::RETIRE_READERS),
    ("prune", Session::PRUNE),
    ("prune on a cluster", Session::PRUNE_ON_CLUSTER),
    (
        "check whether a transaction has an older snapshot",
        fence::BEFORE,
    ),
    ("fence", fence::FENCE),
    ("the triggers of guarded tables", guarded_table_body::SCHEMA),
    ("`{look}`", guarded_table_body::LOOK),
    ("`{check}`", guarded_table_body::CHECK),
    (
        "`{check}` on a cluster",
        guarded_table_body::CHECK_ON_CLUSTER,
    ),
];
