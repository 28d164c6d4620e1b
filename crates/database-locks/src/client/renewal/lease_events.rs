//! Delivers lease events to listeners. No internal mutex is held during a callback.

use std::sync::Arc;
use std::time::Duration;

use crate::client::renewal::grant_state::{GrantState, Status, log_grant, ms};
use crate::error::loss::Loss;
use crate::runtime::callbacks;
use crate::runtime::callbacks::shielded;
use protocol::Human;

/// The beginning of an outage of renewals.
#[derive(Debug)]
pub(crate) struct Failing {
    /// The leases whose renewals failed.
    pub(crate) leases: Vec<Arc<GrantState>>,
    pub(crate) error: String,
}

impl Failing {
    /// The leases that are still held.
    pub(crate) fn still_held(&self) -> impl Iterator<Item = &Arc<GrantState>> {
        let is_held = |state: &&Arc<GrantState>| matches!(state.status(), Status::Held(_));
        self.leases.iter().filter(is_held)
    }

    /// Log the outage, without leases that are lost or released by now: no record may follow that
    /// of their end.
    fn log(&self) {
        let mut leases = self.still_held();
        let Some(first) = leases.next() else { return };
        log_grant!(
            warn,
            &first.grant,
            locks = 1 + leases.count(),
            "renewals fail, trying again until the leases end: {}",
            self.error
        );
    }
}

/// Events collected while the lease table is locked, to be delivered after it is unlocked.
///
/// Wakers, log subscribers and metrics recorders are foreign code. If they drop a guard or call
/// this library in another way, they need the lease table.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct LeaseEvents {
    /// Logged before the losses that it explains.
    pub(crate) failing: Option<Failing>,
    pub(crate) lost: Vec<(Arc<GrantState>, Loss)>,
    pub(crate) confirmed: Vec<Arc<GrantState>>,
    pub(crate) busy: Vec<Arc<GrantState>>,
    /// Leases that are refused alone, with the error.
    pub(crate) refused: Vec<(Arc<GrantState>, Arc<str>)>,
    /// Leases that were refused alone and are renewed again.
    pub(crate) renewed_again: Vec<Arc<GrantState>>,
    /// The length of an outage that has ended.
    pub(crate) outage_ended: Option<Duration>,
}

impl LeaseEvents {
    /// Wake all waiting tasks, queue the callbacks, then log: foreign code that blocks must not
    /// delay wake-ups and callbacks.
    pub(crate) fn deliver(self) {
        for state in self
            .lost
            .iter()
            .map(|(state, _)| state)
            .chain(&self.confirmed)
        {
            shielded(|| state.wake());
        }
        for (state, loss) in &self.lost {
            if !state.listeners.is_empty() {
                let (state, loss) = (Arc::clone(state), loss.clone());
                // Removed on that thread, so that a release before the call can still drop them.
                callbacks::call(move || state.listeners.take().call(&loss));
            }
        }
        self.log();
    }

    fn log(self) {
        if let Some(failing) = self.failing {
            shielded(|| failing.log());
        }
        for (state, error) in &self.refused {
            if matches!(state.status(), Status::Held(_)) {
                shielded(|| {
                    log_grant!(
                        warn,
                        &state.grant,
                        locks = 1,
                        "renewals fail, trying again until the leases end: {error}; other leases are renewed"
                    );
                });
            }
        }
        for (state, loss) in &self.lost {
            shielded(|| state.log_lost(loss));
        }
        for state in &self.busy {
            shielded(|| {
                log_grant!(
                    debug,
                    &state.grant,
                    "not renewed, trying again: another transaction has its row locked"
                );
            });
        }
        for state in &self.renewed_again {
            shielded(|| log_grant!(info, &state.grant, "renewals get through again"));
        }
        if let Some(outage) = self.outage_ended {
            shielded(|| {
                tracing::info!(
                    outage_ms = ms(outage),
                    "renewals get through again, after {}",
                    Human(outage)
                );
            });
        }
    }
}
