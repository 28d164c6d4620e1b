//! The caller's request for a lock.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use protocol::{LatestGrant, LockName, OncePer, Slot, Timing};

/// A request for a lock, with all settings checked.
#[derive(Clone, Debug)]
pub(crate) struct AcquireRequest {
    pub(crate) name: LockName,
    pub(crate) holder: Arc<str>,
    pub(crate) metadata: Arc<str>,
    pub(crate) timing: Timing,
    /// `None`: no limit. Zero: try once.
    pub(crate) wait: Option<Duration>,
    /// Whether to preempt the same holder in another process.
    pub(crate) preempt: bool,
    /// How long the lock stays unavailable from the beginning of the grant, released or not.
    pub(crate) at_least: Duration,
    /// The period in which the lock is granted once.
    pub(crate) once_per: Option<OncePer>,
    /// The longest pause between two polls of a held lock.
    pub(crate) poll: Duration,
    /// The number of permits of a semaphore; `None` for a lock.
    pub(crate) limit: Option<u32>,
}

impl AcquireRequest {
    /// The error if the latest grant is too recent.
    pub(crate) fn already_ran(&self, latest: LatestGrant) -> Error {
        let period = self.once_per.map(OncePer::period).unwrap_or_default();
        Error::already_ran(&self.name, period, latest)
    }

    /// Whether the lock is tried once, without waiting.
    pub(crate) fn is_single_try(&self) -> bool {
        self.wait.is_some_and(|wait| wait.is_zero())
    }

    /// The key of the observations of the lock.
    pub(crate) fn key(&self) -> (LockName, Slot) {
        (self.name.clone(), self.slot())
    }

    /// The row that a grant whose reply was lost may have.
    pub(crate) fn slot(&self) -> Slot {
        match self.limit {
            None => Slot::Lock,
            Some(_) => Slot::AnyPermit,
        }
    }
}

/// The operation as named in errors.
pub(crate) fn op(name: &LockName, slot: Slot) -> String {
    format!("acquire {}", slot.named(name))
}
