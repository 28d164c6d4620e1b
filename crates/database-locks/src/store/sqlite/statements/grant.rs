//! Writing a grant into the row of a lock or of a permit.

use rusqlite::ToSql;

use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::rows::{ago, modifier};
use crate::store::sqlite::statements::sql::Sql;
use protocol::AcquireCommand;

/// Write a grant; returns the number of rows that it changed. `permit`: its number and the limit.
pub(super) fn write(
    session: &Session<'_>,
    sql: Sql,
    command: &AcquireCommand,
    permit: Option<(u16, u32)>,
) -> rusqlite::Result<usize> {
    let (of, (slot, limit)) = match permit {
        None => (Rows::Locks, (0, 0)),
        Some(permit) => (Rows::Permits, permit),
    };
    let window = command.not_within;
    let params: [&dyn ToSql; 9] = [
        &command.name.as_str(),
        &&*command.holder,
        &command.grant.as_str(),
        &&*command.metadata,
        &modifier(command.length),
        &window.map(ago),
        &window.map(modifier),
        &slot,
        &limit,
    ];
    session.execute(of, sql, &params)
}
