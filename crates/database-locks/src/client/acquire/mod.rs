//! Acquiring: one try, or a wait until the lock is granted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::client::Inner;
use crate::client::acquire::acquisition::Tried;
use crate::client::acquire::progress::Progress;
use crate::client::acquire::progress::report;
use crate::client::acquire::progress::wait_is_over;
use crate::client::acquire::request::Want;
use crate::client::guard::LockGuard;
use crate::client::renewal::grant_state::ms;
use crate::error::Error;
use crate::metrics::{self, Engine, Waiting};
use crate::runtime;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{LockName, Outcome, WaitExtension};

pub(crate) mod acquisition;
pub(crate) mod attempt;
pub(crate) mod head_start;
pub(crate) mod poll_interval;
pub(crate) mod poller;
mod progress;
pub(crate) mod queue;
pub(crate) mod reports;
pub(crate) mod request;

use acquisition::{Acquisition, note_holder};
use attempt::Attempt;

/// How often a wait that goes on beyond its end looks whether it still has a reason to.
const STRETCH: Duration = Duration::from_millis(20);

/// Acquire. If the caller stops waiting, nothing stays held.
///
/// What is handed out is held: trust is checked here, at the last moment on the caller's own thread, which may
/// have been late to take the answer. A grant whose trust has ended is given back, and the wait goes on.
pub(crate) async fn acquire(inner: Arc<Inner>, want: Want) -> Result<Option<LockGuard>, Error> {
    // Made here, where the caller's own span is current.
    let span = tracing::debug_span!(
        "acquire",
        lock.name = want.name.as_str(),
        lock.token = Empty,
        lock.holder = Empty,
        lock.waited_ms = Empty
    );
    let acquired = observed(&inner, &want.name, until_trusted(&inner, &want, &span));
    acquired.instrument(span.clone()).await
}

async fn until_trusted(
    inner: &Arc<Inner>,
    want: &Want,
    span: &Span,
) -> Result<Option<LockGuard>, Error> {
    let (began, limit) = (clock::now(), want.wait);
    let mut want = Arc::new(want.clone());
    loop {
        let from = clock::now();
        let done = match directly(inner, &want).await? {
            Direct::Done(done) => done,
            Direct::Undecided(tried) => in_background(inner, &want, from, tried, span).await?,
        };
        let Some(guard) = done else { return Ok(None) };
        let Err(lost) = guard.still_trusted() else {
            return Ok(Some(guard));
        };
        drop(guard);
        let left = limit.map(|limit| limit.saturating_sub(clock::now() - began));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(lost);
        }
        want = Arc::new(Want {
            wait: left,
            ..Want::clone(&want)
        });
    }
}

/// What came of a try on the lane.
enum Direct {
    Done(Option<LockGuard>),
    /// The background goes on, from the try if there was one.
    Undecided(Option<Box<Tried>>),
}

/// Try on the lane, where the caller's runtime is its home and nobody comes first.
async fn directly(inner: &Arc<Inner>, want: &Arc<Want>) -> Result<Direct, Error> {
    let entry = match &inner.direct {
        Some(path) if !want.preempt && !inner.queues.is_busy(&want.name) => path.enter(),
        _ => None,
    };
    let Some(entry) = entry else {
        return Ok(Direct::Undecided(None));
    };
    let mut attempt = Attempt::new(inner, want)?;
    let Some(outcome) = attempt.directly(entry).await else {
        return Ok(Direct::Undecided(Some(Box::new(Tried(attempt, None)))));
    };
    Ok(match outcome {
        // The wait for its confirmation has an end, and the background a timer for it.
        Ok(Outcome::Granted { .. }) if want.timing.is_confirmed_later() => {
            Direct::Undecided(Some(Box::new(Tried(attempt, Some(outcome)))))
        }
        Ok(Outcome::Granted { token, length }) => {
            inner.outages.log_answered(attempt.sent());
            inner.queues.acquired(&want.name);
            match attempt.granted(token, length).await {
                Ok(guard) => Direct::Done(Some(guard)),
                Err(loss) if want.once() => {
                    inner.queues.left(&want.name);
                    return Err(Error::lost(&want.name, loss));
                }
                Err(_) => {
                    inner.queues.left(&want.name);
                    Direct::Undecided(None)
                }
            }
        }
        // Where it ends by being watched, the background sees to that.
        Ok(Outcome::Held(by)) if want.once() && by.observed_expiry.is_none() => {
            inner.outages.log_answered(attempt.sent());
            note_holder(inner, &want.name, &by, false);
            Direct::Done(None)
        }
        // Nothing was sent. The background may have a connection.
        Err(failure) if failure.is_undone() && !failure.is_answer() => Direct::Undecided(None),
        // The connection broke, and the server may be well.
        Err(failure) if !failure.is_answer() => {
            Direct::Undecided(Some(Box::new(Tried(attempt, None))))
        }
        outcome => Direct::Undecided(Some(Box::new(Tried(attempt, Some(outcome))))),
    })
}

async fn in_background(
    inner: &Arc<Inner>,
    want: &Arc<Want>,
    began: protocol::BootInstant,
    tried: Option<Box<Tried>>,
    span: &Span,
) -> Result<Option<LockGuard>, Error> {
    let (mut wanted, result) = tokio::sync::oneshot::channel();
    let (shared, want) = (Arc::clone(inner), Arc::clone(want));
    let work = async move {
        // Dropping the work gives back what it may have acquired: see `Attempt`.
        let done = tokio::select! {
            done = within_wait(&shared, &want, began, tried) => done,
            () = wanted.closed() => return,
        };
        // A guard that the caller does not take is dropped, and so releases.
        drop(wanted.send(done));
    };
    let task = runtime::spawn(work.instrument(span.clone()))?;
    let mut abandoned = Abandoned {
        inner: Arc::clone(inner),
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

/// An acquire whose caller stopped waiting counts as pending until it has noticed that, and has begun to
/// give back what it may have acquired.
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
            let _ = runtime::spawn(async move {
                let _ = task.await;
                drop(pending);
            });
        }
    }
}

/// Counts an acquire that its caller stops waiting for.
struct GivenUp(Option<Engine>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(engine) = self.0 {
            metrics::not_acquired(engine, "given_up");
        }
    }
}

/// An acquire, counted and logged.
async fn observed(
    inner: &Inner,
    name: &LockName,
    acquire: impl Future<Output = Result<Option<LockGuard>, Error>>,
) -> Result<Option<LockGuard>, Error> {
    let (engine, began) = (inner.store.engine(), clock::now());
    let (under_way, mut given_up) = (Waiting::new(engine), GivenUp(Some(engine)));
    let done = acquire.await;
    given_up.0 = None;
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
        Err(Error::Conflict { .. }) => "conflict",
        Err(Error::Unavailable { .. }) => "unavailable",
        Err(Error::Lost { .. }) => "lost",
        Err(Error::Rejected { .. } | Error::Config { .. }) => "rejected",
    };
    metrics::not_acquired(engine, reason);
    tracing::debug!(
        lock.name = name.as_str(),
        lock.waited_ms = ms(waited),
        reason,
        "lock not acquired"
    );
    done
}

/// The acquisition, stopped when the wait is over, whatever the database does.
async fn within_wait(
    inner: &Arc<Inner>,
    want: &Arc<Want>,
    began: protocol::BootInstant,
    tried: Option<Box<Tried>>,
) -> Result<Option<LockGuard>, Error> {
    let progress = Mutex::new(Progress::default());
    let limit = want.wait.filter(|wait| !wait.is_zero());
    let mut end = limit.map(|limit| began + limit);
    let work = Acquisition::new(inner, want, tried, &progress, end)?.run();
    if want.once() {
        return work.await;
    }
    {
        let mut work = std::pin::pin!(work);
        let mut report = std::pin::pin!(report(want, &progress));
        let mut extension = WaitExtension::default();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                never = &mut report => match never {},
                () = until(end) => {}
            }
            let now = clock::now();
            match extension.until(&inner.observations, &want.name, now) {
                // It may turn out at any time that it need not go on.
                Some(until) => end = Some(until.min(now + STRETCH)),
                None => break,
            }
        }
    }
    let mut progress = progress
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if let (None, None, Some(by)) = (
        &progress.holder,
        &progress.failure,
        inner.store.blocked_by(),
    ) {
        progress.failure = Some(StoreError::cannot_serve(format!("blocked by {by}")));
    }
    Err(wait_is_over(
        want,
        limit.unwrap_or_default(),
        clock::now() - began,
        progress,
    ))
}

async fn until(end: Option<protocol::BootInstant>) {
    match end {
        Some(end) => clock::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
