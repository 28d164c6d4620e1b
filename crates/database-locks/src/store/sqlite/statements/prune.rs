//! Deleting the rows of locks that are no longer used.

use std::time::Duration;

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
        let mut found = session.prepare(of, Sql::Idle)?;
        let found = found.query_map((ago(idle), include_legacy, first, last), |row| {
            let slot = match of {
                Rows::Locks => Slot::Lock,
                Rows::Permits => Slot::from_db(row.get("slot")?).unwrap_or(Slot::AnyPermit),
            };
            Ok((row.get("id")?, row.get("name")?, slot))
        })?;
        let found: Vec<(i64, String, Slot)> = found.collect::<Result<_, _>>()?;
        let (mut delete, mut deleted) = (session.prepare(of, Sql::Prune)?, 0);
        for (id, name, slot) in found {
            if !session.is_fenced(&name, slot)? {
                deleted += delete.execute([id])? as u64;
            }
        }
        let last = Some(last);
        Ok(Pruned { deleted, last })
    })
}
