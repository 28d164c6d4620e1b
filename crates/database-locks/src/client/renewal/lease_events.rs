//! Tells listeners what happened to a lease. No internal mutex is held meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::client::renewal::grant_state::{Held, Status, ms};
use crate::error::loss::Loss;
use crate::runtime::callbacks;
use crate::runtime::callbacks::shielded;
use protocol::Human;

/// Renewals stopped getting through.
#[derive(Debug)]
pub(crate) struct Failing {
    /// Those whose renewals failed.
    pub(crate) leases: Vec<Arc<Held>>,
    pub(crate) error: String,
}

impl Failing {
    /// Those that are held now.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Arc<Held>> {
        let held = |held: &&Arc<Held>| matches!(held.status(), Status::Held(_));
        self.leases.iter().filter(held)
    }

    /// Not of leases that were lost or released meanwhile: it would come after the end of their story.
    fn log(&self) {
        let mut held = self.held();
        let Some(first) = held.next() else { return };
        tracing::warn!(
            lock.name = first.grant.name.as_str(),
            lock.token = first.grant.token.get(),
            lock.holder = &*first.grant.holder,
            locks = 1 + held.count(),
            "renewals fail, trying again until the leases end: {}",
            self.error
        );
    }
}

/// What happened while the book was open, to be told when it is closed again.
///
/// Wakers, subscribers and recorders are foreign code. If they drop a guard, or call this library in
/// another way, they need the book.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Marked lost a moment ago, or about to be: logged before the losses.
    pub(crate) failing: Option<Failing>,
    pub(crate) lost: Vec<(Arc<Held>, Loss)>,
    pub(crate) confirmed: Vec<Arc<Held>>,
    pub(crate) busy: Vec<Arc<Held>>,
    /// Those that alone are refused, and the error.
    pub(crate) refused: Vec<(Arc<Held>, Arc<str>)>,
    /// Those of which that is no longer true.
    pub(crate) renewed_again: Vec<Arc<Held>>,
    /// How long an outage was that is over.
    pub(crate) over: Option<Duration>,
}

impl News {
    /// Wake all, then hand the callbacks to their own thread, then log: what is told first must not wait
    /// for foreign code that takes its time.
    pub(crate) fn tell(self) {
        for held in self
            .lost
            .iter()
            .map(|(held, _)| held)
            .chain(&self.confirmed)
        {
            shielded(|| held.wake());
        }
        for (held, loss) in &self.lost {
            if !held.listeners.is_empty() {
                let (held, loss) = (Arc::clone(held), loss.clone());
                // Taken only there: a release that begins before may still drop them.
                callbacks::call(move || held.listeners.take().call(&loss));
            }
        }
        self.log();
    }

    fn log(self) {
        if let Some(failing) = self.failing {
            shielded(|| failing.log());
        }
        for (held, error) in &self.refused {
            if matches!(held.status(), Status::Held(_)) {
                shielded(|| held.log_refused(error));
            }
        }
        for (held, loss) in &self.lost {
            shielded(|| held.log_lost(loss));
        }
        for held in &self.busy {
            shielded(|| held.log_busy());
        }
        for held in &self.renewed_again {
            shielded(|| held.log_renewed_again());
        }
        if let Some(outage) = self.over {
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
