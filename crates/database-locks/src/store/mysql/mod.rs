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
use connection::worker::Worker;
use direct::MysqlDirect;
#[cfg(test)]
pub(crate) use statements::PUBLISHED;
pub use statements::guard_body::{guard_triggers, unguard_triggers};
use statements::guard_error::incomplete;

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
        let done = self.worker.call_first(first, move |session| {
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
}

/// Run this on the background connection.
macro_rules! on_session {
    ($self:ident, $within:ident, |$session:ident| $work:expr) => {
        Box::pin($self.worker.call($within, move |$session| {
            Box::pin(async move { $work.await })
        }))
    };
}

impl Store for Mysql {
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        Some(Arc::clone(&self.direct) as Arc<dyn DirectConnection>)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.server.connector.connect_deadline(within);
        Box::pin(self.worker.call(within, |_| Box::pin(async { Ok(()) })))
    }

    fn acquire<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        let commands = commands.to_vec();
        on_session!(self, within, |session| session.acquire(&commands))
    }

    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, AllOutcome> {
        let commands = commands.to_vec();
        on_session!(self, within, |session| session.acquire_all(&commands))
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
        !self.server.clustered.load(Ordering::Relaxed)
    }

    fn renew_waiting<'a>(
        &'a self,
        renewal: &'a (Grant, Ttl),
        within: Duration,
    ) -> Reply<'a, Renewal> {
        let renewed = renew_waiting(&self.server, renewal);
        Box::pin(async move {
            let done = with_deadline(within, renewed, || ()).await;
            done.map_err(|failure| name_server(&self.server, failure))
        })
    }

    fn prepare_to_renew(&self) {
        self.worker.connect_in_background();
    }

    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        let commands = commands.to_vec();
        on_session!(self, within, |session| session.release(&commands))
    }

    fn rows<'a>(
        &'a self,
        of: Rows,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<LockRow>> {
        let names = names.to_vec();
        on_session!(self, within, |session| session.read_latest(of, &names))
    }

    fn page<'a>(
        &'a self,
        of: Rows,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let filter = filter.clone();
        on_session!(self, within, |session| session.page(of, &filter, after))
    }

    fn holders<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        let names = names.to_vec();
        on_session!(self, within, |session| session.holders(&names))
    }

    fn take_over<'a>(
        &'a self,
        command: &'a TakeOverCommand,
        within: Duration,
    ) -> Reply<'a, Outcome> {
        let command = command.clone();
        on_session!(self, within, |session| session.take_over(&command))
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        let command = command.clone();
        on_session!(self, within, |session| session.resume(&command))
    }

    fn prune(
        &self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        on_session!(self, within, |session| session.prune(
            of,
            idle,
            include_legacy,
            after
        ))
    }

    fn force<'a>(&'a self, name: &'a LockName, slot: Slot, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        on_session!(self, within, |session| session.force(&name, slot))
    }

    fn limits(&self, within: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        on_session!(self, within, |session| session.limits())
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        within: Duration,
    ) -> Reply<'a, ()> {
        let name = name.clone();
        on_session!(self, within, |session| session.set_limit(&name, limit))
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        expired: &'a [(Slot, Version)],
        within: Duration,
    ) -> Reply<'a, Option<Holder>> {
        let (name, expired) = (name.clone(), expired.to_vec());
        on_session!(self, within, |session| session.readers(&name, &expired))
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
            may_lag: self.server.clustered.load(Ordering::Relaxed),
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
        let work = async move { Session::open(&self.server).await?.install().await };
        Box::pin(async move {
            let done = with_deadline(within, work, || ()).await;
            done.map_err(|failure| name_server(&self.server, failure))
        })
    }

    /// On another connection, like [`install`](Self::install).
    fn guard_table<'a>(&'a self, command: &'a GuardCommand, within: Duration) -> Reply<'a, ()> {
        let work = async move {
            Session::open(&self.server)
                .await?
                .guard_table(command)
                .await
        };
        Box::pin(async move {
            let mut late = false;
            let done = with_deadline(within, work, || late = true).await;
            done.map_err(|failure| match late {
                true => incomplete(failure, "may be incomplete", &command.table),
                false => failure,
            })
            .map_err(|failure| name_server(&self.server, failure))
        })
    }

    fn unguard_table<'a>(&'a self, table: &'a str, within: Duration) -> Reply<'a, bool> {
        let work = async move {
            Session::open(&self.server)
                .await?
                .unguard_table(table)
                .await
        };
        Box::pin(async move {
            let mut late = false;
            let done = with_deadline(within, work, || late = true).await;
            done.map_err(|failure| match late {
                true => incomplete(failure, "may be incomplete", table),
                false => failure,
            })
            .map_err(|failure| name_server(&self.server, failure))
        })
    }

    fn guarded_tables(&self, within: Duration) -> Reply<'_, Vec<TableGuard>> {
        on_session!(self, within, |session| session.guarded_tables())
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        on_session!(self, within, |session| session.examine())
    }
}
