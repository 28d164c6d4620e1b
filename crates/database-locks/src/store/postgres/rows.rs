//! Conversion of rows by the names of their columns, and the parts that statements share.

use tokio_postgres::Row;

use crate::store::postgres::error::ServerError;
use protocol::LockRow;

/// A time, or the length from or to one, in microseconds. NULL for a time outside the range of this
/// protocol, from which the server may be unable to subtract (`infinity`).
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
            "l.locked_by::text, l.token, l.grant_id::text, l.shared,
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

/// The database's clock in milliseconds, the least new token.
macro_rules! clock_ms {
    () => {
        "(extract(epoch FROM statement_timestamp()) * 1000)::bigint"
    };
}

/// Make the transaction that writes this row durable, even if the role's setting is `off`. A
/// stricter setting (`remote_apply`) stays.
macro_rules! synchronous_commit {
    () => {
        "CASE current_setting('synchronous_commit')
       WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"
    };
}

/// Notify of a row of `f` that was freed or taken over, on a condition. The name of the channel
/// contains the number of the table, so that clients which refer to the table by different names
/// use the same channel.
macro_rules! notify {
    ($when:literal) => {
        concat!(
            "CASE WHEN ",
            $when,
            " THEN
       pg_notify('database_locks_' || '{locks}'::regclass::oid, f.name::text)::text END"
        )
    };
}

/// The row of a statement that has one row in any case.
pub(crate) fn only(rows: &[Row]) -> Result<&Row, ServerError> {
    let row = rows.first();
    row.ok_or_else(|| ServerError::rejected("the server gave no answer", None))
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
        is_shared: row.try_get::<_, Option<bool>>("shared")?.unwrap_or(false),
        held_for: row.try_get("held_for")?,
        ..LockRow::default()
    })
}

/// The index of the command that a row of the answer belongs to: `WITH ORDINALITY` counts from 1.
pub(crate) fn place(row: &Row, asked: usize) -> Result<usize, ServerError> {
    let place = row.try_get::<_, i64>("place")?.checked_sub(1);
    let place = place.and_then(|n| usize::try_from(n).ok());
    let place = place.filter(|place| *place < asked);
    place.ok_or_else(|| ServerError::rejected("an answer to what was not asked", None))
}
