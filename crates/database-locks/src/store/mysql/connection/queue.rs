//! The queue of jobs that wait for the connection.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;

use super::session::Session;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::BootInstant;

pub(crate) type BoxFuture<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;
pub(super) type Work =
    Box<dyn for<'s> FnOnce(Result<&'s mut Session, StoreError>) -> BoxFuture<'s, ()> + Send>;

/// A request of a caller.
pub(super) struct Job {
    pub(super) deadline: BootInstant,
    pub(super) work: Work,
}

impl Job {
    pub(super) fn left(&self) -> Duration {
        self.deadline - clock::now()
    }
}

/// The jobs that wait for the connection.
pub(super) struct JobQueue {
    /// Renewals that came while there was no connection.
    deferred: VecDeque<Job>,
    /// Renewals, which go before other jobs: their leases run out while they wait, and under load
    /// other jobs always queue.
    urgent: mpsc::UnboundedReceiver<Job>,
    jobs: mpsc::UnboundedReceiver<Job>,
}

impl JobQueue {
    /// The queue, and where renewals and other jobs are sent.
    pub(super) fn new() -> (Self, mpsc::UnboundedSender<Job>, mpsc::UnboundedSender<Job>) {
        let (send_urgent, urgent) = mpsc::unbounded_channel();
        let (send, jobs) = mpsc::unbounded_channel();
        let queue = Self {
            deferred: VecDeque::new(),
            urgent,
            jobs,
        };
        (queue, send_urgent, send)
    }

    /// The next job; `None` after the last one.
    pub(super) async fn next(&mut self) -> Option<Job> {
        if let Some(job) = self.deferred.pop_front() {
            return Some(job);
        }
        tokio::select! {
            biased;
            job = self.urgent.recv() => job,
            job = self.jobs.recv() => job,
        }
    }

    /// A job that is already in the queue.
    pub(super) fn try_next(&mut self) -> Option<Job> {
        let first = self.deferred.pop_front();
        let urgent = || self.urgent.try_recv().ok();
        first.or_else(urgent).or_else(|| self.jobs.try_recv().ok())
    }

    /// Pause before the next attempt to connect. A renewal that comes meanwhile, and whose deadline
    /// ends first, fails with the last error.
    pub(super) async fn pause(&mut self, pause: Duration, error: Option<&StoreError>) {
        let until = clock::now() + pause;
        let mut over = std::pin::pin!(clock::sleep(pause));
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(job) = self.urgent.recv() => match error {
                    Some(error) if until >= job.deadline => (job.work)(Err(error.duplicate())).await,
                    _ => self.deferred.push_back(job),
                },
            }
        }
    }
}
