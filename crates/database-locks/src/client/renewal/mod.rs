//! The scheduler: one task renews every lease of one [`Locks`](crate::Locks).
//!
//! It sleeps until a lease is due, asks [`Lease`] what to do, and calls the store. Each renewal
//! runs in its own task, so that one that hangs delays neither a loss nor the renewal of another
//! lease. Leases that are due now or soon are renewed by one statement. A lease that was refused
//! alone is renewed separately until a renewal of it succeeds.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::client::renewal::grant_state::{Confirmed, GrantState, RenewalFailure};
use crate::client::renewal::lease_events::LeaseEvents;
use crate::client::renewal::outage::{Outage, Reconnects};
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::store::measured::Observed;
use protocol::{
    Answer, BootInstant, Gone, Grant, GrantId, Lease, LockName, LostReason, Next, Timing, Ttl,
};

pub(crate) mod grant_state;
pub(crate) mod lease_events;
pub(crate) mod listeners;
pub(crate) mod outage;
mod round;
mod split;

/// The largest number of leases that one statement renews. A larger statement takes some hundred
/// milliseconds, and delays every acquire on the connection.
const LARGEST_ROUND: usize = 5_000;

/// The longest sleep while there are leases. It bounds a sleep that became useless because its
/// leases were released.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How long before a renewal its connection is made, if there is none. A connect that succeeds
/// takes less.
const CONNECT_AHEAD: Duration = Duration::from_secs(4);

/// The leases that one statement renews.
type Round = Vec<(Grant, Ttl)>;

#[derive(Debug)]
struct Entry {
    lease: Lease,
    held: Arc<GrantState>,
    /// The time under which the entry is in `deadlines`.
    at: BootInstant,
    /// Refused while others were renewed. It is renewed separately, since it would make the
    /// statement of others fail.
    separate: bool,
    /// When the first of its consecutive failed renewals was answered.
    failing_since: Option<BootInstant>,
}

impl Entry {
    fn renewing(&mut self) -> (Grant, Ttl) {
        self.held.renewing();
        (self.held.latest_grant(), self.lease.renewing())
    }
}

#[derive(Debug, Default)]
struct LeaseTable {
    entries: HashMap<GrantId, Entry>,
    deadlines: BTreeSet<(BootInstant, GrantId)>,
    /// Until when the task sleeps, whatever happens to the leases. `None`: until it is woken.
    sleeps_until: Option<BootInstant>,
    outage: Outage,
    reconnects: Reconnects,
}

/// When the scheduler has to act on a lease.
fn due_at(lease: &Lease, now: BootInstant) -> BootInstant {
    match lease.next(now) {
        Next::Wait(until) => until,
        Next::Renew | Next::Lost(_) => now,
    }
}

/// The leases to renew now.
#[derive(Debug, Default)]
struct Due {
    together: Round,
    separate: Round,
}

impl LeaseTable {
    fn add(&mut self, lease: Lease, held: Arc<GrantState>, now: BootInstant) {
        let (id, at) = (held.grant.id, due_at(&lease, now));
        self.entries.insert(
            id,
            Entry {
                lease,
                held,
                at,
                separate: false,
                failing_since: None,
            },
        );
        self.deadlines.insert((at, id));
    }

    fn remove(&mut self, id: GrantId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.deadlines.remove(&(entry.at, id));
        if self.entries.is_empty() {
            // Without a lease no renewal would report the end of the outage.
            self.outage = Outage::default();
        }
        Some(entry)
    }

    /// Update a lease's deadline.
    fn plan(&mut self, id: GrantId, now: BootInstant) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.deadlines.remove(&(entry.at, id));
        entry.at = due_at(&entry.lease, now);
        self.deadlines.insert((entry.at, id));
    }

    /// Start a sleep until the next deadline. `None`: until the task is woken.
    fn sleep(&mut self, now: BootInstant) -> Option<BootInstant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        self.sleeps_until = first.map(|at| {
            let ahead = Some(at - CONNECT_AHEAD).filter(|ahead| *ahead > now);
            ahead.unwrap_or(at).min(now + LONGEST_SLEEP)
        });
        self.sleeps_until
    }

    /// Whether a renewal is due within [`CONNECT_AHEAD`].
    fn renews_soon(&self, now: BootInstant) -> bool {
        let soon = now + CONNECT_AHEAD;
        self.deadlines.first().is_some_and(|(at, _)| *at <= soon)
    }

    /// Whether the task sleeps past the first deadline. A sleep that should have ended already does
    /// not count: the machine was suspended.
    fn oversleeps(&self, now: BootInstant) -> bool {
        let in_time = |at| {
            self.sleeps_until
                .is_some_and(|until| (now..=at).contains(&until))
        };
        self.deadlines.first().is_some_and(|(at, _)| !in_time(*at))
    }

    /// Take the leases that are due, and those that may be renewed along with them. Mark expired
    /// ones lost.
    fn due(&mut self, now: BootInstant, events: &mut LeaseEvents) -> Due {
        let mut due = Due::default();
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                break;
            }
            let Some(entry) = self.entries.get_mut(&id) else {
                self.deadlines.pop_first();
                continue;
            };
            match entry.lease.next(now) {
                Next::Lost(reason) => {
                    self.lost(id, reason.into(), events);
                    continue;
                }
                Next::Renew => match entry.separate {
                    true => due.separate.push(entry.renewing()),
                    false => due.together.push(entry.renewing()),
                },
                Next::Wait(_) => {}
            }
            self.plan(id, now);
        }
        if !due.together.is_empty() {
            let early: Vec<GrantId> = self
                .entries
                .iter()
                .filter(|(_, entry)| !entry.separate && entry.lease.may_come_along(now))
                .map(|(id, _)| *id)
                .collect();
            for id in early {
                if let Some(entry) = self.entries.get_mut(&id) {
                    due.together.push(entry.renewing());
                }
                self.plan(id, now);
            }
        }
        due
    }

    /// Record the answer to a renewal that did not lose the lease, and the reason if it was not
    /// renewed.
    fn answered(
        &mut self,
        id: GrantId,
        sent: BootInstant,
        (answer, trouble): (Answer, Option<RenewalFailure>),
        events: &mut LeaseEvents,
    ) {
        let now = clock::now();
        // Released meanwhile.
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if answer == Answer::Renewed {
            entry.failing_since = None;
            if std::mem::take(&mut entry.separate) {
                events.renewed_again.push(Arc::clone(&entry.held));
            }
        } else {
            entry.failing_since.get_or_insert(now);
        }
        entry.held.answered(trouble);
        entry.lease.answered(sent, answer, now);
        if let Next::Lost(_) = entry.lease.next(now) {
            // `due` reports the loss, at once.
            self.plan(id, now);
        } else {
            self.confirm(id, now, events);
        }
    }

    /// Let the guard trust its lease as far as it is confirmed.
    fn confirm(&mut self, id: GrantId, now: BootInstant, events: &mut LeaseEvents) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        match entry.held.confirm(&entry.lease) {
            Confirmed::TooLate => return self.lost(id, LostReason::Expired.into(), events),
            Confirmed::Changed => events.confirmed.push(Arc::clone(&entry.held)),
            Confirmed::Unchanged => {}
        }
        self.plan(id, now);
    }

    fn lost(&mut self, id: GrantId, gone: Gone, events: &mut LeaseEvents) {
        if let Some(entry) = self.remove(id)
            && let Some(loss) = entry.held.mark_lost(gone)
        {
            events.lost.push((entry.held, loss));
        }
    }

    /// The timeout of a round that is sent behind `behind` others.
    fn patience(&self, round: &[(Grant, Ttl)], behind: u32) -> Duration {
        let of = |grant: &Grant| {
            self.entries
                .get(&grant.id)
                .map(|entry| entry.lease.patience(behind))
        };
        round
            .iter()
            .filter_map(|(grant, _)| of(grant))
            .min()
            .unwrap_or_default()
    }
}

/// The leases of one [`Locks`](crate::Locks), and the task that renews them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    store: Observed,
    table: Mutex<LeaseTable>,
    changed: Notify,
    closed: AtomicBool,
}

impl Scheduler {
    /// Start the renewal task.
    pub(crate) fn start(store: Observed) -> Result<Arc<Self>, Error> {
        let scheduler = Arc::new(Self {
            store,
            table: Mutex::default(),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        });
        runtime::spawn(Arc::clone(&scheduler).work())?;
        Ok(scheduler)
    }

    fn table(&self) -> MutexGuard<'_, LeaseTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renew this lease from now on.
    pub(crate) fn add(&self, lease: Lease, held: Arc<GrantState>) {
        let (mut table, now) = (self.table(), clock::now());
        table.add(lease, held, now);
        self.unlock_and_deliver(table, now, LeaseEvents::default());
    }

    /// Unlock the table, wake the task if it would sleep past a deadline, and deliver the events.
    fn unlock_and_deliver(
        &self,
        table: MutexGuard<'_, LeaseTable>,
        now: BootInstant,
        events: LeaseEvents,
    ) {
        let wake = table.oversleeps(now);
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
    pub(crate) fn take_all(&self) -> Vec<Arc<GrantState>> {
        let mut table = self.table();
        let ids: Vec<GrantId> = table.entries.keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| table.remove(id).map(|entry| entry.held))
            .collect()
    }

    /// The timing of a lease that is being renewed.
    pub(crate) fn timing(&self, id: GrantId) -> Option<Timing> {
        self.table()
            .entries
            .get(&id)
            .map(|entry| *entry.lease.timing())
    }

    /// Renew a lease to another ttl, at once and from now on.
    pub(crate) fn extend(&self, id: GrantId, timing: Timing) {
        self.with(id, |lease, now| {
            lease.extend(timing, now);
            true
        });
    }

    /// Change a lease that is being renewed; `false` if there is none with this id, or if `change`
    /// returns it.
    pub(crate) fn with(
        &self,
        id: GrantId,
        change: impl FnOnce(&mut Lease, BootInstant) -> bool,
    ) -> bool {
        let mut events = LeaseEvents::default();
        let (mut table, now) = (self.table(), clock::now());
        let Some(entry) = table.entries.get_mut(&id) else {
            return false;
        };
        let done = change(&mut entry.lease, now);
        table.confirm(id, now, &mut events);
        self.unlock_and_deliver(table, now, events);
        done
    }

    /// Renew the leases of this lock at once, because they may have been released by force.
    pub(crate) fn check_soon(&self, name: &LockName) {
        let (mut table, now) = (self.table(), clock::now());
        let named = table.entries.iter_mut();
        let named = named.filter(|(_, entry)| entry.held.grant.name == *name);
        let ids: Vec<GrantId> = named
            .map(|(id, entry)| {
                entry.lease.check(now);
                *id
            })
            .collect();
        for id in ids {
            table.plan(id, now);
        }
        self.unlock_and_deliver(table, now, LeaseEvents::default());
    }

    /// Mark a grant lost because the database reported so.
    pub(crate) fn lost(&self, id: GrantId, gone: Gone) {
        let mut events = LeaseEvents::default();
        self.table().lost(id, gone, &mut events);
        events.deliver();
    }

    /// End the task, when no lock is held any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    async fn work(self: Arc<Self>) {
        let mut rounds = JoinSet::new();
        while !self.closed.load(Ordering::Acquire) {
            let mut events = LeaseEvents::default();
            let (until, soon) = {
                let (mut table, now) = (self.table(), clock::now());
                let Due { together, separate } = table.due(now, &mut events);
                let mut behind = 0;
                for mut due in [together, separate] {
                    while !due.is_empty() {
                        let rest = due.split_off(due.len().min(LARGEST_ROUND));
                        let round = std::mem::replace(&mut due, rest);
                        let patience = table.patience(&round, behind);
                        rounds.spawn(Arc::clone(&self).round(round, patience));
                        behind += 1;
                    }
                }
                (table.sleep(now), table.renews_soon(now))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::grant_id::random_grant_id;
    use crate::client::renewal::grant_state::Status;
    use crate::store::api::StoreError;
    use protocol::Renewing;
    use protocol::Token;

    fn table_of(n: u64) -> (LeaseTable, BootInstant) {
        let (mut table, start) = (LeaseTable::default(), clock::now());
        for i in 0..n {
            let sent = start + Duration::from_millis(i);
            let (held, lease) = held_for(Duration::from_secs(30), sent);
            table.add(lease, held, sent);
        }
        (table, start)
    }

    /// Add a lease of this ttl; returns whether that wakes the task.
    fn wakes(table: &mut LeaseTable, ttl: Duration, now: BootInstant) -> (bool, GrantId) {
        let (held, lease) = held_for(ttl, now);
        let id = held.grant.id;
        table.add(lease, held, now);
        (table.oversleeps(now), id)
    }

    #[test]
    fn cycles_of_acquire_and_release_wake_the_task_once_in_six_seconds() {
        let (mut table, start) = (LeaseTable::default(), clock::now());
        let (mut woken, mut until) = (0, None);
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if until.is_some_and(|until| until <= now) {
                assert!(
                    table
                        .due(now, &mut LeaseEvents::default())
                        .together
                        .is_empty()
                );
                until = table.sleep(now);
            }
            let (wake, id) = wakes(&mut table, Duration::from_secs(30), now);
            if wake {
                woken += 1;
                until = table.sleep(now);
            }
            table.remove(id);
            assert!(!table.oversleeps(now), "woken by a release");
        }
        assert_eq!(woken, 10);
        // After the last release the task sleeps until it is woken.
        let end = start + Duration::from_secs(70);
        table.due(end, &mut LeaseEvents::default());
        assert_eq!(table.sleep(end), None);
    }

    #[test]
    fn a_deadline_before_the_end_of_the_sleep_wakes_the_task() {
        let (mut table, start) = (LeaseTable::default(), clock::now());
        let secs = Duration::from_secs;
        assert!(wakes(&mut table, secs(30), start).0, "it sleeps for good");
        assert_eq!(table.sleep(start), Some(start + secs(10) - CONNECT_AHEAD));
        assert!(!wakes(&mut table, secs(30), start + secs(5)).0);
        assert!(!wakes(&mut table, secs(300), start + secs(5)).0);
        assert!(!wakes(&mut table, secs(6), start + secs(5)).0, "due later");
        let (wake, id) = wakes(&mut table, secs(6), start + secs(1));
        assert!(wake, "due earlier");
        table.remove(id);
        // As after an extension or a check.
        let now = start + secs(2);
        let id = *table.entries.keys().next().unwrap();
        table.entries.get_mut(&id).unwrap().lease.check(now);
        table.plan(id, now);
        assert!(table.oversleeps(now));
        table.remove(id);
        assert!(!table.oversleeps(now));
        // The machine was suspended, and the task has not woken yet.
        assert!(wakes(&mut table, secs(30), start + secs(60)).0);
    }

    #[test]
    fn a_lease_with_a_late_deadline_wakes_the_task_now_and_then() {
        let (mut table, start) = (LeaseTable::default(), clock::now());
        wakes(&mut table, Duration::from_secs(3_600), start);
        assert_eq!(table.sleep(start), Some(start + LONGEST_SLEEP));
    }

    #[test]
    fn locks_acquired_one_after_another_are_renewed_together() {
        let (mut table, start) = table_of(3_000);
        let mut due = |secs| {
            table.due(
                start + Duration::from_secs(secs),
                &mut LeaseEvents::default(),
            )
        };
        assert!(due(9).together.is_empty());
        assert_eq!(due(10).together.len(), 3_000);
    }

    #[test]
    fn a_lease_that_was_refused_alone_is_renewed_separately_until_that_succeeds() {
        let (mut table, start) = table_of(100);
        let at = |secs| start + Duration::from_secs(secs);
        let id = *table.entries.keys().next().unwrap();
        table.entries.get_mut(&id).unwrap().separate = true;
        let mut events = LeaseEvents::default();
        let due = table.due(at(11), &mut events);
        assert_eq!((due.together.len(), due.separate.len()), (99, 1));
        assert_eq!(due.separate[0].0.id, id);
        table.answered(id, at(11), (Answer::Renewed, None), &mut events);
        assert!(!table.entries[&id].separate);
        assert_eq!(events.renewed_again.len(), 1);
    }

    #[test]
    fn a_loss_names_the_latest_failure_whether_the_guard_or_the_scheduler_detects_it() {
        for asked in [false, true] {
            let (mut table, _) = table_of(0);
            let (held, lease) = trusted_until(clock::now() + Duration::from_millis(1));
            let id = held.grant.id;
            table.add(lease, Arc::clone(&held), clock::now());
            table.entries.get_mut(&id).unwrap().renewing();
            let trouble = RenewalFailure {
                reason: LostReason::Refused,
                message: "permission denied".into(),
            };
            held.answered(Some(trouble));
            let loss = match asked {
                true => held.lose(LostReason::Expired),
                false => held.mark_lost(LostReason::Refused.into()).unwrap(),
            };
            assert_eq!(loss.reason(), LostReason::Refused);
            assert_eq!(loss.last_answer(), Some("permission denied"));
        }
    }

    /// A grant trusted until `until`, and a lease whose renewal confirms it for longer.
    fn trusted_until(until: BootInstant) -> (Arc<GrantState>, Lease) {
        let (held, lease) = held_for(Duration::from_secs(30), clock::now());
        held.trust_until(until);
        (held, lease)
    }

    /// A grant that was requested at `sent`.
    fn held_for(ttl: Duration, sent: BootInstant) -> (Arc<GrantState>, Lease) {
        let timing = Timing::new(ttl.into(), Renewing::ByDefault, None).unwrap();
        let grant = Grant {
            name: LockName::new("job").unwrap(),
            token: Token::from_db(1),
            id: random_grant_id().unwrap(),
            holder: "me".into(),
            confirmed_by: None,
        };
        let lease = Lease::granted(timing, sent, ttl);
        (GrantState::new("memory", grant, &lease), lease)
    }

    #[test]
    fn a_late_confirmation_does_not_revoke_a_reported_end_of_trust() {
        let (held, lease) = trusted_until(clock::now());
        assert!(held.trusted_for().is_zero());
        assert!(matches!(held.confirm(&lease), Confirmed::TooLate));
        assert!(held.trusted_for().is_zero(), "held again");

        // No caller has read the end of trust, so the confirmation counts.
        let (held, lease) = trusted_until(clock::now());
        assert!(!matches!(held.confirm(&lease), Confirmed::TooLate));
        assert!(!held.trusted_for().is_zero());
    }

    /// After a suspended process continues, the loss counts from the end of trust, whoever detects
    /// it first.
    #[test]
    fn a_loss_counts_from_the_end_of_trust() {
        let ago = Duration::from_secs(5);
        for asked in [false, true] {
            let (held, _) = trusted_until(clock::now() - ago);
            if asked {
                assert!(held.trusted_for().is_zero());
            }
            let loss = held.lose(LostReason::Expired);
            assert!(loss.elapsed() >= ago, "{loss}");
            assert!(loss.elapsed() < ago * 10, "{loss}");
            assert_eq!(held.lose(LostReason::Forced), loss);
        }
    }

    #[test]
    fn a_grant_that_is_confirmed_too_late_is_lost() {
        let (mut table, _) = table_of(0);
        let (held, lease) = trusted_until(clock::now());
        let (id, now) = (held.grant.id, clock::now());
        table.add(lease, Arc::clone(&held), now);
        assert!(held.trusted_for().is_zero());
        table.entries.get_mut(&id).unwrap().lease.renewing();
        let mut events = LeaseEvents::default();
        table.answered(id, now, (Answer::Renewed, None), &mut events);
        assert!(
            matches!(held.status(), Status::Lost(loss) if loss.reason() == LostReason::Expired)
        );
        assert_eq!(events.lost.len(), 1);
        assert!(table.entries.is_empty());
        events.deliver();
    }

    #[test]
    fn a_failure_is_not_logged_for_a_lease_that_is_lost() {
        let fails = |table: &mut LeaseTable, held: &GrantState| {
            let mut events = LeaseEvents::default();
            let failed = round::Failed {
                part: vec![(held.grant.clone(), Ttl::Infinite)],
                sent: clock::now(),
                error: StoreError::rejected("permission denied", None),
            };
            table.failing(&failed, &mut events);
            events
        };
        let (mut table, _) = table_of(1);
        let held = Arc::clone(&table.entries.values().next().unwrap().held);
        let logged = fails(&mut table, &held).failing.expect("logged");
        assert_eq!(logged.held().count(), 1);
        let mut events = LeaseEvents::default();
        table.lost(held.grant.id, LostReason::Refused.into(), &mut events);
        events.deliver();
        // Neither if the lease is lost after the failure, nor if the failure follows the loss.
        assert_eq!(logged.held().count(), 0);
        assert!(fails(&mut table, &held).failing.is_none());
    }

    #[test]
    fn a_reported_end_of_trust_is_final_with_concurrent_readers() {
        for round in 0..400 {
            let (held, lease) = trusted_until(clock::now() + Duration::from_micros(100));
            let start = std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        start.wait();
                        let mut ended = false;
                        for _ in 0..2_000 {
                            let now_ended = held.trusted_for().is_zero();
                            assert!(now_ended || !ended, "held again, in round {round}");
                            ended = now_ended;
                        }
                    });
                }
                start.wait();
                let at = clock::now() + Duration::from_micros(round % 100);
                while clock::now() < at {}
                held.confirm(&lease);
            });
        }
    }

    #[test]
    fn a_lost_lease_leaves_the_table_and_notifies_its_guard() {
        let (mut table, start) = table_of(1);
        let held = Arc::clone(&table.entries.values().next().unwrap().held);
        let mut events = LeaseEvents::default();
        assert!(
            table
                .due(start + Duration::from_secs(40), &mut events)
                .together
                .is_empty()
        );
        assert!(
            matches!(held.status(), Status::Lost(loss) if loss.reason() == LostReason::Expired)
        );
        events.deliver();
        assert!(table.entries.is_empty() && table.deadlines.is_empty());
    }
}
