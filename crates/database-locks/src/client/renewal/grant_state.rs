//! One grant, shared by its guard, which asks how it stands, and the scheduler, which knows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::client::own_grants::Ours;
use crate::client::renewal::listeners::Listeners;
use crate::error::loss::Loss;
use crate::metrics::{self, Engine};
use crate::runtime::callbacks;
use crate::runtime::clock;
use protocol::{BootInstant, Gone, Grant, Lease, LostReason, Ttl};

/// How a grant stands, as its guard sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Held as far as is known; the ttl that the database has confirmed.
    Held(Option<Ttl>),
    Lost(Loss),
    Released,
}

/// Why the latest renewal did not renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// What it makes of the end of trust.
    pub(crate) reason: LostReason,
    /// What was answered, in words.
    pub(crate) said: Arc<str>,
}

/// One grant, shared by its guard, which asks, and the scheduler, which answers.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) grant: Grant,
    /// No other task of this process takes it over.
    _ours: Ours,
    engine: Engine,
    since: BootInstant,
    /// Boot-time clock in nanoseconds. An atomic, and not a lock that the scheduler might hold:
    /// "do I still have it?" must be answered at once, whatever else goes on.
    trusted_until: AtomicU64,
    /// When trust ended that somebody was told of, on the same clock.
    ended: AtomicU64,
    /// Whether the end of trust does not lose it, because of a fence. Set while it is trusted, and
    /// cleared after trust was renewed: so read it before asking for trust.
    outlives_trust: AtomicBool,
    /// Whether a renewal is under way.
    unanswered: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    status: watch::Sender<Status>,
    pub(crate) listeners: Listeners,
}

/// In `trusted_until`: somebody was told that trust has ended, and no confirmation that comes late may
/// take that back.
const ENDED: u64 = 0;

/// Milliseconds, for a field of a log line.
pub(crate) fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

impl Held {
    pub(crate) fn new(engine: Engine, grant: Grant, lease: &Lease) -> Arc<Self> {
        metrics::held(engine);
        Arc::new(Self {
            _ours: Ours::new(grant.id),
            grant,
            engine,
            since: clock::now(),
            trusted_until: AtomicU64::new(lease.trusted_until().as_nanos()),
            ended: AtomicU64::new(0),
            outlives_trust: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            trouble: Mutex::default(),
            status: watch::Sender::new(Status::Held(lease.confirmed())),
            listeners: Listeners::default(),
        })
    }

    /// How long it may still be trusted; zero: lost, whether or not the scheduler has noticed.
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
            // Not held just now, but perhaps again: what a fence holds back is yet to be decided.
            if !left.is_zero() || self.outlives_trust() {
                return left;
            }
            // Before anybody can read that it has. A confirmation that gets in between only moves it on.
            self.ended.fetch_max(until, Ordering::Relaxed);
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

    /// Whether, trusted or not, it is not lost as long as nobody says so: a fence is open that no
    /// renewal gets past, or what came of that is not known yet.
    pub(crate) fn outlives_trust(&self) -> bool {
        self.outlives_trust.load(Ordering::Acquire)
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What there is to say of its loss, if it is lost for that reason.
    pub(crate) fn loss(&self, gone: impl Into<Gone>) -> Loss {
        let until = match self.trusted_until.load(Ordering::Acquire) {
            ENDED => self.ended.load(Ordering::Relaxed),
            until => until,
        };
        let at = clock::now().min(BootInstant::from_nanos(until));
        let (mut gone, trouble) = (gone.into(), self.trouble());
        if gone.reason == LostReason::Expired {
            gone.reason = match &trouble {
                Some(trouble) if trouble.reason != LostReason::Expired => trouble.reason,
                _ if self.unanswered.load(Ordering::Relaxed) => LostReason::Unreachable,
                _ => LostReason::Expired,
            };
        }
        // Where the database says that the grant is gone, that is its answer.
        let said = trouble.filter(|_| gone.reason.leaves_a_lease());
        Loss::of_held(gone, said.map(|trouble| trouble.said), self.since, at)
    }

    fn trouble(&self) -> Option<Trouble> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A renewal goes out.
    pub(crate) fn renewing(&self) {
        self.unanswered.store(true, Ordering::Relaxed);
    }

    /// The renewal was answered; none: it was renewed.
    pub(crate) fn answered(&self, trouble: Option<Trouble>) {
        self.unanswered.store(false, Ordering::Relaxed);
        let before = self.trouble.lock();
        *before.unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// As if that were how long it may be trusted.
    #[cfg(test)]
    pub(crate) fn trust_until(&self, until: BootInstant) {
        self.trusted_until
            .store(until.as_nanos(), Ordering::Release);
    }

    /// Mark it lost, if it was not before: the first reason counts.
    ///
    /// Nobody is woken, and nothing is told: that may run code of somebody else's, which may call us
    /// again, and the book may be open just now.
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

    /// Wake whoever waits for news of it.
    pub(crate) fn wake(&self) {
        self.status.send_if_modified(|_| true);
    }

    /// Mark it lost, wake whoever holds it, and tell. The first reason counts, and is the answer.
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
            // Not here: the caller may be in the midst of something.
            callbacks::call(move || listeners.call(&loss));
        }
        self.log_lost(&loss);
        loss
    }

    pub(crate) fn log_lost(&self, loss: &Loss) {
        metrics::lost(self.engine, loss.reason());
        metrics::ended(self.engine, self.held_for());
        let Grant {
            name,
            token,
            holder,
            ..
        } = &self.grant;
        tracing::warn!(
            lock.name = name.as_str(),
            lock.token = token.get(),
            lock.holder = &**holder,
            lock.held_ms = loss.held_for().map(ms),
            lock.lost_reason = loss.reason().as_str(),
            lock.last_answer = loss.last_answer(),
            lock.now_holder = loss.now_held_by().and_then(|now| now.holder.as_deref()),
            "lock {loss}; {}",
            loss.done()
        );
    }

    pub(crate) fn log_refused(&self, error: &str) {
        let Grant {
            name,
            token,
            holder,
            ..
        } = &self.grant;
        tracing::warn!(
            lock.name = name.as_str(),
            lock.token = token.get(),
            lock.holder = &**holder,
            locks = 1,
            "renewals fail, trying again until the leases end: {error}; other leases are renewed"
        );
    }

    pub(crate) fn log_renewed_again(&self) {
        let Grant {
            name,
            token,
            holder,
            ..
        } = &self.grant;
        tracing::info!(
            lock.name = name.as_str(),
            lock.token = token.get(),
            lock.holder = &**holder,
            "renewals get through again"
        );
    }

    pub(crate) fn log_busy(&self) {
        let Grant {
            name,
            token,
            holder,
            ..
        } = &self.grant;
        tracing::debug!(
            lock.name = name.as_str(),
            lock.token = token.get(),
            lock.holder = &**holder,
            "not renewed, trying again: another transaction has its row locked"
        );
    }

    /// Since it was granted to us.
    pub(crate) fn held_for(&self) -> Duration {
        clock::now() - self.since
    }

    pub(crate) fn released(&self) {
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

    /// Trust it for as long as its lease says. Wakes nobody.
    pub(crate) fn confirm(&self, lease: &Lease) -> Confirmed {
        let until = lease.trusted_until().as_nanos();
        let go_on = |before| (before != ENDED).then_some(until);
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        if self.trusted_until.fetch_update(set, fetch, go_on).is_err() {
            return Confirmed::TooLate;
        }
        // After the trust that makes it needless.
        self.outlives_trust
            .store(lease.outlives_trust(), Ordering::Release);
        let (confirmed, mut news) = (Status::Held(lease.confirmed()), false);
        self.status.send_if_modified(|status| {
            news = matches!(status, Status::Held(_)) && *status != confirmed;
            if news {
                *status = confirmed;
            }
            false
        });
        if news {
            Confirmed::News
        } else {
            Confirmed::AsBefore
        }
    }
}

pub(crate) enum Confirmed {
    AsBefore,
    /// Whoever waits for it is to be woken.
    News,
    /// Somebody was told already that it is not held any more.
    TooLate,
}
