//! Deleting rows of locks that are no longer used.

use std::time::Duration;

use crate::store::api::{bounded, micros};
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Session, Statement};
use crate::store::postgres::error::ServerError;
use crate::store::postgres::rows::only;
use protocol::Pruned;

/// Delete rows of locks that have been free for `$1` microseconds, on a page of a thousand rows
/// after the id `$3`; `$2`: also rows whose time of release is unknown. One row: the last id of the
/// page, null if there are no more, and the number of deleted rows.
///
/// A row whose `granted_until` is set while `expires_at` is null was released by legacy
/// (django-database-locks 0.5), which does not record when. A row whose token is ahead of the
/// clock, after more than a thousand grants a second, stays: the token of a new row starts at the
/// clock, and has to be greater. The row of a lock that was ever shared stays: without its mark an
/// exclusive grant would not look for shared ones.
pub(crate) const PRUNE: Statement = Statement {
    name: "prune",
    text: "
WITH page AS MATERIALIZED (
    SELECT id FROM {table} WHERE id > $3 ORDER BY id LIMIT 1000
), picked AS MATERIALIZED (
    SELECT id
      FROM {table}
     WHERE id > $3 AND id <= (SELECT max(id) FROM page)
       AND (expires_at <= statement_timestamp() - $1 * interval '1 microsecond'
        OR (expires_at IS NULL AND granted_until IS NULL
            AND renewed_at <= statement_timestamp() - $1 * interval '1 microsecond')
        OR (expires_at IS NULL AND (granted_until IS NOT NULL OR renewed_at IS NULL) AND $2))
       AND (NOT shared{? OR slot < -1?}){? AND slot <> -1?}
       AND token < (extract(epoch FROM statement_timestamp()) * 1000)::bigint
       FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM {table} l USING picked p WHERE l.id = p.id RETURNING l.id
)
SELECT (SELECT max(id)::bigint FROM page) AS last, (SELECT count(*) FROM deleted) AS deleted",
};

pub(crate) async fn prune(
    session: &Session,
    of: Rows,
    idle: Duration,
    include_legacy: bool,
    after: Option<i64>,
) -> Result<Pruned, ServerError> {
    let (idle, after) = (micros(bounded(idle)), after.unwrap_or(i64::MIN));
    let rows = session
        .write(of, &PRUNE, 1, &[&idle, &include_legacy, &after])
        .await?;
    let row = only(&rows)?;
    Ok(Pruned {
        deleted: row.try_get::<_, i64>("deleted")?.unsigned_abs(),
        last: row.try_get("last")?,
    })
}
