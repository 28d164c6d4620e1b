//! Deleting the rows of locks that are no longer used.

use std::time::Duration;

use rusqlite::ToSql;

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::ago;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{Pruned, Slot};

pub(crate) fn prune(
    worker: &mut Worker,
    of: Rows,
    idle: Duration,
    include_legacy: bool,
    after: Option<i64>,
) -> Result<Pruned, StoreError> {
    let first = after.unwrap_or(i64::MIN);
    worker.write(|session| {
        if after.is_none() {
            session.fences.sweep();
        }
        let Some(last) = session.page_end(of, first)? else {
            return Ok(Pruned::default());
        };
        let params: [&dyn ToSql; 4] = [&ago(idle), &include_legacy, &first, &last];
        let found: Vec<(i64, String, Slot)> = session.query(of, Sql::Idle, &params, |row| {
            let slot = match of {
                Rows::Locks => Slot::Lock,
                Rows::Permits => Slot::from_db(row.get("slot")?).unwrap_or(Slot::AnyPermit),
            };
            Ok((row.get("id")?, row.get("name")?, slot))
        })?;
        let mut deleted = 0;
        for (id, name, slot) in found {
            if !session.is_fenced(&name, slot)? {
                deleted += session.execute(of, Sql::Prune, &[&id])? as u64;
            }
        }
        let last = Some(last);
        Ok(Pruned { deleted, last })
    })
}
