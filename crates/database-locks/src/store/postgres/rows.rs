//! What is read of a row, by the names of its columns; and the parts that statements share.

use tokio_postgres::Row;

use crate::store::postgres::error::ServerError;
use protocol::LockRow;

/// A time, or the length from or to one, in microseconds. NULL for a time outside those of this
/// protocol, with which the server may be unable to reckon (`infinity`).
macro_rules! micros {
    ($time:literal, $what:literal) => {
        concat!(
            "(extract(epoch FROM CASE WHEN ",
            $time,
            " BETWEEN '1970-01-01 00:00:00+00'
             AND '9999-12-31 00:00:00+00' THEN ",
            $what,
            " END) * 1000000)::bigint"
        )
    };
}

/// The state of the lock in a row `l`: see [`state()`].
macro_rules! state {
    () => {
        concat!(
            "l.locked_by::text, l.token, l.grant_id::text,
       ",
            micros!("l.expires_at", "l.expires_at - statement_timestamp()"),
            " AS expires_in,
       l.expires_at >= '9999-12-31 00:00:00+00' AS is_infinite,
       l.granted_until IS DISTINCT FROM l.expires_at AS is_legacy,
       ",
            micros!("l.acquired_at", "statement_timestamp() - l.acquired_at"),
            " AS held_for"
        )
    };
}

/// The database's clock in milliseconds, below which no token is made.
macro_rules! clock_ms {
    () => {
        "(extract(epoch FROM statement_timestamp()) * 1000)::bigint"
    };
}

/// Let the transaction that writes this row survive a crash, even if the role's setting would not.
/// A stricter setting (`remote_apply`) stays.
macro_rules! synchronous_commit {
    () => {
        "CASE current_setting('synchronous_commit')
       WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"
    };
}

/// Notify of a row of `f` that was freed or taken, on a condition. The channel bears the number of
/// the table, so that clients which call the table by different names use the same one.
macro_rules! notify {
    ($when:literal) => {
        concat!(
            "CASE WHEN ",
            $when,
            " THEN
       pg_notify('database_locks_' || '{table}'::regclass::oid, f.name::text)::text END"
        )
    };
}

/// The columns of `state!`.
pub(crate) fn state(row: &Row) -> Result<LockRow, ServerError> {
    let is_infinite = row
        .try_get::<_, Option<bool>>("is_infinite")?
        .unwrap_or(false);
    Ok(LockRow {
        holder: row.try_get("locked_by")?,
        token: row.try_get("token")?,
        grant: row.try_get("grant_id")?,
        expires_in: match is_infinite {
            true => Some(i64::MAX),
            false => row.try_get("expires_in")?,
        },
        is_infinite,
        is_legacy: row.try_get("is_legacy")?,
        held_for: row.try_get("held_for")?,
        ..LockRow::default()
    })
}

/// Which item of a request a row of the answer is about: `WITH ORDINALITY` counts from 1.
pub(crate) fn place(row: &Row, asked: usize) -> Result<usize, ServerError> {
    let place = row.try_get::<_, i64>("place")?.checked_sub(1);
    let place = place.and_then(|n| usize::try_from(n).ok());
    let place = place.filter(|place| *place < asked);
    place.ok_or_else(|| ServerError::rejected("an answer to what was not asked", None))
}
