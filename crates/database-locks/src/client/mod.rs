//! What guards and background work of one [`Locks`](crate::Locks) share.

pub(crate) mod acquire;
pub(crate) mod batch;
pub(crate) mod direct;
pub(crate) mod grant_id;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod holder;
pub(crate) mod open_fences;
pub(crate) mod own_grants;
pub(crate) mod pending;
pub(crate) mod release;
pub(crate) mod renewal;

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use crate::client::acquire::Outages;
use crate::client::acquire::poller::Poller;
use crate::client::acquire::queue::Queues;
use crate::client::batch::Batch;
use crate::client::direct::DirectPath;
use crate::client::holder::default_holder;
use crate::client::open_fences::OpenFences;
use crate::client::pending::Pending;
use crate::client::renewal::Scheduler;
use crate::error::Error;
use crate::metrics::{self, Engine};
use crate::runtime::fork::PerProcess;
use crate::store::{
    self,
    api::Notice,
    connect::{source::Given, table::Table},
    measured::Observed,
};
use protocol::{AcquireCommand, LockName, Observations, REQUEST_TIMEOUT, ReleaseCommand, Version};

/// The connection, the leases and the waiters of one process.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Observed,
    pub(crate) asks: Batch<AcquireCommand>,
    pub(crate) returns: Batch<ReleaseCommand>,
    pub(crate) direct: Option<Arc<DirectPath>>,
    pub(crate) poller: Poller,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) queues: Queues,
    pub(crate) outages: Outages,
    pub(crate) fences: OpenFences,
    pub(crate) observations: Observations<LockName, Version>,
    /// Cloned for each release in the background.
    pub(crate) pending: Pending,
    all_done: watch::Sender<()>,
    /// `locked_by` unless a lock is given another.
    pub(crate) holder: Arc<str>,
}

impl Inner {
    pub(crate) fn new(store: Observed) -> Result<Arc<Self>, Error> {
        metrics::describe();
        pending::watch_the_process();
        let (all_done, pending) = watch::channel(());
        let scheduler = Scheduler::start(store.clone())?;
        let queues = Queues::default();
        let told = (Arc::downgrade(&scheduler), queues.clone());
        store.on_notified(Arc::new(move |notice| match notice {
            Notice::Released(name, by) => {
                told.1.notified(name, by);
                if let Some(scheduler) = told.0.upgrade() {
                    scheduler.check_soon(name);
                }
            }
            Notice::Missed => told.1.wake_all(),
        }));
        let inner = Arc::new(Self {
            scheduler,
            asks: Batch::new(store.clone(), REQUEST_TIMEOUT),
            returns: Batch::new(store.clone(), REQUEST_TIMEOUT),
            direct: DirectPath::of(&store)?,
            poller: Poller::new(store.clone(), REQUEST_TIMEOUT),
            store,
            queues,
            outages: Outages::default(),
            fences: OpenFences::default(),
            observations: Observations::default(),
            pending: Pending::new(pending),
            all_done,
            holder: default_holder().into(),
        });
        let mut known = known();
        known.retain(|inner| inner.strong_count() > 0);
        known.push(Arc::downgrade(&inner));
        Ok(inner)
    }

    /// Whether a release is still under way in the background.
    pub(crate) fn is_pending(&self) -> bool {
        // One of them is our own.
        self.all_done.receiver_count() > 1
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.scheduler.close();
    }
}

fn known() -> MutexGuard<'static, Vec<Weak<Inner>>> {
    static KNOWN: PerProcess<Mutex<Vec<Weak<Inner>>>> = PerProcess::new();
    let Ok(known) = KNOWN.get_or_try_init(|| Ok::<_, Infallible>(Mutex::default()));
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All of this process.
pub(crate) fn all() -> Vec<Arc<Inner>> {
    known().iter().filter_map(Weak::upgrade).collect()
}

/// Where the locks are, and what each process made of it.
pub(crate) struct Place {
    engine: Engine,
    given: Given,
    table: Table,
    inner: PerProcess<Arc<Inner>>,
}

/// On one line, and nothing of the URL but its engine.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("engine", &self.engine)
            .field("table", &self.table.as_str())
            .finish_non_exhaustive()
    }
}

impl Place {
    /// No I/O: the URL and the name of the table are checked.
    pub(crate) fn new(given: Given, table: Option<&str>) -> Result<Self, Error> {
        let mut place = Self {
            given,
            engine: "",
            table: table.map_or_else(|| Ok(Table::default()), Table::new)?,
            inner: PerProcess::new(),
        };
        place.engine = place.inner()?.store.engine();
        Ok(place)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// A forked child connects for itself: it must not use its parent's connection.
    pub(crate) fn inner(&self) -> Result<&Arc<Inner>, Error> {
        let make = || {
            let (store, engine) = store::open_given(&self.given, &self.table)?;
            Inner::new(Observed::new(store, engine))
        };
        self.inner.get_or_try_init(make)
    }
}
