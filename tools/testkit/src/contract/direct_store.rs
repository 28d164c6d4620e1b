//! A store whose acquires and releases use the direct connection.

use std::sync::Arc;
use std::time::Duration;

use database_locks::seam::{
    AcquireCommand, AllOutcome, DirectConnection, Force, Grant, Holder, LockRow, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, Reply, ResumeCommand, Rows, Slot, Store, StoreError,
    TakeOverCommand, Version,
};
use database_locks::{ListFilter, LockName, Ttl};

/// A store whose acquires and releases use its direct connection.
#[derive(Debug)]
pub(super) struct DirectStore(pub(super) Arc<dyn Store>);

impl DirectStore {
    fn direct(&self) -> Arc<dyn DirectConnection> {
        self.0.direct().expect("the engine has a direct connection")
    }
}

/// Bounds an answer of a direct connection, as its callers do.
async fn kept<T>(
    within: Duration,
    direct: &dyn DirectConnection,
    reply: Reply<'_, T>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(within, reply).await {
        Ok(answer) => answer,
        Err(late) => {
            direct.give_up();
            Err(StoreError::Unavailable(late.into()))
        }
    }
}

impl Store for DirectStore {
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        self.0.direct()
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(async move {
            self.0.connect(within).await?;
            let direct = self.direct();
            kept(within, &*direct, direct.connect()).await
        })
    }

    fn acquire<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        Box::pin(async move {
            let direct = self.direct();
            kept(within, &*direct, direct.acquire(commands)).await
        })
    }

    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        Box::pin(async move {
            let direct = self.direct();
            kept(within, &*direct, direct.release(commands)).await
        })
    }

    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, AllOutcome> {
        self.0.acquire_all(commands, within)
    }

    fn renew<'a>(&'a self, of: &'a [(Grant, Ttl)], within: Duration) -> Reply<'a, Vec<Renewal>> {
        self.0.renew(of, within)
    }

    fn rows<'a>(
        &'a self,
        of: Rows,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<LockRow>> {
        self.0.rows(of, names, within)
    }

    fn page<'a>(
        &'a self,
        of: Rows,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        self.0.page(of, filter, after, within)
    }

    fn holders<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        self.0.holders(names, within)
    }

    fn take_over<'a>(
        &'a self,
        command: &'a TakeOverCommand,
        within: Duration,
    ) -> Reply<'a, Outcome> {
        self.0.take_over(command, within)
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        self.0.resume(command, within)
    }

    fn force<'a>(&'a self, name: &'a LockName, slot: Slot, within: Duration) -> Reply<'a, Force> {
        self.0.force(name, slot, within)
    }

    fn prune(
        &self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        self.0.prune(of, idle, include_legacy, after, within)
    }

    fn limits(&self, within: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        self.0.limits(within)
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        within: Duration,
    ) -> Reply<'a, ()> {
        self.0.set_limit(name, limit, within)
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        expired: &'a [(Slot, Version)],
        within: Duration,
    ) -> Reply<'a, Option<Holder>> {
        self.0.readers(name, expired, within)
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        self.0.install(within)
    }

    fn examine(&self, within: Duration) -> Reply<'_, database_locks::doctor::Report> {
        self.0.examine(within)
    }
}
