//! A renewal that waits for its row.
//!
//! Rounds never wait for a row, since they renew other leases too. A row that short transactions lock
//! one after another is locked nearly each time a round comes. So after a few such answers one renewal
//! waits in the queue of the row, beside the rounds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::lease_events::LeaseEvents;
use super::round::row_locked;
use super::scheduler::Scheduler;
use crate::metrics;
use crate::runtime::clock;
use protocol::{Answer, Grant, Ttl};

/// Connecting, and the longest wait of the statement in the server. So there is no second statement for
/// the same lease while the first one waits.
const TIMEOUT: Duration = Duration::from_millis(2_500);

impl Scheduler {
    /// Send a renewal that waits for its row, and deliver the result.
    pub(super) async fn send_waiting(self: Arc<Self>, renewal: (Grant, Ttl)) {
        let (sent, id) = (clock::now(), renewal.0.id);
        let done = self.store.renew_waiting(&renewal, TIMEOUT).await;
        self.waiting.store(false, Ordering::Release);
        match done {
            Ok(answer) => self.record_answers(&[renewal], sent, vec![answer]),
            // Its row is locked, as far as known. The next round finds out whether there is an outage.
            Err(error) => {
                tracing::debug!("a renewal that waits for its row failed: {error}");
                let mut events = LeaseEvents::default();
                let mut table = self.table();
                let answer = (Answer::Busy, Some(row_locked()));
                table.answered(id, sent, answer, &mut events);
                self.unlock_and_deliver(table, clock::now(), events);
                metrics::renewals(self.store.engine(), "busy", 1);
            }
        }
    }
}
