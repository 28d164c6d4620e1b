//! What a wait for one lock and a wait for several have in common: what an answer means for it, how
//! long it pauses, and what it records.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::poll_interval::{PollInterval, WaitHint};
use super::poller::{Polled, UNREGISTERED_PART};
use super::progress::{Progress, locked};
use super::queue::{QueueSlot, Queues};
use super::request::AcquireRequest;
use crate::client::Client;
use crate::client::own_grants::{is_in_transition, is_own_grant};
use crate::error::loss::Loss;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{
    BootInstant, GrantId, Holder, Human, LockName, LostReason, Outcome, Slot, Version,
    WaitExtension,
};

/// How long a single try is repeated after a conflict that is not about this lock, such as a
/// deadlock or another writer of the SQLite file.
const CONTENTION_RETRY_FOR: Duration = Duration::from_secs(1);
/// How long a single try is repeated while the lock looks free but its row is locked, usually
/// because another client is acquiring it.
const BUSY_RETRY_FOR: Duration = Duration::from_millis(30);
/// How long the first waiter of a queue waits for a release within this process before it polls.
pub(super) const OWN_HOLDER_WAIT: Duration = Duration::from_secs(1);
/// The last try of a bounded wait starts this long before its end, to be answered in time.
const LAST_TRY: Duration = Duration::from_millis(20);
/// A bounded wait gives no head start within this long of its end, or within half of the wait, so
/// that one try is left.
const NO_HEAD_START: Duration = Duration::from_millis(100);

/// One wait, for these locks or for a permit.
pub(super) struct Waiter<'a> {
    client: &'a Arc<Client>,
    /// Of several, the request for one of them: the settings are the same for all.
    request: &'a AcquireRequest,
    names: Vec<LockName>,
    progress: &'a Mutex<Progress>,
    deadline: Option<BootInstant>,
    interval: PollInterval,
    /// The place in the queue of this process.
    pub(super) slot: Option<QueueSlot>,
    /// The result of a poll, if the lock is not worth a try yet.
    pub(super) polled: Option<Result<Outcome, StoreError>>,
    /// How long to wait for a holder within this process, whose release wakes the queue. After that
    /// the lock is tried, because it may also become free in another way.
    pub(super) wait_for_own_holder: Option<Duration>,
    /// Since when no answer has shown a holder.
    unclear_since: Option<BootInstant>,
    extensions: HashMap<(LockName, Slot), WaitExtension<Version>>,
}

/// What follows from a try that granted nothing.
#[derive(Clone, Copy)]
pub(super) struct NotGranted {
    pub(super) hint: WaitHint,
    /// Another grant holds the lock, or the lock rests.
    pub(super) held: bool,
    /// A guard of this process holds it.
    pub(super) held_here: bool,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(
        client: &'a Arc<Client>,
        request: &'a AcquireRequest,
        names: Vec<LockName>,
        progress: &'a Mutex<Progress>,
        deadline: Option<BootInstant>,
    ) -> Self {
        Self {
            client,
            request,
            names,
            progress,
            deadline,
            interval: PollInterval::new(request.poll),
            slot: None,
            polled: None,
            wait_for_own_holder: None,
            unclear_since: None,
            extensions: HashMap::new(),
        }
    }

    pub(super) fn queues(&self) -> &'a Queues {
        self.client.queues_for(self.request)
    }

    /// The key of the observations of what keeps this request out.
    fn key(&self, name: &LockName) -> (LockName, Slot) {
        (name.clone(), self.request.key().1)
    }

    /// Join the queue of this process for this lock at its end, and leave another one.
    pub(super) fn join(&mut self, name: &LockName) -> &QueueSlot {
        locked(self.progress).holder.get_or_insert_default();
        let slot = self.queues().join(name);
        self.slot.insert(slot)
    }

    /// Record a try for this lock that granted nothing. `None`: it was a single try, and the lock is
    /// held.
    ///
    /// # Errors
    ///
    /// A rejection, or what kept a single try from an answer.
    pub(super) fn not_granted(
        &mut self,
        name: &LockName,
        outcome: Result<Outcome, StoreError>,
        sent: BootInstant,
    ) -> Result<Option<NotGranted>, StoreError> {
        let now = clock::now();
        if self.ends_single_try(name, &outcome, now) {
            // A blocked row is an error that names the cause, and not a held lock.
            return outcome.map(|_| None);
        }
        Ok(Some(NotGranted {
            hint: self.interval.after(&outcome, now),
            held: matches!(outcome, Ok(Outcome::Held(_))),
            held_here: self.record(name, outcome, sent)?,
        }))
    }

    /// Whether this outcome ends a single try.
    fn ends_single_try(
        &mut self,
        name: &LockName,
        outcome: &Result<Outcome, StoreError>,
        now: BootInstant,
    ) -> bool {
        if !self.request.is_single_try() {
            return false;
        }
        if let Err(StoreError::Unavailable(_)) = outcome {
            return true;
        }
        // Counted from the answer: after a slow answer there is still another try.
        let unclear = now - *self.unclear_since.get_or_insert(now);
        let ends = match outcome {
            Ok(Outcome::Held(_)) => true,
            Ok(Outcome::Busy) => unclear >= BUSY_RETRY_FOR,
            Err(StoreError::Contention(_)) => unclear >= CONTENTION_RETRY_FOR,
            _ => false,
        };
        let (observations, key) = (&self.client.observations, self.key(name));
        let extension = self.extensions.entry(key.clone()).or_default();
        ends && extension.until(observations, &key, now).is_none()
    }

    /// Record an outcome, for log records and the final error; returns whether a guard of this process
    /// holds the lock.
    ///
    /// # Errors
    ///
    /// A rejection, which ends the wait.
    fn record(
        &mut self,
        name: &LockName,
        outcome: Result<Outcome, StoreError>,
        sent: BootInstant,
    ) -> Result<bool, StoreError> {
        let mut held_here = false;
        match &outcome {
            Err(StoreError::Rejected { .. }) => return outcome.map(|_| false),
            // A single try does not wait, and its error contains the failure.
            Err(_) if self.request.is_single_try() => {}
            Err(failure) => self.client.outages.log_failed(name, sent, failure),
            Ok(outcome) => {
                self.client.outages.log_answered(sent);
                if let Outcome::Held(holder) = outcome {
                    self.unclear_since = None;
                    held_here = record_holder(self.client, name, holder, self.slot.is_some());
                    if holder.permits.is_some() {
                        self.queues().no_permit_free(name);
                    }
                }
            }
        }
        locked(self.progress).record(name, outcome);
        Ok(held_here)
    }

    /// Record that a grant of this length was lost before it could be relied on, and pause before the
    /// next request.
    pub(super) async fn record_lost_grant(
        &mut self,
        name: &LockName,
        loss: &Loss,
        length: Duration,
        sent: BootInstant,
    ) {
        let late = StoreError::cannot_serve(match loss.reason() {
            LostReason::Expired => format!(
                "it was granted, and {} passed before that could be relied on, too long for a lease of {}",
                Human(clock::now() - sent),
                Human(length)
            ),
            _ => format!("it was granted, and {loss}"),
        });
        self.client.outages.log_failed(name, sent, &late);
        let hint = self.interval.after(&Err(late.duplicate()), clock::now());
        locked(self.progress).record(name, Err(late));
        tokio::time::sleep(self.before_end(hint.polling)).await;
    }

    /// A pause, shortened to leave time for a last try before the wait ends.
    pub(super) fn before_end(&self, pause: Duration) -> Duration {
        let Some(at) = self.deadline else {
            return pause;
        };
        match at - (clock::now() + LAST_TRY) {
            Duration::ZERO if self.may_be_extended() => pause,
            // No time for another try is left, and the limit ends the wait.
            Duration::ZERO => Duration::MAX,
            left => pause.min(left),
        }
    }

    fn may_be_extended(&self) -> bool {
        let (observations, now) = (&self.client.observations, clock::now());
        self.names.iter().any(|name| {
            let mut extension = WaitExtension::default();
            let until = extension.until(observations, &self.key(name), now);
            until.is_some()
        })
    }

    /// Until when the wait gives others a head start; `None`: it has no end.
    pub(super) fn head_start_end(&self) -> Option<BootInstant> {
        let bounded = self.deadline.zip(self.request.wait);
        bounded.map(|(at, wait)| at - NO_HEAD_START.min(wait / 2))
    }

    /// Announce this waiter; returns whether a release will be notified.
    async fn announce(&self, name: &LockName, pause: Duration, anew: bool) -> bool {
        let limit = self.request.limit();
        self.client.store.announce(name, limit, pause, anew).await
    }

    /// Pause after a try for this lock: announced, if that is possible, or for the time of a poll,
    /// whose result is returned if there is one.
    pub(super) async fn pause(
        &self,
        name: &LockName,
        NotGranted { hint, held, .. }: NotGranted,
        anew: bool,
    ) -> Option<Polled> {
        let notified = hint.notified.map(|pause| self.before_end(pause));
        let polling = self.before_end(hint.polling);
        if let Some(pause) = notified
            && self.announce(name, pause, anew).await
        {
            tokio::time::sleep(pause).await;
            return None;
        }
        // A try of a free or locked row costs no more than a poll, nor does one of a semaphore.
        if !held || self.request.limit().is_some() {
            tokio::time::sleep(polling).await;
            return None;
        }
        let unregistered = polling / UNREGISTERED_PART;
        tokio::time::sleep(unregistered).await;
        let next = self.client.poller.next(name, polling - unregistered);
        Some(next.await)
    }
}

/// Record the holder; returns whether it is a grant of this client.
///
/// A caller that is not `queued` may see a grant of this process whose guard does not exist yet.
pub(super) fn record_holder(
    client: &Client,
    name: &LockName,
    holder: &Holder,
    queued: bool,
) -> bool {
    let here = is_held_by(client, holder);
    if holder.permits.is_none()
        && holder.readers.is_none()
        && !here
        && (queued || !holder.grant.as_deref().is_some_and(is_own_grant))
    {
        client.queues(Slot::Lock).held_elsewhere(name);
    }
    here
}

/// Whether this client has the lock, so that its release wakes the queue: by a guard, or by a
/// grant whose guard does not exist yet or any more. An announcement would make each release of the
/// next seconds notify, and let other processes go first.
fn is_held_by(client: &Client, holder: &Holder) -> bool {
    let grant = holder.grant.as_deref().and_then(GrantId::parse);
    // Another permit may be free, or become free in another process.
    holder.permits.is_none()
        && holder.readers.is_none()
        && !holder.is_legacy
        && grant.is_some_and(|grant| {
            client.scheduler.timing(grant).is_some() || is_in_transition(grant, client.number)
        })
}
