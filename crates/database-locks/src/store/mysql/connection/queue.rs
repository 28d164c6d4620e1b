//! The jobs that wait for the connection.

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

/// What a caller wants done on the connection.
pub(super) struct Job {
    pub(super) deadline: BootInstant,
    pub(super) work: Work,
}

impl Job {
    pub(super) fn left(&self) -> Duration {
        self.deadline - clock::now()
    }
}

/// What waits for the connection.
pub(super) struct JobQueue {
    /// Renewals that came before a connection was made.
    deferred: VecDeque<Job>,
    /// Renewals. They go before all the rest: a lease ends while they wait, and behind a crowd of
    /// acquires there is always one statement more.
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

    /// None: there will be no more.
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

    /// One that is there already.
    pub(super) fn try_next(&mut self) -> Option<Job> {
        let first = self.deferred.pop_front();
        let urgent = || self.urgent.try_recv().ok();
        first.or_else(urgent).or_else(|| self.jobs.try_recv().ok())
    }

    /// Pause before the next attempt to connect. A renewal that comes meanwhile and cannot wait for
    /// so long is told what was said the last time.
    pub(super) async fn pause(&mut self, pause: Duration, message: Option<&StoreError>) {
        let until = clock::now() + pause;
        let mut over = std::pin::pin!(clock::sleep(pause));
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(job) = self.urgent.recv() => match message {
                    Some(message) if until >= job.deadline => (job.work)(Err(message.again())).await,
                    _ => self.deferred.push_back(job),
                },
            }
        }
    }
}
