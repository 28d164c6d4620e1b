//! One grant that is being requested, until its outcome is known.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::request::AcquireRequest;
use crate::client::Client;
use crate::client::direct::DIRECT_TIMEOUT;
use crate::client::direct::Permit;
use crate::client::grant_id::random_grant_id;
use crate::client::guard::LockGuard;
use crate::client::guard::start::start_renewing;
use crate::client::holder::with_ended_grant;
use crate::client::own_grants::{OwnGrant, is_own_grant};
use crate::client::release::ReleaseRequest;
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::ForkSafe;
use crate::store::api::StoreError;
use protocol::REQUEST_TIMEOUT;
use protocol::{
    AcquireCommand, BootInstant, GrantId, Holder, Kind, Lease, LockName, LostReason,
    MAX_FIRST_GRANT, ObservedExpiry, OncePer, Outcome, Primary, ReleaseCommand, Released, Slot,
    TakeOverCommand, Timing, Token, Ttl, Version,
};

/// The hint where legacy clients still take a lock that is to be shared.
const LEGACY_HINT: &str = "upgrade all processes that take this lock, then let one of them acquire it once \
                           without sharing it";

/// One grant that is being requested. Dropping this while the outcome is unknown releases the grant
/// in the background.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Not used in a forked child.
    client: ForkSafe<Arc<Client>>,
    request: Arc<AcquireRequest>,
    command: AcquireCommand,
    /// Registered before the request is sent: from then on the row may contain the grant.
    _own: OwnGrant,
    /// When the latest request was sent.
    sent: BootInstant,
    /// The server that granted it, if that is known.
    confirmed_by: Option<Primary>,
    /// The slots of a semaphore whose expiry has to be observed.
    observed: Vec<Slot>,
    /// Whether a request may have been granted without an answer.
    is_unknown: bool,
    /// Closes when the request on the direct connection is answered, or dropped as late; or when the
    /// batch with it has ended, which takes several statements if it is not about locks. A release
    /// would overtake the last of them.
    under_way: Option<oneshot::Receiver<()>>,
    /// Whether it is a batch.
    is_in_batch: bool,
}

impl Attempt {
    pub(crate) fn new(client: &Arc<Client>, request: &Arc<AcquireRequest>) -> Result<Self, Error> {
        let command = AcquireCommand {
            name: request.name.clone(),
            grant: random_grant_id()?,
            holder: Arc::clone(&request.holder),
            length: request.timing.first_grant(),
            not_within: request.once_per.map(OncePer::window),
            metadata: Arc::clone(&request.metadata),
            expired_version: None,
            kind: request.kind.clone(),
        };
        Ok(Self {
            client: ForkSafe::new(Arc::clone(client)),
            request: Arc::clone(request),
            _own: OwnGrant::requested(command.grant, client.number),
            command,
            sent: BootInstant::ZERO,
            confirmed_by: None,
            observed: Vec::new(),
            is_unknown: false,
            under_way: None,
            is_in_batch: false,
        })
    }

    pub(super) fn command(&self) -> &AcquireCommand {
        &self.command
    }

    pub(crate) fn sent(&self) -> BootInstant {
        self.sent
    }

    /// Whether an earlier request, whose reply was lost, may have been granted a permit. Dropping the
    /// attempt releases it.
    pub(crate) fn may_have_a_permit(&self) -> bool {
        self.is_unknown && self.request.limit().is_some()
    }

    /// Try on the direct connection; `None` if the answer is late. It does not preempt.
    pub(crate) async fn directly(&mut self, permit: Permit) -> Option<Result<Outcome, StoreError>> {
        let wait = self.request.wait.filter(|wait| !wait.is_zero());
        let (done, under_way) = oneshot::channel();
        (self.under_way, self.is_in_batch) = (Some(under_way), false);
        let was_unknown = self.prepare();
        let answer = permit.acquire(self.command.clone(), wait, done).await?;
        self.under_way = None;
        Some(self.answered(was_unknown, answer))
    }

    /// Try in the background.
    pub(crate) async fn in_background(&mut self) -> Result<Outcome, StoreError> {
        match self.acquire().await? {
            Outcome::Held(holder) if self.may_take_over(&holder) => self.take_over(holder).await,
            outcome => Ok(outcome),
        }
    }

    /// Whether the request may preempt: the same holder has the lock in another process. A rest
    /// does not end earlier for the same holder.
    fn may_take_over(&self, holder: &Holder) -> bool {
        let here = || !holder.is_legacy && holder.grant.as_deref().is_some_and(is_own_grant);
        self.request.preempt
            && !holder.is_resting
            && holder.holder.as_deref() == Some(&*self.request.holder)
            && !here()
    }

    async fn take_over(&mut self, from: Holder) -> Result<Outcome, StoreError> {
        let mut command = TakeOverCommand {
            to: self.command.clone(),
            token: from.token.unwrap_or(Token::from_db(0)),
            grant: from.grant.clone(),
        };
        if let Some(ended) = from.grant.as_deref().and_then(GrantId::parse) {
            command.to.metadata = with_ended_grant(&self.request.metadata, ended).into();
        }
        self.is_unknown = true;
        self.sent = clock::now();
        let outcome = self
            .client
            .store
            .take_over(&command, REQUEST_TIMEOUT)
            .await?;
        self.is_unknown = matches!(outcome, Outcome::Granted { .. });
        Ok(match outcome {
            // A renewal locks the row only for a moment, but a fence may last: the request waits
            // for it as for a holder.
            Outcome::Busy if !self.request.is_single_try() => Outcome::Held(from),
            Outcome::Granted {
                token,
                confirmed_by,
                ..
            } => {
                self.confirmed_by = confirmed_by;
                tracing::debug!(
                    lock.name = self.request.name.as_str(),
                    lock.token = token.get(),
                    lock.holder = &*self.request.holder,
                    from = command.token.get(),
                    "lock taken over from the same holder"
                );
                outcome
            }
            outcome => outcome,
        })
    }

    async fn acquire(&mut self) -> Result<Outcome, StoreError> {
        let was_unknown = self.prepare();
        let mut done = None;
        if self.command.kind != Kind::Exclusive {
            let (sender, under_way) = oneshot::channel();
            (done, self.under_way) = (Some(sender), Some(under_way));
            self.is_in_batch = true;
        }
        let asked = (self.client.acquires).ask_with(self.command.clone(), done);
        let answer = asked.await;
        self.under_way = None;
        self.answered(was_unknown, answer)
    }

    /// Prepare a request; returns whether the outcome of an earlier one is unknown.
    pub(super) fn prepare(&mut self) -> bool {
        self.sent = clock::now();
        let (observations, name) = (&self.client.observations, &self.request.name);
        if !matches!(self.command.kind, Kind::Permit { .. }) {
            let key = self.request.key();
            self.command.expired_version = observations.ended(&key, self.sent);
        } else if self.observed.is_empty() {
            let of_name = |(of, slot): &(LockName, Slot)| of == name && slot.number().is_some();
            let known = observations.matching(of_name).into_iter();
            self.observed = known.map(|(_, slot)| slot).collect();
        }
        let observed = self.expired(self.sent);
        if let Kind::Permit { expired, .. } = &mut self.command.kind {
            *expired = observed;
        }
        std::mem::replace(&mut self.is_unknown, true)
    }

    /// The observed grants whose leases have ended.
    fn expired(&self, now: BootInstant) -> Vec<(Slot, Version)> {
        let ended = |slot: &Slot| {
            let key = (self.request.name.clone(), *slot);
            Some((*slot, self.client.observations.ended(&key, now)?))
        };
        self.observed.iter().filter_map(ended).collect()
    }

    /// After the lock was granted: the shared grants that it still has to wait for. `None`: there is
    /// none left.
    pub(super) async fn readers(&mut self) -> Option<Result<Outcome, StoreError>> {
        let (expired, name) = (self.expired(clock::now()), &self.request.name);
        let left = self.client.store.readers(name, &expired, REQUEST_TIMEOUT);
        match left.await {
            Ok(None) => None,
            Ok(Some(holder)) => {
                let mut outcome = Outcome::Held(holder);
                self.observe(&mut outcome);
                Some(Ok(outcome))
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    /// Record the answer to a request that [`prepare`](Self::prepare) began.
    pub(super) fn answered(
        &mut self,
        was_unknown: bool,
        answer: Result<Outcome, StoreError>,
    ) -> Result<Outcome, StoreError> {
        if answer.as_ref().is_err_and(StoreError::is_undone) {
            // Nothing was granted, so there is nothing to release.
            self.is_unknown = was_unknown;
        }
        let mut outcome = answer?;
        if let (Kind::Shared { .. }, Outcome::Held(holder)) = (&self.command.kind, &outcome)
            && holder.is_legacy
        {
            self.is_unknown = false;
            return Err(StoreError::rejected(
                "django-database-locks 0.5 holds it, or did last, and does not see shared holders",
                Some(LEGACY_HINT),
            ));
        }
        self.observe(&mut outcome);
        self.is_unknown = match outcome {
            Outcome::Held(_) | Outcome::TooRecent(_) => false,
            // An earlier request of this attempt, whose reply was lost, may have the row locked.
            Outcome::Busy => was_unknown,
            Outcome::Granted { confirmed_by, .. } => {
                self.confirmed_by = confirmed_by;
                true
            }
        };
        Ok(outcome)
    }

    /// Turn the result of a poll into the outcome of the try that it replaces. `None`: a try is
    /// necessary. After a failed poll it returns the error.
    pub(crate) fn outcome_of_poll(
        &mut self,
        polled: Result<Option<Holder>, StoreError>,
    ) -> Option<Result<Outcome, StoreError>> {
        let holder = match polled {
            Ok(Some(holder)) => holder,
            Err(failure @ StoreError::Unavailable(_)) => return Some(Err(failure)),
            Ok(None) | Err(_) => return None,
        };
        let own = holder.grant.as_deref() == Some(self.command.grant.as_str());
        // A new holder, after which this request is too late.
        let window = self.command.not_within;
        let too_recent = window
            .zip(holder.held_for)
            .is_some_and(|(window, ago)| ago <= window);
        let is_refused = holder.is_legacy && matches!(self.command.kind, Kind::Shared { .. });
        if own || too_recent || is_refused || self.may_take_over(&holder) {
            return None;
        }
        let mut outcome = Outcome::Held(holder);
        self.observe(&mut outcome);
        let ended = self
            .client
            .observations
            .ended(&self.request.key(), clock::now());
        ended.is_none().then_some(Ok(outcome))
    }

    /// Record an observation, if the lease ends by observation.
    fn observe(&mut self, outcome: &mut Outcome) {
        let (observations, key) = (&self.client.observations, self.request.key());
        let holder = match outcome {
            Outcome::Held(holder) => holder,
            Outcome::Granted { slot, .. } => return observations.forget(&(key.0, *slot)),
            Outcome::TooRecent(_) | Outcome::Busy => return,
        };
        let now = clock::now();
        let record = |key: &_, of: &ObservedExpiry| {
            observations.record(key, &of.version, of.length, of.overdue, now)
        };
        let each = (holder.permits.as_ref().map(|permits| &permits.observed))
            .or(holder.readers.as_ref().map(|readers| &readers.observed));
        if let Some(each) = each {
            self.observed = each.iter().map(|(slot, _)| *slot).collect();
            let left = each.iter();
            let left = left.map(|(slot, of)| (record(&(key.0.clone(), *slot), of), of));
            // The wait is extended for the one whose observation ends first.
            match left.min_by_key(|(left, of)| (!of.overdue, *left)) {
                Some((left, of)) => {
                    record(&key, of);
                    holder.free_in = Some(left);
                }
                None => observations.forget(&key),
            }
        } else if let Some(of) = &holder.observed_expiry {
            let left = record(&key, of);
            // A rest may end earlier by the clock of the database.
            let by_clock = holder.free_in.filter(|_| holder.is_resting);
            holder.free_in = Some(by_clock.map_or(left, |by_clock| by_clock.min(left)));
        } else {
            observations.forget(&key);
        }
    }

    /// Turn a grant into a guard, which has to release it from then on. If trust ended before the
    /// answer, the attempt still has to release the grant.
    pub(crate) async fn granted(
        &mut self,
        slot: Slot,
        token: Token,
        length: Duration,
        timing: Timing,
    ) -> Result<LockGuard, Loss> {
        let lease = Lease::granted(timing, self.sent, length);
        if lease.trusted_until() <= clock::now() {
            return Err(Loss::of_other_grant(LostReason::Expired));
        }
        self.is_unknown = false;
        let grant = self.command.granted(slot, token, self.confirmed_by);
        let until = self.sent + self.request.at_least;
        start_renewing(&self.client, grant, lease, timing.ttl(), until).await
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_unknown || !self.client.is_in_owner_process() {
            return;
        }
        let command = &self.command;
        let release = ReleaseCommand {
            name: command.name.clone(),
            slot: self.request.slot_of(command.grant),
            token: None,
            grant: command.grant,
            holder: Arc::clone(&command.holder),
            rest: Duration::ZERO,
            durable: false,
        };
        // An acquire requests no longer lease, so the grant has expired by then.
        let ttl = Ttl::Finite(MAX_FIRST_GRANT);
        let client = Arc::clone(&self.client);
        let pending = client.pending_releases.begin();
        let send = move |release| {
            let client = Arc::clone(&client);
            ReleaseRequest::new(client, release, BootInstant::ZERO, ttl, None).in_background()
        };
        let (first, mut under_way) = (send(release.clone()), self.under_way.take());
        let is_in_batch = self.is_in_batch;
        let _ = runtime::spawn(async move {
            if let Some(under_way) = &mut under_way {
                let _ = tokio::time::timeout(DIRECT_TIMEOUT, under_way).await;
            }
            // Nothing of a batch that has ended is executed later.
            under_way = under_way.filter(|it| !is_in_batch || !it.is_terminated());
            let Ok(Released::NotHeld) = first.await else {
                return;
            };
            // The server may still execute the late request.
            if let Some(under_way) = under_way {
                if !under_way.is_terminated() {
                    let _ = tokio::time::timeout(MAX_FIRST_GRANT, under_way).await;
                }
                tokio::time::sleep(DIRECT_TIMEOUT / 10).await;
                let _ = send(release).await;
            }
            drop(pending);
        });
    }
}
