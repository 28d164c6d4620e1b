//! A store whose requests are counted and timed.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{self, Engine};
use crate::runtime::clock;
use crate::store::api::{Barrier, DirectConnection, Reply, Store, StoreError};
use crate::store::connect::table::Rows;
use protocol::{
    AcquireCommand, AllOutcome, Force, Gone, Grant, Holder, ListFilter, LockInfo, LockName,
    LockRow, Outcome, Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, Semaphore,
    Slot, TakeOverCommand, Ttl, Version,
};

/// The store of one database, as the client uses it.
///
/// Its own methods measure a request. The other methods of [`Store`] are reached by deref and are
/// not measured.
#[derive(Clone)]
pub(crate) struct Measured {
    store: Arc<dyn Store>,
    engine: Engine,
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Deref for Measured {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

impl Measured {
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

    /// [`Store::acquire`] on the store's direct connection.
    pub(crate) async fn acquire_on(
        &self,
        direct: &dyn DirectConnection,
        commands: &[AcquireCommand],
    ) -> Result<Vec<Outcome>, StoreError> {
        self.timed("acquire", direct.acquire(commands)).await
    }

    /// [`Store::release`] on the store's direct connection.
    pub(crate) async fn release_on(
        &self,
        direct: &dyn DirectConnection,
        commands: &[ReleaseCommand],
    ) -> Result<Vec<Released>, StoreError> {
        self.timed("release", direct.release(commands)).await
    }
}

/// The measured requests: method, parameters, answer, and the name of the operation in metrics.
macro_rules! measured {
    ($($method:ident($($param:ident: $of:ty),*) -> $answer:ty, $operation:literal;)*) => {
        impl Measured {
            $(pub(crate) async fn $method(&self, $($param: $of),*) -> Result<$answer, StoreError> {
                self.timed($operation, self.store.$method($($param),*)).await
            })*
        }
    };
}

measured! {
    connect(within: Duration) -> (), "connect";
    acquire(commands: &[AcquireCommand], within: Duration) -> Vec<Outcome>, "acquire";
    acquire_all(commands: &[AcquireCommand], within: Duration) -> AllOutcome, "acquire_all";
    renew(grants: &[(Grant, Ttl)], within: Duration) -> Vec<Renewal>, "renew";
    renew_waiting(renewal: &(Grant, Ttl), within: Duration) -> Renewal, "renew";
    release(commands: &[ReleaseCommand], within: Duration) -> Vec<Released>, "release";
    rows(of: Rows, names: &[LockName], within: Duration) -> Vec<LockRow>, "read";
    read(names: &[LockName], within: Duration) -> Vec<LockInfo>, "read";
    page(of: Rows, filter: &ListFilter, after: Option<i64>, within: Duration) -> Page, "page";
    holders(names: &[LockName], within: Duration) -> Vec<Option<Holder>>, "poll";
    take_over(command: &TakeOverCommand, within: Duration) -> Outcome, "preempt";
    resume(command: &ResumeCommand, within: Duration) -> Renewal, "resume";
    force(name: &LockName, slot: Slot, within: Duration) -> Force, "force";
    prune(of: Rows, idle: Duration, include_legacy: bool, after: Option<i64>, within: Duration) -> Pruned, "prune";
    semaphore(name: &LockName, within: Duration) -> Semaphore, "read";
    limits(within: Duration) -> Vec<(LockName, u32)>, "read";
    set_limit(name: &LockName, limit: Option<u32>, within: Duration) -> (), "set_limit";
    shared(name: &LockName, within: Duration) -> Vec<LockInfo>, "read";
    readers(name: &LockName, expired: &[(Slot, Version)], within: Duration) -> Option<Holder>, "readers";
    open_fence(grant: &Grant, within: Duration) -> Result<Barrier, Gone>, "open_fence";
    install(within: Duration) -> (), "install";
}
