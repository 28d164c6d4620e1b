//! One grant that is being asked for, until it is known whether it was made.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::request::Want;
use crate::client::Inner;
use crate::client::direct::DIRECT_TIMEOUT;
use crate::client::direct::Entry;
use crate::client::grant_id::random_grant_id;
use crate::client::guard::LockGuard;
use crate::client::holder::over;
use crate::client::own_grants::{Ours, is_ours};
use crate::client::release::give_back;
use crate::client::renewal::grant_state::{Held, Status};
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::Here;
use crate::store::api::StoreError;
use protocol::REQUEST_TIMEOUT;
use protocol::{
    AcquireCommand, BootInstant, Grant, GrantId, Holder, Lease, LostReason, MAX_FIRST_GRANT,
    ObservedExpiry, Outcome, ReleaseCommand, Released, TakeOverCommand, Token, Ttl,
};

/// One grant that is being asked for.
///
/// Dropped while it is unknown whether it was made, it is given back in the background.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// In a forked child it is left alone.
    inner: Here<Arc<Inner>>,
    want: Arc<Want>,
    ask: AcquireCommand,
    /// From before the request is sent: then it may stand in the row.
    _ours: Ours,
    /// When the latest request was sent.
    sent: BootInstant,
    unsettled: bool,
    /// Closes when the request on the lane has ended: answered, or dropped as late.
    under_way: Option<oneshot::Receiver<()>>,
}

impl Attempt {
    pub(crate) fn new(inner: &Arc<Inner>, want: &Arc<Want>) -> Result<Self, Error> {
        let ask = AcquireCommand {
            name: want.name.clone(),
            grant: random_grant_id()?,
            holder: Arc::clone(&want.holder),
            length: want.timing.first_grant(),
            metadata: Arc::clone(&want.metadata),
            expired_version: None,
        };
        Ok(Self {
            inner: Here::new(Arc::clone(inner)),
            want: Arc::clone(want),
            _ours: Ours::new(ask.grant),
            ask,
            sent: BootInstant::ZERO,
            unsettled: false,
            under_way: None,
        })
    }

    /// When the latest request was sent.
    pub(crate) fn sent(&self) -> BootInstant {
        self.sent
    }

    /// Try on the lane; none: the answer is late. It takes nothing over.
    pub(crate) async fn directly(&mut self, entry: Entry) -> Option<Result<Outcome, StoreError>> {
        let wait = self.want.wait.filter(|wait| !wait.is_zero());
        let (done, under_way) = oneshot::channel();
        self.under_way = Some(under_way);
        let before = self.begin();
        let answer = entry.acquire(self.ask.clone(), wait, done).await?;
        self.under_way = None;
        Some(self.answered(before, answer))
    }

    pub(crate) async fn once(&mut self) -> Result<Outcome, StoreError> {
        match self.ask().await? {
            Outcome::Held(holder) if self.may_take_over(&holder) => self.take_over(holder).await,
            outcome => Ok(outcome),
        }
    }

    /// Whether its own holder has it, in another process.
    fn may_take_over(&self, holder: &Holder) -> bool {
        let here = || !holder.is_legacy && holder.grant.as_deref().is_some_and(is_ours);
        self.want.preempt && holder.holder.as_deref() == Some(&*self.want.holder) && !here()
    }

    async fn take_over(&mut self, from: Holder) -> Result<Outcome, StoreError> {
        let mut what = TakeOverCommand {
            to: self.ask.clone(),
            token: from.token.unwrap_or(Token::from_db(0)),
            grant: from.grant.clone(),
        };
        if let Some(ended) = from.grant.as_deref().and_then(GrantId::parse) {
            what.to.metadata = over(&self.want.metadata, ended).into();
        }
        self.unsettled = true;
        self.sent = clock::now();
        let outcome = self.inner.store.take_over(&what, REQUEST_TIMEOUT).await?;
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
        let before = self.begin();
        let answer = self.inner.asks.ask(self.ask.clone()).await;
        self.answered(before, answer)
    }

    /// A request is about to be sent; whether an earlier one was unsettled.
    fn begin(&mut self) -> bool {
        self.sent = clock::now();
        self.ask.expired_version = self.inner.observations.ended(&self.want.name, self.sent);
        std::mem::replace(&mut self.unsettled, true)
    }

    fn answered(
        &mut self,
        before: bool,
        answer: Result<Outcome, StoreError>,
    ) -> Result<Outcome, StoreError> {
        if answer.as_ref().is_err_and(StoreError::is_undone) {
            // Nothing was granted, so there is nothing to give back.
            self.unsettled = before;
        }
        let mut outcome = answer?;
        self.observe(&mut outcome);
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
    pub(crate) fn judge(
        &self,
        seen: Result<Option<Holder>, StoreError>,
    ) -> Option<Result<Outcome, StoreError>> {
        let holder = match seen {
            Ok(Some(holder)) => holder,
            Err(failure @ StoreError::Unavailable(_)) => return Some(Err(failure)),
            Ok(None) | Err(_) => return None,
        };
        let ours = holder.grant.as_deref() == Some(self.ask.grant.as_str());
        if ours || self.may_take_over(&holder) {
            return None;
        }
        let mut outcome = Outcome::Held(holder);
        self.observe(&mut outcome);
        let expired_version = self.inner.observations.ended(&self.want.name, clock::now());
        expired_version.is_none().then_some(Ok(outcome))
    }

    /// Record what the reply shows of a lease whose expiry is observed.
    fn observe(&self, outcome: &mut Outcome) {
        let (observations, name) = (&self.inner.observations, &self.want.name);
        match outcome {
            Outcome::Held(holder) => match &holder.observed_expiry {
                Some(ObservedExpiry {
                    version,
                    length,
                    overdue,
                }) => {
                    let left = observations.saw(name, version, *length, *overdue, clock::now());
                    holder.free_in = Some(left);
                }
                None => observations.forget(name),
            },
            Outcome::Granted { .. } => observations.forget(name),
            Outcome::Busy => {}
        }
    }

    /// The database granted it: from here on the guard gives it back. If trust in it ended before the answer
    /// came, this attempt still does.
    pub(crate) async fn granted(
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
        begin(&self.inner, grant, lease).await
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.unsettled || !self.inner.is_here() {
            return;
        }
        let ask = &self.ask;
        let what = ReleaseCommand {
            name: ask.name.clone(),
            token: None,
            grant: ask.grant,
            holder: Arc::clone(&ask.holder),
            durable: false,
        };
        // After that time the grant has run out by itself: an acquire makes none that is longer.
        let ttl = Ttl::Finite(MAX_FIRST_GRANT);
        let inner = Arc::clone(&self.inner);
        let pending = inner.pending.clone();
        let release = move |what| give_back(Arc::clone(&inner), what, ttl, None);
        let (first, mut under_way) = (release(what.clone()), self.under_way.take());
        let _ = runtime::spawn(async move {
            if let Some(under_way) = &mut under_way {
                let _ = tokio::time::timeout(DIRECT_TIMEOUT, under_way).await;
            }
            let Ok(Released::NotHeld) = first.await else {
                return;
            };
            // The server may come to it yet.
            if let Some(under_way) = under_way {
                if !under_way.is_terminated() {
                    let _ = tokio::time::timeout(MAX_FIRST_GRANT, under_way).await;
                }
                tokio::time::sleep(DIRECT_TIMEOUT / 10).await;
                let _ = release(what).await;
            }
            drop(pending);
        });
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
