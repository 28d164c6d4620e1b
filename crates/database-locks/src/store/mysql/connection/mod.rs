//! The connection of the background: the task that owns it, the queue before it, and when it is
//! made anew.
//!
//! A `Conn` of the driver does one thing at a time, so a task owns it and callers queue.

pub(crate) mod config;
mod driver;
mod handshake;
mod interpolate;
pub(crate) mod panic;
pub(crate) mod session;
pub(crate) mod table;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use self::config::Server;
use self::panic::{catch_panic, panic_error};
use self::session::Session;
use crate::error::Cause;
use crate::runtime::clock;
use crate::store::api::{StoreError, with_deadline};
use crate::store::connect::backoff::Backoff;
use protocol::BootInstant;

/// A connection that was idle for this long may have been closed by the server, or forgotten by a
/// firewall: it is asked first, since not every statement may be sent again.
const IDLE: Duration = Duration::from_millis(100);

pub(crate) type BoxFuture<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;
type Work =
    Box<dyn for<'s> FnOnce(Result<&'s mut Session, StoreError>) -> BoxFuture<'s, ()> + Send>;

/// What a caller wants done on the connection.
struct Job {
    deadline: BootInstant,
    work: Work,
}

impl Job {
    fn left(&self) -> Duration {
        self.deadline - clock::now()
    }
}

/// The task that owns the connection at present.
struct WorkerTask {
    task: AbortHandle,
    /// When it began with what it is doing, in nanoseconds; 0: it does nothing, or connects.
    busy_since: Arc<AtomicU64>,
}

/// Set as long as this lives.
pub(crate) struct FlagGuard(Arc<AtomicBool>);

impl FlagGuard {
    pub(crate) fn set(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::Release);
        Self(Arc::clone(flag))
    }
}

impl Drop for FlagGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What waits for the connection.
struct JobQueue {
    /// Renewals that came before a connection was made.
    first: VecDeque<Job>,
    /// Renewals. They go before all the rest: a lease ends while they wait, and behind a crowd of
    /// acquires there is always one statement more.
    urgent: mpsc::UnboundedReceiver<Job>,
    jobs: mpsc::UnboundedReceiver<Job>,
}

impl JobQueue {
    /// None: there will be no more.
    async fn next(&mut self) -> Option<Job> {
        if let Some(job) = self.first.pop_front() {
            return Some(job);
        }
        tokio::select! {
            biased;
            job = self.urgent.recv() => job,
            job = self.jobs.recv() => job,
        }
    }

    /// One that is there already.
    fn try_next(&mut self) -> Option<Job> {
        let first = self.first.pop_front();
        let urgent = || self.urgent.try_recv().ok();
        first.or_else(urgent).or_else(|| self.jobs.try_recv().ok())
    }

    /// Pause before the next attempt to connect. A renewal that comes meanwhile and cannot wait for
    /// so long is told what was said the last time.
    async fn pause(&mut self, pause: Duration, message: Option<&StoreError>) {
        let until = clock::now() + pause;
        let mut over = std::pin::pin!(clock::sleep(pause));
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(job) = self.urgent.recv() => match message {
                    Some(message) if until >= job.deadline => (job.work)(Err(message.again())).await,
                    _ => self.first.push_back(job),
                },
            }
        }
    }
}

/// What a [`Worker`] and its workers have in common.
struct Shared {
    server: Arc<Server>,
    /// Outlives a worker, so that what waited behind a call that hung is done on a new connection.
    job_queue: tokio::sync::Mutex<JobQueue>,
    /// Whether there is a connection.
    up: Arc<AtomicBool>,
    /// The connection is to be made anew before the next job.
    renew: AtomicBool,
}

/// A queue of jobs and the connection that they are done on, one after another.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// Whether one is being made by [`Worker::dial`].
    dialled: Arc<AtomicBool>,
    urgent: mpsc::UnboundedSender<Job>,
    jobs: mpsc::UnboundedSender<Job>,
    worker: Mutex<Option<WorkerTask>>,
}

impl Worker {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        let (urgent, first) = mpsc::unbounded_channel();
        let (jobs, then) = mpsc::unbounded_channel();
        let job_queue = JobQueue {
            first: VecDeque::new(),
            urgent: first,
            jobs: then,
        };
        Self {
            shared: Arc::new(Shared {
                server,
                job_queue: tokio::sync::Mutex::new(job_queue),
                up: Arc::default(),
                renew: AtomicBool::new(false),
            }),
            dialled: Arc::default(),
            urgent,
            jobs,
            worker: Mutex::default(),
        }
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Acquire)
    }

    /// Connect in the background, unless that is done or under way.
    pub(crate) fn dial(&self) {
        if self.is_up() {
            return;
        }
        if !self.dialled.swap(true, Ordering::AcqRel) {
            let under_way = FlagGuard::set(&self.dialled);
            let deadline = clock::now()
                + self
                    .shared
                    .server
                    .connector
                    .connect_deadline(Duration::ZERO);
            let work: Work = Box::new(move |_| {
                drop(under_way);
                Box::pin(std::future::ready(()))
            });
            let _ = self.jobs.send(Job { deadline, work });
        }
        self.start_task();
    }

    /// Do the next job on a new connection.
    pub(crate) fn reconnect(&self) {
        self.shared.renew.store(true, Ordering::Release);
    }

    /// Do this in its turn. Once begun it is carried through, even if the caller has gone away.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> BoxFuture<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        self.ask(&self.jobs, within, work).await
    }

    /// The same before all that waits.
    pub(crate) async fn call_first<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> BoxFuture<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        self.ask(&self.urgent, within, work).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        queue: &mpsc::UnboundedSender<Job>,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> BoxFuture<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let (tell, answer) = oneshot::channel();
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                let done = match session {
                    Ok(session) => work(session).await,
                    Err(failure) => Err(failure.undone()),
                };
                // The caller may have gone away.
                let _ = tell.send(done);
            })
        });
        let deadline = clock::now() + within;
        let reply = async move {
            answer.await.unwrap_or_else(|_| {
                if clock::now() >= deadline {
                    return Err(StoreError::late(within));
                }
                Err(StoreError::Unavailable(
                    "the connection was given up".into(),
                ))
            })
        };
        // Never closed: the inbox is ours.
        let _ = queue.send(Job { deadline, work });
        self.start_task();
        let mut late = false;
        let done = with_deadline(within, reply, || {
            late = true;
            self.give_up(within);
        });
        let done = done.await;
        let function = self.shared.server.connector.waits_for();
        let waited_for = function.filter(|_| late && !self.is_up());
        done.map_err(|failure| match waited_for {
            Some(function) => StoreError::no_connection_within(within, function),
            None => name_server(&self.shared.server, failure),
        })
    }

    /// Start a worker on the runtime that calls, unless one runs: the runtime of the last one may
    /// be gone.
    fn start_task(&self) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker
            .as_ref()
            .is_none_or(|worker| worker.task.is_finished())
        {
            let busy_since = Arc::new(AtomicU64::new(0));
            let task = tokio::spawn(serve(Arc::clone(&self.shared), Arc::clone(&busy_since)));
            *worker = Some(WorkerTask {
                task: task.abort_handle(),
                busy_since,
            });
        }
    }

    /// Drop the connection, if it has been busy with one thing for most of that time.
    ///
    /// A caller may also have waited too long because many others came first: then the connection
    /// is as good as ever, and to drop it would make all of them wait longer.
    fn give_up(&self, within: Duration) {
        let hangs = |worker: &mut WorkerTask| {
            let since = BootInstant::from_nanos(worker.busy_since.load(Ordering::Acquire));
            since > BootInstant::ZERO && clock::now() - since >= within / 2
        };
        let worker = self.worker.lock();
        let given_up = worker
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(hangs);
        if let Some(worker) = given_up {
            worker.task.abort();
            self.start_task();
        }
    }
}

/// Carry out jobs until the [`Worker`] is dropped and none is left.
async fn serve(shared: Arc<Shared>, busy_since: Arc<AtomicU64>) {
    let mut job_queue = shared.job_queue.lock().await;
    let (mut backoff, mut failure) = (Backoff::default(), None);
    let mut session: Option<(Session, FlagGuard)> = None;
    let mut last_used = clock::now();
    while let Some(job) = job_queue.next().await {
        // Nobody waits for it any more.
        if job.left().is_zero() {
            continue;
        }
        if shared.renew.swap(false, Ordering::AcqRel) {
            session = None;
        }
        if let Some((old, _)) = &mut session
            && clock::now() - last_used >= IDLE
            && !old.answers(job.left() / 3).await
        {
            session = None;
        }
        let ready = match &mut session {
            Some((session, _)) => session,
            none => {
                let pause = backoff.pause();
                let connected = match failure.take() {
                    // Too early to knock again: what was said the last time still stands.
                    Some(message) if pause >= job.left() => Err(message),
                    message => {
                        job_queue.pause(pause, message.as_ref()).await;
                        connect(&shared.server, &mut backoff).await
                    }
                };
                match connected {
                    Ok(session) => &mut none.insert((session, FlagGuard::set(&shared.up))).0,
                    Err(message) => {
                        (job.work)(Err(message.again())).await;
                        while let Some(job) = job_queue.try_next() {
                            (job.work)(Err(message.again())).await;
                        }
                        failure = Some(message);
                        continue;
                    }
                }
            }
        };
        let left = job.left();
        if left.is_zero() {
            continue;
        }
        busy_since.store(clock::now().as_nanos(), Ordering::Release);
        // A panic of the driver ends this job, and none of those behind it.
        let done = catch_panic(tokio::time::timeout(left, (job.work)(Ok(ready)))).await;
        busy_since.store(0, Ordering::Release);
        if !matches!(done, Ok(Ok(()))) || ready.is_broken() {
            session = None;
        }
        last_used = clock::now();
    }
}

pub(crate) async fn connect(
    server: &Arc<Server>,
    backoff: &mut Backoff,
) -> Result<Session, StoreError> {
    let connected = catch_panic(Session::open(server)).await;
    let connected = connected.map_err(panic_error).flatten();
    match &connected {
        Ok(_) => backoff.succeeded(),
        Err(failure) => {
            tracing::trace!("no connection to {}: {failure}", server.connector.hosts());
            backoff.failed();
        }
    }
    connected
}

/// Say which server it was that did not answer.
pub(crate) fn name_server(server: &Server, failure: StoreError) -> StoreError {
    let named = |message: &str| {
        let endpoint = server.connector.endpoint();
        let mut hosts = endpoint.hosts.iter();
        hosts.any(|host| message.contains(&host.address.to_string()))
    };
    match failure {
        StoreError::Unavailable(message) if !named(&message.to_string()) => {
            let placed = format!("{}: {message}", server.connector.hosts());
            StoreError::Unavailable(Cause::of(&message, placed).into())
        }
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::options::ConnectOptions;
    use crate::store::connect::provider::ServerProvider;
    use crate::store::connect::table::Table;
    use crate::store::connect::url;

    fn message(url: &str) -> url::Server {
        match url::parse(url) {
            Ok(url::Target::Mysql(server)) => server,
            other => panic!("{other:?}"),
        }
    }

    fn source() -> Arc<ServerProvider> {
        Arc::new(ServerProvider::new(ConnectOptions::url(
            "mysql://u@h:3307/d",
        )))
    }

    #[test]
    fn an_answer_stays_one_when_its_server_is_named() {
        let server =
            Server::new(message("mysql://u@h:3307/d"), source(), &Table::default()).unwrap();
        for message in ["it is read-only", "the server at h:3307 is read-only"] {
            let placed = name_server(&server, StoreError::cannot_serve(message));
            assert!(placed.is_answer(), "{placed}");
            assert!(placed.to_string().contains("h:3307"), "{placed}");
            let late = name_server(&server, StoreError::Unavailable(message.into()));
            assert!(!late.is_answer(), "{late}");
            let undone = name_server(&server, StoreError::cannot_serve(message).undone()).again();
            assert!(undone.is_answer() && undone.is_undone(), "{undone}");
            assert!(!placed.is_undone() && !late.is_undone(), "{placed}");
            let refused = crate::store::connect::hosts::ConnectFailure::from(placed);
            assert!(StoreError::from(refused).is_answer(), "{message}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let message = message("mysql://u:hunter2@h:3307/d");
        let store = crate::store::mysql::Mysql::new(message, source(), &Table::default()).unwrap();
        let shown = format!("{store:?}");
        assert!(
            shown.contains("h:3307") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
