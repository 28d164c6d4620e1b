//! Acquiring several locks, all or none: one wait for all of them.
//!
//! Nothing is held during the wait. It is a wait for one of the locks that are held: in the queue
//! of this process for that lock, with its notifications or polls, as a wait for that lock alone.
//! When that one may be free, the store is asked for all of them again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::Instrument;
use tracing::field::Empty;

use super::all_attempt::{AllAttempt, AllRequest};
use super::limit::{limit_of, until_limit};
use super::progress::Progress;
use super::queue::QueueSlot;
use super::reservation::Reservation;
use super::waiter::{NotGranted, OWN_HOLDER_WAIT, Waiter};
use super::{counted, waited_for};
use crate::client::Client;
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::runtime::clock;
use crate::runtime::join::join_all;
use crate::store::api::StoreError;
use protocol::{AllOutcome, BootInstant, LockName, Outcome, Slot, Token};

/// Acquire all of them, or none. If the caller stops waiting, no grant stays held.
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
    let acquired = counted(&client, request.first(), Vec::as_slice, |wait| {
        let (shared, of, from) = (Arc::clone(&client), request.with_wait(wait), clock::now());
        let work = async move {
            let progress = Mutex::new(Progress::default());
            let first = of.first();
            let work = AllAcquisition::new(&shared, &of, &progress, limit_of(first, from))?.run();
            let (names, op) = (of.names(), || of.op());
            until_limit(&shared, first, names, from, &progress, work, op).await
        };
        waited_for(&client, work, &span)
    });
    acquired.instrument(span.clone()).await
}

/// One acquisition of several locks. Dropping it at any point leaves nothing held.
struct AllAcquisition<'a> {
    client: &'a Arc<Client>,
    request: &'a AllRequest,
    names: Vec<LockName>,
    /// In the queue for one of the locks.
    waiter: Waiter<'a>,
    attempt: AllAttempt,
    reservation: Reservation,
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
            waiter: Waiter::new(client, request.first(), names.clone(), progress, deadline),
            attempt: AllAttempt::new(client, request)?,
            reservation: Reservation::new(client.queues(Slot::Lock), names.clone()),
            names,
            shared_at: None,
        })
    }

    async fn run(mut self) -> Result<Option<Vec<LockGuard>>, Error> {
        let queues = self.waiter.queues();
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
            let (outcome, at) = match self.waiter.polled.take() {
                Some(polled) => (polled, self.queued_for()),
                None => match self.ask(sent).await? {
                    Asked::Granted(guards) => return Ok(Some(guards)),
                    Asked::Again => continue,
                    Asked::NotGranted(outcome, at) => (outcome, at),
                },
            };
            let done = self.waiter.not_granted(&self.names[at], outcome, sent);
            let done = done.map_err(|failure| failure.into_error(self.request.op()));
            let Some(mut next) = done? else {
                return Ok(None);
            };
            if single {
                tokio::time::sleep(next.hint.polling).await;
                continue;
            }
            let moved = next.held && self.join(at);
            if moved && (next.held_here || !self.is_first()) {
                // The try predates the queue slot, so a release within this process may have been
                // missed.
            } else if next.held_here {
                self.waiter.wait_for_own_holder = Some(next.hint.if_noticed());
            } else {
                if !next.held {
                    // There is no lock that it could be announced for.
                    next.hint.notified = None;
                }
                self.wait(next, moved).await;
            }
        }
    }

    /// Join the queue for this lock, and leave another one; returns whether that is a new place.
    fn join(&mut self, at: usize) -> bool {
        let (name, slot) = (&self.names[at], &self.waiter.slot);
        let moved = slot.as_ref().is_none_or(|slot| slot.name() != name);
        if moved {
            self.waiter.join(name);
        }
        moved
    }

    fn is_first(&self) -> bool {
        let slot = self.waiter.slot.as_ref();
        slot.is_none_or(QueueSlot::is_front)
    }

    /// The lock in whose queue this is; the first one if in none.
    fn queued_for(&self) -> usize {
        let name = self.waiter.slot.as_ref().map(QueueSlot::name);
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
            .filter(|at| self.waiter.slot.is_some() && held(at) && !overdue(at))
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
        let timing = self.request.first().timing;
        let granted = self.attempt.granted(self.client, tokens, length, timing);
        let (name, loss) = match granted.await {
            Ok(guards) => return Ok(Asked::Granted(guards)),
            Err(lost) => lost,
        };
        if self.request.first().is_single_try() {
            return Err(Error::lost(&name, loss));
        }
        let late = self.waiter.record_lost_grant(&name, &loss, length, sent);
        late.await;
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

    /// Wait until it is the turn of this wait: it is the first of the queue that it is in, no guard
    /// of this process holds that lock, and neither other processes nor older waits for several
    /// locks go first. Or until it goes first itself: it has a [`Reservation`].
    async fn wait_until_due(&mut self) {
        let (active, change) = self.reservation.update();
        let pause = self.waiter.wait_for_own_holder.take();
        if self.waiter.polled.is_some() {
            return;
        }
        let held_here = |slot: &QueueSlot| slot.is_held_here().then_some(OWN_HOLDER_WAIT);
        let waiter = &self.waiter;
        let held_here = waiter.slot.as_ref().filter(|_| !active).and_then(held_here);
        if let Some(pause) = pause.or(held_here) {
            self.woken_within(waiter.before_end(pause).min(change))
                .await;
        }
        let end = waiter.head_start_end();
        loop {
            let (active, change) = self.reservation.update();
            let Some(slot) = waiter.slot.as_ref().filter(|_| !active) else {
                break;
            };
            let mut pause = Duration::MAX;
            if slot.is_front() {
                let others = waiter.queues().head_start(slot.name());
                pause = others.max(self.reservation.by_older());
                pause = end.map_or(pause, |end| pause.min(end - clock::now()));
            }
            if pause.is_zero() {
                break;
            }
            self.woken_within(pause.min(change)).await;
        }
        if let Some(slot) = &waiter.slot {
            slot.clear();
        }
    }

    /// Wait for a wake-up, for at most `pause`.
    async fn woken_within(&self, pause: Duration) {
        let woken = async {
            tokio::select! {
                () = woken(self.waiter.slot.as_ref()) => {}
                () = self.reservation.woken() => {}
            }
        };
        let _ = tokio::time::timeout(pause, woken).await;
    }

    /// Wait until the lock may be free: after a notification, a release within this process, a poll,
    /// or when a reservation begins.
    async fn wait(&mut self, next: NotGranted, moved: bool) {
        let (_, change) = self.reservation.update();
        let at = self.queued_for();
        let pause = self.waiter.pause(&self.names[at], next, moved);
        let polled = tokio::select! {
            polled = pause => polled,
            () = self.woken_within(change) => None,
        };
        let attempt = self.attempt.get_mut(at);
        self.waiter.polled = polled.and_then(|polled| attempt?.outcome_of_poll(polled));
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
