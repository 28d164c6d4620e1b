//! State that all handles of one [`Locks`](crate::Locks) share, and what happens while a lock is
//! wanted or held.

pub(crate) mod acquire;
pub(crate) mod batch;
pub(crate) mod direct;
pub(crate) mod downgrade;
pub(crate) mod endpoint;
pub(crate) mod force;
pub(crate) mod grant_id;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod holder;
pub(crate) mod open_fences;
pub(crate) mod own_grants;
pub(crate) mod pending_releases;
mod process_exit;
pub(crate) mod read;
pub(crate) mod release;
pub(crate) mod renewal;
pub(crate) mod row_locker_cache;

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::client::acquire::poller::Poller;
use crate::client::acquire::queue::Queues;
use crate::client::acquire::reports::Outages;
use crate::client::acquire::request::AcquireRequest;
use crate::client::batch::Batch;
use crate::client::direct::DirectClient;
use crate::client::holder::default_holder;
use crate::client::open_fences::OpenFences;
use crate::client::own_grants::ClientNumber;
use crate::client::pending_releases::PendingReleases;
use crate::client::renewal::scheduler::Scheduler;
use crate::client::row_locker_cache::RowLockerCache;
use crate::error::Error;
use crate::metrics;
use crate::runtime::fork::PerProcess;
use crate::store::{api::Notice, measured::Measured};
use protocol::{AcquireCommand, Kind, LockName, Observations, ReleaseCommand, Slot, Version};

/// The store, the leases and the queues of one [`Locks`](crate::Locks) in one process.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) store: Measured,
    pub(crate) acquires: Batch<AcquireCommand>,
    pub(crate) releases: Batch<ReleaseCommand>,
    pub(crate) direct: Option<Arc<DirectClient>>,
    pub(crate) poller: Poller,
    pub(crate) scheduler: Arc<Scheduler>,
    queues: Queues,
    permit_queues: Queues,
    shared_queues: Queues,
    pub(crate) outages: Outages,
    pub(crate) row_lockers: RowLockerCache,
    pub(crate) fences: OpenFences,
    pub(crate) observations: Observations<(LockName, Slot), Version>,
    pub(crate) pending_releases: PendingReleases,
    /// The default for `locked_by`.
    pub(crate) holder: Arc<str>,
    /// Tells its grants from those of other clients of this process.
    pub(crate) number: ClientNumber,
}

impl Client {
    pub(crate) fn new(store: Measured) -> Result<Arc<Self>, Error> {
        metrics::describe();
        let scheduler = Scheduler::start(store.clone())?;
        let (queues, permit_queues) = (Queues::default(), Queues::default());
        let shared_queues = Queues::default();
        let renewals = Arc::downgrade(&scheduler);
        let waiters = [queues.clone(), permit_queues.clone(), shared_queues.clone()];
        store.on_notified(Arc::new(move |notice| match notice {
            Notice::Released(name, by) => {
                waiters.iter().for_each(|queues| queues.notified(name, by));
                if let Some(scheduler) = renewals.upgrade() {
                    scheduler.check_lock(name);
                }
            }
            Notice::Missed => waiters.iter().for_each(Queues::wake_all),
        }));
        let client = Arc::new(Self {
            scheduler,
            acquires: Batch::new(store.clone()),
            releases: Batch::new(store.clone()),
            direct: DirectClient::for_store(&store)?,
            poller: Poller::new(store.clone()),
            row_lockers: RowLockerCache::new(store.clone()),
            store,
            queues,
            permit_queues,
            shared_queues,
            outages: Outages::default(),
            fences: OpenFences::default(),
            observations: Observations::default(),
            pending_releases: PendingReleases::default(),
            holder: default_holder().into(),
            number: ClientNumber::next(),
        });
        let mut known = known();
        known.retain(|client| client.strong_count() > 0);
        known.push(Arc::downgrade(&client));
        Ok(client)
    }

    /// Record that a guard of this process holds the lock, so that its waiters need not try. Of a
    /// semaphore another permit may be free.
    pub(crate) fn note_acquired(&self, request: &AcquireRequest) {
        match request.kind {
            Kind::Exclusive => self.queues.acquired(&request.name),
            Kind::Permit { .. } => self.permit_queues.permit_acquired(&request.name),
            Kind::Shared { .. } => {}
        }
    }

    /// The queues in which such requests wait.
    pub(crate) fn queues_for(&self, request: &AcquireRequest) -> &Queues {
        match request.kind {
            Kind::Exclusive => &self.queues,
            Kind::Shared { .. } => &self.shared_queues,
            Kind::Permit { .. } => &self.permit_queues,
        }
    }

    /// The queues of those that wait for a grant in this row.
    pub(crate) fn queues(&self, slot: Slot) -> &Queues {
        match slot {
            Slot::Lock | Slot::Shared(_) => &self.queues,
            Slot::Permit(_) | Slot::AnyPermit => &self.permit_queues,
        }
    }

    /// Wake the shared requests that wait for an exclusive grant in this row.
    pub(crate) fn wake_shared(&self, slot: Slot, name: &LockName) {
        if slot == Slot::Lock {
            self.shared_queues.wake(name);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.scheduler.close();
    }
}

fn known() -> MutexGuard<'static, Vec<Weak<Client>>> {
    static KNOWN: PerProcess<Mutex<Vec<Weak<Client>>>> = PerProcess::new();
    KNOWN.lock()
}

/// The clients of this process that are still in use.
pub(crate) fn all() -> Vec<Arc<Client>> {
    known().iter().filter_map(Weak::upgrade).collect()
}
