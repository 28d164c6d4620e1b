//! The open file and the statements.

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, ToSql};

use crate::store::connect::table::Rows;
use crate::store::sqlite::error::io_error;
use crate::store::sqlite::fence::Fences;
use crate::store::sqlite::rows::lock_row;
use crate::store::sqlite::statements::sql::{Sql, Statements};
use protocol::{LockName, LockRow, Slot};

/// The connection, or a transaction on it.
pub(crate) struct Session<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) locks: &'a Statements,
    pub(crate) permits: &'a Statements,
    pub(crate) fences: &'a Fences,
}

impl Session<'_> {
    pub(crate) fn prepare(&self, of: Rows, sql: Sql) -> rusqlite::Result<CachedStatement<'_>> {
        let statements = match of {
            Rows::Locks => self.locks,
            Rows::Permits => self.permits,
        };
        self.connection.prepare_cached(statements.get(sql))
    }

    /// Run a statement; returns the number of rows that it changed. Of a lock the last parameters,
    /// which select a permit, are left out.
    pub(crate) fn execute(
        &self,
        of: Rows,
        sql: Sql,
        params: &[&dyn ToSql],
    ) -> rusqlite::Result<usize> {
        let mut statement = self.prepare(of, sql)?;
        let known = params.len().min(statement.parameter_count());
        statement.execute(&params[..known])
    }

    /// The row of a lock or of a permit.
    pub(crate) fn read(&self, name: &LockName, slot: Slot) -> rusqlite::Result<Option<LockRow>> {
        let of = Rows::of(slot);
        let row = |row: &Row<'_>| lock_row(of, row);
        let mut read = self.prepare(of, Sql::Read)?;
        match of {
            Rows::Locks => read.query_row([name.as_str()], row).optional(),
            Rows::Permits => read
                .query_row((name.as_str(), slot.range().0), row)
                .optional(),
        }
    }

    /// The last id of the page after the id `after`; `None` if there are no more rows.
    pub(crate) fn page_end(&self, of: Rows, after: i64) -> rusqlite::Result<Option<i64>> {
        let mut end = self.prepare(of, Sql::PageEnd)?;
        end.query_row([after], |row| row.get(0))
    }

    /// Whether an open fence keeps other grants out. Needs the write lock.
    pub(crate) fn is_fenced(&self, name: &str, slot: Slot) -> rusqlite::Result<bool> {
        self.fences.is_open(name, slot).map_err(io_error)
    }
}
