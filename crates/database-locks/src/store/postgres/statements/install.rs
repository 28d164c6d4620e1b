//! Creating the table.

use crate::store::connect::table::Table;
use crate::store::postgres::connection::session::Session;
use crate::store::postgres::error::{Kind, ServerError};

/// Creates the tables, or adds missing columns.
const INSTALL: &str = concat!(
    include_str!("../../../../schema/postgres.sql"),
    include_str!("../../../../schema/postgres_permit.sql")
);

pub(crate) async fn install(session: &Session, table: &Table) -> Result<(), ServerError> {
    // If two clients create the table at once, the second gets one of these errors. Some have no
    // code of their own ("tuple concurrently updated", XX000).
    let raced = ["42P07", "42701", "42710", "XX000"];
    session
        .script(&table.fill(INSTALL))
        .await
        .map_err(|error| match &error.code {
            Some(code) if raced.contains(&code.code()) => ServerError {
                kind: Kind::Contention,
                ..error
            },
            _ => error,
        })
}
