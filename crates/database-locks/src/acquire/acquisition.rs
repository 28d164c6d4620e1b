//! One acquisition, step by step: take a turn in the queue of this process, try, judge the answer, wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::attempt::Attempt;
use super::pace::Pace;
use super::{Progress, Tried, Want, op};
use crate::clock::{self, Time};
use crate::error::{Error, Human, LostReason};
use crate::guard::LockGuard;
use crate::inner::Inner;
use crate::looks;
use crate::name::LockName;
use crate::store::{Occupant, Outcome, Pauses, StoreError, Version, Woken};
use crate::token::{GrantId, Token};
use crate::turns::Turn;
use crate::watch::Stretch;

/// How long a try-once goes on trying where the database answers with a conflict that is not about
/// this lock: a deadlock, another writer on the SQLite file.
const ONCE_CONTENTION: Duration = Duration::from_secs(1);
/// … and where the lock looks free but its row is locked: usually another client is just taking it.
const ONCE_BUSY: Duration = Duration::from_millis(30);
/// How long the first in line waits for a release within this process before it polls.
const HELD_HERE: Duration = Duration::from_secs(1);
/// The last try of a bounded wait begins this long before its end, so that its answer is in time.
const LAST_TRY: Duration = Duration::from_millis(20);

/// One acquisition.
///
/// Dropped at any point, it leaves nothing held: see [`Attempt`].
pub(super) struct Acquisition<'a> {
    inner: &'a Arc<Inner>,
    want: &'a Arc<Want>,
    progress: &'a Mutex<Progress>,
    deadline: Option<Time>,
    attempt: Attempt,
    pace: Pace,
    /// Our place among the waiters of this process.
    turn: Option<Turn>,
    /// What a poll has said: then it is not worth a try yet.
    polled: Option<Result<Outcome, StoreError>>,
    /// How long to wait for a holder of this process, whose release wakes us without a notification of the
    /// database's. The try after a while is for what else may become of it.
    held_here: Option<Duration>,
    /// Since when no holder is known.
    unclear_since: Time,
    stretch: Stretch<Version>,
}

impl<'a> Acquisition<'a> {
    pub(super) fn new(
        inner: &'a Arc<Inner>,
        want: &'a Arc<Want>,
        tried: Option<Tried>,
        progress: &'a Mutex<Progress>,
        deadline: Option<Time>,
    ) -> Result<Self, Error> {
        let (attempt, polled) = match tried {
            Some(Tried(attempt, outcome)) => (attempt, Some(outcome)),
            None => (Attempt::new(inner, want)?, None),
        };
        Ok(Self {
            inner,
            want,
            progress,
            deadline,
            attempt,
            pace: Pace::new(want.poll),
            turn: None,
            polled,
            held_here: None,
            unclear_since: clock::now(),
            stretch: Stretch::default(),
        })
    }

    pub(super) async fn run(mut self) -> Result<Option<LockGuard>, Error> {
        if self.polled.is_none() {
            self.leave_head_start().await;
        }
        // A client that may take it over need not wait behind those that may not.
        if !self.want.once()
            && !self.want.preempt
            && self.inner.turns.is_waited_for(&self.want.name)
            && !self.take_turn().await
        {
            // What was seen before is old.
            self.polled = None;
        }
        loop {
            self.wait_for_release_here().await;
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
            let pauses = self.pace.after(&outcome, now);
            let held_here = self.note(outcome, sent, now)?;
            if self.want.once() {
                tokio::time::sleep(pauses.unannounced).await;
            } else if self.turn.is_none() && !self.take_turn().await {
                // What was seen before is old.
            } else if held_here {
                self.held_here = Some(self.within(pauses.announced));
            } else {
                self.wait(pauses).await;
            }
        }
    }

    /// Let other processes try first, where this one has just released the lock.
    async fn leave_head_start(&self) {
        if self.want.preempt {
            return;
        }
        let left = self.inner.head_starts.left(&self.want.name, clock::now());
        // Of a short wait there must be time left for a try.
        let most = match self.want.wait {
            Some(wait) if !wait.is_zero() => wait / 2,
            _ => Duration::MAX,
        };
        if !left.is_zero() {
            tokio::time::sleep(left.min(most)).await;
        }
    }

    /// Join the waiters of this process and wait for our turn; whether it came at once. A waiter behind others
    /// need not ask the database who holds the lock: the first in line does.
    async fn take_turn(&mut self) -> bool {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .occupant
            .get_or_insert_default();
        let turn = self.inner.turns.join(&self.want.name);
        let at_once = turn.comes().await;
        self.turn = Some(turn);
        at_once
    }

    /// While a holder of this process has it, wait for its release rather than ask.
    async fn wait_for_release_here(&mut self) {
        let Some(turn) = &self.turn else { return };
        let left = || {
            self.deadline
                .map(|at| at.saturating_sub(clock::now() + LAST_TRY))
        };
        let unseen = || left().map_or(HELD_HERE, |left| left.min(HELD_HERE));
        let pause = self.held_here.take();
        if let Some(pause) = pause.or_else(|| turn.is_held_here().then(unseen)) {
            turn.rings_within(pause).await;
        }
    }

    /// The database granted it. None: trust in it had ended before it could be handed out, and the wait goes on.
    async fn granted(
        &mut self,
        token: Token,
        length: Duration,
        sent: Time,
    ) -> Result<Option<LockGuard>, Error> {
        let (inner, name) = (self.inner, &self.want.name);
        inner.turns.taken(name);
        let loss = match self.attempt.granted(token, length).await {
            Ok(guard) => return Ok(Some(guard)),
            Err(loss) => loss,
        };
        inner.turns.left(name);
        if self.want.once() {
            return Err(loss.error(name));
        }
        let took = clock::now().saturating_sub(sent);
        let late = StoreError::cannot_serve(match loss.reason() {
            LostReason::Expired => format!(
                "it was granted, and {} passed before that could be relied on, too long for a lease of {}",
                Human(took),
                Human(length)
            ),
            _ => format!("it was granted, and {loss}"),
        });
        inner.outages.log_failed(name, sent, &late);
        let pause = self.pace.after(&Err(late.again()), clock::now());
        self.noted(Err(late));
        tokio::time::sleep(self.within(pause.unannounced)).await;
        // The old one gives back what was granted.
        self.attempt = Attempt::new(inner, self.want)?;
        Ok(None)
    }

    /// Whether a try-once is over after this.
    fn gives_up(&mut self, outcome: &Result<Outcome, StoreError>, now: Time) -> bool {
        let unclear = now - self.unclear_since;
        let over = match outcome {
            Ok(Outcome::Held(_)) => true,
            Ok(Outcome::Busy) => unclear >= ONCE_BUSY,
            Err(StoreError::Contention(_)) => unclear >= ONCE_CONTENTION,
            Err(StoreError::Unavailable(_)) => true,
            _ => false,
        };
        let (watches, name) = (&self.inner.watches, &self.want.name);
        match outcome {
            Err(StoreError::Unavailable(_)) => over,
            _ => over && self.stretch.until(watches, name, now).is_none(),
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
        sent: Time,
        now: Time,
    ) -> Result<bool, Error> {
        let name = &self.want.name;
        let mut held_here = false;
        match &outcome {
            Err(StoreError::Rejected { .. }) => {}
            Err(failure) => self.inner.outages.log_failed(name, sent, failure),
            Ok(outcome) => {
                self.inner.outages.log_answered(sent);
                if let Outcome::Held(occupant) = outcome {
                    self.unclear_since = now;
                    held_here = note_holder(self.inner, name, occupant, now);
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
            Stretch::default()
                .until(&self.inner.watches, &self.want.name, clock::now())
                .is_some()
        };
        match at.saturating_sub(clock::now() + LAST_TRY) {
            // The wait's end is what ends this.
            Duration::ZERO if !overdue() => Duration::MAX,
            Duration::ZERO => pause,
            left => pause.min(left),
        }
    }

    /// Wait until the lock may be free: a notification, a release of this process, or a poll says so.
    async fn wait(&mut self, pauses: Pauses) {
        let Some(turn) = &self.turn else { return };
        let (inner, name) = (self.inner, &self.want.name);
        let unannounced = self.within(pauses.unannounced);
        // One that is free or locked is tried for at once: a poll would say no more than that.
        let alone = match pauses.held {
            true => unannounced / looks::ALONE,
            false => unannounced,
        };
        let woken = tokio::select! {
            woken = inner.store.freed(name, Pauses {
                held: pauses.held,
                announced: self.within(pauses.announced),
                unannounced: alone,
            }) => woken,
            () = turn.rings() => Woken::Rung,
        };
        if pauses.held && woken == Woken::Unheard {
            self.polled = tokio::select! {
                seen = inner.looks.next(name, unannounced - alone) => self.attempt.judge(seen),
                () = turn.rings() => None,
            };
        }
    }
}

/// Whether a caller may try before it has waited for anything: no waiter of this process comes first, nor
/// other processes.
pub(super) fn may_try_at_once(inner: &Inner, want: &Want) -> bool {
    let name = &want.name;
    !inner.turns.is_waited_for(name) && inner.head_starts.left(name, clock::now()).is_zero()
}

/// Take note of who has it; whether a guard of this process has.
pub(super) fn note_holder(inner: &Inner, name: &LockName, by: &Occupant, now: Time) -> bool {
    let here = is_held_by(inner, by);
    if !here {
        inner.turns.taken_elsewhere(name);
        inner.head_starts.held_elsewhere(name, now);
    }
    here
}

/// Whether it is a guard of these very locks that has it, whose release is heard of here.
fn is_held_by(inner: &Inner, occupant: &Occupant) -> bool {
    let grant = occupant.grant.as_deref().and_then(GrantId::parse);
    occupant.intact && grant.is_some_and(|grant| inner.scheduler.timing(grant).is_some())
}
