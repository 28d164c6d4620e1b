//! PostgreSQL 12 and later. The rules of its statements are in [`statements`].

mod connection;
mod direct;
mod doctor;
mod error;
mod expiring_map;
mod failover;
mod notify;
mod rows;
mod statements;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use self::connection::manager::ConnectionManager;
use self::connection::row_locker;
use self::connection::server::Server;
use self::connection::session::Session;
use self::direct::PostgresDirect;
use self::notify::Listener;
use self::statements::fence::FENCE;
use self::statements::guarded_table;
pub(crate) use self::statements::guarded_table::{guard_script, unguard_script};
use self::statements::handover::{resume, take_over};
use self::statements::install::install;
use self::statements::permit::{limits, set_limit};
use self::statements::prune::prune;
#[cfg(test)]
pub(crate) use self::statements::published;
use self::statements::read::{page, read};
use self::statements::release::{force, release};
use self::statements::several::acquire_all;
use self::statements::shared::readers;
use self::statements::{acquire::acquire, renew::renew};
use crate::doctor::Report;
use crate::error::Error;
use crate::store::api::{DirectConnection, FenceText, NoticeHandler, Reply, Store};
use crate::store::connect::provider::ServerProvider;
use crate::store::connect::table::{Rows, Table};
use crate::store::connect::url;
use protocol::{
    AcquireCommand, AllOutcome, Force, Grant, GuardCommand, Holder, ListFilter, LockName, LockRow,
    Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, Slot, TableGuard,
    TakeOverCommand, Ttl, Version,
};

/// The engine of `postgres:` URLs.
#[derive(Debug)]
pub(crate) struct Postgres {
    connection: ConnectionManager,
    direct: Arc<PostgresDirect>,
    listener: Listener,
    table: Table,
}

impl Postgres {
    pub(crate) fn new(
        server: url::Server,
        source: Arc<ServerProvider>,
        table: &Table,
    ) -> Result<Self, Error> {
        let server = Server::new(server, source, table, &statements::ALL)?;
        let connection = ConnectionManager::new(server);
        let listener = Listener::new(&connection, table);
        Ok(Self {
            direct: Arc::new(PostgresDirect::new(&connection, &listener)),
            connection,
            listener,
            table: table.clone(),
        })
    }
}

impl Store for Postgres {
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        Some(Arc::clone(&self.direct) as _)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.connection.connect_deadline(within);
        Box::pin(self.connection.run(within, |_| std::future::ready(Ok(()))))
    }

    fn acquire<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| acquire(&session, commands).await;
            let outcomes = self.connection.run(within, work).await?;
            self.listener.granted(commands, &outcomes);
            Ok(outcomes)
        })
    }

    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, AllOutcome> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| acquire_all(&session, commands).await;
            let outcome = self.connection.run(within, work).await?;
            if let AllOutcome::Granted { length, .. } = outcome {
                let granted = commands
                    .iter()
                    .map(|command| (command.grant, length.into()));
                self.listener.holds(granted);
            }
            Ok(outcome)
        })
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| renew(&session, grants).await;
            let renewals = self.connection.run(within, work).await?;
            self.listener.renewed(grants, &renewals);
            Ok(renewals)
        })
    }

    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        self.listener
            .forget(commands.iter().map(|command| &command.grant));
        let work = async move |session: Arc<Session>| release(&session, commands).await;
        Box::pin(self.connection.run(within, work))
    }

    fn rows<'a>(
        &'a self,
        of: Rows,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<LockRow>> {
        let work = async move |session: Arc<Session>| read(&session, of, names).await;
        Box::pin(self.connection.run(within, work))
    }

    fn page<'a>(
        &'a self,
        of: Rows,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let work = async move |session: Arc<Session>| page(&session, of, filter, after).await;
        Box::pin(self.connection.run(within, work))
    }

    fn limits(&self, within: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        let work = async move |session: Arc<Session>| limits(&session).await;
        Box::pin(self.connection.run(within, work))
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        within: Duration,
    ) -> Reply<'a, ()> {
        let work = async move |session: Arc<Session>| set_limit(&session, name, limit).await;
        Box::pin(self.connection.run(within, work))
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        _expired: &'a [(Slot, Version)],
        within: Duration,
    ) -> Reply<'a, Option<Holder>> {
        let work = async move |session: Arc<Session>| readers(&session, name).await;
        Box::pin(self.connection.run(within, work))
    }

    fn take_over<'a>(
        &'a self,
        command: &'a TakeOverCommand,
        within: Duration,
    ) -> Reply<'a, Outcome> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| take_over(&session, command).await;
            let outcome = self.connection.run(within, work).await?;
            if let Outcome::Granted { length, .. } = outcome {
                self.listener.released(&command.to.name);
                let held = std::iter::once((command.to.grant, Ttl::Finite(length)));
                self.listener.holds(held);
            }
            Ok(outcome)
        })
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| resume(&session, command).await;
            let resumed = self.connection.run(within, work).await?;
            if resumed.is_renewed() {
                let held = std::iter::once((command.to.grant, Ttl::Finite(command.to.length)));
                self.listener.holds(held);
            }
            Ok(resumed)
        })
    }

    fn force<'a>(&'a self, name: &'a LockName, slot: Slot, within: Duration) -> Reply<'a, Force> {
        Box::pin(async move {
            let work = async |session: Arc<Session>| force(&session, name, slot).await;
            let forced = self.connection.run(within, work).await?;
            if slot == Slot::Lock && matches!(forced, Force::Freed(_)) {
                self.listener.released(name);
            }
            Ok(forced)
        })
    }

    fn prune(
        &self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        let work = async move |session: Arc<Session>| {
            prune(&session, of, idle, include_legacy, after).await
        };
        Box::pin(self.connection.run_long(within, work))
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let work = async move |session: Arc<Session>| install(&session, &self.table).await;
        Box::pin(self.connection.run_long(within, work))
    }

    /// On a connection of its own, since DDL may take long and waits.
    fn guard_table<'a>(&'a self, command: &'a GuardCommand, within: Duration) -> Reply<'a, ()> {
        let work = async move |session: Arc<Session>| {
            guarded_table::guard_table(&session, &self.table, command).await
        };
        Box::pin(self.connection.run_apart(within, work))
    }

    /// On a connection of its own, like [`guard_table`](Self::guard_table).
    fn unguard_table<'a>(&'a self, table: &'a str, within: Duration) -> Reply<'a, bool> {
        let work = async move |session: Arc<Session>| {
            guarded_table::unguard_table(&session, &self.table, table).await
        };
        Box::pin(self.connection.run_apart(within, work))
    }

    fn guarded_tables(&self, within: Duration) -> Reply<'_, Vec<TableGuard>> {
        let work = async move |session: Arc<Session>| {
            guarded_table::guarded_tables(&session, &self.table).await
        };
        Box::pin(self.connection.run(within, work))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        let work = async move |session: Arc<Session>| doctor::examine(&session, &self.table).await;
        Box::pin(self.connection.run_long(within, work))
    }

    fn fence(&self, slot: Slot) -> Option<FenceText> {
        Some(FenceText {
            before: None,
            fence: self.table.fill_for(slot, FENCE),
            may_lag: false,
        })
    }

    fn announce<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        pause: Duration,
        anew: bool,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(self.listener.announce(name, limit, pause, anew))
    }

    fn on_notified(&self, notify: NoticeHandler) {
        self.listener.on_notified(notify);
    }

    fn row_locker<'a>(
        &'a self,
        name: &'a LockName,
        slot: Slot,
        within: Duration,
    ) -> Reply<'a, Option<String>> {
        Box::pin(async move {
            let wait = self.table.fill_in(Rows::of(slot), row_locker::WAIT);
            let row = (wait.as_str(), name.as_str(), slot.range().0);
            self.connection.row_locker(row, within).await
        })
    }

    fn blocked_by(&self) -> Option<String> {
        self.connection.blocked_by()
    }

    fn reconnect(&self) {
        if let Some(current) = self.connection.current() {
            self.connection.retire(&current);
        }
    }

    /// Without a connection, or behind a pooler, no process can listen.
    fn waiters_poll(&self) -> bool {
        let current = self.connection.current();
        current.is_none_or(|session| session.backend.is_none())
    }
}
