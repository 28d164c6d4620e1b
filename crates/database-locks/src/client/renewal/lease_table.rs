//! The leases of one scheduler, ordered by when it has to act on them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::client::renewal::grant_state::{Confirmed, GrantState, RenewalFailure};
use crate::client::renewal::lease_events::LeaseEvents;
use crate::client::renewal::outage::{Outage, Reconnects};
use crate::runtime::clock;
use protocol::{Answer, BootInstant, Gone, Grant, GrantId, Lease, LostReason, Next, Ttl};

/// The longest sleep while there are leases. It bounds a sleep that became useless because its
/// leases were released.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How long before a renewal its connection is made, if there is none. A connect that succeeds
/// takes less.
pub(super) const CONNECT_AHEAD: Duration = Duration::from_secs(4);

/// After this many renewals that found the row locked, the next one waits for it. A single one is normal
/// where clients compete: a try that loses locks the row for a moment.
const BUSY_BEFORE_WAITING: u32 = 2;

/// The leases that one statement renews.
pub(super) type Round = Vec<(Grant, Ttl)>;

/// One lease and the state of its grant.
#[derive(Debug)]
pub(super) struct LeaseEntry {
    pub(super) lease: Lease,
    pub(super) state: Arc<GrantState>,
    /// Its key in `deadlines`.
    deadline: BootInstant,
    /// The database refused this renewal while others succeeded. It is sent separately, since it
    /// would make the statement of others fail.
    pub(super) separate: bool,
    /// When the first of the latest consecutive renewals that failed was answered.
    pub(super) failing_since: Option<BootInstant>,
    /// How many consecutive renewals found the row locked.
    busy: u32,
    /// Whether the renewal under way waits for the row.
    waits: bool,
}

impl LeaseEntry {
    /// Mark a renewal as under way, and return its parameters.
    pub(super) fn begin_renewal(&mut self) -> (Grant, Ttl) {
        self.state.mark_renewing();
        (self.state.latest_grant(), self.lease.renewing())
    }

    /// [`begin_renewal`](Self::begin_renewal) of one that waits for the row. If trust ends meanwhile, the
    /// locked row is the reason, and not a database without an answer.
    fn begin_waiting(&mut self) -> (Grant, Ttl) {
        // If the wait is in vain, the next renewal does not wait, and that of another lease may.
        (self.busy, self.waits) = (0, true);
        (self.state.latest_grant(), self.lease.renewing())
    }
}

/// The leases of one scheduler.
#[derive(Debug, Default)]
pub(super) struct LeaseTable {
    pub(super) entries: HashMap<GrantId, LeaseEntry>,
    pub(super) deadlines: BTreeSet<(BootInstant, GrantId)>,
    /// When the sleep of the task ends, unless it is woken. `None`: the task sleeps until it is
    /// woken.
    sleeps_until: Option<BootInstant>,
    /// Whether a renewal may be sent that waits for its row.
    pub(super) may_wait: bool,
    pub(super) outage: Outage,
    pub(super) reconnects: Reconnects,
}

/// When the scheduler has to act on a lease.
fn deadline_of(lease: &Lease, now: BootInstant) -> BootInstant {
    match lease.next(now) {
        Next::Wait(until) => until,
        Next::Renew | Next::Lost(_) => now,
    }
}

/// The leases to renew now.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) together: Round,
    pub(super) separate: Round,
    /// One whose row was locked each time. Its renewal waits for the row.
    pub(super) waiting: Option<(Grant, Ttl)>,
}

impl LeaseTable {
    pub(super) fn add(&mut self, lease: Lease, state: Arc<GrantState>, now: BootInstant) {
        let (id, deadline) = (state.grant.id, deadline_of(&lease, now));
        self.entries.insert(
            id,
            LeaseEntry {
                lease,
                state,
                deadline,
                separate: false,
                failing_since: None,
                busy: 0,
                waits: false,
            },
        );
        self.deadlines.insert((deadline, id));
    }

    pub(super) fn remove(&mut self, id: GrantId) -> Option<LeaseEntry> {
        let entry = self.entries.remove(&id)?;
        self.deadlines.remove(&(entry.deadline, id));
        if self.entries.is_empty() {
            // Without a lease no renewal would report the end of the outage.
            self.outage = Outage::default();
        }
        Some(entry)
    }

    /// Update a lease's deadline.
    pub(super) fn reschedule(&mut self, id: GrantId, now: BootInstant) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.deadlines.remove(&(entry.deadline, id));
        entry.deadline = deadline_of(&entry.lease, now);
        self.deadlines.insert((entry.deadline, id));
    }

    /// Record and return when the next sleep of the task ends; `None` if only a wake-up ends it.
    pub(super) fn begin_sleep(&mut self, now: BootInstant) -> Option<BootInstant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        self.sleeps_until = first.map(|at| {
            let ahead = Some(at - CONNECT_AHEAD).filter(|ahead| *ahead > now);
            ahead.unwrap_or(at).min(now + LONGEST_SLEEP)
        });
        self.sleeps_until
    }

    /// Whether a renewal is due within [`CONNECT_AHEAD`].
    pub(super) fn renews_soon(&self, now: BootInstant) -> bool {
        let soon = now + CONNECT_AHEAD;
        self.deadlines.first().is_some_and(|(at, _)| *at <= soon)
    }

    /// Whether the task sleeps past the first deadline. A sleep that should have ended already does
    /// not count: the machine was suspended.
    pub(super) fn sleeps_past_deadline(&self, now: BootInstant) -> bool {
        let in_time = |at| {
            self.sleeps_until
                .is_some_and(|until| (now..=at).contains(&until))
        };
        self.deadlines.first().is_some_and(|(at, _)| !in_time(*at))
    }

    /// Begin the renewals that are due, and those that may be sent early with them. Mark expired
    /// leases lost.
    pub(super) fn begin_due(&mut self, now: BootInstant, events: &mut LeaseEvents) -> Due {
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
                    let reason = match entry.waits {
                        true => LostReason::Expired,
                        false => reason,
                    };
                    self.mark_lost(id, reason.into(), events);
                    continue;
                }
                Next::Renew if self.may_wait && entry.busy >= BUSY_BEFORE_WAITING => {
                    self.may_wait = false;
                    due.waiting = Some(entry.begin_waiting());
                }
                Next::Renew => match entry.separate {
                    true => due.separate.push(entry.begin_renewal()),
                    false => due.together.push(entry.begin_renewal()),
                },
                Next::Wait(_) => {}
            }
            self.reschedule(id, now);
        }
        if !due.together.is_empty() {
            let early: Vec<GrantId> = self
                .entries
                .iter()
                .filter(|(_, entry)| !entry.separate && entry.lease.may_renew_early(now))
                .map(|(id, _)| *id)
                .collect();
            for id in early {
                if let Some(entry) = self.entries.get_mut(&id) {
                    due.together.push(entry.begin_renewal());
                }
                self.reschedule(id, now);
            }
        }
        due
    }

    /// Record the answer to a renewal that did not lose the lease, and the reason if it was not
    /// renewed.
    pub(super) fn answered(
        &mut self,
        id: GrantId,
        sent: BootInstant,
        (answer, failure): (Answer, Option<RenewalFailure>),
        events: &mut LeaseEvents,
    ) {
        let now = clock::now();
        // The lock was released meanwhile.
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if answer == Answer::Renewed {
            (entry.failing_since, entry.busy) = (None, 0);
            if std::mem::take(&mut entry.separate) {
                events.renewed_again.push(Arc::clone(&entry.state));
            }
        } else {
            entry.failing_since.get_or_insert(now);
            entry.busy += u32::from(answer == Answer::Busy);
        }
        entry.waits = false;
        entry.state.record_answer(failure);
        entry.lease.answered(sent, answer, now);
        if let Next::Lost(_) = entry.lease.next(now) {
            // `begin_due` reports the loss, at once.
            self.reschedule(id, now);
        } else {
            self.confirm(id, now, events);
        }
    }

    /// Let the guard trust its lease as far as it is confirmed.
    pub(super) fn confirm(&mut self, id: GrantId, now: BootInstant, events: &mut LeaseEvents) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        match entry.state.confirm(&entry.lease) {
            Confirmed::TooLate => return self.mark_lost(id, LostReason::Expired.into(), events),
            Confirmed::Changed => events.confirmed.push(Arc::clone(&entry.state)),
            Confirmed::Unchanged => {}
        }
        self.reschedule(id, now);
    }

    pub(super) fn mark_lost(&mut self, id: GrantId, gone: Gone, events: &mut LeaseEvents) {
        if let Some(entry) = self.remove(id)
            && let Some(loss) = entry.state.mark_lost(gone)
        {
            events.lost.push((entry.state, loss));
        }
    }

    /// The timeout of a round that is sent after `behind` others.
    pub(super) fn timeout(&self, round: &[(Grant, Ttl)], behind: u32) -> Duration {
        let of = |grant: &Grant| {
            self.entries
                .get(&grant.id)
                .map(|entry| entry.lease.renewal_timeout(behind))
        };
        round
            .iter()
            .filter_map(|(grant, _)| of(grant))
            .min()
            .unwrap_or_default()
    }
}
