//! A connection to a usable server, and how statements run on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Error, Params, Row, ServerError, Statement, from_row_opt, params};

use super::config::Server;
use super::driver::DriverConnection;
use super::interpolate;
use super::table::{collation, table_defect};
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::connect::url::Address;
use crate::store::mysql::cluster::{self, Cluster};
use crate::store::mysql::error::{INIT_HINT, classify, is_apart};
use protocol::{BootInstant, LockRow};

const REPAIR_HINT: &str = "run `dblock init` or `locks.migrate()`, which alters the table";

/// A statement that waited this long waited for the table, since `lock_wait_timeout` is a second.
pub(crate) const TABLE_WAIT: Duration = Duration::from_millis(900);

/// The result of a statement that returns no rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryResult {
    /// The number of rows found.
    pub(crate) rows: u64,
    /// The value of `LAST_INSERT_ID(…)`; 0 if no row was found.
    pub(crate) id: u64,
}

impl QueryResult {
    /// Whether this statement has written the row, if its insert id is the `renewed_at` that it sets.
    pub(crate) fn wrote(&self, row: &LockRow) -> bool {
        let at = row.renewed_at.and_then(|at| u64::try_from(at).ok());
        self.rows > 0 && at == Some(self.id)
    }
}

/// A connection to a usable server, with its session set up.
pub(crate) struct Session {
    pub(super) conn: DriverConnection,
    /// The prepared statements, by their text before the table and conditions are put in.
    pub(super) prepared: HashMap<(Rows, &'static str), Statement>,
    pub(crate) server: Arc<Server>,
    /// The connected host.
    pub(crate) address: Address,
    /// The kind of cluster, if several nodes are writable.
    pub(crate) cluster: Option<Cluster>,
    /// Whether it is a member of a group with a single primary.
    pub(crate) single_primary: bool,
    /// The longest parameter that fits into a statement, written as text too.
    pub(crate) max_parameter_len: usize,
    /// Whether it is MariaDB, where a statement that finds a row locked fails at once.
    pub(crate) mariadb: bool,
    /// Whether the table was checked and can hold locks.
    pub(super) table_checked: bool,
    /// Whether the server has refused to prepare more statements.
    pub(super) prepared_refused: bool,
    pub(super) broken: bool,
    /// When this node of a cluster had what the others had committed before, as far as known.
    pub(super) in_step_at: BootInstant,
}

impl Session {
    /// The error for a server that has become read-only.
    pub(crate) fn became_read_only(&mut self) -> StoreError {
        self.broken = true;
        StoreError::cannot_serve(format!("the server at {} is read-only now", self.address))
    }

    /// Its text has all that is checked. `information_schema` costs 2 ms on MariaDB, and 46 ms if
    /// two of its tables are joined.
    pub(crate) const SHAPE: &str = "SHOW CREATE TABLE {table}";

    /// Check the table before its first use on this connection. Not when connecting, since the
    /// caller may be about to create or alter it.
    pub(crate) async fn check_table(&mut self) -> Result<(), StoreError> {
        let create_table = self.create_table(Rows::Locks).await?;
        match table_defect(&create_table, self.collation()) {
            None => {
                self.table_checked = true;
                self.server.found.store(true, Ordering::Relaxed);
                Ok(())
            }
            Some(why) => {
                let message = format!("the table {}: {why}", self.server.table.as_str());
                Err(StoreError::rejected(message, Some(REPAIR_HINT)))
            }
        }
    }

    /// The answer of SHOW CREATE TABLE.
    pub(crate) async fn create_table(&mut self, of: Rows) -> Result<String, StoreError> {
        let shape = self.fill(of, Self::SHAPE);
        let found: Result<Option<Row>, _> = self.conn.query_first(shape).await;
        let found = found.map_err(|e| self.failed(&e))?;
        let text: Option<String> = found.and_then(|mut row| row.take_opt(1)?.ok());
        Ok(text.unwrap_or_default())
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken || self.conn.is_disconnected()
    }

    /// Put the table, the collation and the conditions on leases into a statement.
    pub(crate) fn fill(&self, of: Rows, statement: &str) -> String {
        let text = self.server.table.fill_in(of, statement);
        let text = text.replace("{collation}", self.collation());
        cluster::fill(&text, self.cluster)
    }

    pub(crate) fn collation(&self) -> &'static str {
        collation(self.mariadb)
    }

    /// Run a statement that returns no rows.
    pub(crate) async fn execute(
        &mut self,
        of: Rows,
        statement: &'static str,
        params: Params,
    ) -> Result<QueryResult, StoreError> {
        self.query(of, statement, params).await?;
        let rows = self.conn.affected_rows();
        let id = match self.conn.last_insert_id().unwrap_or_default() {
            0 if rows > 0 && statement.contains("LAST_INSERT_ID(") => self.inserted_id().await?,
            id => id,
        };
        Ok(QueryResult { rows, id })
    }

    /// [`execute`](Self::execute). `None` if a conflicting transaction kept the statement from being
    /// carried out.
    pub(crate) async fn attempt(
        &mut self,
        of: Rows,
        statement: &'static str,
        params: Params,
    ) -> Result<Option<QueryResult>, StoreError> {
        let done = self.execute(of, statement, params).await;
        self.none_if_contended(done)
    }

    /// Whether the statement changed a row. `false` too if a conflicting transaction kept it from that.
    pub(crate) async fn changes(
        &mut self,
        of: Rows,
        statement: &'static str,
        params: Params,
    ) -> Result<bool, StoreError> {
        let done = self.attempt(of, statement, params).await?;
        Ok(done.is_some_and(|done| done.rows > 0))
    }

    /// [`query`](Self::query). `None` if a conflicting transaction has a row locked.
    pub(crate) async fn probe(
        &mut self,
        of: Rows,
        statement: &'static str,
        params: Params,
    ) -> Result<Option<Vec<Row>>, StoreError> {
        let found = self.query(of, statement, params).await;
        self.none_if_contended(found)
    }

    pub(crate) const INSERTED_ID: &str = "SELECT LAST_INSERT_ID()";

    /// The value of `LAST_INSERT_ID(…)`, if the answer to its statement has 0: both servers answer
    /// 0 if a trigger of the table contains a statement.
    async fn inserted_id(&mut self) -> Result<u64, StoreError> {
        let id = self.conn.query_first(Self::INSERTED_ID).await;
        match id.map_err(|e| self.failed(&e))? {
            Some(id) if id > 0 => Ok(id),
            _ => {
                let message = format!(
                    "{}: the answer to a statement has no insert id",
                    self.address
                );
                Err(StoreError::Unavailable(message.into()))
            }
        }
    }

    /// Run a statement that returns rows.
    pub(crate) async fn query(
        &mut self,
        of: Rows,
        statement: &'static str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        if !self.table_checked {
            self.check_table().await?;
        }
        self.rows(of, statement, params).await
    }

    /// [`query`](Self::query) without a check of the table.
    pub(crate) async fn rows(
        &mut self,
        of: Rows,
        statement: &'static str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        let began = clock::now();
        let found = match self.prepare(of, statement).await? {
            Some(prepared) => self.conn.exec(prepared, params).await,
            None => {
                let text = interpolate::interpolate(&self.fill(of, statement), &params)?;
                self.conn.query(text).await
            }
        };
        // On MySQL an INSERT may have waited for a row.
        let waits = !self.mariadb && statement.trim_start().starts_with("INSERT");
        let found = found.map_err(|e| match waits {
            true => self.failed_of(of, &e),
            false => self.failed_since(of, began, &e),
        })?;
        if of == Rows::Permits {
            self.server.permits_found.store(true, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Each statement is prepared once for each connection. The statements are constants, so they
    /// are few and stay prepared.
    ///
    /// `None`: the server has reached its limit of prepared statements, which all its clients
    /// share, and the statement is sent as text. This connection does not try to prepare again,
    /// since each refusal costs a round trip.
    async fn prepare(
        &mut self,
        of: Rows,
        statement: &'static str,
    ) -> Result<Option<Statement>, StoreError> {
        if let Some(prepared) = self.prepared.get(&(of, statement)) {
            return Ok(Some(prepared.clone()));
        }
        if self.prepared_refused {
            return Ok(None);
        }
        let (text, began) = (self.fill(of, statement), clock::now());
        match self.conn.prep(text).await {
            Ok(prepared) => {
                self.prepared.insert((of, statement), prepared.clone());
                Ok(Some(prepared))
            }
            Err(Error::Server(refused)) if refused.code == 1461 => {
                tracing::debug!("{}: {}", self.address, refused.message);
                self.prepared_refused = true;
                Ok(None)
            }
            Err(error) => Err(self.failed_since(of, began, &error)),
        }
    }

    /// Run a statement that cannot be prepared.
    pub(crate) async fn execute_unprepared(&mut self, statement: &str) -> Result<(), StoreError> {
        let done = self.conn.query_drop(statement).await;
        done.map_err(|e| self.failed(&e))
    }

    /// The error of a statement that waits for no row. If it timed out, it waited for the table.
    ///
    /// Both servers answer 1205 in either case, but a locked row fails a statement at once.
    fn failed_since(
        &mut self,
        of: Rows,
        began: BootInstant,
        error: &mysql_async::Error,
    ) -> StoreError {
        let timed_out = matches!(error, Error::Server(refused) if refused.code == 1205);
        match timed_out && clock::now() - began >= TABLE_WAIT {
            true => self.blocked(),
            false => self.failed_of(of, error),
        }
    }

    /// The error if another session blocks writes to the table or the server. It passes, and says
    /// nothing about the holder of a lock.
    pub(crate) fn blocked(&self) -> StoreError {
        StoreError::cannot_serve(format!(
            "{}: the table is blocked by another session (a backup, LOCK TABLES or ALTER TABLE)",
            self.address
        ))
    }

    pub(super) fn failed(&mut self, error: &mysql_async::Error) -> StoreError {
        self.failed_of(Rows::Locks, error)
    }

    /// The error of a statement about locks or permits.
    fn failed_of(&mut self, of: Rows, error: &mysql_async::Error) -> StoreError {
        let (failure, broken) = classify(&self.address.to_string(), error);
        self.broken |= broken;
        let Error::Server(ServerError { code, .. }) = error else {
            return failure;
        };
        if broken && is_apart(*code) {
            self.avoid_node();
        }
        // The table of locks may have been used for long when the first permit is requested, and
        // there is no table of permits.
        let found = match (of, code) {
            (Rows::Permits, 1146) => &self.server.permits_found,
            _ => &self.server.found,
        };
        let was_there = found.load(Ordering::Relaxed);
        match (failure, code) {
            // The node lost the others during the commit, so another node may have it.
            (StoreError::Unavailable(message), 1180 | 3100) if self.cluster.is_some() => {
                StoreError::Contention(message)
            }
            // On MariaDB, which does not wait here, another client is inserting rows. If no id is
            // left, MariaDB answers 167.
            (StoreError::Rejected { source, .. }, 1467) if self.mariadb => {
                StoreError::Contention(source)
            }
            // A table that existed may be missing for a moment, while it is copied or restored.
            (StoreError::Rejected { source, .. }, 1146 | 1932) if was_there => {
                self.table_checked = false;
                let message = format!("the table was there before ({INIT_HINT}): {source}");
                StoreError::cannot_serve(message)
            }
            (failure, _) => failure,
        }
    }

    /// `None` if a conflicting transaction kept the statement from being carried out.
    ///
    /// If contention has also broken the connection, the effect is unknown, and it stays an error.
    fn none_if_contended<T>(&self, done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(StoreError::Contention(_)) if !self.broken => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// [`rows`](Self::rows), converted. A row that cannot be converted is left out.
    pub(crate) async fn rows_as<T: FromRow>(
        &mut self,
        statement: &'static str,
        params: Params,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.rows(Rows::Locks, statement, params).await?;
        Ok(typed(rows))
    }

    /// The parameters `schema` and `table` of queries of the catalog.
    pub(crate) fn table_params(&self, of: Rows) -> Params {
        let table = match of {
            Rows::Locks => self.server.table.as_str().to_owned(),
            Rows::Permits => self.server.table.permits(),
        };
        let (schema, name) = match table.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, &*table),
        };
        params! { "schema" => schema, "table" => name }
    }
}

/// Rows as values. A row of another form is left out.
pub(crate) fn typed<T: FromRow>(rows: Vec<Row>) -> Vec<T> {
    let typed = rows.into_iter().map(from_row_opt);
    typed.filter_map(Result::ok).collect()
}
