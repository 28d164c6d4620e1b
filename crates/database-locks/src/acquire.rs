//! Try once, or wait until it is ours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::clock::{self, Time};
use crate::error::Error;
use crate::guard::LockGuard;
use crate::held::ms;
use crate::inner::Inner;
use crate::looks;
use crate::metrics::{self, Waiting};
use crate::name::LockName;
use crate::store::{Occupant, Outcome, Pauses, StoreError, Woken};
use crate::timing::Timing;
use crate::token::{GrantId, Token};
use crate::turns::Turn;
use crate::watch::Stretch;

mod attempt;
mod pace;

use attempt::Attempt;
pub(crate) use attempt::begin;
pub(crate) use pace::LONGEST_POLL;
use pace::Pace;

/// How long one request to the database may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a try-once goes on trying where the database answers with a conflict that is not about
/// this lock: a deadlock, another writer on the SQLite file.
const ONCE_CONTENTION: Duration = Duration::from_secs(1);
/// … and where the lock looks free but its row is locked: usually somebody else is just taking it.
const ONCE_BUSY: Duration = Duration::from_millis(30);
/// How long whoever is next waits for a release by somebody of this process before he looks.
const HELD_HERE: Duration = Duration::from_secs(1);
/// The last try of a bounded wait begins this long before its end, so that its answer is in time.
const LAST_TRY: Duration = Duration::from_millis(20);
/// How often a wait that goes on beyond its end looks whether it still has a reason to.
const STRETCH: Duration = Duration::from_millis(20);

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
    let task = crate::runtime::spawn(work.instrument(span))?;
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
        if let Some(task) = self.task.take() {
            let pending = self.inner.pending.clone();
            // The runtime is there, since the task is.
            let _ = crate::runtime::spawn(async move {
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

/// Whether a try-once is over after this; for so long nobody has been said to have it.
fn gives_up(outcome: &Result<Outcome, StoreError>, unclear: Duration) -> bool {
    match outcome {
        Ok(Outcome::Held(_)) => true,
        Ok(Outcome::Busy) => unclear >= ONCE_BUSY,
        Err(StoreError::Contention(_)) => unclear >= ONCE_CONTENTION,
        _ => false,
    }
}

/// `work`, stopped when the wait is over, whatever the database does.
async fn within_wait(inner: &Arc<Inner>, want: &Want) -> Result<Option<LockGuard>, Error> {
    let (began, progress) = (clock::now(), Mutex::new(Progress::default()));
    let Some(limit) = want.wait.filter(|wait| !wait.is_zero()) else {
        return work(inner, want, &progress, None).await;
    };
    let mut end = began.saturating_add(limit);
    {
        let mut work = std::pin::pin!(work(inner, want, &progress, Some(end)));
        let mut stretch = Stretch::default();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = clock::sleep_until(end) => {}
            }
            let now = clock::now();
            match stretch.until(&inner.watches, &want.name, now) {
                // Somebody may see at any time that it need not go on.
                Some(until) => end = until.min(now + STRETCH),
                None => break,
            }
        }
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
    // Since when nobody is said to have it.
    let mut unclear = clock::now();
    let mut stretch = Stretch::default();
    let mut line = None;
    // Whoever may take it over need not wait behind those who may not.
    if !once && !want.take_over && inner.turns.is_waited_for(&want.name) {
        line = Some(wait_for_turn(inner, want, progress).await.0);
    }
    let (mut pace, mut attempt) = (Pace::new(want.poll), Attempt::new(inner, want)?);
    // What a look has said: then it is not worth a try yet.
    let mut looked = None;
    // How long to wait for somebody of this process who has it: his release rings for us without a bell of
    // the database's, which would cost it a commit that waits for those of others. The look after a while is
    // for what else may become of him.
    let mut his = None;
    loop {
        if let Some(turn) = &line {
            let left = || deadline.map(|at| at.saturating_sub(clock::now() + LAST_TRY));
            let unseen = || left().map_or(HELD_HERE, |left| left.min(HELD_HERE));
            let pause = his.take().or_else(|| turn.is_held_here().then(unseen));
            if let Some(pause) = pause {
                turn.rings_within(pause).await;
            }
        }
        let outcome = match looked.take() {
            Some(outcome) => outcome,
            None => attempt.once().await,
        };
        if let Ok(Outcome::Granted { token, length }) = outcome {
            inner.turns.taken(&want.name);
            match attempt.granted(token, length).await {
                Ok(guard) => return Ok(Some(guard)),
                Err(loss) if once => return Err(loss.error(&want.name)),
                Err(_) => {
                    inner.turns.left(&want.name);
                    attempt = Attempt::new(inner, want)?;
                }
            }
            continue;
        }
        let now = clock::now();
        let overdue = || {
            Stretch::default()
                .until(&inner.watches, &want.name, now)
                .is_some()
        };
        if once
            && gives_up(&outcome, now - unclear)
            && stretch.until(&inner.watches, &want.name, now).is_none()
        {
            return Ok(None);
        }
        let mut here = false;
        if let Ok(Outcome::Held(occupant)) = &outcome {
            unclear = now;
            here = is_held_by(inner, occupant);
            if !here {
                inner.turns.taken_elsewhere(&want.name);
            }
        }
        let pauses = pace.after(&outcome, now);
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
            None => {
                let (turn, at_once) = wait_for_turn(inner, want, progress).await;
                if !at_once {
                    // What was seen before is old.
                    line = Some(turn);
                    continue;
                }
                turn
            }
        };
        let within = |pause: Duration| match deadline {
            Some(at) => match at.saturating_sub(clock::now() + LAST_TRY) {
                // The wait's end is what ends this.
                Duration::ZERO if !overdue() => Duration::MAX,
                Duration::ZERO => pause,
                left => pause.min(left),
            },
            None => pause,
        };
        if here {
            his = Some(within(pauses.announced));
            line = Some(turn);
            continue;
        }
        let unannounced = within(pauses.unannounced);
        // One that is free or locked is tried for at once: a look would say no more than that.
        let alone = match pauses.held {
            true => unannounced / looks::ALONE,
            false => unannounced,
        };
        let woken = tokio::select! {
            woken = inner.store.freed(&want.name, Pauses {
                held: pauses.held,
                announced: within(pauses.announced),
                unannounced: alone,
            }) => woken,
            () = turn.rings() => Woken::Rung,
        };
        if pauses.held && woken == Woken::Unheard {
            looked = tokio::select! {
                seen = inner.looks.next(&want.name, unannounced - alone) => attempt.judge(seen),
                () = turn.rings() => None,
            };
        }
        line = Some(turn);
    }
}

/// Whether it is a guard of these very locks that has it, whose release is heard of here.
fn is_held_by(inner: &Inner, occupant: &Occupant) -> bool {
    let grant = occupant.grant.as_deref().and_then(GrantId::parse);
    occupant.intact && grant.is_some_and(|grant| inner.scheduler.timing(grant).is_some())
}

/// Stand in line and wait for our turn; whether it came at once. Who is behind others need not ask the database who has it:
/// others of this process do.
async fn wait_for_turn(inner: &Inner, want: &Want, progress: &Mutex<Progress>) -> (Turn, bool) {
    progress
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .occupant
        .get_or_insert_default();
    let turn = inner.turns.join(&want.name);
    let at_once = turn.comes().await;
    (turn, at_once)
}
