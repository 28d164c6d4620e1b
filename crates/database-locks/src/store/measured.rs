//! A store whose calls are counted and timed.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{self, Engine};
use crate::runtime::clock;
use crate::store::api::{Barrier, DirectConnection, Reply, Store, StoreError};
use protocol::{
    AcquireCommand, Force, Gone, Grant, Holder, ListFilter, LockInfo, LockName, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Ttl,
};

/// The store of one database, as all the loops above use it.
///
/// Its own methods go before those of [`Store`] that it derefs to: what stands below is measured,
/// and the rest passes by.
#[derive(Clone)]
pub(crate) struct Observed {
    store: Arc<dyn Store>,
    engine: Engine,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Deref for Observed {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

impl Observed {
    pub(crate) fn new(store: Arc<dyn Store>, engine: Engine) -> Self {
        Self { store, engine }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        reply: Reply<'_, T>,
    ) -> Result<T, StoreError> {
        let sent = clock::now();
        let answer = reply.await;
        let result = match &answer {
            Ok(_) => "ok",
            Err(StoreError::Contention(_)) => "contention",
            Err(StoreError::Unavailable(_)) => "unavailable",
            Err(StoreError::Rejected { .. }) => "rejected",
        };
        let took = clock::now() - sent;
        metrics::request(self.engine, operation, result, took);
        tracing::trace!(operation, result, ?took, "asked the database");
        answer
    }

    pub(crate) async fn connect(&self, within: Duration) -> Result<(), StoreError> {
        self.timed("connect", self.store.connect(within)).await
    }

    pub(crate) async fn acquire(
        &self,
        asks: &[AcquireCommand],
        within: Duration,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.timed("acquire", self.store.acquire(asks, within))
            .await
    }

    /// The same on a direct connection of the store.
    pub(crate) async fn acquire_on(
        &self,
        direct: &dyn DirectConnection,
        asks: &[AcquireCommand],
    ) -> Result<Vec<Outcome>, StoreError> {
        self.timed("acquire", direct.acquire(asks)).await
    }

    /// See [`acquire_on`](Self::acquire_on).
    pub(crate) async fn release_on(
        &self,
        direct: &dyn DirectConnection,
        returns: &[ReleaseCommand],
    ) -> Result<Vec<Released>, StoreError> {
        self.timed("release", direct.release(returns)).await
    }

    pub(crate) async fn renew(
        &self,
        grants: &[(Grant, Ttl)],
        within: Duration,
    ) -> Result<Vec<Renewal>, StoreError> {
        self.timed("renew", self.store.renew(grants, within)).await
    }

    pub(crate) async fn release(
        &self,
        returns: &[ReleaseCommand],
        within: Duration,
    ) -> Result<Vec<Released>, StoreError> {
        self.timed("release", self.store.release(returns, within))
            .await
    }

    pub(crate) async fn read(
        &self,
        names: &[LockName],
        within: Duration,
    ) -> Result<Vec<LockInfo>, StoreError> {
        self.timed("read", self.store.read(names, within)).await
    }

    pub(crate) async fn page(
        &self,
        filter: &ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Result<Page, StoreError> {
        self.timed("page", self.store.page(filter, after, within))
            .await
    }

    pub(crate) async fn look(
        &self,
        names: &[LockName],
        within: Duration,
    ) -> Result<Vec<Option<Holder>>, StoreError> {
        self.timed("look", self.store.look(names, within)).await
    }

    pub(crate) async fn take_over(
        &self,
        what: &TakeOverCommand,
        within: Duration,
    ) -> Result<Outcome, StoreError> {
        self.timed("preempt", self.store.take_over(what, within))
            .await
    }

    pub(crate) async fn resume(
        &self,
        what: &ResumeCommand,
        within: Duration,
    ) -> Result<Renewal, StoreError> {
        self.timed("resume", self.store.resume(what, within)).await
    }

    pub(crate) async fn force(
        &self,
        name: &LockName,
        within: Duration,
    ) -> Result<Force, StoreError> {
        self.timed("force", self.store.force(name, within)).await
    }

    pub(crate) async fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Result<Pruned, StoreError> {
        self.timed("prune", self.store.prune(idle, unknown, after, within))
            .await
    }

    pub(crate) async fn open_fence(
        &self,
        grant: &Grant,
        within: Duration,
    ) -> Result<Result<Barrier, Gone>, StoreError> {
        self.timed("open_fence", self.store.open_fence(grant, within))
            .await
    }

    pub(crate) async fn install(&self, within: Duration) -> Result<(), StoreError> {
        self.timed("install", self.store.install(within)).await
    }
}
