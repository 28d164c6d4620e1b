//! One acquisition: join this process's queue, try, classify the answer, wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::attempt::Attempt;
use super::poll_interval::{PollInterval, WaitHint};
use super::progress::Progress;
use super::request::AcquireRequest;
use crate::client::Client;
use crate::client::acquire::poller;
use crate::client::acquire::queue::{QueueSlot, Queues};
use crate::client::guard::LockGuard;
use crate::client::own_grants::{is_in_transition, is_own_grant};
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::REQUEST_TIMEOUT;
use protocol::{
    BootInstant, GrantId, Holder, Human, LockName, LostReason, Outcome, Slot, Timing, Token,
    Version, WaitExtension,
};

/// How long a single try is repeated after a conflict that is not about this lock, such as a
/// deadlock or another writer of the SQLite file.
pub(super) const CONTENTION_RETRY_FOR: Duration = Duration::from_secs(1);
/// How long a single try is repeated while the lock looks free but its row is locked, usually
/// because another client is acquiring it.
pub(super) const BUSY_RETRY_FOR: Duration = Duration::from_millis(30);
/// How long the first waiter of a queue waits for a release within this process before it polls.
pub(super) const OWN_HOLDER_WAIT: Duration = Duration::from_secs(1);
/// The last try of a bounded wait starts this long before its end, to be answered in time.
pub(super) const LAST_TRY: Duration = Duration::from_millis(20);
/// A bounded wait gives no head start within this long of its end, or within half of the wait, so
/// that one try is left.
pub(super) const NO_HEAD_START: Duration = Duration::from_millis(100);

/// A try that did not decide the acquisition.
#[derive(Debug)]
pub(crate) struct FirstTry {
    pub(crate) attempt: Attempt,
    /// `None`: the answer is late.
    pub(crate) outcome: Option<Result<Outcome, StoreError>>,
}

impl FirstTry {
    pub(crate) fn new(attempt: Attempt, outcome: Option<Result<Outcome, StoreError>>) -> Box<Self> {
        Box::new(Self { attempt, outcome })
    }
}

/// One acquisition. Dropping it at any point leaves nothing held: see [`Attempt`].
pub(crate) struct Acquisition<'a> {
    client: &'a Arc<Client>,
    request: &'a Arc<AcquireRequest>,
    progress: &'a Mutex<Progress>,
    deadline: Option<BootInstant>,
    attempt: Attempt,
    interval: PollInterval,
    /// The place in the queue of this process.
    slot: Option<QueueSlot>,
    /// The result of a poll, if the lock is not worth a try yet.
    polled: Option<Result<Outcome, StoreError>>,
    /// How long to wait for a holder within this process, whose release wakes the queue. After that
    /// the lock is tried, because it may also become free in another way.
    wait_for_own_holder: Option<Duration>,
    /// Since when no answer has shown a holder.
    unclear_since: Option<BootInstant>,
    extension: WaitExtension<Version>,
}

impl<'a> Acquisition<'a> {
    pub(crate) fn new(
        client: &'a Arc<Client>,
        request: &'a Arc<AcquireRequest>,
        first_try: Option<Box<FirstTry>>,
        progress: &'a Mutex<Progress>,
        deadline: Option<BootInstant>,
    ) -> Result<Self, Error> {
        let (attempt, polled) = match first_try {
            Some(first_try) => (first_try.attempt, first_try.outcome),
            None => (Attempt::new(client, request)?, None),
        };
        Ok(Self {
            client,
            request,
            progress,
            deadline,
            attempt,
            interval: PollInterval::new(request.poll),
            slot: None,
            polled,
            wait_for_own_holder: None,
            unclear_since: None,
            extension: WaitExtension::default(),
        })
    }

    pub(crate) async fn run(mut self) -> Result<Option<LockGuard>, Error> {
        let name = &self.request.name;
        // An acquire that may preempt the holder does not wait behind those that may not.
        if !self.request.preempt {
            if self.request.is_single_try() {
                if self.polled.is_none() {
                    clock::sleep(self.queues().head_start(name)).await;
                    self.probe().await;
                }
            } else if self.queues().is_busy(name) {
                self.join_queue().await;
                // The try predates the queue slot, so a wake-up after it may have been missed.
                self.polled = None;
            }
        }
        loop {
            if let Some(slot) = &self.slot {
                // Others of the queue go first, if fewer permits were free than waiters asked.
                slot.is_first().await;
            }
            self.wait_until_due().await;
            let sent = clock::now();
            if self.polled.is_none() && self.attempt.may_have_a_permit() {
                // Repeated, the request could be granted a second permit, whose row is another one.
                self.attempt = Attempt::new(self.client, self.request)?;
            }
            let outcome = match self.polled.take() {
                Some(outcome) => outcome,
                None => self.attempt.in_background().await,
            };
            if matches!(outcome, Ok(Outcome::Granted { .. })) {
                match self.settle(outcome, sent).await? {
                    Some(settled) => return Ok(settled),
                    None => continue,
                }
            }
            if let Ok(Outcome::TooRecent(latest)) = outcome {
                self.client.outages.log_answered(sent);
                return Err(self.request.already_ran(latest));
            }
            let now = clock::now();
            if self.request.is_single_try() && self.ends_single_try(&outcome, now) {
                return match outcome {
                    // A blocked row is an error that names the cause, and not a held lock.
                    Err(blocked) => Err(blocked.into_error(self.request.op())),
                    Ok(_) => Ok(None),
                };
            }
            let hint = self.interval.after(&outcome, now);
            let held = matches!(outcome, Ok(Outcome::Held(_)));
            let held_here = self.record(outcome, sent)?;
            if self.request.is_single_try() {
                tokio::time::sleep(hint.polling).await;
                continue;
            }
            let first_wait = self.slot.is_none();
            if first_wait && (!self.join_queue().await || held_here) {
                // The try predates the queue slot, so a release within this process may have been
                // missed.
            } else if held_here {
                self.wait_for_own_holder = Some(hint.notified.unwrap_or(hint.polling));
            } else {
                self.wait(hint, held, first_wait).await;
            }
        }
    }

    /// The result of a grant: the guard, or `Some(None)` if a single try has to do without the lock.
    /// `None`: the grant was lost before the guard could be returned, and the wait continues.
    async fn settle(
        &mut self,
        outcome: Result<Outcome, StoreError>,
        sent: BootInstant,
    ) -> Result<Option<Option<LockGuard>>, Error> {
        let Ok(Outcome::Granted {
            slot,
            token,
            length,
            is_shared,
            ..
        }) = outcome
        else {
            return Ok(None);
        };
        self.client.outages.log_answered(sent);
        let timing = match is_shared {
            true => self.request.timing_while_waiting()?,
            false => self.request.timing,
        };
        let guard = self.granted(slot, token, length, timing, sent).await?;
        let Some(guard) = guard else { return Ok(None) };
        if !is_shared || self.outlast_readers(&guard, timing).await? {
            return Ok(Some(Some(guard)));
        }
        if self.request.is_single_try() {
            // Another try right after this one must not find this grant.
            let _ = guard.release().await;
            return Ok(Some(None));
        }
        drop(guard);
        self.attempt = Attempt::new(self.client, self.request)?;
        Ok(None)
    }

    fn queues(&self) -> &'a Queues {
        self.client.queues_for(self.request)
    }

    /// Join the queue of this process and wait until the slot is the first; returns whether it was
    /// so at once. Waiters behind the first do not query the database.
    async fn join_queue(&mut self) -> bool {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .holder
            .get_or_insert_default();
        let slot = self.queues().join(&self.request.name);
        let at_once = slot.is_first().await;
        self.slot = Some(slot);
        at_once
    }

    /// If a guard of this process holds the lock, wait for its release. Then wait until the head
    /// start of other processes is over.
    async fn wait_until_due(&mut self) {
        let pause = self.wait_for_own_holder.take();
        let Some(slot) = self.slot.as_ref().filter(|_| self.polled.is_none()) else {
            return;
        };
        if let Some(pause) = pause.or_else(|| slot.is_held_here().then_some(OWN_HOLDER_WAIT)) {
            slot.woken_within(self.before_end(pause)).await;
        }
        let end = self.deadline.zip(self.request.wait).map(|(at, wait)| {
            let short = NO_HEAD_START.min(wait / 2);
            at - short
        });
        loop {
            let left = slot.head_start();
            let until_end = end.map_or(left, |end| end - clock::now());
            if left.is_zero() || until_end.is_zero() || self.request.preempt {
                break;
            }
            // A notification may change the head start.
            slot.woken_within(left.min(until_end)).await;
        }
        self.probe().await;
        slot.clear();
    }

    /// After a head start for processes that may not exist, check whether one of them had the lock.
    async fn probe(&self) {
        let (client, name) = (self.client, &self.request.name);
        let Some(token) = self.queues().probe(name) else {
            return;
        };
        let row = client
            .store
            .read(std::slice::from_ref(name), REQUEST_TIMEOUT)
            .await;
        if row.is_ok_and(|rows| rows.first().is_some_and(|row| row.token != token)) {
            self.queues().held_elsewhere(name);
        }
    }

    /// Turn a grant into a guard. `None`: trust ended before the guard could be returned, and the
    /// wait continues.
    async fn granted(
        &mut self,
        slot: Slot,
        token: Token,
        length: Duration,
        timing: Timing,
        sent: BootInstant,
    ) -> Result<Option<LockGuard>, Error> {
        let (client, name) = (self.client, &self.request.name);
        client.note_acquired(self.request);
        let loss = match self.attempt.granted(slot, token, length, timing).await {
            Ok(guard) => return Ok(Some(guard)),
            Err(loss) => loss,
        };
        self.queues().left(name);
        // The grant that was lost is too recent for another one.
        if self.request.is_single_try() || self.request.once_per.is_some() {
            return Err(Error::lost(name, loss));
        }
        let took = clock::now() - sent;
        let late = StoreError::cannot_serve(match loss.reason() {
            LostReason::Expired => format!(
                "it was granted, and {} passed before that could be relied on, too long for a lease of {}",
                Human(took),
                Human(length)
            ),
            _ => format!("it was granted, and {loss}"),
        });
        client.outages.log_failed(name, sent, &late);
        let hint = self.interval.after(&Err(late.duplicate()), clock::now());
        self.record_progress(Err(late));
        tokio::time::sleep(self.before_end(hint.polling)).await;
        // Dropping the old attempt releases its grant.
        self.attempt = Attempt::new(client, self.request)?;
        Ok(None)
    }

    /// After an exclusive grant of a lock that was ever shared: wait until no shared grant is left.
    /// Until then the exclusive grant, which is renewed, only keeps new ones out. `false`: it was
    /// lost, or a single try found a shared grant.
    async fn outlast_readers(&mut self, guard: &LockGuard, timing: Timing) -> Result<bool, Error> {
        self.request.check_exclusive()?;
        // A minimum hold begins when it is in.
        guard.state.set_unavailable_until(BootInstant::ZERO);
        loop {
            let sent = clock::now();
            let Some(outcome) = self.attempt.readers().await else {
                let until = clock::now() + self.request.at_least;
                guard.state.set_unavailable_until(until);
                let wanted = self.request.timing;
                return Ok(wanted == timing || guard.renew_to(wanted).await.is_ok());
            };
            let now = clock::now();
            if !guard.is_held() {
                return Ok(false);
            }
            if self.request.is_single_try() && self.ends_single_try(&outcome, now) {
                return match outcome {
                    Err(failure) => Err(failure.into_error(self.request.op())),
                    Ok(_) => Ok(false),
                };
            }
            let hint = self.interval.after(&outcome, now);
            self.record(outcome, sent)?;
            let pause = match self.request.is_single_try() {
                true => hint.polling,
                false => self.before_end(hint.polling),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether this outcome ends a single try.
    fn ends_single_try(&mut self, outcome: &Result<Outcome, StoreError>, now: BootInstant) -> bool {
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
        let observations = &self.client.observations;
        ends && self
            .extension
            .until(observations, &self.request.key(), now)
            .is_none()
    }

    /// Record a try that granted nothing; returns whether a guard of this process holds the lock.
    ///
    /// # Errors
    ///
    /// A rejection ends the acquisition.
    fn record(
        &mut self,
        outcome: Result<Outcome, StoreError>,
        sent: BootInstant,
    ) -> Result<bool, Error> {
        let name = &self.request.name;
        let mut held_here = false;
        match &outcome {
            Err(StoreError::Rejected { .. }) => {}
            // A single try does not wait, and its error contains the failure.
            Err(_) if self.request.is_single_try() => {}
            Err(failure) => self.client.outages.log_failed(name, sent, failure),
            Ok(outcome) => {
                self.client.outages.log_answered(sent);
                if let Outcome::Held(holder) = outcome {
                    self.unclear_since = None;
                    let queued = self.slot.is_some();
                    held_here = record_holder(self.client, name, holder, queued);
                    if holder.permits.is_some() {
                        self.queues().no_permit_free(name);
                    }
                }
            }
        }
        match outcome {
            Err(refused @ StoreError::Rejected { .. }) => {
                Err(refused.into_error(self.request.op()))
            }
            outcome => {
                self.record_progress(outcome);
                Ok(held_here)
            }
        }
    }

    fn record_progress(&self, outcome: Result<Outcome, StoreError>) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.record(&self.request.name, outcome);
    }

    /// A pause, shortened to leave time for a last try before the wait ends.
    fn before_end(&self, pause: Duration) -> Duration {
        let Some(at) = self.deadline else {
            return pause;
        };
        let overdue = || {
            WaitExtension::default()
                .until(&self.client.observations, &self.request.key(), clock::now())
                .is_some()
        };
        match at - (clock::now() + LAST_TRY) {
            // No time for another try is left, and the limit ends the wait.
            Duration::ZERO if !overdue() => Duration::MAX,
            Duration::ZERO => pause,
            left => pause.min(left),
        }
    }

    /// Announce this waiter; returns whether a release will be notified.
    async fn announce(&self, pause: Duration, anew: bool) -> bool {
        let (name, limit) = (&self.request.name, self.request.limit());
        self.client.store.announce(name, limit, pause, anew).await
    }

    /// Wait until the lock may be free: after a notification, a release within this process, or a
    /// poll.
    ///
    /// A notification during the try that saw the lock `held` was missed, because there was no slot
    /// yet. So the `first` wait is always announced to the store, which then checks whether the
    /// lock is free.
    async fn wait(&mut self, hint: WaitHint, held: bool, first: bool) {
        let Some(slot) = &self.slot else { return };
        let (client, name) = (self.client, &self.request.name);
        let notified = hint.notified.map(|pause| self.before_end(pause));
        let polling = self.before_end(hint.polling);
        let unwoken = async {
            if let Some(pause) = notified
                && self.announce(pause, first).await
            {
                tokio::time::sleep(pause).await;
                return None;
            }
            // A try of a free or locked row costs no more than a poll, nor does one of a semaphore.
            if !held || self.request.limit().is_some() {
                tokio::time::sleep(polling).await;
                return None;
            }
            let unregistered = polling / poller::UNREGISTERED_PART;
            tokio::time::sleep(unregistered).await;
            Some(client.poller.next(name, polling - unregistered).await)
        };
        let polled = tokio::select! {
            biased;
            // If it was woken since the try, it need not be announced.
            () = slot.woken() => None,
            polled = unwoken => polled,
        };
        self.polled = polled.and_then(|polled| self.attempt.outcome_of_poll(polled));
    }
}

/// Record the holder; returns whether it is a grant of this client.
///
/// A caller that is not `queued` may see a grant of this process whose guard does not exist yet.
pub(crate) fn record_holder(
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
