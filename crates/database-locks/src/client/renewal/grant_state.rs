//! State of one grant: written by the scheduler, read by the guard.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::client::own_grants::OwnGrant;
use crate::client::renewal::listeners::Listeners;
use crate::error::loss::Loss;
use crate::metrics::{self, Engine};
use crate::runtime::callbacks;
use crate::runtime::clock;
use protocol::{BootInstant, Gone, Grant, Lease, LostReason, Primary, Ttl};

/// Status of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Held as far as known, with the ttl that the database has confirmed.
    Held(Option<Ttl>),
    Lost(Loss),
    Released,
}

/// Why the latest renewal failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RenewalFailure {
    /// The reason of the loss if trust ends now.
    pub(crate) reason: LostReason,
    /// The database's answer or error.
    pub(crate) message: Arc<str>,
}

/// State of one grant: written by the scheduler, read by the guard.
#[derive(Debug)]
pub(crate) struct GrantState {
    pub(crate) grant: Grant,
    /// The server that granted or renewed it last, if that is known.
    confirmed_by: Mutex<Option<Primary>>,
    /// Keeps other callers of this process from preempting the grant.
    _own: OwnGrant,
    engine: Engine,
    since: BootInstant,
    /// Until when the lock stays unavailable: a release before that lets it rest.
    unavailable_until: Mutex<BootInstant>,
    /// Nanoseconds of the boot-time clock. An atomic rather than a mutex, so that a guard can be
    /// read at once even while the scheduler is busy.
    trusted_until: AtomicU64,
    /// The end of trust that was reported to a caller, on the same clock.
    reported_end: AtomicU64,
    /// Whether the end of trust does not lose the grant, because of a fence. It is set before trust
    /// ends and cleared after trust is renewed, so a reader must read it before trust.
    outlives_trust: AtomicBool,
    /// Whether a renewal is under way.
    renewal_under_way: AtomicBool,
    failure: Mutex<Option<RenewalFailure>>,
    status: watch::Sender<Status>,
    pub(crate) listeners: Listeners,
}

/// A value of `trusted_until`: the end of trust was reported to a caller, and no late confirmation
/// may revoke that.
const ENDED: u64 = 0;

/// Milliseconds, for a field of a log record.
pub(crate) fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Log a record about a grant or its release, with the name, token and holder.
macro_rules! log_grant {
    ($level:ident, $grant:expr, $($rest:tt)+) => {{
        let grant = $grant;
        tracing::$level!(
            lock.name = grant.name.as_str(),
            lock.slot = grant.slot.number(),
            lock.token = Option::from(grant.token).map(protocol::Token::get),
            lock.holder = &*grant.holder,
            $($rest)+
        );
    }};
}
pub(crate) use log_grant;

impl GrantState {
    pub(crate) fn new(
        engine: Engine,
        grant: Grant,
        lease: &Lease,
        unavailable_until: BootInstant,
    ) -> Arc<Self> {
        metrics::held(engine);
        Arc::new(Self {
            _own: OwnGrant::new(grant.id),
            confirmed_by: Mutex::new(grant.confirmed_by),
            grant,
            engine,
            since: clock::now(),
            unavailable_until: Mutex::new(unavailable_until),
            trusted_until: AtomicU64::new(lease.trusted_until().as_nanos()),
            reported_end: AtomicU64::new(0),
            outlives_trust: AtomicBool::new(false),
            renewal_under_way: AtomicBool::new(false),
            failure: Mutex::default(),
            status: watch::Sender::new(Status::Held(lease.confirmed())),
            listeners: Listeners::default(),
        })
    }

    /// Until when the lock stays unavailable: a release before that lets it rest.
    pub(crate) fn unavailable_until(&self) -> BootInstant {
        let until = self.unavailable_until.lock();
        *until.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_unavailable_until(&self, until: BootInstant) {
        let known = self.unavailable_until.lock();
        *known.unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Record the server that renewed the grant.
    pub(crate) fn confirmed_by(&self, server: Option<Primary>) {
        if server.is_some() {
            let confirmed_by = self.confirmed_by.lock();
            *confirmed_by.unwrap_or_else(PoisonError::into_inner) = server;
        }
    }

    /// The grant, with the server that granted or renewed it last.
    pub(crate) fn latest_grant(&self) -> Grant {
        let confirmed_by = self.confirmed_by.lock();
        Grant {
            confirmed_by: *confirmed_by.unwrap_or_else(PoisonError::into_inner),
            ..self.grant.clone()
        }
    }

    /// How long the grant is still trusted. Zero: trust has ended, whether or not the scheduler has
    /// marked the loss.
    pub(crate) fn trusted_for(&self) -> Duration {
        if !matches!(self.status(), Status::Held(_)) {
            return Duration::ZERO;
        }
        let mut until = self.trusted_until.load(Ordering::Acquire);
        loop {
            let left = match until {
                ENDED => return Duration::ZERO,
                u64::MAX => return Duration::MAX,
                until => BootInstant::from_nanos(until) - clock::now(),
            };
            // Suspended: not held now, but the grant may be trusted again after the fence.
            if !left.is_zero() || self.outlives_trust() {
                return left;
            }
            // Stored before any caller can read that trust ended. A confirmation in between only
            // raises it.
            self.reported_end.fetch_max(until, Ordering::Relaxed);
            match self.trusted_until.compare_exchange(
                until,
                ENDED,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Duration::ZERO,
                Err(confirmed) => until = confirmed,
            }
        }
    }

    /// Whether the end of trust does not lose the grant: a fence is open that blocks renewals, or
    /// its result is not known yet.
    pub(crate) fn outlives_trust(&self) -> bool {
        self.outlives_trust.load(Ordering::Acquire)
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Subscribe to changes of the status.
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// A description of the loss of this grant for this reason.
    pub(crate) fn loss(&self, gone: impl Into<Gone>) -> Loss {
        let until = match self.trusted_until.load(Ordering::Acquire) {
            ENDED => self.reported_end.load(Ordering::Relaxed),
            until => until,
        };
        let at = clock::now().min(BootInstant::from_nanos(until));
        let (mut gone, failure) = (gone.into(), self.failure());
        if gone.reason == LostReason::Expired {
            gone.reason = match &failure {
                Some(failure) if failure.reason != LostReason::Expired => failure.reason,
                _ if self.renewal_under_way.load(Ordering::Relaxed) => LostReason::Unreachable,
                _ => LostReason::Expired,
            };
        }
        // If the database reported the loss, an earlier failure does not explain it.
        let message = failure.filter(|_| gone.reason.leaves_a_lease());
        let message = message.map(|failure| failure.message);
        Loss::of_grant(self.grant.slot, gone, message, self.since, at)
    }

    fn failure(&self) -> Option<RenewalFailure> {
        let failure = self.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Record that a renewal is sent.
    pub(crate) fn mark_renewing(&self) {
        self.renewal_under_way.store(true, Ordering::Relaxed);
    }

    /// Record the answer to a renewal; `None` if it succeeded.
    pub(crate) fn record_answer(&self, failure: Option<RenewalFailure>) {
        self.renewal_under_way.store(false, Ordering::Relaxed);
        let before = self.failure.lock();
        *before.unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// Set the end of trust.
    #[cfg(test)]
    pub(crate) fn trust_until(&self, until: BootInstant) {
        self.trusted_until
            .store(until.as_nanos(), Ordering::Release);
    }

    /// Mark the grant lost, if it is held: the first reason counts.
    ///
    /// It does not wake waiting tasks, which may run foreign code that calls this library again:
    /// the caller may have the lease table locked.
    pub(crate) fn mark_lost(&self, gone: Gone) -> Option<Loss> {
        let (loss, mut newly) = (self.loss(gone), false);
        self.status.send_if_modified(|status| {
            if let Status::Held(_) = status {
                (*status, newly) = (Status::Lost(loss.clone()), true);
            }
            false
        });
        newly.then_some(loss)
    }

    /// Wake the tasks that wait for a change of status.
    pub(crate) fn wake(&self) {
        self.status.send_if_modified(|_| true);
    }

    /// Mark the grant lost, wake waiting tasks and notify listeners. Returns the first reason.
    pub(crate) fn lose(&self, gone: impl Into<Gone>) -> Loss {
        let gone = gone.into();
        let Some(loss) = self.mark_lost(gone.clone()) else {
            return match self.status() {
                Status::Lost(loss) => loss,
                Status::Held(_) | Status::Released => self.loss(gone),
            };
        };
        self.wake();
        let listeners = self.listeners.take();
        if !listeners.is_empty() {
            let loss = loss.clone();
            // On another thread, because the caller may hold a mutex of the application.
            callbacks::call(move || listeners.call(&loss));
        }
        self.log_lost(&loss);
        loss
    }

    pub(crate) fn log_lost(&self, loss: &Loss) {
        metrics::lost(self.engine, loss.reason());
        metrics::ended(self.engine, self.held_for());
        log_grant!(
            warn,
            &self.grant,
            lock.held_ms = loss.held_for().map(ms),
            lock.lost_reason = loss.reason().as_str(),
            lock.last_answer = loss.last_answer(),
            lock.now_holder = loss.now_held_by().and_then(|now| now.holder.as_deref()),
            "{} {loss}; {}",
            self.grant.slot.as_str(),
            loss.consequence()
        );
    }

    /// Time since the grant.
    pub(crate) fn held_for(&self) -> Duration {
        clock::now() - self.since
    }

    /// Mark the grant released, if it is held.
    pub(crate) fn mark_released(&self) {
        let newly = self.status.send_if_modified(|status| {
            let held = matches!(status, Status::Held(_));
            if held {
                *status = Status::Released;
            }
            held
        });
        if newly {
            metrics::ended(self.engine, self.held_for());
        }
    }

    /// Trust the grant as far as its lease is confirmed. Does not wake waiting tasks.
    pub(crate) fn confirm(&self, lease: &Lease) -> Confirmed {
        let until = lease.trusted_until().as_nanos();
        let unless_ended = |before| (before != ENDED).then_some(until);
        let (success, failure_ordering) = (Ordering::AcqRel, Ordering::Acquire);
        if self
            .trusted_until
            .fetch_update(success, failure_ordering, unless_ended)
            .is_err()
        {
            return Confirmed::TooLate;
        }
        // Stored after the renewed trust, so that a reader never sees neither of them.
        self.outlives_trust
            .store(lease.outlives_trust(), Ordering::Release);
        let (confirmed, mut changed) = (Status::Held(lease.confirmed()), false);
        self.status.send_if_modified(|status| {
            changed = matches!(status, Status::Held(_)) && *status != confirmed;
            if changed {
                *status = confirmed;
            }
            false
        });
        if changed {
            Confirmed::Changed
        } else {
            Confirmed::Unchanged
        }
    }
}

/// The effect of a confirmation on the tasks that wait for the grant.
pub(crate) enum Confirmed {
    Unchanged,
    /// Waiting tasks have to be woken.
    Changed,
    /// The end of trust was already reported to a caller.
    TooLate,
}
