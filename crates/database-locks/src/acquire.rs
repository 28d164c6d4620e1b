//! Try once, or wait until it is ours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::clock::{self, Time};
use crate::error::{Error, LostReason};
use crate::guard::LockGuard;
use crate::holder::over;
use crate::inner::Inner;
use crate::lease::Lease;
use crate::metrics::{self, Waiting};
use crate::name::LockName;
use crate::ours::{Ours, is_ours};
use crate::release::give_back;
use crate::renew::{Held, Status, ms};
use crate::store::{Ask, Grant, Occupant, Outcome, Pauses, Return, StoreError, TakeOver};
use crate::timing::{MAX_FIRST_GRANT, Timing, Ttl};
use crate::token::{GrantId, Token};
use crate::turns::Turn;

/// How long one request to the database may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a try-once goes on trying where the database answers with a conflict that is not about
/// this lock: a deadlock, another writer on the SQLite file.
const ONCE_CONTENTION: Duration = Duration::from_secs(1);
/// … and where the lock looks free but its row is locked: usually somebody else is just taking it.
const ONCE_BUSY: Duration = Duration::from_millis(30);
/// The pause between two looks at a lock that changes hands often, and the longest one by default.
const SHORTEST_POLL: Duration = Duration::from_millis(20);
pub(crate) const LONGEST_POLL: Duration = Duration::from_millis(250);
/// The longest one where releases are announced, for a lost announcement must cost no more than that.
const ANNOUNCED_POLL: Duration = Duration::from_secs(5);
/// The same while the database cannot be reached.
const SHORTEST_OUTAGE: Duration = Duration::from_millis(50);
const LONGEST_OUTAGE: Duration = Duration::from_secs(1);
/// The last try of a bounded wait begins this long before its end, so that its answer is in time.
const LAST_TRY: Duration = Duration::from_millis(20);

/// What is wanted, all rules checked.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) name: LockName,
    pub(crate) holder: Arc<str>,
    pub(crate) metadata: Arc<str>,
    pub(crate) timing: Timing,
    /// None: as long as it takes; zero: try once.
    pub(crate) wait: Option<Duration>,
    /// Whether the same holder in another process loses it to us.
    pub(crate) take_over: bool,
    /// The longest pause between two looks at a lock that somebody else has.
    pub(crate) poll: Duration,
}

impl Want {
    fn once(&self) -> bool {
        self.wait.is_some_and(|wait| wait.is_zero())
    }
}

/// Acquire on the background thread. If nobody wants the result any more, nothing stays held.
pub(crate) async fn acquire(inner: Arc<Inner>, want: Want) -> Result<Option<LockGuard>, Error> {
    let (mut wanted, result) = tokio::sync::oneshot::channel();
    let shared = Arc::clone(&inner);
    // Made here, where the caller's own span is current.
    let span = tracing::debug_span!(
        "acquire",
        lock.name = want.name.as_str(),
        lock.token = Empty,
        lock.holder = Empty,
        lock.waited_ms = Empty
    );
    let work = async move {
        // Dropping the work gives back what it may have acquired: see `Attempt`.
        let done = tokio::select! {
            done = observed(&inner, &want) => done,
            () = wanted.closed() => {
                metrics::not_acquired(inner.store.engine(), "given_up");
                return;
            }
        };
        // A guard that nobody takes is dropped, and so releases.
        drop(wanted.send(done));
    };
    let task = crate::runtime::handle()?.spawn(work.instrument(span));
    let mut abandoned = Abandoned {
        inner: shared,
        task: Some(task),
    };
    let done = result.await;
    abandoned.task = None;
    done.unwrap_or_else(|stopped| {
        Err(Error::Unavailable {
            op: "acquire a lock".into(),
            source: Box::new(stopped),
        })
    })
}

/// An acquire that nobody waits for any more counts as pending until it has noticed that, and has
/// begun to give back what it may have acquired.
struct Abandoned {
    inner: Arc<Inner>,
    /// None: it has answered.
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let (Some(task), Ok(runtime)) = (self.task.take(), crate::runtime::handle()) {
            let pending = self.inner.pending.clone();
            runtime.spawn(async move {
                let _ = task.await;
                drop(pending);
            });
        }
    }
}

/// `within_wait`, counted and logged.
async fn observed(inner: &Arc<Inner>, want: &Want) -> Result<Option<LockGuard>, Error> {
    let (engine, began) = (inner.store.engine(), clock::now());
    let under_way = Waiting::new(engine);
    let done = within_wait(inner, want).await;
    drop(under_way);
    let waited = clock::now() - began;
    let reason = match &done {
        Ok(Some(guard)) => {
            metrics::acquired(engine, waited);
            let (token, holder, waited) = (guard.token().get(), guard.holder(), ms(waited));
            let span = Span::current();
            span.record("lock.token", token);
            span.record("lock.holder", holder);
            span.record("lock.waited_ms", waited);
            tracing::debug!(
                lock.name = guard.name().as_str(),
                lock.token = token,
                lock.holder = holder,
                lock.waited_ms = waited,
                "lock acquired"
            );
            return done;
        }
        Ok(None) => "busy",
        Err(Error::TimedOut { .. }) => "timed_out",
        Err(Error::HeldOff { .. }) => "held_off",
        Err(Error::Unavailable { .. }) => "unavailable",
        Err(Error::Lost { .. }) => "lost",
        Err(Error::Rejected { .. } | Error::Config { .. }) => "rejected",
    };
    metrics::not_acquired(engine, reason);
    tracing::debug!(
        lock.name = want.name.as_str(),
        lock.waited_ms = ms(waited),
        reason,
        "lock not acquired"
    );
    done
}

/// What was learnt while waiting, for the error at its end.
#[derive(Debug, Default)]
struct Progress {
    occupant: Option<Occupant>,
    failure: Option<StoreError>,
    /// Who was last said to have it.
    told: Option<(Option<Token>, Option<String>)>,
}

/// What is worth a line in the log while waiting.
enum Told {
    Held(Occupant),
    Unavailable(String),
}

impl Told {
    fn log(self, name: &LockName) {
        match self {
            Self::Held(occupant) => tracing::debug!(
                lock.name = name.as_str(),
                lock.token = occupant.token.map(Token::get),
                lock.holder = occupant.holder.as_deref(),
                lock.held_ms = occupant.held_for.map(ms),
                "waiting: somebody else has it"
            ),
            Self::Unavailable(failure) => tracing::debug!(
                lock.name = name.as_str(),
                "waiting, since the database does not answer: {failure}"
            ),
        }
    }
}

impl Progress {
    /// Answers what is news.
    fn note(&mut self, outcome: Result<Outcome, StoreError>) -> Option<Told> {
        let mut told = None;
        match outcome {
            Ok(Outcome::Held(occupant)) => {
                let who = (occupant.token, occupant.holder.clone());
                if self.told.as_ref() != Some(&who) {
                    told = Some(Told::Held(occupant.clone()));
                    self.told = Some(who);
                }
                (self.occupant, self.failure) = (Some(occupant), None);
            }
            Err(failure @ StoreError::Unavailable(_)) => {
                if self.failure.is_none() {
                    told = Some(Told::Unavailable(failure.to_string()));
                }
                (self.occupant, self.failure) = (None, Some(failure));
            }
            _ => {
                self.occupant.get_or_insert_default();
                self.failure = None;
            }
        }
        told
    }
}

/// Whether a try-once is over after this.
fn gives_up(outcome: &Result<Outcome, StoreError>, waited: Duration) -> bool {
    match outcome {
        Ok(Outcome::Held(_)) => true,
        Ok(Outcome::Busy) => waited >= ONCE_BUSY,
        Err(StoreError::Contention(_)) => waited >= ONCE_CONTENTION,
        _ => false,
    }
}

/// `work`, stopped when the wait is over, whatever the database does.
async fn within_wait(inner: &Arc<Inner>, want: &Want) -> Result<Option<LockGuard>, Error> {
    let (began, progress) = (clock::now(), Mutex::new(Progress::default()));
    let Some(limit) = want.wait.filter(|wait| !wait.is_zero()) else {
        return work(inner, want, &progress, None).await;
    };
    tokio::select! {
        biased;
        done = work(inner, want, &progress, Some(began.saturating_add(limit))) => return done,
        () = clock::sleep_until(began.saturating_add(limit)) => {}
    }
    let Progress {
        occupant, failure, ..
    } = progress
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match (occupant, failure) {
        (_, Some(failure)) => Err(failure.into_error(op(&want.name))),
        (None, None) => Err(Error::Unavailable {
            op: op(&want.name),
            source: format!("no answer within {}", crate::error::Human(limit)).into(),
        }),
        (Some(occupant), None) => Err(Error::TimedOut {
            name: want.name.clone(),
            waited: clock::now() - began,
            holder: occupant.holder,
            held_for: occupant.held_for,
        }),
    }
}

fn op(name: &LockName) -> String {
    format!("acquire lock `{name}`")
}

async fn work(
    inner: &Arc<Inner>,
    want: &Want,
    progress: &Mutex<Progress>,
    deadline: Option<Time>,
) -> Result<Option<LockGuard>, Error> {
    let once = want.once();
    let began = clock::now();
    let mut line = None;
    // Whoever may take it over need not wait behind those who may not.
    if !once && !want.take_over && inner.turns.is_waited_for(&want.name) {
        line = Some(wait_for_turn(inner, want, progress).await);
    }
    let (mut pace, mut attempt) = (Pace::new(want.poll), Attempt::new(inner, want)?);
    loop {
        let outcome = attempt.once().await;
        if let Ok(Outcome::Granted { token, length }) = outcome {
            match attempt.granted(token, length).await {
                Ok(guard) => return Ok(Some(guard)),
                Err(reason) if once => {
                    return Err(Error::Lost {
                        name: want.name.clone(),
                        reason,
                    });
                }
                Err(_) => attempt = Attempt::new(inner, want)?,
            }
            continue;
        }
        let waited = clock::now() - began;
        if once && gives_up(&outcome, waited) {
            return Ok(None);
        }
        let pauses = pace.after(&outcome);
        match outcome {
            Err(refused @ StoreError::Rejected { .. }) => {
                return Err(refused.into_error(op(&want.name)));
            }
            Err(failure @ StoreError::Unavailable(_)) if once => {
                return Err(failure.into_error(op(&want.name)));
            }
            outcome => {
                let told = progress
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .note(outcome);
                if let Some(told) = told {
                    told.log(&want.name);
                }
            }
        }
        if once {
            tokio::time::sleep(pauses.unannounced).await;
            continue;
        }
        let turn = match line.take() {
            Some(turn) => turn,
            None => wait_for_turn(inner, want, progress).await,
        };
        let within = |pause: Duration| match deadline {
            Some(at) => match at.saturating_sub(clock::now() + LAST_TRY) {
                // The wait's end is what ends this.
                Duration::ZERO => Duration::MAX,
                left => pause.min(left),
            },
            None => pause,
        };
        let pauses = Pauses {
            held: pauses.held,
            announced: within(pauses.announced),
            unannounced: within(pauses.unannounced),
        };
        tokio::select! {
            () = inner.store.freed(&want.name, pauses) => {}
            () = turn.rings() => {}
        }
        line = Some(turn);
    }
}

/// Stand in line and wait for our turn. Who is behind others need not ask the database who has it:
/// others of this process do.
async fn wait_for_turn(inner: &Inner, want: &Want, progress: &Mutex<Progress>) -> Turn {
    progress
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .occupant
        .get_or_insert_default();
    let turn = inner.turns.join(&want.name);
    turn.comes().await;
    turn
}

/// One grant that is being asked for.
///
/// Dropped while it is unknown whether it was made, it is given back in the background.
struct Attempt<'a> {
    inner: &'a Arc<Inner>,
    want: &'a Want,
    asks: [Ask; 1],
    /// From before the request is sent: then it may stand in the row.
    _ours: Ours,
    /// When the latest request was sent.
    sent: Time,
    unsettled: bool,
}

impl<'a> Attempt<'a> {
    fn new(inner: &'a Arc<Inner>, want: &'a Want) -> Result<Self, Error> {
        let ask = Ask {
            name: want.name.clone(),
            grant: GrantId::random()?,
            holder: Arc::clone(&want.holder),
            length: want.timing.first_grant(),
            metadata: Arc::clone(&want.metadata),
        };
        Ok(Self {
            inner,
            want,
            _ours: Ours::new(ask.grant),
            asks: [ask],
            sent: Time::ZERO,
            unsettled: false,
        })
    }

    async fn once(&mut self) -> Result<Outcome, StoreError> {
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
        self.want.take_over && occupant.holder.as_deref() == Some(&*self.want.holder) && !here()
    }

    async fn take_over(&mut self, from: Occupant) -> Result<Outcome, StoreError> {
        let mut what = TakeOver {
            to: self.asks[0].clone(),
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
        let mut outcomes = self.inner.store.acquire(&self.asks, PATIENCE).await?;
        let outcome = outcomes.pop().unwrap_or(Outcome::Busy);
        self.unsettled = match outcome {
            Outcome::Held(_) => false,
            // It may be a request of our own, whose reply was lost, that has the row locked.
            Outcome::Busy => before,
            Outcome::Granted { .. } => true,
        };
        Ok(outcome)
    }

    /// It is ours: from here on it is the guard that gives it back.
    async fn granted(&mut self, token: Token, length: Duration) -> Result<LockGuard, LostReason> {
        self.unsettled = false;
        let grant = Grant {
            name: self.want.name.clone(),
            token,
            id: self.asks[0].grant,
            holder: Arc::clone(&self.want.holder),
        };
        let lease = Lease::granted(self.want.timing, self.sent, length);
        begin(self.inner, grant, lease).await
    }
}

/// Keep a grant alive from now on. Of a long lease, wait until the database has confirmed all of it.
pub(crate) async fn begin(
    inner: &Arc<Inner>,
    grant: Grant,
    lease: Lease,
) -> Result<LockGuard, LostReason> {
    let held = Held::new(inner.store.engine(), grant, &lease);
    let guard = LockGuard::new(Arc::clone(inner), Arc::clone(&held), lease.timing().ttl());
    inner.scheduler.add(lease, Arc::clone(&held));
    let settled = held
        .watch()
        .wait_for(|status| !matches!(status, Status::Held(None)))
        .await
        .map_or(Status::Released, |status| *status);
    match settled {
        Status::Lost(reason) => Err(reason),
        Status::Held(_) | Status::Released => Ok(guard),
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.unsettled {
            return;
        }
        let [ask] = &self.asks;
        let what = Return {
            name: ask.name.clone(),
            token: None,
            grant: ask.grant,
            holder: Arc::clone(&ask.holder),
            durable: false,
        };
        // After that time the grant has run out by itself: an acquire makes none that is longer.
        tokio::spawn(give_back(
            Arc::clone(self.inner),
            what,
            Ttl::Lasting(MAX_FIRST_GRANT),
            None,
        ));
    }
}

/// How long to wait before the next look.
#[derive(Debug)]
struct Pace {
    longest: Duration,
    seen: Option<Token>,
    poll: Duration,
    outage: Duration,
}

impl Pace {
    fn new(longest: Duration) -> Self {
        Self {
            longest,
            seen: None,
            poll: Duration::ZERO,
            outage: Duration::ZERO,
        }
    }

    fn after(&mut self, outcome: &Result<Outcome, StoreError>) -> Pauses {
        let pauses = |announced, unannounced| Pauses {
            held: false,
            announced,
            unannounced,
        };
        match outcome {
            Ok(Outcome::Held(occupant)) => self.held(occupant),
            Err(StoreError::Unavailable(_)) => {
                let pause = self.unavailable();
                pauses(pause, pause)
            }
            // Mostly it is somebody who is just taking it, and who will ring.
            Ok(Outcome::Busy) => {
                let announced = Duration::from_millis(fastrand::u64(20..=200));
                pauses(announced, self.busy())
            }
            _ => {
                let pause = self.busy();
                pauses(pause, pause)
            }
        }
    }

    /// A lock that changed hands since the last look is looked at often, one that did not ever less;
    /// never later than its lease ends.
    ///
    /// Where its end is announced that is only in case it was not heard. A holder of 0.5 rings no bell,
    /// and neither does the end of a lease.
    fn held(&mut self, occupant: &Occupant) -> Pauses {
        self.outage = Duration::ZERO;
        let shortest = SHORTEST_POLL.min(self.longest);
        self.poll = if self.seen == occupant.token {
            (self.poll.saturating_mul(3) / 2).clamp(shortest, self.longest)
        } else {
            shortest
        };
        self.seen = occupant.token;
        let end = occupant
            .free_in
            .map(|left| left + Duration::from_millis(fastrand::u64(1..=8)));
        let until_end = |pause: Duration| {
            let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            end.map_or(jittered, |end| end.min(jittered))
        };
        let unannounced = until_end(self.poll);
        Pauses {
            held: true,
            announced: match occupant.intact {
                true => until_end(self.longest.max(ANNOUNCED_POLL)),
                false => unannounced,
            },
            unannounced,
        }
    }

    fn busy(&mut self) -> Duration {
        self.outage = Duration::ZERO;
        Duration::from_millis(fastrand::u64(2..=20))
    }

    fn unavailable(&mut self) -> Duration {
        self.outage = (self.outage * 2).clamp(SHORTEST_OUTAGE, LONGEST_OUTAGE);
        self.outage.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_grow_rarer_up_to_the_longest_pause_and_no_later_than_the_lease_ends() {
        let ms = Duration::from_millis;
        let held = |token, free_in| {
            Ok(Outcome::Held(Occupant {
                token: Some(Token::from_db(token)),
                free_in,
                ..Occupant::default()
            }))
        };
        for longest in [ms(1), ms(15), LONGEST_POLL, ms(60_000)] {
            let mut pace = Pace::new(longest);
            let mut after = |outcome| pace.after(&outcome).unannounced;
            let first = after(held(1, None));
            assert!(first <= SHORTEST_POLL.min(longest), "{first:?}");
            for _ in 0..40 {
                assert!(after(held(1, None)) <= longest);
            }
            assert!(after(held(1, None)) >= longest / 2, "{longest:?}");
            assert!(after(held(1, Some(ms(2)))) <= ms(10));
            let changed = after(held(2, None));
            assert!(changed <= SHORTEST_POLL, "it changes hands: {changed:?}");
        }
    }
}
