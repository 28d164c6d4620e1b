//! One round of renewals and its results.

use std::sync::Arc;
use std::time::Duration;

use super::lease_table::{LeaseTable, Round};
use super::scheduler::Scheduler;
use super::split::Split;
use crate::client::renewal::grant_state::RenewalFailure;
use crate::client::renewal::lease_events::{Failing, LeaseEvents};
use crate::metrics;
use crate::runtime::clock;
use crate::store::ROW_LOCKED;
use crate::store::api::StoreError;
use protocol::{Answer, BootInstant, Grant, LostReason, MIN_RENEWAL_TIMEOUT, Renewal, Ttl};

/// The failure of a renewal whose row is locked.
pub(super) fn row_locked() -> RenewalFailure {
    RenewalFailure {
        reason: LostReason::Expired,
        message: ROW_LOCKED.into(),
    }
}

/// How long a round may be split while none of its leases is renewed, in timeouts.
const SPLIT_TIMEOUTS: u32 = 3;

/// A part of a round that failed, and the error.
pub(crate) struct Failed {
    pub(crate) part: Round,
    pub(crate) sent: BootInstant,
    pub(crate) error: StoreError,
}

impl Scheduler {
    /// Send one round of renewals, split it if it fails, and deliver the results.
    ///
    /// A rejected round is split at once. Contention or a missing answer usually passes, so such a
    /// round is split only when it fails again. A single row that hangs or is locked then affects
    /// no other lease.
    pub(crate) async fn send_round(self: Arc<Self>, round: Round, timeout: Duration) {
        let began = clock::now();
        let failed_before = self.table().are_failing(&round);
        let (mut split, mut failed) = (Split::new(round, failed_before), Vec::new());
        while let Some(mut part) = split.next() {
            // Some leases may be lost or released since they were due.
            part.retain(|(grant, _)| self.table().entries.contains_key(&grant.id));
            if part.is_empty() {
                continue;
            }
            let sent = clock::now();
            // If another part succeeded, a slow answer is caused by a row, not by the server.
            let within = match failed_before && split.has_renewed() {
                true => (timeout / 4).max(MIN_RENEWAL_TIMEOUT),
                false => timeout,
            };
            let error = match self.store.renew(&part, within).await {
                Ok(answers) => {
                    split.renewed();
                    self.record_answers(&part, sent, answers);
                    continue;
                }
                Err(error) => error,
            };
            let settled = if failed_before || matches!(error, StoreError::Rejected { .. }) {
                let mut settled = split.refused(part);
                let took = clock::now() - began;
                let most = match error.is_answer() {
                    true => timeout.saturating_mul(SPLIT_TIMEOUTS),
                    false => timeout,
                };
                if !split.has_renewed() && took > most {
                    settled.extend(split.rest());
                }
                settled
            } else {
                part
            };
            if !settled.is_empty() {
                let part = settled;
                failed.push(self.record_failure(Failed { part, sent, error }));
            }
        }
        if !failed.is_empty() {
            self.report_failures(&failed, split.has_renewed());
        }
    }

    /// Record the answers to a part that succeeded.
    pub(super) fn record_answers(
        &self,
        part: &[(Grant, Ttl)],
        sent: BootInstant,
        answers: Vec<Renewal>,
    ) {
        let (mut renewed, mut busy, mut lost) = (0, 0, 0);
        let mut events = LeaseEvents::default();
        let mut table = self.table();
        events.outage_ended = table.outage.succeeded(sent, clock::now());
        table.reconnects.reset();
        for ((grant, _), answer) in part.iter().zip(answers) {
            match answer {
                Renewal::Renewed { confirmed_by } => {
                    renewed += 1;
                    if let Some(entry) = table.entries.get(&grant.id) {
                        entry.state.confirmed_by(confirmed_by);
                    }
                    table.answered(grant.id, sent, (Answer::Renewed, None), &mut events);
                }
                Renewal::Busy => {
                    busy += 1;
                    if let Some(entry) = table.entries.get(&grant.id)
                        && !entry.lease.is_failing()
                    {
                        events.busy.push(Arc::clone(&entry.state));
                    }
                    let failure = Some(row_locked());
                    table.answered(grant.id, sent, (Answer::Busy, failure), &mut events);
                }
                Renewal::Lost(gone) => {
                    lost += 1;
                    // The database's answer is the reason of the loss, rather than an earlier
                    // failure.
                    if let Some(entry) = table.entries.get(&grant.id) {
                        entry.state.record_answer(None);
                    }
                    table.mark_lost(grant.id, gone, &mut events);
                }
            }
        }
        self.unlock_and_deliver(table, clock::now(), events);
        for (result, locks) in [("renewed", renewed), ("busy", busy), ("lost", lost)] {
            metrics::renewals(self.store.engine(), result, locks);
        }
    }

    /// Record a part that failed. Its leases are renewed again later.
    fn record_failure(&self, failed: Failed) -> Failed {
        let (answer, message) = match &failed.error {
            StoreError::Contention(message) => (Answer::Busy, message),
            StoreError::Unavailable(message) if failed.error.is_answer() => {
                (Answer::Refused, message)
            }
            StoreError::Unavailable(message) => (Answer::Unknown, message),
            StoreError::Rejected { source, .. } => (Answer::Refused, source),
        };
        let failure = RenewalFailure {
            reason: answer.lost_reason(),
            message: message.to_string().into(),
        };
        let mut events = LeaseEvents::default();
        let mut table = self.table();
        for (grant, _) in &failed.part {
            let answer = (answer, Some(failure.clone()));
            table.answered(grant.id, failed.sent, answer, &mut events);
        }
        self.unlock_and_deliver(table, clock::now(), events);
        metrics::renewals(self.store.engine(), "unknown", failed.part.len());
        failed
    }

    /// Log the failures, and reconnect if another connection may succeed.
    fn report_failures(&self, failed: &[Failed], others_renewed: bool) {
        let mut events = LeaseEvents::default();
        let mut table = self.table();
        let mut refused = false;
        for failed in failed {
            // If others are renewed, the connection is not the cause of a refused lease.
            if !table.refused_alone(failed, others_renewed, &mut events) {
                refused |= matches!(failed.error, StoreError::Rejected { .. });
                table.begin_outage(failed, &mut events);
            }
        }
        let reconnect = !others_renewed && refused && table.reconnects.due(clock::now());
        drop(table);
        if reconnect {
            self.store.reconnect();
        }
        events.deliver();
    }
}

impl LeaseTable {
    fn are_failing(&self, round: &[(Grant, Ttl)]) -> bool {
        let mut entries = round
            .iter()
            .filter_map(|(grant, _)| self.entries.get(&grant.id));
        entries.any(|entry| entry.lease.is_failing())
    }

    /// Whether single leases were refused while others are renewed, which is not an outage. Logged
    /// once a lease.
    fn refused_alone(
        &mut self,
        failed: &Failed,
        others_renewed: bool,
        events: &mut LeaseEvents,
    ) -> bool {
        let [(grant, _)] = failed.part.as_slice() else {
            // Not an outage either if all of them are renewed separately already.
            let mut ids = failed.part.iter().map(|(grant, _)| grant.id);
            return ids.all(|id| self.entries.get(&id).is_none_or(|entry| entry.separate));
        };
        let Some(entry) = self.entries.get_mut(&grant.id) else {
            return true;
        };
        let since = entry.failing_since;
        let others_renewed =
            others_renewed || since.is_some_and(|since| self.outage.succeeded_after(since));
        if !entry.separate && !others_renewed {
            return false;
        }
        if !std::mem::replace(&mut entry.separate, true) {
            let error = failed.error.to_string();
            events
                .refused
                .push((Arc::clone(&entry.state), error.into()));
        }
        true
    }

    /// Start an outage, or continue it. Logged once an outage.
    pub(crate) fn begin_outage(&mut self, failed: &Failed, events: &mut LeaseEvents) {
        let entries = failed.part.iter();
        let entries = entries.filter_map(|(grant, _)| self.entries.get(&grant.id));
        let leases: Vec<_> = entries.map(|entry| Arc::clone(&entry.state)).collect();
        // All of them are lost by now: no record may follow that of the loss.
        if leases.is_empty() {
            return;
        }
        let contention = matches!(failed.error, StoreError::Contention(_));
        if self.outage.failed(failed.sent, clock::now(), contention) {
            events.failing = Some(Failing {
                leases,
                error: failed.error.to_string(),
            });
        }
    }
}
