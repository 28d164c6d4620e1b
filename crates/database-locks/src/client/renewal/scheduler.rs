//! The scheduler: one task renews every lease of one [`Locks`](crate::Locks).
//!
//! It sleeps until a lease is due, asks [`Lease`] what to do, and calls the store. Each renewal
//! runs in its own task, so that one that hangs delays neither a loss nor the renewal of another
//! lease. Leases that are due now or soon are renewed by one statement. A lease that was refused
//! alone is renewed separately until a renewal of it succeeds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::client::renewal::grant_state::GrantState;
use crate::client::renewal::lease_events::LeaseEvents;
use crate::client::renewal::lease_table::LeaseTable;
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::store::measured::Measured;
use protocol::{BootInstant, Gone, Grant, GrantId, Lease, LockName, Slot, Timing};

/// The largest number of leases that one statement renews. A larger statement takes some hundred
/// milliseconds, and delays every acquire on the connection.
const LARGEST_ROUND: usize = 5_000;

/// The leases of one [`Locks`](crate::Locks), and the task that renews them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(super) store: Measured,
    table: Mutex<LeaseTable>,
    /// Whether a renewal waits for its row. There is one at most, since it has a connection of its own.
    pub(super) waiting: AtomicBool,
    changed: Notify,
    closed: AtomicBool,
}

impl Scheduler {
    /// Start the renewal task.
    pub(crate) fn start(store: Measured) -> Result<Arc<Self>, Error> {
        let scheduler = Arc::new(Self {
            store,
            table: Mutex::default(),
            waiting: AtomicBool::new(false),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        });
        runtime::spawn(Arc::clone(&scheduler).run())?;
        Ok(scheduler)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, LeaseTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renew this lease from now on.
    pub(crate) fn add(&self, lease: Lease, state: Arc<GrantState>) {
        let (mut table, now) = (self.table(), clock::now());
        table.add(lease, state, now);
        self.unlock_and_deliver(table, now, LeaseEvents::default());
    }

    /// Unlock the table, wake the task if it would sleep past a deadline, and deliver the events.
    pub(super) fn unlock_and_deliver(
        &self,
        table: MutexGuard<'_, LeaseTable>,
        now: BootInstant,
        events: LeaseEvents,
    ) {
        let wake = table.sleeps_past_deadline(now);
        drop(table);
        if wake {
            self.changed.notify_one();
        }
        events.deliver();
    }

    /// Stop renewing a lease. A renewal sent before that arrives late finds the grant id gone.
    pub(crate) fn remove(&self, id: GrantId) {
        let removed = self.table().remove(id);
        // Without the mutex: dropping the last reference to a grant may run foreign code.
        drop(removed);
    }

    /// Stop renewing all leases and return their grants.
    pub(crate) fn remove_all(&self) -> Vec<Arc<GrantState>> {
        let all = std::mem::take(&mut *self.table());
        all.entries.into_values().map(|entry| entry.state).collect()
    }

    /// The timing of a lease that is being renewed.
    pub(crate) fn timing(&self, id: GrantId) -> Option<Timing> {
        self.table()
            .entries
            .get(&id)
            .map(|entry| *entry.lease.timing())
    }

    /// Change a lease that is being renewed; `None` if there is none with this id.
    pub(crate) fn update<T>(
        &self,
        id: GrantId,
        change: impl FnOnce(&mut Lease, BootInstant) -> T,
    ) -> Option<T> {
        let mut events = LeaseEvents::default();
        let (mut table, now) = (self.table(), clock::now());
        let changed = change(&mut table.entries.get_mut(&id)?.lease, now);
        table.confirm(id, now, &mut events);
        self.unlock_and_deliver(table, now, events);
        Some(changed)
    }

    /// Renew the leases of this lock at once, because they may have been released by force.
    pub(crate) fn check_lock(&self, name: &LockName) {
        let (mut table, now) = (self.table(), clock::now());
        let named = table.entries.iter_mut();
        // A permit that is released is notified too, and says nothing about the others.
        let is_it = |grant: &Grant| grant.name == *name && grant.slot == Slot::Lock;
        let named = named.filter(|(_, entry)| is_it(&entry.state.grant));
        let ids: Vec<GrantId> = named
            .map(|(id, entry)| {
                entry.lease.check(now);
                *id
            })
            .collect();
        for id in ids {
            table.reschedule(id, now);
        }
        self.unlock_and_deliver(table, now, LeaseEvents::default());
    }

    /// Mark a grant lost, as the database reported.
    pub(crate) fn mark_lost(&self, id: GrantId, gone: Gone) {
        let mut events = LeaseEvents::default();
        self.table().mark_lost(id, gone, &mut events);
        events.deliver();
    }

    /// End the task, when no lock is held any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    async fn run(self: Arc<Self>) {
        let mut rounds = JoinSet::new();
        while !self.closed.load(Ordering::Acquire) {
            let mut events = LeaseEvents::default();
            let (until, soon) = {
                let (mut table, now) = (self.table(), clock::now());
                table.may_wait =
                    self.store.renews_waiting() && !self.waiting.load(Ordering::Acquire);
                let due = table.begin_due(now, &mut events);
                if let Some(renewal) = due.waiting {
                    self.waiting.store(true, Ordering::Release);
                    rounds.spawn(Arc::clone(&self).send_waiting(renewal));
                }
                let mut behind = 0;
                for mut due in [due.together, due.separate] {
                    while !due.is_empty() {
                        let rest = due.split_off(due.len().min(LARGEST_ROUND));
                        let round = std::mem::replace(&mut due, rest);
                        let timeout = table.timeout(&round, behind);
                        rounds.spawn(Arc::clone(&self).send_round(round, timeout));
                        behind += 1;
                    }
                }
                (table.begin_sleep(now), table.renews_soon(now))
            };
            events.deliver();
            if soon {
                self.store.prepare_to_renew();
            }
            tokio::select! {
                () = self.changed.notified() => {}
                Some(_) = rounds.join_next() => {}
                () = clock::sleep_until(until.unwrap_or_default()), if until.is_some() => {}
            }
        }
    }
}
