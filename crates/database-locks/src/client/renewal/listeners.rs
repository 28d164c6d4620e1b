//! The callbacks of one grant.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::loss::Loss;
use crate::runtime::callbacks::shielded;

type Listener = Box<dyn FnOnce(Loss) + Send>;

/// The callbacks of one grant. They are removed before they are called or dropped, because both run
/// foreign code that may call this library again.
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

    /// Add a listener if `wanted` returns true under the mutex; otherwise return the listener.
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

    /// Remove all listeners, to be called or dropped.
    pub(crate) fn take(&self) -> Taken {
        Taken(std::mem::take(&mut *self.locked()))
    }
}

/// Listeners that were removed, to be called or dropped.
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
