//! One acquisition, step by step: take a turn in the queue of this process, try, judge the answer, wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::attempt::Attempt;
use super::poll_interval::{PollInterval, WaitHint};
use super::progress::Progress;
use super::request::{Want, op};
use crate::client::Inner;
use crate::client::acquire::poller;
use crate::client::acquire::queue::QueueSlot;
use crate::client::guard::LockGuard;
use crate::client::own_grants::is_ours;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::REQUEST_TIMEOUT;
use protocol::{
    BootInstant, GrantId, Holder, Human, LockName, LostReason, Outcome, Token, Version,
    WaitExtension,
};

/// How long a try-once goes on trying where the database answers with a conflict that is not about
/// this lock: a deadlock, another writer on the SQLite file.
const ONCE_CONTENTION: Duration = Duration::from_secs(1);
/// … and where the lock looks free but its row is locked: usually another client is just taking it.
const ONCE_BUSY: Duration = Duration::from_millis(30);
/// How long the first in line waits for a release within this process before it polls.
const HELD_HERE: Duration = Duration::from_secs(1);
/// The last try of a bounded wait begins this long before its end, so that its answer is in time.
const LAST_TRY: Duration = Duration::from_millis(20);
/// For so long before its end, or half of it, a bounded wait leaves others no head start: one try must
/// be left.
const NO_HEAD_START: Duration = Duration::from_millis(100);

/// A try that did not decide it. None: its answer was late.
#[derive(Debug)]
pub(crate) struct Tried(
    pub(crate) Attempt,
    pub(crate) Option<Result<Outcome, StoreError>>,
);

/// One acquisition.
///
/// Dropped at any point, it leaves nothing held: see [`Attempt`].
pub(crate) struct Acquisition<'a> {
    inner: &'a Arc<Inner>,
    want: &'a Arc<Want>,
    progress: &'a Mutex<Progress>,
    deadline: Option<BootInstant>,
    attempt: Attempt,
    interval: PollInterval,
    /// The place in the queue of this process.
    slot: Option<QueueSlot>,
    /// What a poll has said, if the lock is not worth a try yet.
    polled: Option<Result<Outcome, StoreError>>,
    /// How long to wait for a holder of this process, whose release wakes the queue. The try after a while is
    /// for what else may become of it.
    held_here: Option<Duration>,
    /// When an answer first left open who has it, since one that told.
    unclear_since: Option<BootInstant>,
    extension: WaitExtension<Version>,
}

impl<'a> Acquisition<'a> {
    pub(crate) fn new(
        inner: &'a Arc<Inner>,
        want: &'a Arc<Want>,
        tried: Option<Box<Tried>>,
        progress: &'a Mutex<Progress>,
        deadline: Option<BootInstant>,
    ) -> Result<Self, Error> {
        let (attempt, polled) = match tried {
            Some(tried) => (tried.0, tried.1),
            None => (Attempt::new(inner, want)?, None),
        };
        Ok(Self {
            inner,
            want,
            progress,
            deadline,
            attempt,
            interval: PollInterval::new(want.poll),
            slot: None,
            polled,
            held_here: None,
            unclear_since: None,
            extension: WaitExtension::default(),
        })
    }

    pub(crate) async fn run(mut self) -> Result<Option<LockGuard>, Error> {
        let name = &self.want.name;
        // A client that may take it over need not wait behind those that may not.
        if !self.want.preempt {
            if self.want.once() {
                if self.polled.is_none() {
                    clock::sleep(self.inner.queues.head_start(name)).await;
                    self.probe().await;
                }
            } else if self.inner.queues.is_busy(name) {
                self.take_place().await;
                // What was seen before the slot was there is old: what woke the queue since then is lost.
                self.polled = None;
            }
        }
        loop {
            self.wait_until_due().await;
            let sent = clock::now();
            let outcome = match self.polled.take() {
                Some(outcome) => outcome,
                None => self.attempt.once().await,
            };
            if let Ok(Outcome::Granted { token, length }) = outcome {
                self.inner.outages.log_answered(sent);
                match self.granted(token, length, sent).await? {
                    Some(guard) => return Ok(Some(guard)),
                    None => continue,
                }
            }
            let now = clock::now();
            if self.want.once() && self.gives_up(&outcome, now) {
                return match outcome {
                    // Blocked is not held: the caller learns what stands in the way.
                    Err(blocked) => Err(blocked.into_error(op(&self.want.name))),
                    Ok(_) => Ok(None),
                };
            }
            let hint = self.interval.after(&outcome, now);
            let held = matches!(outcome, Ok(Outcome::Held(_)));
            let held_here = self.note(outcome, sent)?;
            if self.want.once() {
                tokio::time::sleep(hint.polling).await;
                continue;
            }
            let first_wait = self.slot.is_none();
            if first_wait && (!self.take_place().await || held_here) {
                // What was seen before is old: a release of this process may have come between.
            } else if held_here {
                self.held_here = Some(hint.notified.unwrap_or(hint.polling));
            } else {
                self.wait(hint, held, first_wait).await;
            }
        }
    }

    /// Join the queue of this process and wait until the slot is the first; whether it was so at once. A waiter
    /// behind others need not ask the database who holds the lock: the first in line does.
    async fn take_place(&mut self) -> bool {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .holder
            .get_or_insert_default();
        let slot = self.inner.queues.join(&self.want.name);
        let at_once = slot.is_first().await;
        self.slot = Some(slot);
        at_once
    }

    /// Wait for a release of this process, if a guard of its own holds the lock, and leave other processes their
    /// head start.
    async fn wait_until_due(&mut self) {
        let pause = self.held_here.take();
        let Some(slot) = self.slot.as_ref().filter(|_| self.polled.is_none()) else {
            return;
        };
        if let Some(pause) = pause.or_else(|| slot.is_held_here().then_some(HELD_HERE)) {
            slot.woken_within(self.within(pause)).await;
        }
        let end = self.deadline.zip(self.want.wait).map(|(at, wait)| {
            let short = NO_HEAD_START.min(wait / 2);
            at - short
        });
        loop {
            let left = slot.head_start();
            let until_end = end.map_or(left, |end| end - clock::now());
            if left.is_zero() || until_end.is_zero() || self.want.preempt {
                break;
            }
            // A notification may change it.
            slot.woken_within(left.min(until_end)).await;
        }
        self.probe().await;
        slot.clear();
    }

    /// After a pause for others that may not be there, find out if one had the lock.
    async fn probe(&self) {
        let (inner, name) = (self.inner, &self.want.name);
        let Some(token) = inner.queues.probe(name) else {
            return;
        };
        let row = inner
            .store
            .read(std::slice::from_ref(name), REQUEST_TIMEOUT)
            .await;
        if row.is_ok_and(|rows| rows.first().is_some_and(|row| row.token != token)) {
            inner.queues.held_elsewhere(name);
        }
    }

    /// The database granted it. None: trust in it had ended before it could be handed out, and the wait goes on.
    async fn granted(
        &mut self,
        token: Token,
        length: Duration,
        sent: BootInstant,
    ) -> Result<Option<LockGuard>, Error> {
        let (inner, name) = (self.inner, &self.want.name);
        inner.queues.acquired(name);
        let loss = match self.attempt.granted(token, length).await {
            Ok(guard) => return Ok(Some(guard)),
            Err(loss) => loss,
        };
        inner.queues.left(name);
        if self.want.once() {
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
        inner.outages.log_failed(name, sent, &late);
        let hint = self.interval.after(&Err(late.again()), clock::now());
        self.noted(Err(late));
        tokio::time::sleep(self.within(hint.polling)).await;
        // The old one gives back what was granted.
        self.attempt = Attempt::new(inner, self.want)?;
        Ok(None)
    }

    /// Whether a try-once is over after this.
    fn gives_up(&mut self, outcome: &Result<Outcome, StoreError>, now: BootInstant) -> bool {
        // Not from before the request: an answer that was long on its way is a moment old, and worth another try.
        let unclear = now - *self.unclear_since.get_or_insert(now);
        let over = match outcome {
            Ok(Outcome::Held(_)) => true,
            Ok(Outcome::Busy) => unclear >= ONCE_BUSY,
            Err(StoreError::Contention(_)) => unclear >= ONCE_CONTENTION,
            Err(StoreError::Unavailable(_)) => true,
            _ => false,
        };
        let (observations, name) = (&self.inner.observations, &self.want.name);
        match outcome {
            Err(StoreError::Unavailable(_)) => over,
            _ => over && self.extension.until(observations, name, now).is_none(),
        }
    }

    /// Take note of a try that granted nothing; whether a guard of this process holds the lock.
    ///
    /// # Errors
    ///
    /// A refusal ends the acquisition.
    fn note(
        &mut self,
        outcome: Result<Outcome, StoreError>,
        sent: BootInstant,
    ) -> Result<bool, Error> {
        let name = &self.want.name;
        let mut held_here = false;
        match &outcome {
            Err(StoreError::Rejected { .. }) => {}
            // A single try does not wait: its error says all.
            Err(_) if self.want.once() => {}
            Err(failure) => self.inner.outages.log_failed(name, sent, failure),
            Ok(outcome) => {
                self.inner.outages.log_answered(sent);
                if let Outcome::Held(holder) = outcome {
                    self.unclear_since = None;
                    let queued = self.slot.is_some();
                    held_here = note_holder(self.inner, name, holder, queued);
                }
            }
        }
        match outcome {
            Err(refused @ StoreError::Rejected { .. }) => Err(refused.into_error(op(name))),
            outcome => {
                self.noted(outcome);
                Ok(held_here)
            }
        }
    }

    fn noted(&self, outcome: Result<Outcome, StoreError>) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.note(&self.want.name, outcome);
    }

    /// A pause that leaves time for a last try before the wait ends.
    fn within(&self, pause: Duration) -> Duration {
        let Some(at) = self.deadline else {
            return pause;
        };
        let overdue = || {
            WaitExtension::default()
                .until(&self.inner.observations, &self.want.name, clock::now())
                .is_some()
        };
        match at - (clock::now() + LAST_TRY) {
            // The wait's end is what ends this.
            Duration::ZERO if !overdue() => Duration::MAX,
            Duration::ZERO => pause,
            left => pause.min(left),
        }
    }

    /// Wait until the lock may be free: a notification, a release of this process, or a poll says so.
    ///
    /// A notification that came before the slot was there, during the try that saw the lock `held`, was missed. So
    /// the `first` wait is announced whatever was announced before, which tells if the lock is free by now.
    async fn wait(&mut self, hint: WaitHint, held: bool, first: bool) {
        let Some(slot) = &self.slot else { return };
        let (inner, name) = (self.inner, &self.want.name);
        let notified = hint.notified.map(|pause| self.within(pause));
        let polling = self.within(hint.polling);
        let unwoken = async {
            if let Some(pause) = notified
                && inner.store.announce(name, pause, first).await
            {
                tokio::time::sleep(pause).await;
                return None;
            }
            // One that is free or locked is tried for: a poll would say no more than that.
            if !held {
                tokio::time::sleep(polling).await;
                return None;
            }
            let alone = polling / poller::ALONE;
            tokio::time::sleep(alone).await;
            Some(inner.poller.next(name, polling - alone).await)
        };
        let polled = tokio::select! {
            polled = unwoken => polled,
            () = slot.woken() => None,
        };
        self.polled = polled.and_then(|seen| self.attempt.judge(seen));
    }
}

/// Take note of who holds it; whether a guard of this process does.
///
/// A caller that is not `queued` may see a grant of this process whose guard is not made yet.
pub(crate) fn note_holder(inner: &Inner, name: &LockName, by: &Holder, queued: bool) -> bool {
    let here = is_held_by(inner, by);
    if !here && (queued || !by.grant.as_deref().is_some_and(is_ours)) {
        inner.queues.held_elsewhere(name);
    }
    here
}

/// Whether it is a guard of these very locks that has it, whose release is heard of here.
fn is_held_by(inner: &Inner, holder: &Holder) -> bool {
    let grant = holder.grant.as_deref().and_then(GrantId::parse);
    !holder.is_legacy && grant.is_some_and(|grant| inner.scheduler.timing(grant).is_some())
}
