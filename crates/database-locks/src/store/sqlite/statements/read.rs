//! Reading rows. Takes no write lock.

use std::collections::BTreeSet;

use rusqlite::ToSql;

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{ListFilter, LockName, LockRow, Page};

pub(crate) fn rows(
    worker: &mut Worker,
    of: Rows,
    names: &[LockName],
) -> Result<Vec<LockRow>, StoreError> {
    let names: BTreeSet<&LockName> = names.iter().collect();
    worker.with(|session| {
        let mut rows = Vec::with_capacity(names.len());
        for name in names {
            let params: [&dyn ToSql; 3] = [&name.as_str(), &i32::MIN, &i32::MAX];
            rows.extend(session.rows(of, Sql::Read, &params)?);
        }
        Ok(rows)
    })
}

pub(crate) fn page(
    worker: &mut Worker,
    of: Rows,
    filter: &ListFilter,
    after: Option<i64>,
) -> Result<Page, StoreError> {
    let after = after.unwrap_or(i64::MIN);
    worker.with(|session| {
        let Some(last) = session.page_end(of, after)? else {
            return Ok(Page::default());
        };
        let params: [&dyn ToSql; 4] = [&after, &last, &filter.not_free, &filter.prefix];
        let rows = session.rows(of, Sql::ReadPage, &params)?.into_iter();
        Ok(Page {
            rows: rows.map(LockRow::into_info).collect(),
            last: Some(last),
        })
    })
}
