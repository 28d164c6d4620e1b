//! What guards and background work of one [`Locks`](crate::Locks) share.

pub(crate) mod acquire;
pub(crate) mod batch;
pub(crate) mod direct;
pub(crate) mod endpoint;
pub(crate) mod grant_id;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod holder;
pub(crate) mod open_fences;
pub(crate) mod own_grants;
pub(crate) mod pending;
mod process_exit;
pub(crate) mod read;
pub(crate) mod release;
pub(crate) mod renewal;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use crate::client::acquire::poller::Poller;
use crate::client::acquire::queue::Queues;
use crate::client::acquire::reports::Outages;
use crate::client::batch::Batch;
use crate::client::direct::DirectPath;
use crate::client::holder::default_holder;
use crate::client::open_fences::OpenFences;
use crate::client::pending::Pending;
use crate::client::renewal::Scheduler;
use crate::error::Error;
use crate::metrics::{self};
use crate::runtime::fork::PerProcess;
use crate::store::{api::Notice, measured::Observed};
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
