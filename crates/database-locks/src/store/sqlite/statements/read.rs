//! Reading rows. Takes no write lock.

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::lock_row;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{Holder, ListFilter, LockInfo, LockName, LockRow, Page, Slot};

fn rows(worker: &mut Worker, names: &[LockName]) -> Result<Vec<LockRow>, StoreError> {
    worker.with(|session| {
        let rows = names.iter().map(|name| session.read(name, Slot::Lock));
        rows.filter_map(Result::transpose).collect()
    })
}

pub(crate) fn holders(
    worker: &mut Worker,
    names: &[LockName],
) -> Result<Vec<Option<Holder>>, StoreError> {
    Ok(LockRow::holders(names, &rows(worker, names)?))
}

pub(crate) fn read(worker: &mut Worker, names: &[LockName]) -> Result<Vec<LockInfo>, StoreError> {
    let rows = rows(worker, names)?.into_iter();
    let mut infos: Vec<LockInfo> = rows.map(LockRow::into_info).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
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
        let mut page = session.prepare(of, Sql::ReadPage)?;
        let rows = page.query_map((after, last, filter.not_free, &filter.prefix), |row| {
            lock_row(of, row)
        })?;
        let infos = rows.map(|row| row.map(LockRow::into_info));
        Ok(Page {
            rows: infos.collect::<Result<_, _>>()?,
            last: Some(last),
        })
    })
}
