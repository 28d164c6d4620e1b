//! One grant that is being asked for, until it is known whether it was made.

use std::sync::Arc;
use std::time::Duration;

use super::{PATIENCE, Want};
use crate::clock::{self, Time};
use crate::error::{Error, LostReason};
use crate::guard::LockGuard;
use crate::held::{Held, Status};
use crate::holder::over;
use crate::inner::Inner;
use crate::lease::Lease;
use crate::loss::Loss;
use crate::ours::{Ours, is_ours};
use crate::release::give_back;
use crate::store::{Ask, Grant, Lapse, Occupant, Outcome, Return, StoreError, TakeOver};
use crate::timing::{MAX_FIRST_GRANT, Ttl};
use crate::token::{GrantId, Token};

/// One grant that is being asked for.
///
/// Dropped while it is unknown whether it was made, it is given back in the background.
pub(super) struct Attempt<'a> {
    inner: &'a Arc<Inner>,
    want: &'a Want,
    ask: Ask,
    /// From before the request is sent: then it may stand in the row.
    _ours: Ours,
    /// When the latest request was sent.
    sent: Time,
    unsettled: bool,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(inner: &'a Arc<Inner>, want: &'a Want) -> Result<Self, Error> {
        let ask = Ask {
            name: want.name.clone(),
            grant: GrantId::random()?,
            holder: Arc::clone(&want.holder),
            length: want.timing.first_grant(),
            metadata: Arc::clone(&want.metadata),
            lapsed: None,
        };
        Ok(Self {
            inner,
            want,
            _ours: Ours::new(ask.grant),
            ask,
            sent: Time::ZERO,
            unsettled: false,
        })
    }

    pub(super) async fn once(&mut self) -> Result<Outcome, StoreError> {
        match self.ask().await? {
            Outcome::Held(occupant) if self.may_take_over(&occupant) => {
                self.take_over(occupant).await
            }
            outcome => Ok(outcome),
        }
    }

    /// Whether its own holder has it, in another process.
    fn may_take_over(&self, occupant: &Occupant) -> bool {
        let here = || occupant.intact && occupant.grant.as_deref().is_some_and(is_ours);
        self.want.preempt && occupant.holder.as_deref() == Some(&*self.want.holder) && !here()
    }

    async fn take_over(&mut self, from: Occupant) -> Result<Outcome, StoreError> {
        let mut what = TakeOver {
            to: self.ask.clone(),
            token: from.token.unwrap_or(Token::from_db(0)),
            grant: from.grant.clone(),
        };
        if let Some(ended) = from.grant.as_deref().and_then(GrantId::parse) {
            what.to.metadata = over(&self.want.metadata, ended).into();
        }
        self.unsettled = true;
        self.sent = clock::now();
        let outcome = self.inner.store.take_over(&what, PATIENCE).await?;
        self.unsettled = matches!(outcome, Outcome::Granted { .. });
        Ok(match outcome {
            // A renewal is over in a moment. A fence may be open for long, and is waited for as the
            // holder would be.
            Outcome::Busy if !self.want.once() => Outcome::Held(from),
            Outcome::Granted { token, .. } => {
                tracing::debug!(
                    lock.name = self.want.name.as_str(),
                    lock.token = token.get(),
                    lock.holder = &*self.want.holder,
                    from = what.token.get(),
                    "lock taken over from the same holder"
                );
                outcome
            }
            outcome => outcome,
        })
    }

    async fn ask(&mut self) -> Result<Outcome, StoreError> {
        let before = std::mem::replace(&mut self.unsettled, true);
        self.sent = clock::now();
        self.ask.lapsed = self.inner.watches.ended(&self.want.name, self.sent);
        let answer = self.inner.asks.ask(self.ask.clone()).await;
        if answer.as_ref().is_err_and(StoreError::is_undone) {
            // Nothing was granted, so there is nothing to give back.
            self.unsettled = before;
        }
        let mut outcome = answer?;
        self.watch(&mut outcome);
        self.unsettled = match outcome {
            Outcome::Held(_) => false,
            // It may be a request of our own, whose reply was lost, that has the row locked.
            Outcome::Busy => before,
            Outcome::Granted { .. } => true,
        };
        Ok(outcome)
    }

    /// What a look said, as the outcome of a try that was spared; none: it is worth a try, which also
    /// says why where the look could not.
    pub(super) fn judge(
        &self,
        seen: Result<Option<Occupant>, StoreError>,
    ) -> Option<Result<Outcome, StoreError>> {
        let occupant = match seen {
            Ok(Some(occupant)) => occupant,
            Err(failure @ StoreError::Unavailable(_)) => return Some(Err(failure)),
            Ok(None) | Err(_) => return None,
        };
        let ours = occupant.grant.as_deref() == Some(self.ask.grant.as_str());
        if ours || self.may_take_over(&occupant) {
            return None;
        }
        let mut outcome = Outcome::Held(occupant);
        self.watch(&mut outcome);
        let lapsed = self.inner.watches.ended(&self.want.name, clock::now());
        lapsed.is_none().then_some(Ok(outcome))
    }

    /// Where a lease ends by being watched, this was one look more.
    fn watch(&self, outcome: &mut Outcome) {
        let (watches, name) = (&self.inner.watches, &self.want.name);
        match outcome {
            Outcome::Held(occupant) => match &occupant.lapse {
                Some(lapse) => {
                    let Lapse {
                        version,
                        length,
                        overdue,
                    } = lapse;
                    let left = watches.saw(name, version, *length, *overdue, clock::now());
                    occupant.free_in = Some(left);
                }
                None => watches.forget(name),
            },
            Outcome::Granted { .. } => watches.forget(name),
            Outcome::Busy => {}
        }
    }

    /// The database granted it: from here on the guard gives it back. If trust in it ended before the answer
    /// came, this attempt still does.
    pub(super) async fn granted(
        &mut self,
        token: Token,
        length: Duration,
    ) -> Result<LockGuard, Loss> {
        let lease = Lease::granted(self.want.timing, self.sent, length);
        if lease.trusted_until() <= clock::now() {
            return Err(Loss::of_another(LostReason::Expired));
        }
        self.unsettled = false;
        let grant = Grant {
            name: self.want.name.clone(),
            token,
            id: self.ask.grant,
            holder: Arc::clone(&self.want.holder),
        };
        begin(self.inner, grant, lease).await
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.unsettled {
            return;
        }
        let ask = &self.ask;
        let what = Return {
            name: ask.name.clone(),
            token: None,
            grant: ask.grant,
            holder: Arc::clone(&ask.holder),
            durable: false,
            quietly: false,
        };
        // After that time the grant has run out by itself: an acquire makes none that is longer.
        tokio::spawn(give_back(
            Arc::clone(self.inner),
            what,
            Ttl::Finite(MAX_FIRST_GRANT),
            None,
        ));
    }
}

/// Keep a grant alive from now on. Of a long lease, wait until the database has confirmed all of it.
///
/// # Errors
///
/// Trust in it ended before that; what is left of the grant is given back.
pub(crate) async fn begin(
    inner: &Arc<Inner>,
    grant: Grant,
    lease: Lease,
) -> Result<LockGuard, Loss> {
    let held = Held::new(inner.store.engine(), grant, &lease);
    let guard = LockGuard::new(Arc::clone(inner), Arc::clone(&held), lease.timing().ttl());
    inner.scheduler.add(lease, Arc::clone(&held));
    let settled = held
        .watch()
        .wait_for(|status| !matches!(status, Status::Held(None)))
        .await
        .map_or(Status::Released, |status| status.clone());
    match settled {
        Status::Lost(loss) => Err(loss),
        Status::Held(_) | Status::Released if guard.is_held() => Ok(guard),
        // The scheduler has not come round to it.
        Status::Held(_) | Status::Released => Err(guard.held.lose(LostReason::Expired)),
    }
}
