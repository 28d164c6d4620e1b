//! PostgreSQL 12 and later. The rules of its statements are in [`statements`].

// First: its macros are parts of statements.
#[macro_use]
mod rows;

mod connection;
mod direct;
mod doctor;
mod error;
mod failover;
mod notify;
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
#[cfg(test)]
pub(crate) use self::statements::PUBLISHED;
use self::statements::fence::FENCE;
use self::statements::guarded_table;
pub(crate) use self::statements::guarded_table::{guard_script, unguard_script};
use self::statements::handover::{resume, take_over};
use self::statements::install::{INSTALL, install};
use self::statements::permit::{limits, semaphore, set_limit};
use self::statements::prune::prune;
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
    AcquireCommand, AllOutcome, Force, Grant, GuardCommand, Holder, ListFilter, LockInfo, LockName,
    LockRow, Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, Semaphore,
    Slot, TableGuard, TakeOverCommand, Ttl, Version,
};

/// The engine of `postgres:` URLs.
#[derive(Debug)]
pub(crate) struct Postgres {
    connection: ConnectionManager,
    direct: Arc<PostgresDirect>,
    listener: Listener,
    table: Table,
    install: String,
    fence: FenceText,
    permit_fence: FenceText,
}

impl Postgres {
    pub(crate) fn new(
        server: url::Server,
        source: Arc<ServerProvider>,
        table: &Table,
    ) -> Result<Self, Error> {
        let listener = Listener::new(table);
        let server = Server::new(server, source, table, &statements::ALL, listener.events())?;
        let connection = ConnectionManager::new(server);
        let fence = |fence| FenceText {
            before: None,
            fence,
            may_lag: false,
        };
        Ok(Self {
            direct: Arc::new(PostgresDirect::new(&connection, &listener)),
            connection,
            listener,
            table: table.clone(),
            install: table.fill(INSTALL),
            fence: fence(table.fill(FENCE)),
            permit_fence: fence(table.fill_for_permits(FENCE)),
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
            let work = |session: Arc<Session>| async move { acquire(&session, commands).await };
            let outcomes = self.connection.run(within, work).await?;
            self.listener.granted(&self.connection, commands, &outcomes);
            Ok(outcomes)
        })
    }

    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, AllOutcome> {
        Box::pin(async move {
            let work = |session: Arc<Session>| async move { acquire_all(&session, commands).await };
            let outcome = self.connection.run(within, work).await?;
            if let AllOutcome::Granted { length, .. } = outcome {
                let granted = commands
                    .iter()
                    .map(|command| (command.grant, length.into()));
                self.listener.holds(&self.connection, granted);
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
            let work = |session: Arc<Session>| async move { renew(&session, grants).await };
            let renewals = self.connection.run(within, work).await?;
            self.listener.renewed(&self.connection, grants, &renewals);
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
        let work = move |session: Arc<Session>| async move { release(&session, commands).await };
        Box::pin(self.connection.run(within, work))
    }

    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        let work = move |session: Arc<Session>| async move {
            let rows = read(&session, Rows::Locks, names).await?;
            Ok(rows.into_iter().map(LockRow::into_info).collect())
        };
        Box::pin(self.connection.run(within, work))
    }

    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let work = move |session: Arc<Session>| async move {
            page(&session, Rows::Locks, filter, after).await
        };
        Box::pin(self.connection.run(within, work))
    }

    fn semaphore<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Semaphore> {
        let work = move |session: Arc<Session>| async move { semaphore(&session, name).await };
        Box::pin(self.connection.run(within, work))
    }

    fn page_of_permits<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let work = move |session: Arc<Session>| async move {
            page(&session, Rows::Permits, filter, after).await
        };
        Box::pin(self.connection.run(within, work))
    }

    fn limits(&self, within: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        let work = move |session: Arc<Session>| async move { limits(&session).await };
        Box::pin(self.connection.run(within, work))
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        within: Duration,
    ) -> Reply<'a, ()> {
        let work =
            move |session: Arc<Session>| async move { set_limit(&session, name, limit).await };
        Box::pin(self.connection.run(within, work))
    }

    fn shared<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Vec<LockInfo>> {
        let work = move |session: Arc<Session>| async move {
            let rows = read(&session, Rows::Permits, std::slice::from_ref(name)).await?;
            let shared = rows.into_iter().filter(|row| row.slot.is_shared());
            Ok(shared.map(LockRow::into_info).collect())
        };
        Box::pin(self.connection.run(within, work))
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        _expired: &'a [(Slot, Version)],
        within: Duration,
    ) -> Reply<'a, Option<Holder>> {
        let work = move |session: Arc<Session>| async move { readers(&session, name).await };
        Box::pin(self.connection.run(within, work))
    }

    fn force_permit<'a>(
        &'a self,
        name: &'a LockName,
        slot: Slot,
        within: Duration,
    ) -> Reply<'a, Force> {
        let work = move |session: Arc<Session>| async move { force(&session, name, slot).await };
        Box::pin(self.connection.run(within, work))
    }

    fn prune_permits(
        &self,
        idle: Duration,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        let work = move |session: Arc<Session>| async move {
            prune(&session, Rows::Permits, idle, false, after).await
        };
        Box::pin(self.connection.run_long(within, work))
    }

    fn announce_for_permit<'a>(
        &'a self,
        name: &'a LockName,
        limit: u32,
        pause: Duration,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        let listener = &self.listener;
        Box::pin(listener.announce_for_permit(&self.connection, name, limit, pause))
    }

    fn holders<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        let work = move |session: Arc<Session>| async move {
            let rows = read(&session, Rows::Locks, names).await?;
            Ok(LockRow::holders(names, &rows))
        };
        Box::pin(self.connection.run(within, work))
    }

    fn take_over<'a>(
        &'a self,
        command: &'a TakeOverCommand,
        within: Duration,
    ) -> Reply<'a, Outcome> {
        Box::pin(async move {
            let work = |session: Arc<Session>| async move { take_over(&session, command).await };
            let outcome = self.connection.run(within, work).await?;
            if let Outcome::Granted { length, .. } = outcome {
                self.listener.released(&command.to.name);
                let held = std::iter::once((command.to.grant, Ttl::Finite(length)));
                self.listener.holds(&self.connection, held);
            }
            Ok(outcome)
        })
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        Box::pin(async move {
            let work = |session: Arc<Session>| async move { resume(&session, command).await };
            let resumed = self.connection.run(within, work).await?;
            if resumed.is_renewed() {
                let held = std::iter::once((command.to.grant, Ttl::Finite(command.to.length)));
                self.listener.holds(&self.connection, held);
            }
            Ok(resumed)
        })
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        Box::pin(async move {
            let work =
                |session: Arc<Session>| async move { force(&session, name, Slot::Lock).await };
            let forced = self.connection.run(within, work).await?;
            if let Force::Freed(_) = forced {
                self.listener.released(name);
            }
            Ok(forced)
        })
    }

    fn prune(
        &self,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        let work = move |session: Arc<Session>| async move {
            prune(&session, Rows::Locks, idle, include_legacy, after).await
        };
        Box::pin(self.connection.run_long(within, work))
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let work =
            move |session: Arc<Session>| async move { install(&session, &self.install).await };
        Box::pin(self.connection.run_long(within, work))
    }

    /// On a connection of its own, since DDL may take long and waits.
    fn guard_table<'a>(&'a self, command: &'a GuardCommand, within: Duration) -> Reply<'a, ()> {
        let work = move |session: Arc<Session>| async move {
            guarded_table::guard_table(&session, &self.table, command).await
        };
        Box::pin(self.connection.run_apart(within, work))
    }

    /// On a connection of its own, like [`guard_table`](Self::guard_table).
    fn unguard_table<'a>(&'a self, table: &'a str, within: Duration) -> Reply<'a, bool> {
        let work = move |session: Arc<Session>| async move {
            guarded_table::unguard_table(&session, &self.table, table).await
        };
        Box::pin(self.connection.run_apart(within, work))
    }

    fn guarded_tables(&self, within: Duration) -> Reply<'_, Vec<TableGuard>> {
        let work = move |session: Arc<Session>| async move {
            guarded_table::guarded_tables(&session, &self.table).await
        };
        Box::pin(self.connection.run(within, work))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        let work = move |session: Arc<Session>| async move {
            doctor::examine(&session, &self.table).await
        };
        Box::pin(self.connection.run_long(within, work))
    }

    fn fence(&self) -> Option<&FenceText> {
        Some(&self.fence)
    }

    fn fence_of_permit(&self) -> Option<&FenceText> {
        Some(&self.permit_fence)
    }

    fn announce<'a>(
        &'a self,
        name: &'a LockName,
        pause: Duration,
        anew: bool,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(self.listener.announce(&self.connection, name, pause, anew))
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
            let wait = match Rows::of(slot) {
                Rows::Locks => self.table.fill(row_locker::WAIT),
                Rows::Permits => self.table.fill_for_permits(row_locker::WAIT),
            };
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
