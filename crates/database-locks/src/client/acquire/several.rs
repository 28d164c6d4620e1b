//! Acquiring several locks, all or none: one wait for all of them.
//!
//! Nothing is held during the wait. It is a wait for one of the locks that are held: in the queue
//! of this process for that lock, with its notifications or polls, as a wait for that lock alone.
//! When that one may be free, the store is asked for all of them again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::acquisition::{
    BUSY_RETRY_FOR, CONTENTION_RETRY_FOR, LAST_TRY, NO_HEAD_START, OWN_HOLDER_WAIT, record_holder,
};
use super::all_attempt::{AllAttempt, AllRequest};
use super::poll_interval::{PollInterval, WaitHint};
use super::progress::Progress;
use super::queue::QueueSlot;
use super::reservation::Reservation;
use super::{counted, limit_of, poller, until_limit, waited_for};
use crate::client::Client;
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::runtime::clock;
use crate::runtime::join::join_all;
use crate::store::api::StoreError;
use protocol::{
    AllOutcome, BootInstant, Human, LockName, Outcome, Slot, Token, Version, WaitExtension,
};

/// Acquire all of them, or none. If the caller stops waiting, no grant stays held.
///
/// As for one lock, trust is checked last, on the caller's thread.
pub(crate) async fn acquire_all(
    client: Arc<Client>,
    request: AllRequest,
) -> Result<Option<Vec<LockGuard>>, Error> {
    let span = tracing::debug_span!(
        "acquire all",
        lock.name = request.first().name.as_str(),
        lock.names = request.0.len(),
        lock.token = Empty,
        lock.holder = Empty,
        lock.waited_ms = Empty
    );
    let acquiring = acquire_trusted(&client, request.clone(), &span);
    let name = &request.first().name;
    let acquired = counted(&client, name, acquiring, Vec::as_slice);
    acquired.instrument(span.clone()).await
}

async fn acquire_trusted(
    client: &Arc<Client>,
    mut request: AllRequest,
    span: &Span,
) -> Result<Option<Vec<LockGuard>>, Error> {
    let (began, limit) = (clock::now(), request.first().wait);
    loop {
        let (shared, of, from) = (Arc::clone(client), request.clone(), clock::now());
        let work = async move {
            let progress = Mutex::new(Progress::default());
            let first = of.first();
            let work = AllAcquisition::new(&shared, &of, &progress, limit_of(first, from))?.run();
            until_limit(&shared, first, of.names(), from, &progress, work, || {
                of.op()
            })
            .await
        };
        let Some(guards) = waited_for(client, work, span).await? else {
            return Ok(None);
        };
        let Err(lost) = guards.iter().try_for_each(LockGuard::still_trusted) else {
            return Ok(Some(guards));
        };
        drop(guards);
        let left = limit.map(|limit| limit.saturating_sub(clock::now() - began));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(lost);
        }
        request = request.with_wait(left);
    }
}

/// One acquisition of several locks. Dropping it at any point leaves nothing held.
struct AllAcquisition<'a> {
    client: &'a Arc<Client>,
    request: &'a AllRequest,
    names: Vec<LockName>,
    progress: &'a Mutex<Progress>,
    deadline: Option<BootInstant>,
    attempt: AllAttempt,
    interval: PollInterval,
    reservation: Reservation,
    /// The place in the queue of this process for one of the locks.
    slot: Option<QueueSlot>,
    /// The result of a poll of that lock, if it is not worth a try yet.
    polled: Option<Result<Outcome, StoreError>>,
    wait_for_own_holder: Option<Duration>,
    unclear_since: Option<BootInstant>,
    extensions: HashMap<(LockName, Slot), WaitExtension<Version>>,
    /// The lock of which shared grants were left at the last try.
    shared_at: Option<usize>,
}

impl<'a> AllAcquisition<'a> {
    fn new(
        client: &'a Arc<Client>,
        request: &'a AllRequest,
        progress: &'a Mutex<Progress>,
        deadline: Option<BootInstant>,
    ) -> Result<Self, Error> {
        let names = request.names();
        Ok(Self {
            client,
            request,
            progress,
            deadline,
            attempt: AllAttempt::new(client, request)?,
            interval: PollInterval::new(request.first().poll),
            reservation: Reservation::new(client.queues(Slot::Lock), names.clone()),
            names,
            slot: None,
            polled: None,
            wait_for_own_holder: None,
            unclear_since: None,
            extensions: HashMap::new(),
            shared_at: None,
        })
    }

    async fn run(mut self) -> Result<Option<Vec<LockGuard>>, Error> {
        let queues = self.client.queues(Slot::Lock);
        let single = self.request.first().is_single_try();
        if single {
            let names = self.names.iter();
            let head_start = names.map(|name| queues.head_start(name)).max();
            clock::sleep(head_start.unwrap_or_default()).await;
        } else if let Some(busy) = self.names.iter().position(|name| queues.is_busy(name)) {
            // The waiters of this process are served in order.
            self.join(busy);
        }
        loop {
            if !single {
                self.wait_until_due().await;
            }
            let sent = clock::now();
            let (outcome, at) = match self.polled.take() {
                Some(polled) => (polled, self.queued_for()),
                None => match self.ask(sent).await? {
                    Asked::Granted(guards) => return Ok(Some(guards)),
                    Asked::Again => continue,
                    Asked::NotGranted(outcome, at) => (outcome, at),
                },
            };
            let now = clock::now();
            if single && self.ends_single_try(&outcome, at, now) {
                return match outcome {
                    Err(blocked) => Err(blocked.into_error(self.request.op())),
                    Ok(_) => Ok(None),
                };
            }
            let hint = self.interval.after(&outcome, now);
            let held = matches!(outcome, Ok(Outcome::Held(_)));
            let held_here = self.record(outcome, at, sent)?;
            if single {
                tokio::time::sleep(hint.polling).await;
                continue;
            }
            let moved = held && self.join(at);
            if moved && (held_here || !self.is_first()) {
                // The try predates the queue slot, so a release within this process may have been
                // missed.
            } else if held_here {
                self.wait_for_own_holder = Some(hint.notified.unwrap_or(hint.polling));
            } else {
                self.wait(hint, held, moved).await;
            }
        }
    }

    /// Join the queue for this lock, and leave another one; returns whether that is a new place.
    fn join(&mut self, at: usize) -> bool {
        let name = &self.names[at];
        let moved = self.slot.as_ref().is_none_or(|slot| slot.name() != name);
        if moved {
            let slot = self.client.queues(Slot::Lock).join(name);
            self.slot = Some(slot);
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.holder.get_or_insert_default();
        moved
    }

    fn is_first(&self) -> bool {
        self.slot.as_ref().is_none_or(QueueSlot::is_front)
    }

    /// The lock in whose queue this is; the first one if in none.
    fn queued_for(&self) -> usize {
        let name = self.slot.as_ref().map(QueueSlot::name);
        let at = name.and_then(|name| self.names.iter().position(|one| one == name));
        at.unwrap_or_default()
    }

    /// Ask the store for all of them.
    async fn ask(&mut self, sent: BootInstant) -> Result<Asked, Error> {
        // While shared grants of one are left, none is acquired, not even for a moment.
        if let Some(at) = self.shared_at
            && let Some(attempt) = self.attempt.get_mut(at)
            && let Some(left) = attempt.readers().await
        {
            return Ok(Asked::NotGranted(left, at));
        }
        self.shared_at = None;
        let (outcome, spoiled) = self.attempt.send(self.client).await;
        if spoiled {
            self.attempt = AllAttempt::new(self.client, self.request)?;
        }
        let holders = match outcome {
            Ok(AllOutcome::Granted {
                tokens,
                length,
                shared,
                ..
            }) => {
                self.client.outages.log_answered(sent);
                return match self.granted(&tokens, length, sent).await? {
                    Asked::Granted(guards) => self.without_readers(guards, &shared).await,
                    other => Ok(other),
                };
            }
            Ok(AllOutcome::NotGranted(holders)) => holders,
            Err(failure) => return Ok(Asked::NotGranted(Err(failure), self.queued_for())),
        };
        let held = |at: &usize| holders.get(*at).is_some_and(Option::is_some);
        let overdue = |at: &usize| {
            let holder = holders.get(*at).and_then(Option::as_ref);
            let expiry = holder.and_then(|holder| holder.observed_expiry.as_ref());
            expiry.is_some_and(|expiry| expiry.overdue)
        };
        // The lock that is waited for already, if it is still held. Else one whose holder is alive:
        // a wait is extended only for one that looks dead.
        let all = || 0..self.names.len();
        let at = Some(self.queued_for())
            .filter(|at| self.slot.is_some() && held(at) && !overdue(at))
            .or_else(|| all().find(|at| held(at) && !overdue(at)))
            .or_else(|| all().find(held));
        let outcome = match at.and_then(|at| holders.get(at).cloned().flatten()) {
            Some(holder) if !spoiled => Outcome::Held(holder),
            _ => Outcome::Busy,
        };
        let at = at.unwrap_or_else(|| self.queued_for());
        Ok(Asked::NotGranted(Ok(outcome), at))
    }

    /// Turn the grants into guards, or go on waiting if trust ended before.
    async fn granted(
        &mut self,
        tokens: &[Token],
        length: Duration,
        sent: BootInstant,
    ) -> Result<Asked, Error> {
        let (name, loss) = match self.attempt.granted(self.client, tokens, length).await {
            Ok(guards) => return Ok(Asked::Granted(guards)),
            Err(lost) => lost,
        };
        if self.request.first().is_single_try() {
            return Err(Error::lost(&name, loss));
        }
        let took = Human(clock::now() - sent);
        let late = StoreError::cannot_serve(format!(
            "it was granted, and {loss}, {took} after it was asked for"
        ));
        self.client.outages.log_failed(&name, sent, &late);
        let hint = self.interval.after(&Err(late.duplicate()), clock::now());
        self.record_progress(&name, Err(late));
        tokio::time::sleep(self.before_end(hint.polling)).await;
        // Dropping the old attempt releases what is left of its grants.
        self.attempt = AllAttempt::new(self.client, self.request)?;
        Ok(Asked::Again)
    }

    /// If shared grants of one of these locks are left, give all of them up: nothing is held while
    /// waiting.
    async fn without_readers(
        &mut self,
        guards: Vec<LockGuard>,
        shared: &[bool],
    ) -> Result<Asked, Error> {
        for (at, _) in shared.iter().enumerate().filter(|(_, shared)| **shared) {
            let Some(attempt) = self.attempt.get_mut(at) else {
                continue;
            };
            if let Some(left) = attempt.readers().await {
                // Another try right after this one must not find these grants.
                join_all(guards.into_iter().map(LockGuard::release)).await;
                self.shared_at = Some(at);
                self.attempt = AllAttempt::new(self.client, self.request)?;
                return Ok(Asked::NotGranted(left, at));
            }
        }
        Ok(Asked::Granted(guards))
    }

    fn ends_single_try(
        &mut self,
        outcome: &Result<Outcome, StoreError>,
        at: usize,
        now: BootInstant,
    ) -> bool {
        if let Err(StoreError::Unavailable(_)) = outcome {
            return true;
        }
        let unclear = now - *self.unclear_since.get_or_insert(now);
        let ends = match outcome {
            Ok(Outcome::Held(_)) => true,
            Ok(Outcome::Busy) => unclear >= BUSY_RETRY_FOR,
            Err(StoreError::Contention(_)) => unclear >= CONTENTION_RETRY_FOR,
            _ => false,
        };
        let key = (self.names[at].clone(), Slot::Lock);
        let extension = self.extensions.entry(key.clone()).or_default();
        let observations = &self.client.observations;
        ends && extension.until(observations, &key, now).is_none()
    }

    /// Record a try that granted nothing; returns whether a guard of this process holds the lock
    /// that is waited for.
    ///
    /// # Errors
    ///
    /// A rejection ends the acquisition.
    fn record(
        &mut self,
        outcome: Result<Outcome, StoreError>,
        at: usize,
        sent: BootInstant,
    ) -> Result<bool, Error> {
        let name = &self.names[at];
        let mut held_here = false;
        match &outcome {
            Err(StoreError::Rejected { .. }) => {}
            Err(_) if self.request.first().is_single_try() => {}
            Err(failure) => self.client.outages.log_failed(name, sent, failure),
            Ok(outcome) => {
                self.client.outages.log_answered(sent);
                if let Outcome::Held(holder) = outcome {
                    self.unclear_since = None;
                    held_here = record_holder(self.client, name, holder, self.slot.is_some());
                }
            }
        }
        match outcome {
            Err(refused @ StoreError::Rejected { .. }) => {
                Err(refused.into_error(self.request.op()))
            }
            outcome => {
                self.record_progress(name, outcome);
                Ok(held_here)
            }
        }
    }

    fn record_progress(&self, name: &LockName, outcome: Result<Outcome, StoreError>) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.record(name, outcome);
    }

    /// A pause, shortened to leave time for a last try before the wait ends.
    fn before_end(&self, pause: Duration) -> Duration {
        let Some(at) = self.deadline else {
            return pause;
        };
        match at - (clock::now() + LAST_TRY) {
            Duration::ZERO => {
                let (now, mut names) = (clock::now(), self.names.iter());
                let overdue = names.any(|name| {
                    let mut extension = WaitExtension::default();
                    let observations = &self.client.observations;
                    let key = (name.clone(), Slot::Lock);
                    extension.until(observations, &key, now).is_some()
                });
                // Without time for another try, the limit ends the wait.
                if overdue { pause } else { Duration::MAX }
            }
            left => pause.min(left),
        }
    }

    /// Wait until it is the turn of this wait: it is the first of the queue that it is in, no guard
    /// of this process holds that lock, and neither other processes nor older waits for several
    /// locks go first. Or until it goes first itself: it has a [`Reservation`].
    async fn wait_until_due(&mut self) {
        let (active, change) = self.reservation.update();
        let pause = self.wait_for_own_holder.take();
        if self.polled.is_some() {
            return;
        }
        let held_here = |slot: &QueueSlot| slot.is_held_here().then_some(OWN_HOLDER_WAIT);
        let held_here = self.slot.as_ref().filter(|_| !active).and_then(held_here);
        if let Some(pause) = pause.or(held_here) {
            self.woken_within(self.before_end(pause).min(change)).await;
        }
        let wait = self.request.first().wait.unwrap_or_default();
        let end = self.deadline.map(|at| at - NO_HEAD_START.min(wait / 2));
        loop {
            let (active, change) = self.reservation.update();
            let Some(slot) = self.slot.as_ref().filter(|_| !active) else {
                break;
            };
            let mut pause = Duration::MAX;
            if slot.is_front() {
                let others = self.client.queues(Slot::Lock).head_start(slot.name());
                pause = others.max(self.reservation.by_older());
                pause = end.map_or(pause, |end| pause.min(end - clock::now()));
            }
            if pause.is_zero() {
                break;
            }
            self.woken_within(pause.min(change)).await;
        }
        if let Some(slot) = &self.slot {
            slot.clear();
        }
    }

    /// Wait for a wake-up, for at most `pause`.
    async fn woken_within(&self, pause: Duration) {
        let woken = async {
            tokio::select! {
                () = woken(self.slot.as_ref()) => {}
                () = self.reservation.woken() => {}
            }
        };
        let _ = tokio::time::timeout(pause, woken).await;
    }

    /// Wait until the lock may be free: after a notification, a release within this process, a poll,
    /// or when a reservation begins.
    async fn wait(&mut self, hint: WaitHint, held: bool, moved: bool) {
        let (_, change) = self.reservation.update();
        let notified = hint.notified.map(|pause| self.before_end(pause));
        let polling = self.before_end(hint.polling);
        let client = self.client;
        let unwoken = async {
            let Some(slot) = self.slot.as_ref().filter(|_| held) else {
                tokio::time::sleep(polling).await;
                return None;
            };
            let name = slot.name();
            if let Some(pause) = notified
                && client.store.announce(name, None, pause, moved).await
            {
                tokio::time::sleep(pause).await;
                return None;
            }
            let unregistered = polling / poller::UNREGISTERED_PART;
            tokio::time::sleep(unregistered).await;
            Some(client.poller.next(name, polling - unregistered).await)
        };
        let polled = tokio::select! {
            polled = unwoken => polled,
            () = self.woken_within(change) => None,
        };
        let at = self.queued_for();
        let attempt = self.attempt.get_mut(at);
        self.polled = polled.and_then(|polled| attempt?.outcome_of_poll(polled));
    }
}

/// The result of a try.
enum Asked {
    Granted(Vec<LockGuard>),
    /// Granted too late to be relied on.
    Again,
    /// Not granted; the outcome for the lock that is waited for, and which one that is.
    NotGranted(Result<Outcome, StoreError>, usize),
}

async fn woken(slot: Option<&QueueSlot>) {
    match slot {
        Some(slot) => slot.woken().await,
        None => std::future::pending().await,
    }
}
