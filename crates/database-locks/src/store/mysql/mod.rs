//! The engine of MySQL and MariaDB.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::doctor::Report;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::{DirectConnection, FenceText, Reply, Store, StoreError, with_deadline};
use crate::store::connect::provider::ServerProvider;
use crate::store::connect::table::{Rows, Table};
use crate::store::connect::url;
use protocol::{
    AcquireCommand, AllOutcome, Force, Grant, GuardCommand, Holder, ListFilter, LockName, LockRow,
    Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, Slot, TableGuard,
    TakeOverCommand, Ttl, Version,
};

mod cluster;
mod connection;
mod direct;
mod doctor;
mod error;
mod rows;
mod statements;

use connection::config::Server;
use connection::open::name_server;
use connection::row_locker::row_locker;
use connection::session::Session;
use connection::waiting_renewal::renew_waiting;
use connection::worker::{Turn, Worker};
use direct::MysqlDirect;
#[cfg(test)]
pub(crate) use statements::PUBLISHED;
pub use statements::guarded_table_body::{guard_triggers, unguard_triggers};
use statements::guarded_table_error::incomplete;

/// The engine `mysql://` and `mariadb://`.
pub(crate) struct Mysql {
    server: Arc<Server>,
    /// The background connection.
    worker: Worker,
    /// Renewals use it while there is no background connection.
    direct: Arc<MysqlDirect>,
}

/// Leaves out the options of the driver, which contain the password.
impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mysql")
            .field("at", &self.server.connector.hosts())
            .field("table", &self.server.table)
            .finish_non_exhaustive()
    }
}

impl Mysql {
    pub(crate) fn new(
        settings: url::Server,
        source: Arc<ServerProvider>,
        table: &Table,
    ) -> Result<Self, Error> {
        let server = Arc::new(Server::new(settings, source, table)?);
        Ok(Self {
            worker: Worker::new(Arc::clone(&server)),
            direct: Arc::new(MysqlDirect::new(Arc::clone(&server))),
            server,
        })
    }

    /// Whether the server is a node of a cluster.
    fn is_clustered(&self) -> bool {
        self.server.clustered.load(Ordering::Relaxed)
    }

    /// Renew on the background connection or, if there is none within half of the time, on the
    /// direct connection.
    async fn renew_on_either(
        &self,
        grants: &[(Grant, Ttl)],
        within: Duration,
    ) -> Result<Vec<Renewal>, StoreError> {
        let until = clock::now() + within;
        let first = match self.worker.is_up() || !self.direct.is_up() {
            true => within,
            false => within / 2,
        };
        let sent = Arc::new(AtomicBool::new(false));
        let (asked, begun) = (grants.to_vec(), Arc::clone(&sent));
        let done = self.worker.call(Turn::First, first, move |session| {
            begun.store(true, Ordering::Release);
            Box::pin(async move { session.renew(&asked).await })
        });
        let done = done.await;
        let left = until - clock::now();
        let may_ask_again = !sent.load(Ordering::Acquire) && self.direct.is_up();
        let failure = match done {
            Err(failure) if may_ask_again && !left.is_zero() => failure,
            done => return done,
        };
        match self.direct.renew(grants.to_vec(), left).await {
            // It has no connection either, so the first error stands.
            Err(other) if other.is_undone() => Err(failure),
            done => done,
        }
    }

    /// Run this, which opens a connection of its own.
    async fn run_apart<T>(
        &self,
        within: Duration,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = with_deadline(within, work, || ()).await;
        done.map_err(|failure| name_server(&self.server, failure))
    }

    /// [`run_apart`](Self::run_apart), for work on the guard of a table: if it is late, the guard may be
    /// incomplete.
    async fn guard_apart<T>(
        &self,
        within: Duration,
        table: &str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut late = false;
        let done = with_deadline(within, work, || late = true).await;
        done.map_err(|failure| {
            let failure = match late {
                true => incomplete(failure, "may be incomplete", table),
                false => failure,
            };
            name_server(&self.server, failure)
        })
    }
}

/// The requests that run on the background connection: a method of [`Store`], its parameters before
/// `within`, its answer, and what is asked of the session.
macro_rules! on_session {
    ($($method:ident($($param:ident: $of:ty),*) -> $answer:ty, |$session:ident| $work:expr;)*) => {
        $(fn $method<'a>(&'a self, $($param: $of,)* within: Duration) -> Reply<'a, $answer> {
            $(let $param = $param.to_owned();)*
            Box::pin(self.worker.call(Turn::InOrder, within, move |$session| {
                Box::pin(async move { $work.await })
            }))
        })*
    };
}

impl Store for Mysql {
    on_session! {
        acquire(commands: &[AcquireCommand]) -> Vec<Outcome>, |session| session.acquire(&commands);
        acquire_all(commands: &[AcquireCommand]) -> AllOutcome, |session| session.acquire_all(&commands);
        release(commands: &[ReleaseCommand]) -> Vec<Released>, |session| session.release(&commands);
        rows(of: Rows, names: &[LockName]) -> Vec<LockRow>, |session| session.latest_rows(of, &names);
        page(of: Rows, filter: &ListFilter, after: Option<i64>) -> Page,
            |session| session.page(of, &filter, after);
        holders(names: &[LockName]) -> Vec<Option<Holder>>, |session| session.holders(&names);
        take_over(command: &TakeOverCommand) -> Outcome, |session| session.take_over(&command);
        resume(command: &ResumeCommand) -> Renewal, |session| session.resume(&command);
        force(name: &LockName, slot: Slot) -> Force, |session| session.force(&name, slot);
        prune(of: Rows, idle: Duration, include_legacy: bool, after: Option<i64>) -> Pruned,
            |session| session.prune(of, idle, include_legacy, after);
        limits() -> Vec<(LockName, u32)>, |session| session.limits();
        set_limit(name: &LockName, limit: Option<u32>) -> (), |session| session.set_limit(&name, limit);
        readers(name: &LockName, expired: &[(Slot, Version)]) -> Option<Holder>,
            |session| session.readers(&name, &expired);
        guarded_tables() -> Vec<TableGuard>, |session| session.guarded_tables();
        examine() -> Report, |session| session.examine();
    }

    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        Some(Arc::clone(&self.direct) as Arc<dyn DirectConnection>)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.server.connector.connect_deadline(within);
        let connected = self
            .worker
            .call(Turn::InOrder, within, |_| Box::pin(async { Ok(()) }));
        Box::pin(connected)
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        Box::pin(self.renew_on_either(grants, within))
    }

    /// On a cluster a row lock is not seen by the other nodes.
    fn renews_waiting(&self) -> bool {
        !self.is_clustered()
    }

    fn renew_waiting<'a>(
        &'a self,
        renewal: &'a (Grant, Ttl),
        within: Duration,
    ) -> Reply<'a, Renewal> {
        Box::pin(self.run_apart(within, renew_waiting(&self.server, renewal)))
    }

    fn prepare_to_renew(&self) {
        self.worker.connect_in_background();
    }

    fn row_locker<'a>(
        &'a self,
        name: &'a LockName,
        slot: Slot,
        within: Duration,
    ) -> Reply<'a, Option<String>> {
        let found = row_locker(&self.server, name, slot);
        Box::pin(with_deadline(within, found, || ()))
    }

    fn fence(&self, slot: Slot) -> Option<FenceText> {
        let fill = |text| self.server.table.fill_for(slot, text);
        Some(FenceText {
            before: Some(fill(statements::fence::BEFORE)),
            fence: fill(statements::fence::FENCE),
            may_lag: self.is_clustered(),
        })
    }

    fn reconnect(&self) {
        self.worker.reconnect();
    }

    /// The fence changes the row that a renewal has to change.
    fn renews_under_fence(&self) -> bool {
        false
    }

    /// On another connection, since DDL may take long and waits.
    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let work = async { Session::open(&self.server).await?.install().await };
        Box::pin(self.run_apart(within, work))
    }

    /// On another connection, like [`install`](Self::install).
    fn guard_table<'a>(&'a self, command: &'a GuardCommand, within: Duration) -> Reply<'a, ()> {
        let work = async {
            let mut session = Session::open(&self.server).await?;
            session.guard_table(command).await
        };
        Box::pin(self.guard_apart(within, &command.table, work))
    }

    /// On another connection, like [`install`](Self::install).
    fn unguard_table<'a>(&'a self, table: &'a str, within: Duration) -> Reply<'a, bool> {
        let work = async {
            let mut session = Session::open(&self.server).await?;
            session.unguard_table(table).await
        };
        Box::pin(self.guard_apart(within, table, work))
    }
}
