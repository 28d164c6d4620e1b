//! Tells listeners what happened to a lease. No internal mutex is held meanwhile.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::renewal::grant_state::{Held, Status, ms};
use crate::error::loss::Loss;
use crate::runtime::callbacks::{self, shielded};
use protocol::Human;

type Listener = Box<dyn FnOnce(Loss) + Send>;

/// The callbacks of one grant. Each is taken out before it is called or dropped: both run code of
/// somebody else's, which may call us again.
#[derive(Default)]
pub(crate) struct Listeners(Mutex<Vec<Listener>>);

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listeners")
            .field(&self.locked().len())
            .finish()
    }
}

impl Listeners {
    fn locked(&self) -> MutexGuard<'_, Vec<Listener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep it as long as `wanted`, which is asked while nobody can take it; else give it back.
    pub(crate) fn add(
        &self,
        listener: Listener,
        wanted: impl FnOnce() -> bool,
    ) -> Option<Listener> {
        let mut all = self.locked();
        if !wanted() {
            return Some(listener);
        }
        all.push(listener);
        None
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.locked().is_empty()
    }

    /// Take them all: they are dropped with the value, or called by it.
    pub(crate) fn take(&self) -> Taken {
        Taken(std::mem::take(&mut *self.locked()))
    }
}

pub(crate) struct Taken(Vec<Listener>);

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn call(self, loss: &Loss) {
        for listener in self.0 {
            shielded(|| listener(loss.clone()));
        }
    }
}

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
