//! Writing a grant into the row of a lock or of a permit.

use rusqlite::{Row, ToSql};

use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::rows::{ago, granted, modifier};
use crate::store::sqlite::statements::sql::Sql;
use protocol::{AcquireCommand, Outcome, Slot};

/// Write a grant; `None` if the statement changed no row. `limit`: that of the caller, for a permit.
pub(super) fn write(
    session: &Session<'_>,
    sql: Sql,
    command: &AcquireCommand,
    slot: Slot,
    limit: u32,
) -> rusqlite::Result<Option<Outcome>> {
    let (of, number, window) = (Rows::of(slot), slot.range().0, command.not_within);
    let params: [&dyn ToSql; 9] = [
        &command.name.as_str(),
        &&*command.holder,
        &command.grant.as_str(),
        &&*command.metadata,
        &modifier(command.length),
        &window.map(ago),
        &window.map(modifier),
        &number,
        &limit,
    ];
    if session.execute(of, sql, &params)? == 0 {
        return Ok(None);
    }
    let row: [&dyn ToSql; 2] = [&command.name.as_str(), &number];
    let made = |row: &Row<'_>| granted(slot, command.length, row);
    Ok(session.query(of, Sql::ReadToken, &row, made)?.pop())
}
