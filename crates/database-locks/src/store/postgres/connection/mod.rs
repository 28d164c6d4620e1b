//! One connection that has been found fit to serve, and how a statement runs on it.

pub(crate) mod backend_check;
pub(crate) mod blocked;
pub(crate) mod cancel;
pub(crate) mod connector;
pub(crate) mod dial;
pub(crate) mod endpoint;
pub(crate) mod handshake;
pub(crate) mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::Sql;
use super::notify::OwnBackend;
use crate::client::own_grants::Primary;
use crate::runtime;
use crate::runtime::fork::Here;
use crate::store::connect::url::Address;
use crate::store::postgres::error::{Kind, Refusal};

/// A parameter of a statement. Its type is stated, since asking the server for it would be a round
/// trip more.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// One connection that has been found fit to serve.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Where it leads.
    pub(crate) address: Address,
    pub(crate) texts: Arc<[String]>,
    /// One for each statement; none where a pooler may be in between.
    ///
    /// The driver's statements are called s0, s1, … in each process. Behind a pooler that hands out
    /// its connections by transaction, those of several processes meet on one connection
    /// (<https://github.com/rust-postgres/rust-postgres/issues/959>): at best that is an error.
    pub(crate) prepared: Option<Vec<Prepared>>,
    /// Set once the table has been used: see [`Kind::Missing`](crate::store::postgres::error::Kind::Missing).
    pub(crate) used: Arc<AtomicBool>,
    /// Why the table cannot be used.
    pub(crate) unfit: Option<Refusal>,
    /// The backend that carries out all that is sent on it; none where a pooler may be in between.
    pub(crate) backend: Option<i32>,
    /// LISTEN has been sent on it, or is about to be.
    pub(crate) asked_to_listen: AtomicBool,
    /// LISTEN has been carried out on it.
    pub(crate) listens: AtomicBool,
    /// Which server it is, where that is to be known. Behind a pooler, which one it was at first.
    pub(crate) server: Option<Primary>,
    /// An answer did not come in time: once nobody waits for another, what still runs is cancelled.
    pub(crate) late: Arc<AtomicBool>,
    /// Nobody shall wait for it any longer.
    pub(crate) forsaken: watch::Sender<bool>,
    /// Dropped with the last user.
    pub(crate) _in_use: InUse,
    /// So that what its backend notifies is known as our own.
    pub(crate) _own: Option<OwnBackend>,
}

/// Tells the task that drives a connection, when it is dropped, that it is no longer used, and sees to it that
/// the connection is closed.
pub(crate) struct InUse {
    tell: Option<oneshot::Sender<()>>,
    home: Handle,
    driver: Here<Option<JoinHandle<()>>>,
}

impl InUse {
    pub(crate) fn new(tell: oneshot::Sender<()>, driver: JoinHandle<()>) -> Self {
        Self {
            tell: Some(tell),
            home: Handle::current(),
            driver: Here::new(Some(driver)),
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        drop(self.tell.take());
        if let Some(driver) = self.driver.here_mut().and_then(Option::take) {
            runtime::finish(&self.home, driver);
        }
    }
}

#[derive(Default)]
pub(crate) struct Prepared {
    used: AtomicBool,
    statement: OnceCell<Statement>,
}

impl Connection {
    /// Run the statement of that number, prepared if it may be and `reused` says that it pays.
    pub(crate) async fn rows(
        &self,
        number: usize,
        reused: bool,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Refusal> {
        let Some(unfit) = &self.unfit else {
            return self.run(number, reused, params).await;
        };
        // Some of the tables that cannot hold locks can be read.
        if ![Sql::Read as usize, Sql::ReadPage as usize].contains(&number) {
            return Err(unfit.clone());
        }
        let read = self.run(number, reused, params).await;
        read.map_err(|refusal| match refusal.kind {
            Kind::Rejected(_) => unfit.clone(),
            _ => refusal,
        })
    }

    async fn run(
        &self,
        number: usize,
        reused: bool,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Refusal> {
        let prepared = match &self.prepared {
            Some(all) if reused => self.prepare(number, &all[number], params).await?,
            _ => None,
        };
        let rows = match prepared {
            Some(statement) => {
                let values: Vec<_> = params.iter().map(|(value, _)| *value).collect();
                self.client.query(statement, &values).await?
            }
            None => self.client.query_typed(&self.texts[number], params).await?,
        };
        self.used.store(true, Ordering::Relaxed);
        Ok(rows)
    }

    /// Preparing is a round trip more, which whoever acquires once and releases once would pay in
    /// vain: so from the second use on.
    async fn prepare<'a>(
        &self,
        number: usize,
        prepared: &'a Prepared,
        params: &[Param<'_>],
    ) -> Result<Option<&'a Statement>, Refusal> {
        if let Some(statement) = prepared.statement.get() {
            return Ok(Some(statement));
        }
        if !prepared.used.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let types: Vec<Type> = params.iter().map(|(_, of)| of.clone()).collect();
        let prepare = || self.client.prepare_typed(&self.texts[number], &types);
        Ok(Some(prepared.statement.get_or_try_init(prepare).await?))
    }

    /// Run a statement that is not used often.
    pub(crate) async fn ask(
        &self,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Refusal> {
        Ok(self.client.query_typed(statement, params).await?)
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether nobody stands between us and the server.
    pub(crate) fn is_direct(&self) -> bool {
        self.prepared.is_some()
    }

    /// Run a script of several statements, as one transaction. That may make the table, or fit.
    pub(crate) async fn script(&self, script: &str) -> Result<(), Refusal> {
        Ok(self.client.batch_execute(script).await?)
    }
}
