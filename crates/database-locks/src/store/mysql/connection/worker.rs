//! The background connection: the task that owns it, and when it reconnects.
//!
//! A connection of the driver runs one statement at a time, so a task owns it and callers queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::config::Server;
use super::open::{connect, name_server};
use super::panic::catch_panic;
use super::queue::{BoxFuture, Job, JobQueue, Work};
use super::session::Session;
use crate::runtime::clock;
use crate::store::api::{StoreError, with_deadline};
use crate::store::connect::backoff::Backoff;
use protocol::BootInstant;

/// A connection that was idle for this long may have been closed by the server or dropped by a
/// firewall. It is pinged first, since not every statement may be sent twice.
const IDLE: Duration = Duration::from_millis(100);

/// When a job runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// Before all others.
    First,
    /// After those that came before it.
    InOrder,
}

/// The running task of a [`Worker`].
struct WorkerTask {
    task: AbortHandle,
    /// When the current job began, in nanoseconds; 0 while it is idle or connects.
    busy_since: Arc<AtomicU64>,
}

/// Keeps a flag set until it is dropped.
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

/// State shared by a [`Worker`] and its tasks.
struct Shared {
    server: Arc<Server>,
    /// Outlives a task, so that the jobs behind one that hung run on a new connection.
    job_queue: tokio::sync::Mutex<JobQueue>,
    /// Whether there is a connection.
    up: Arc<AtomicBool>,
    /// Whether to reconnect before the next job.
    renew: AtomicBool,
}

/// A queue of jobs and the connection that runs them one after another.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// Whether [`Worker::connect_in_background`] is connecting.
    connecting: Arc<AtomicBool>,
    urgent: mpsc::UnboundedSender<Job>,
    jobs: mpsc::UnboundedSender<Job>,
    worker: Mutex<Option<WorkerTask>>,
}

impl Worker {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        let (job_queue, urgent, jobs) = JobQueue::new();
        Self {
            shared: Arc::new(Shared {
                server,
                job_queue: tokio::sync::Mutex::new(job_queue),
                up: Arc::default(),
                renew: AtomicBool::new(false),
            }),
            connecting: Arc::default(),
            urgent,
            jobs,
            worker: Mutex::default(),
        }
    }

    /// Whether there is a connection, as far as known.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Acquire)
    }

    /// Connect in the background, unless connected or connecting.
    pub(crate) fn connect_in_background(&self) {
        if self.is_up() {
            return;
        }
        if !self.connecting.swap(true, Ordering::AcqRel) {
            let under_way = FlagGuard::set(&self.connecting);
            let connector = &self.shared.server.connector;
            let deadline = clock::now() + connector.connect_deadline(Duration::ZERO);
            let work: Work = Box::new(move |_| {
                drop(under_way);
                Box::pin(std::future::ready(()))
            });
            let _ = self.jobs.send(Job { deadline, work });
        }
        self.start_task();
    }

    /// Run the next job on a new connection.
    pub(crate) fn reconnect(&self) {
        self.shared.renew.store(true, Ordering::Release);
    }

    /// Run a job. Once begun it is completed even if the caller has gone.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        turn: Turn,
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
        let queue = match turn {
            Turn::First => &self.urgent,
            Turn::InOrder => &self.jobs,
        };
        // The receiver lives as long as `self`.
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

    /// Start a task on the current runtime unless one runs. The runtime of the last task may have
    /// ended.
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

    /// Drop the connection if one job has taken most of that time.
    ///
    /// If the caller waited too long because many others came first, the connection is fine, and
    /// dropping it would make all of them wait longer.
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

/// Run jobs until the [`Worker`] is dropped and the queue is empty.
async fn serve(shared: Arc<Shared>, busy_since: Arc<AtomicU64>) {
    let mut job_queue = shared.job_queue.lock().await;
    let (mut backoff, mut failure) = (Backoff::default(), None);
    let mut session: Option<(Session, FlagGuard)> = None;
    let mut last_used = clock::now();
    while let Some(job) = job_queue.next().await {
        // Its caller has given up.
        if job.left().is_zero() {
            continue;
        }
        if shared.renew.swap(false, Ordering::AcqRel) {
            session = None;
        }
        // The direct connection has had no answer from this node.
        session.take_if(|(session, _)| session.is_avoided());
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
                    // Too early for another attempt, so the last error stands.
                    Some(error) if pause >= job.left() => Err(error),
                    error => {
                        job_queue.pause(pause, error.as_ref()).await;
                        connect(&shared.server, &mut backoff).await
                    }
                };
                match connected {
                    Ok(session) => &mut none.insert((session, FlagGuard::set(&shared.up))).0,
                    Err(error) => {
                        (job.work)(Err(error.duplicate())).await;
                        while let Some(job) = job_queue.try_next() {
                            (job.work)(Err(error.duplicate())).await;
                        }
                        failure = Some(error);
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
        let unanswered = ready.begin_request();
        // A panic of the driver fails this job only.
        let done = catch_panic(tokio::time::timeout(left, (job.work)(Ok(ready)))).await;
        if !matches!(done, Ok(Err(_))) {
            unanswered.answered();
        }
        busy_since.store(0, Ordering::Release);
        if !matches!(done, Ok(Ok(()))) || ready.is_broken() {
            session = None;
        }
        last_used = clock::now();
    }
}
