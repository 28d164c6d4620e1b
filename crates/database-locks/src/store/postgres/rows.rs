//! What is read of a row, and how.

use std::time::Duration;

use tokio_postgres::Row;

use crate::store::postgres::error::Refusal;
use protocol::LockRow;

pub(crate) fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// A time, or the length from or to one, in microseconds. A time that the statement could not reckon
/// with, which is nobody's of this protocol (`infinity` for one), is NULL.
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

/// The columns of a row `l` that say how a lock stands: see [`seen()`].
macro_rules! seen {
    () => {
        concat!(
            "l.locked_by::text, l.token, l.grant_id::text,
       ",
            micros!("l.expires_at", "l.expires_at - statement_timestamp()"),
            ",
       l.expires_at >= '9999-12-31 00:00:00+00',
       l.granted_until IS DISTINCT FROM l.expires_at,
       ",
            micros!("l.acquired_at", "statement_timestamp() - l.acquired_at")
        )
    };
}

/// The database's clock in milliseconds, below which no token is made.
macro_rules! clock_ms {
    () => {
        "(extract(epoch FROM statement_timestamp()) * 1000)::bigint"
    };
}

/// Let the transaction that this row is written in survive a crash, where the role's setting would not. A
/// stricter setting (`remote_apply`) stays.
macro_rules! durable {
    () => {
        "CASE current_setting('synchronous_commit')
       WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"
    };
}

/// Ring for a row of `f` that was freed or taken, on a condition. The channel bears the table's number, so
/// that all who call it by different names ring the same bell.
macro_rules! ring {
    ($when:literal) => {
        concat!(
            "CASE WHEN ",
            $when,
            " THEN
       pg_notify('database_locks_' || '{table}'::regclass::oid, f.name::text)::text END"
        )
    };
}

/// Read them, from column `at` on.
pub(crate) fn seen(row: &Row, at: usize) -> Result<LockRow, Refusal> {
    let is_infinite = row.try_get::<_, Option<bool>>(at + 4)?.unwrap_or(false);
    Ok(LockRow {
        holder: row.try_get(at)?,
        token: row.try_get(at + 1)?,
        grant: row.try_get(at + 2)?,
        expires_in: if is_infinite {
            Some(i64::MAX)
        } else {
            row.try_get(at + 3)?
        },
        is_infinite,
        is_legacy: row.try_get(at + 5)?,
        held_for: row.try_get(at + 6)?,
        ..LockRow::default()
    })
}

/// Which of what was asked a row of a batch's answer is about: `WITH ORDINALITY` counts from 1.
pub(crate) fn place(row: &Row, asked: usize) -> Result<usize, Refusal> {
    let place = row
        .try_get::<_, i64>(0)?
        .checked_sub(1)
        .and_then(|n| usize::try_from(n).ok());
    let place = place.filter(|place| *place < asked);
    place.ok_or_else(|| Refusal::rejected("an answer to what was not asked", None))
}
