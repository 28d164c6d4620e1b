//! Reading rows, without a lock.

use tokio_postgres::Row;

use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::ServerError;
use crate::store::postgres::rows::state;
use protocol::{ListFilter, LockName, LockRow, Page, Slot};

/// Read the locks of these names, or the permits and the operators' limits (slot −1): `$1`.
pub(crate) const READ: Statement = Statement {
    name: "read",
    text: "
SELECT {row}
  FROM {table} l WHERE name = ANY ($1) ORDER BY name COLLATE \"C\"{?, slot?}",
};

/// Read a page of rows: the next thousand after the id `$1`, all or, if `$2`, those that are not
/// free; with names that begin with `$3`. Each row has the last id of the page. If no row matches,
/// one row has only that id; it is null if there are no more rows.
pub(crate) const READ_PAGE: Statement = Statement {
    name: "read a page",
    text: "
WITH page AS MATERIALIZED (
    SELECT * FROM {table} WHERE id > $1 ORDER BY id LIMIT 1000
)
SELECT {row}, (SELECT max(id)::bigint FROM page) AS last
  FROM (SELECT) one LEFT JOIN page l
       ON NOT ($2 AND l.expires_at IS NULL) AND starts_with(l.name::text, $3){? AND l.slot <> -1?}
 ORDER BY l.id",
};

pub(crate) async fn read(
    session: &Session,
    of: Rows,
    names: &[LockName],
) -> Result<Vec<LockRow>, ServerError> {
    let texts: Vec<_> = names.iter().map(LockName::as_str).collect();
    let rows = session.read(of, &READ, names.len(), &[&texts]).await?;
    rows.iter().map(|row| lock_row(of, row)).collect()
}

fn lock_row(of: Rows, row: &Row) -> Result<LockRow, ServerError> {
    let (slot, permits) = match of {
        Rows::Locks => (Slot::Lock, None),
        Rows::Permits => {
            let slot = Slot::from_db(row.try_get("slot")?);
            (slot.unwrap_or(Slot::AnyPermit), row.try_get("permits")?)
        }
    };
    Ok(LockRow {
        name: row.try_get("name")?,
        slot,
        permits,
        acquired_at: row.try_get("acquired_at")?,
        renewed_at: row.try_get("renewed_at")?,
        expires_at: row.try_get("expires_at")?,
        metadata: row.try_get("metadata")?,
        ..state(row)?
    })
}

pub(crate) async fn page(
    session: &Session,
    of: Rows,
    filter: &ListFilter,
    after: Option<i64>,
) -> Result<Page, ServerError> {
    let after = after.unwrap_or(i64::MIN);
    let params: [&dyn Param; 3] = [&after, &filter.not_free, &&*filter.prefix];
    let rows = session.read(of, &READ_PAGE, 1, &params).await?;
    let mut page = Page::default();
    for row in &rows {
        page.last = row.try_get("last")?;
        if row.try_get::<_, Option<&str>>("name")?.is_some() {
            page.rows.push(lock_row(of, row)?.into_info());
        }
    }
    Ok(page)
}
