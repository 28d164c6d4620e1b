//! The callbacks of one grant.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::loss::Loss;
use crate::runtime::callbacks::shielded;

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
