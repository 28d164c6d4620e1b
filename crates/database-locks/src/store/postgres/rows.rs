//! Conversion of rows by the names of their columns.

use tokio_postgres::Row;

use crate::store::postgres::error::ServerError;
use protocol::LockRow;

/// The row of a statement that has one row in any case.
pub(crate) fn only(rows: &[Row]) -> Result<&Row, ServerError> {
    let row = rows.first();
    row.ok_or_else(|| ServerError::rejected("the server gave no answer", None))
}

/// The columns of `{state}`.
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
