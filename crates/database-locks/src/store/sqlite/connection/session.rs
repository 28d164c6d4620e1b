//! The open file and the statements.

use rusqlite::{CachedStatement, Connection, OptionalExtension};

use crate::store::sqlite::error::io_error;
use crate::store::sqlite::fence::Fences;
use crate::store::sqlite::rows::lock_row;
use crate::store::sqlite::statements::sql::{Sql, Statements};
use protocol::{LockName, LockRow};

/// The connection, or a transaction on it.
pub(crate) struct Session<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) statements: &'a Statements,
    pub(crate) fences: &'a Fences,
}

impl Session<'_> {
    pub(crate) fn prepare(&self, sql: Sql) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(self.statements.get(sql))
    }

    pub(crate) fn read(&self, name: &LockName) -> rusqlite::Result<Option<LockRow>> {
        let mut read = self.prepare(Sql::Read)?;
        read.query_row([name.as_str()], lock_row).optional()
    }

    /// The last id of the page after the id `after`; `None` if there are no more rows.
    pub(crate) fn page_end(&self, after: i64) -> rusqlite::Result<Option<i64>> {
        let mut end = self.prepare(Sql::PageEnd)?;
        end.query_row([after], |row| row.get(0))
    }

    /// Whether an open fence keeps other grants out. Needs the write lock.
    pub(crate) fn is_fenced(&self, name: &str) -> rusqlite::Result<bool> {
        self.fences.is_open(name).map_err(io_error)
    }
}
