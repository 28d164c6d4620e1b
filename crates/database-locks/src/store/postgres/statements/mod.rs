//! The statements, a file for each kind of request.
//!
//! Each request is one statement, and so one transaction and one round trip. Only an unsuccessful
//! request costs a second one, which finds the reason: "read or make" for an acquire, which also
//! inserts the row of a new name, and a plain read for the others. Clients in other languages have
//! to keep the rules of the statements too:
//!
//! - The time is `statement_timestamp()`, when the server began to execute the message that carries
//!   the statement. It is one value throughout a statement, to the microsecond. It is never later
//!   than the lock on a row, so an expiry is judged late and never early; and never earlier than
//!   the request, from which trust counts. Each statement needs a message of its own, since the
//!   time is one value for a whole string of statements, and for all that a function runs. `now()`
//!   is when the transaction began.
//! - No statement waits for a row. A row that another transaction has locked is skipped, and the
//!   answer says so.
//! - A statement that changes a token or a grant id, or frees a row by force, picks the row with
//!   `FOR UPDATE`, which a fence (`FOR KEY SHARE`) keeps out. Renewal and release pick with `FOR NO
//!   KEY UPDATE`, which passes it.
//! - A lease without end ends at 9999-12-31 00:00:00 UTC. Other programs may have written
//!   `infinity`, from which nothing can be subtracted.
//! - Settings are changed for the statement's own transaction only (`set_config(…, true)`), since
//!   behind a pooler the session is shared.
//!
//! An UPDATE would wait for a row; a `SELECT … FOR UPDATE SKIP LOCKED` does not. For one lock it
//! stands in a sub-select behind a plain `=`, for many in a CTE that is `MATERIALIZED`: both are
//! carried out once and first. What is set for the transaction stands in `RETURNING`, and so is set
//! only if a row was written.

pub(crate) mod acquire;
pub(crate) mod fence;
pub(crate) mod fragments;
pub(crate) mod guarded_table;
pub(crate) mod handover;
pub(crate) mod install;
pub(crate) mod permit;
pub(crate) mod prune;
pub(crate) mod read;
pub(crate) mod release;
pub(crate) mod renew;
pub(crate) mod several;
pub(crate) mod shared;
pub(crate) mod wait;

use self::acquire::{ACQUIRE, ACQUIRE_ONE, MAKE, MAKE_ONE};
use self::handover::{RESUME, TAKE_OVER};
use self::permit::{ACQUIRE_PERMIT, ACQUIRE_PERMITS, LIMITS, MAKE_PERMIT, SET_LIMIT, STATE};
use self::prune::PRUNE;
use self::read::{READ, READ_PAGE};
use self::release::{FORCE, RELEASE, RELEASE_ONE};
use self::renew::RENEW;
use self::several::{ACQUIRE_ALL, MAKE_FREE};
use self::shared::{
    ACQUIRE_SHARED, END_LEASE, MAKE_SHARED, MARK_SHARED, READ_SHARED, READERS, RELEASE_SHARED,
    RETIRE_READERS,
};
use self::wait::{WAIT, WAIT_FOR_PERMIT};
use super::connection::session::Statement;

/// Every statement that is sent.
pub(crate) const ALL: [Statement; 31] = [
    ACQUIRE_ONE,
    ACQUIRE,
    MAKE_ONE,
    MAKE,
    ACQUIRE_ALL,
    MAKE_FREE,
    RENEW,
    TAKE_OVER,
    RESUME,
    RELEASE_ONE,
    RELEASE,
    FORCE,
    WAIT,
    READ,
    READ_PAGE,
    PRUNE,
    ACQUIRE_PERMIT,
    ACQUIRE_PERMITS,
    STATE,
    MAKE_PERMIT,
    WAIT_FOR_PERMIT,
    LIMITS,
    SET_LIMIT,
    ACQUIRE_SHARED,
    READ_SHARED,
    MAKE_SHARED,
    MARK_SHARED,
    END_LEASE,
    RELEASE_SHARED,
    READERS,
    RETIRE_READERS,
];

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(crate) fn published() -> Vec<(&'static str, String)> {
    let sent = ALL.iter().map(|of| (of.name, fragments::expand(of.text)));
    let more = [
        ("fence", fence::FENCE.to_owned()),
        (
            "the trigger function of guarded tables",
            guarded_table::FUNCTION.to_owned(),
        ),
    ];
    sent.chain(more).collect()
}
