//! The caller's request for a lock.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use protocol::{GrantId, Human, Kind, LatestGrant, LockName, OncePer, Renewing, Slot, Timing, Ttl};

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
    /// What is requested.
    pub(crate) kind: Kind,
}

impl AcquireRequest {
    /// The error if the latest grant is too recent.
    pub(crate) fn already_ran(&self, latest: LatestGrant) -> Error {
        let period = self.once_per.map(OncePer::period).unwrap_or_default();
        Error::already_ran(&self.name, period, latest)
    }

    /// This request, with another limit of the wait.
    pub(super) fn with_wait(&self, wait: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            wait,
            ..self.clone()
        })
    }

    /// Whether the lock is tried once, without waiting.
    pub(crate) fn is_single_try(&self) -> bool {
        self.wait.is_some_and(|wait| wait.is_zero())
    }

    /// The row of a grant, where that of a shared one is this.
    fn slot(&self, shared: Slot) -> Slot {
        match self.kind {
            Kind::Exclusive => Slot::Lock,
            Kind::Shared { .. } => shared,
            Kind::Permit { .. } => Slot::AnyPermit,
        }
    }

    /// The key of the observations of what keeps the request out.
    pub(crate) fn key(&self) -> (LockName, Slot) {
        (self.name.clone(), self.slot(Slot::Lock))
    }

    /// The row that a grant with this id has, as far as it is known before the reply.
    pub(crate) fn slot_of(&self, grant: GrantId) -> Slot {
        self.slot(Slot::of_shared(grant))
    }

    /// The operation as named in errors.
    pub(crate) fn op(&self) -> String {
        // Any: the messages do not contain the number of the row.
        op(&self.name, self.slot(Slot::Shared(-2)))
    }

    /// The limit of a semaphore.
    pub(crate) fn limit(&self) -> Option<u32> {
        match self.kind {
            Kind::Permit { limit, .. } => Some(limit),
            Kind::Exclusive | Kind::Shared { .. } => None,
        }
    }

    /// The timing of an exclusive grant that still waits for shared ones. It is renewed whatever the
    /// settings, and a killed waiter keeps others out for no longer than 30 s.
    pub(crate) fn timing_while_waiting(&self) -> Result<Timing, Error> {
        let ttl = Ttl::Finite(self.timing.first_grant());
        Ok(Timing::new(ttl, Renewing::ByDefault, None)?)
    }

    /// The error if an exclusive grant may not be made of a lock that was ever shared.
    pub(crate) fn check_exclusive(&self) -> Result<(), Error> {
        let Some(period) = self.once_per else {
            return Ok(());
        };
        let got = format!(
            "{} for `{}`, which was shared before",
            Human(period.period()),
            self.name
        );
        let allowed = "left out, or given for another name: where a lock was shared before, a writer that \
                       gave up waiting for readers would count as a run";
        Err(Error::config("once_per", got, allowed))
    }
}

/// The operation as named in errors.
pub(crate) fn op(name: &LockName, slot: Slot) -> String {
    format!("acquire {}", slot.named(name))
}
