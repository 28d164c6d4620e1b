//! Acquiring a lock: one try, or a wait until the lock is granted.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::client::Client;
use crate::client::acquire::progress::Progress;
use crate::client::acquire::request::AcquireRequest;
use crate::client::guard::LockGuard;
use crate::client::renewal::grant_state::{log_grant, ms};
use crate::error::Error;
use crate::metrics::{self, Engine, Waiting};
use crate::runtime;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{BootInstant, Outcome};

mod acquisition;
pub(crate) mod all_attempt;
pub(crate) mod attempt;
pub(crate) mod head_start;
mod limit;
pub(crate) mod poll_interval;
pub(crate) mod poller;
mod progress;
pub(crate) mod queue;
pub(crate) mod reports;
pub(crate) mod request;
mod reservation;
pub(crate) mod several;
mod waiter;

use acquisition::Acquisition;
use attempt::Attempt;
use limit::{limit_of, until_limit};
use waiter::record_holder;

/// Acquire. If the caller stops waiting, no grant stays held.
pub(crate) async fn acquire(
    client: Arc<Client>,
    request: AcquireRequest,
) -> Result<Option<LockGuard>, Error> {
    // Created here, so that the caller's span is its parent.
    let span = tracing::debug_span!(
        "acquire",
        lock.name = request.name.as_str(),
        lock.token = Empty,
        lock.holder = Empty,
        lock.waited_ms = Empty
    );
    let acquired = counted(&client, &request, std::slice::from_ref, |wait| {
        let (client, request, span) = (&client, request.with_wait(wait), &span);
        async move {
            let from = clock::now();
            match directly(client, &request).await? {
                Direct::Done(done) => Ok(done),
                Direct::Undecided(tried) => {
                    in_background(client, &request, from, tried, span).await
                }
            }
        }
    });
    acquired.instrument(span.clone()).await
}

/// Acquire within the limit of the request.
///
/// Trust is checked last, on the caller's thread, which may have taken the answer late. Grants in
/// which trust has ended are released, and the wait continues.
async fn until_trusted<T, F: Future<Output = Result<Option<T>, Error>>>(
    request: &AcquireRequest,
    guards: impl Fn(&T) -> &[LockGuard],
    acquire: impl Fn(Option<Duration>) -> F,
) -> Result<Option<T>, Error> {
    let (began, mut wait) = (clock::now(), request.wait);
    loop {
        let Some(acquired) = acquire(wait).await? else {
            return Ok(None);
        };
        let mut each = guards(&acquired).iter();
        let Err(lost) = each.try_for_each(LockGuard::still_trusted) else {
            return Ok(Some(acquired));
        };
        drop(acquired);
        wait = (request.wait).map(|limit| limit.saturating_sub(clock::now() - began));
        // The grant that was lost is too recent for another one.
        if wait.is_some_and(|left| left.is_zero()) || request.once_per.is_some() {
            return Err(lost);
        }
    }
}

/// The result of a try on the direct connection.
enum Direct {
    Done(Option<LockGuard>),
    /// The background continues.
    Undecided(Box<Tried>),
}

/// An attempt that has not decided the acquisition, or was not sent.
struct Tried {
    attempt: Attempt,
    /// `None`: no try, or none that was answered.
    outcome: Option<Result<Outcome, StoreError>>,
}

impl Tried {
    fn undecided(attempt: Attempt, outcome: Option<Result<Outcome, StoreError>>) -> Direct {
        Direct::Undecided(Box::new(Self { attempt, outcome }))
    }
}

/// Try on the direct connection, if the caller's runtime owns it and no waiter of this process is
/// ahead.
async fn directly(client: &Arc<Client>, request: &Arc<AcquireRequest>) -> Result<Direct, Error> {
    let queues = client.queues_for(request);
    let permit = match &client.direct {
        Some(direct) if !request.preempt && !queues.is_busy(&request.name) => direct.enter(),
        _ => None,
    };
    let mut attempt = Attempt::new(client, request)?;
    let outcome = match permit {
        Some(permit) => attempt.directly(permit).await,
        None => None,
    };
    let Some(outcome) = outcome else {
        return Ok(Tried::undecided(attempt, None));
    };
    Ok(match outcome {
        // The confirmation is awaited with a timeout, and only the background has a timer for it.
        // Nor does it wait for shared grants.
        Ok(Outcome::Granted { is_shared, .. })
            if is_shared || request.timing.is_confirmed_later() =>
        {
            Tried::undecided(attempt, Some(outcome))
        }
        Ok(Outcome::Granted {
            slot,
            token,
            length,
            ..
        }) => {
            client.outages.log_answered(attempt.sent());
            client.note_acquired(request);
            match attempt.granted(slot, token, length, request.timing).await {
                Ok(guard) => Direct::Done(Some(guard)),
                Err(loss) => {
                    queues.left(&request.name);
                    if request.is_single_try() || request.once_per.is_some() {
                        return Err(Error::lost(&request.name, loss));
                    }
                    Tried::undecided(Attempt::new(client, request)?, None)
                }
            }
        }
        Ok(Outcome::TooRecent(latest)) => {
            client.outages.log_answered(attempt.sent());
            return Err(request.already_ran(latest));
        }
        // A lease that ends by observation has to be observed, which the background does.
        Ok(Outcome::Held(holder))
            if request.is_single_try()
                && holder.observed_expiry.is_none()
                && holder
                    .permits
                    .as_ref()
                    .is_none_or(|it| it.observed.is_empty()) =>
        {
            client.outages.log_answered(attempt.sent());
            record_holder(client, &request.name, &holder, false);
            Direct::Done(None)
        }
        // Nothing was sent, or the server may still answer: the background has another connection.
        Err(failure) if !failure.is_answer() => Tried::undecided(attempt, None),
        outcome => Tried::undecided(attempt, Some(outcome)),
    })
}

async fn in_background(
    client: &Arc<Client>,
    request: &Arc<AcquireRequest>,
    began: BootInstant,
    tried: Box<Tried>,
    span: &Span,
) -> Result<Option<LockGuard>, Error> {
    let (shared, request) = (Arc::clone(client), Arc::clone(request));
    let work = async move {
        let progress = Mutex::new(Progress::default());
        let end = limit_of(&request, began);
        let Tried { attempt, outcome } = *tried;
        let work = Acquisition::new(&shared, &request, attempt, outcome, &progress, end).run();
        let names = match request.limit() {
            None => vec![request.name.clone()],
            Some(_) => Vec::new(),
        };
        let op = || request.op();
        until_limit(&shared, &request, names, began, &progress, work, op).await
    };
    waited_for(client, work, span).await
}

/// Do the work of a wait in the background, until it has a result or the caller stops waiting.
async fn waited_for<T: Send + 'static>(
    client: &Arc<Client>,
    work: impl Future<Output = Result<Option<T>, Error>> + Send + 'static,
    span: &Span,
) -> Result<Option<T>, Error> {
    let (mut reply, result) = tokio::sync::oneshot::channel();
    let work = async move {
        // Dropping the work releases what it may have acquired: see `Attempt`. A caller that has
        // stopped waiting is noticed first: woken by the next release, the work would acquire.
        let done = tokio::select! {
            biased;
            () = reply.closed() => return,
            done = work => done,
        };
        // If the caller has stopped waiting, the guard is dropped, which releases the lock.
        drop(reply.send(done));
    };
    let task = runtime::spawn(work.instrument(span.clone()))?;
    let mut cancellation = PendingCancellation {
        client: Arc::clone(client),
        task: Some(task),
    };
    let done = result.await;
    cancellation.task = None;
    done.unwrap_or_else(|stopped| {
        Err(Error::Unavailable {
            op: "acquire a lock".into(),
            source: Box::new(stopped),
        })
    })
}

/// Keeps a cancelled acquire pending until its task has noticed the cancellation and begun its
/// release.
struct PendingCancellation {
    client: Arc<Client>,
    /// `None`: the task has answered.
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for PendingCancellation {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            let pending = self.client.pending_releases.begin();
            // Spawning succeeds: the task runs on the same runtime.
            let _ = runtime::spawn(async move {
                let _ = task.await;
                drop(pending);
            });
        }
    }
}

/// Acquire, count and log it. `acquire` acquires within a limit.
async fn counted<T, F: Future<Output = Result<Option<T>, Error>>>(
    client: &Client,
    request: &AcquireRequest,
    guards: impl Fn(&T) -> &[LockGuard],
    acquire: impl Fn(Option<Duration>) -> F,
) -> Result<Option<T>, Error> {
    let (engine, began) = (client.store.engine(), clock::now());
    let under_way = Waiting::new(engine);
    let done = until_trusted(request, &guards, acquire).await;
    under_way.done();
    let waited = clock::now() - began;
    let reason = match &done {
        Ok(Some(acquired)) => {
            for guard in guards(acquired) {
                log_acquired(engine, guard, waited);
            }
            return done;
        }
        Ok(None) => "busy",
        Err(Error::TimedOut { .. }) => "timed_out",
        Err(Error::AlreadyRan { .. }) => "already_ran",
        Err(Error::Conflict { .. }) => "conflict",
        Err(Error::Unavailable { .. }) => "unavailable",
        Err(Error::Lost { .. }) => "lost",
        Err(Error::Rejected { .. } | Error::Config { .. }) => "rejected",
    };
    metrics::not_acquired(engine, reason);
    let message = match &done {
        // Its caller may report nothing.
        Err(already @ Error::AlreadyRan { .. }) => already.to_string().into(),
        _ => Cow::Borrowed("lock not acquired"),
    };
    tracing::debug!(
        lock.name = request.name.as_str(),
        lock.waited_ms = ms(waited),
        reason,
        "{message}"
    );
    done
}

fn log_acquired(engine: Engine, guard: &LockGuard, waited: Duration) {
    metrics::acquired(engine, waited);
    let (grant, waited) = (&guard.state.grant, ms(waited));
    let span = Span::current();
    span.record("lock.token", grant.token.get());
    span.record("lock.holder", &*grant.holder);
    span.record("lock.waited_ms", waited);
    log_grant!(
        debug,
        grant,
        lock.waited_ms = waited,
        "{} acquired",
        grant.slot.as_str()
    );
}
