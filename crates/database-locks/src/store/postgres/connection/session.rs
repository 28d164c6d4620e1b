//! A connection to a usable server, and how statements run on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::events::OwnBackend;
use crate::runtime;
use crate::runtime::fork::ForkSafe;
use crate::store::connect::table::Rows;
use crate::store::connect::url::Address;
use crate::store::postgres::error::{Kind, ServerError};
use protocol::Primary;

/// A parameter, which knows its type: asking the server for it would cost a round trip.
pub(crate) trait Param: ToSql + Sync {
    fn sql_type(&self) -> Type;
}

macro_rules! params {
    ($($of:ty: $sql:ident,)+) => {
        $(impl Param for $of {
            fn sql_type(&self) -> Type {
                Type::$sql
            }
        })+
    };
}

params! {
    bool: BOOL,
    i32: INT4,
    Option<i32>: INT4,
    Vec<i32>: INT4_ARRAY,
    i64: INT8,
    Option<i64>: INT8,
    Vec<i64>: INT8_ARRAY,
    Vec<Option<i64>>: INT8_ARRAY,
    &str: TEXT,
    Option<&str>: TEXT,
    &[&str]: TEXT_ARRAY,
    Vec<&str>: TEXT_ARRAY,
}

type Params<'a> = &'a [&'a dyn Param];
type Value<'a> = &'a (dyn ToSql + Sync);

/// From this number of locks on, a statement is planned at each execution. The plan of a prepared
/// statement may have been made for a few, with nested loops.
const LARGE: usize = 64;

/// A statement of the protocol, which may be prepared.
pub(crate) struct Statement {
    /// Its name in `docs/protocol.md`.
    pub(crate) name: &'static str,
    /// With the placeholders of [`expand`](crate::store::postgres::statements::fragments::expand), and of
    /// [`Table::fill_in`](crate::store::Table).
    pub(crate) text: &'static str,
}

/// A [`Statement`] on one connection.
pub(crate) struct Prepared {
    text: Arc<str>,
    used: AtomicBool,
    statement: OnceCell<tokio_postgres::Statement>,
}

impl Prepared {
    pub(crate) fn new(text: &Arc<str>) -> Self {
        Self {
            text: Arc::clone(text),
            used: AtomicBool::new(false),
            statement: OnceCell::new(),
        }
    }
}

/// A connection to a usable server.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) address: Address,
    /// By name.
    pub(crate) statements: HashMap<(Rows, &'static str), Prepared>,
    /// Whether no pooler is in between. Otherwise there may be one, and no
    /// statement is prepared.
    ///
    /// The driver calls its statements s0, s1, … in each process. Behind a pooler in transaction
    /// mode, those of several processes meet on one connection
    /// (<https://github.com/rust-postgres/rust-postgres/issues/959>): at best that is an error.
    pub(crate) is_unpooled: bool,
    /// Set after the first use of the table: see [`Kind::Missing`].
    pub(crate) used: Arc<AtomicBool>,
    /// Set after the first use of the table of permits.
    pub(crate) permits_used: AtomicBool,
    /// Why the table cannot hold locks.
    pub(crate) table_error: Option<ServerError>,
    /// The backend that runs all statements of this connection; `None` if a pooler may choose
    /// another one each time.
    pub(crate) backend: Option<i32>,
    /// Whether LISTEN was sent, or is about to be.
    pub(crate) asked_to_listen: AtomicBool,
    /// Whether LISTEN has succeeded.
    pub(crate) listens: AtomicBool,
    /// The identity of the server, if it is known. Behind a pooler, that of the first server.
    pub(crate) primary: Option<Primary>,
    /// Whether an answer was late. If so, the running statement is cancelled after the last caller
    /// has gone.
    pub(crate) late: Arc<AtomicBool>,
    /// Set when no caller may wait for answers any longer.
    pub(crate) abandoned: watch::Sender<bool>,
    /// Dropped with the last use.
    pub(crate) _in_use: InUse,
    pub(crate) _own_backend: Option<OwnBackend>,
}

/// Represents the use of a connection. Its drop ends the task that drives the connection, so that
/// the connection is closed.
pub(crate) struct InUse {
    tell: Option<oneshot::Sender<()>>,
    home: Handle,
    driver: ForkSafe<Option<JoinHandle<()>>>,
}

impl InUse {
    pub(crate) fn new(tell: oneshot::Sender<()>, driver: JoinHandle<()>) -> Self {
        Self {
            tell: Some(tell),
            home: Handle::current(),
            driver: ForkSafe::new(Some(driver)),
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        drop(self.tell.take());
        if let Some(driver) = self.driver.get_mut().and_then(Option::take) {
            runtime::drive_until_done(&self.home, driver);
        }
    }
}

impl Session {
    /// Run a statement about so many locks or permits.
    pub(crate) async fn write(
        &self,
        of: Rows,
        statement: &Statement,
        locks: usize,
        params: Params<'_>,
    ) -> Result<Vec<Row>, ServerError> {
        match &self.table_error {
            Some(table_error) => Err(table_error.clone()),
            None => self.run(of, statement, locks, params).await,
        }
    }

    /// Run a statement that only reads. Some tables that cannot hold locks can still be read.
    pub(crate) async fn read(
        &self,
        of: Rows,
        statement: &Statement,
        locks: usize,
        params: Params<'_>,
    ) -> Result<Vec<Row>, ServerError> {
        let rows = self.run(of, statement, locks, params).await;
        rows.map_err(|error| match (error.kind, &self.table_error) {
            (Kind::Rejected(_), Some(table_error)) => table_error.clone(),
            _ => error,
        })
    }

    async fn run(
        &self,
        of: Rows,
        statement: &Statement,
        locks: usize,
        params: Params<'_>,
    ) -> Result<Vec<Row>, ServerError> {
        let known = &self.statements[&(of, statement.name)];
        let prepared = match self.is_unpooled && locks < LARGE {
            true => self.prepare(known, params).await?,
            false => None,
        };
        let rows = match prepared {
            Some(prepared) => {
                let values: Vec<Value<'_>> = params.iter().map(|param| *param as _).collect();
                self.client.query(prepared, &values).await
            }
            None => self.client.query_typed(&known.text, &typed(params)).await,
        };
        let used = match of {
            Rows::Locks => &*self.used,
            Rows::Permits => &self.permits_used,
        };
        let rows = rows.map_err(|error| match of {
            Rows::Locks => error.into(),
            // The table of locks may have been used for long when the first permit is requested.
            Rows::Permits => ServerError::from(error).settled(used.load(Ordering::Relaxed)),
        })?;
        used.store(true, Ordering::Relaxed);
        Ok(rows)
    }

    /// A statement is prepared at its second use: preparing costs a round trip, which does not pay
    /// in a program that acquires and releases once.
    async fn prepare<'a>(
        &self,
        known: &'a Prepared,
        params: Params<'_>,
    ) -> Result<Option<&'a tokio_postgres::Statement>, ServerError> {
        if let Some(statement) = known.statement.get() {
            return Ok(Some(statement));
        }
        if !known.used.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let types: Vec<Type> = params.iter().map(|param| param.sql_type()).collect();
        let prepare = || self.client.prepare_typed(&known.text, &types);
        Ok(Some(known.statement.get_or_try_init(prepare).await?))
    }

    /// Run a query that is not a statement of the protocol.
    pub(crate) async fn query(
        &self,
        text: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, ServerError> {
        Ok(self.client.query_typed(text, &typed(params)).await?)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Run a script of several statements, as one transaction. The table is not checked.
    pub(crate) async fn script(&self, script: &str) -> Result<(), ServerError> {
        Ok(self.client.batch_execute(script).await?)
    }
}

fn typed<'a>(params: Params<'a>) -> Vec<(Value<'a>, Type)> {
    let typed = params.iter().map(|param| (*param as _, param.sql_type()));
    typed.collect()
}
