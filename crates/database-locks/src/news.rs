//! Who is told of what happened to a lease, and when: with every mutex of ours free.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::held::Held;
use crate::loss::Loss;

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

/// Run what is not ours. A panic in it, which the panic hook has shown, must not end the task that
/// renews everybody's leases.
pub(crate) fn shielded(foreign: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(foreign));
}

/// What happened while the book was open, to be told when it is closed again.
///
/// To wake, to log and to count is to run code of somebody else's: a waker, a subscriber, a recorder.
/// If that drops a guard, or calls us in another way, it needs the book.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) lost: Vec<(Arc<Held>, Loss)>,
    pub(crate) confirmed: Vec<Arc<Held>>,
    pub(crate) busy: Vec<Arc<Held>>,
}

impl News {
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
            held.listeners.take().call(loss);
        }
        for (held, loss) in &self.lost {
            shielded(|| held.log_lost(loss));
        }
        for held in &self.busy {
            shielded(|| held.log_busy());
        }
    }
}
