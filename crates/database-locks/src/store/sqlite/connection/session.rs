//! The open file and the statements.

use rusqlite::{CachedStatement, Connection, Row, ToSql};

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

    /// Run a query, with parameters as for [`execute`](Self::execute).
    pub(crate) fn query<T>(
        &self,
        of: Rows,
        sql: Sql,
        params: &[&dyn ToSql],
        convert: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        let mut statement = self.prepare(of, sql)?;
        let known = params.len().min(statement.parameter_count());
        statement.query_map(&params[..known], convert)?.collect()
    }

    /// Run a query whose rows are those of locks or permits.
    pub(crate) fn rows(
        &self,
        of: Rows,
        sql: Sql,
        params: &[&dyn ToSql],
    ) -> rusqlite::Result<Vec<LockRow>> {
        self.query(of, sql, params, |row| lock_row(of, row))
    }

    /// The row of a lock or of a permit.
    pub(crate) fn read(&self, name: &LockName, slot: Slot) -> rusqlite::Result<Option<LockRow>> {
        let number = slot.range().0;
        let params: [&dyn ToSql; 3] = [&name.as_str(), &number, &number];
        Ok(self.rows(Rows::of(slot), Sql::Read, &params)?.pop())
    }

    /// The last id of the page after the id `after`; `None` if there are no more rows.
    pub(crate) fn page_end(&self, of: Rows, after: i64) -> rusqlite::Result<Option<i64>> {
        let last = self.query(of, Sql::PageEnd, &[&after], |row| row.get(0))?;
        Ok(last.into_iter().next().flatten())
    }

    /// Whether an open fence keeps other grants out. Needs the write lock.
    pub(crate) fn is_fenced(&self, name: &str, slot: Slot) -> rusqlite::Result<bool> {
        self.fences.is_open(name, slot).map_err(io_error)
    }
}
