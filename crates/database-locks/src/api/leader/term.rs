//! One term of a leader, from its grant to its end.

use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument;

use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;

/// The term of a leader: the time for which one process leads.
///
/// It derefs to the [`LockGuard`] of its lock, with its [`token`](LockGuard::token),
/// [`check`](LockGuard::check), [`lost`](LockGuard::lost), [`on_lost`](LockGuard::on_lost) and
/// [`fence`](LockGuard::fence). The token grows with each term, in whichever process.
///
/// Clones are handles of the same term, for the tasks and threads that work for the leader. They
/// keep nothing alive: the term ends with the body of [`Leader::run`](crate::Leader::run).
///
/// # Example
///
/// ```
/// # use database_locks::{Error, Locks};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
/// # let locks = Locks::connect("memory:").await?;
/// let leader = locks.leader("scheduler");
/// let first = leader.run(|term| async move { term.token() }).await?;
/// let second = leader.run(|term| async move { term.token() }).await?;
/// assert!(first < second);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Term(Arc<Shared>);

struct Shared {
    guard: LockGuard,
    /// Whether this process has given up the term.
    resigned: watch::Sender<bool>,
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Term")
            .field("name", &self.name())
            .field("token", &self.token())
            .field("is_leader", &self.is_leader())
            .finish_non_exhaustive()
    }
}

impl Deref for Term {
    type Target = LockGuard;

    fn deref(&self) -> &LockGuard {
        &self.0.guard
    }
}

impl Term {
    /// Whether this process leads, in this term. Never waits for I/O.
    ///
    /// `false` once the term has been resigned or has ended, and before another process can lead,
    /// with the exceptions of [`LockGuard::is_held`].
    pub fn is_leader(&self) -> bool {
        !self.has_resigned() && self.is_held()
    }

    /// Wait until the term has ended: lost, resigned, or over because the body has ended.
    ///
    /// The future does not borrow the term, so it may be spawned. For the reason of a loss see
    /// [`LockGuard::loss`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; call this again for another future.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let (lost, mut resigned) = (self.lost(), self.0.resigned.subscribe());
        let resigned = async move {
            // An error: the term is gone, and so it was over.
            let _ = resigned.wait_for(|resigned| *resigned).await;
        };
        async move {
            tokio::select! {
                biased;
                _ = lost => {}
                () = resigned => {}
            }
        }
    }

    /// Give up the term: the body is stopped, then the lock is released, and after a pause this
    /// process campaigns again.
    ///
    /// Returns at once. The body is dropped where it awaits next, after the
    /// [grace](crate::Leader::grace) if there is one; a body that blocks has to return. Another
    /// candidate gets the lock: this process waits for twice its [`poll`](crate::Leader::poll), but
    /// at least 1 s, before it campaigns again. If no other process campaigns, it leads again after
    /// that.
    ///
    /// To lead no more, return from the body instead.
    pub fn resign(&self) {
        self.0.resigned.send_replace(true);
    }

    fn has_resigned(&self) -> bool {
        *self.0.resigned.borrow()
    }
}

/// How a term ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The body ended while it led.
    ByBody,
    Lost,
    Resigned,
}

/// The term as `run` owns it. Dropping it releases the lock in the background, although handles
/// of the term may live on.
pub(super) struct TermOwner(Term);

impl TermOwner {
    pub(super) fn new(guard: LockGuard) -> Self {
        tracing::info!(
            event = "leading",
            lock.name = guard.name().as_str(),
            lock.token = guard.token().get(),
            lock.holder = guard.holder(),
            "leading `{}`, term {}",
            guard.name(),
            guard.token()
        );
        Self(Term(Arc::new(Shared {
            guard,
            resigned: watch::Sender::new(false),
        })))
    }

    /// A handle for the body.
    pub(super) fn term(&self) -> Term {
        self.0.clone()
    }

    /// Run `work` until it ends or the term does, and then for the grace. `None`: it was stopped.
    pub(super) async fn until_ended<W: Future>(
        &self,
        work: W,
        grace: Duration,
    ) -> Option<W::Output> {
        let term = &self.0;
        // Log records of the work belong to this term.
        let span = tracing::debug_span!(
            "leading",
            lock.name = term.name().as_str(),
            lock.token = term.token().get(),
            lock.holder = term.holder()
        );
        let mut work = pin!(work.instrument(span));
        let mut ended = pin!(term.ended());
        let output = poll_fn(|context| {
            // The task that marks a loss may not have run yet, as in a process that was frozen.
            let is_over = term.loss().is_some() || ended.as_mut().poll(context).is_ready();
            match is_over {
                true => Poll::Ready(None),
                false => work.as_mut().poll(context).map(Some),
            }
        });
        if let Some(output) = output.await {
            return Some(output);
        }
        let left = self.left_of(grace);
        if left.is_zero() {
            return None;
        }
        // In the background: the caller may have no timer.
        let end = clock::now() + left;
        let late = runtime::spawn(clock::sleep_until(end)).ok()?;
        tokio::select! {
            biased;
            _ = late => None,
            output = work => Some(output),
        }
    }

    /// What is left of the grace, now that the term has ended.
    fn left_of(&self, grace: Duration) -> Duration {
        match self.0.loss() {
            None => grace,
            Some(loss) if loss.reason().leaves_a_lease() => grace.saturating_sub(loss.elapsed()),
            Some(_) => Duration::ZERO,
        }
    }

    /// End the term after its body has ended, and release the lock.
    pub(super) async fn end(self) -> Over {
        let term = &self.0;
        // Dropping the owner releases what is left of the lease.
        if term.loss().is_some() {
            return Over::Lost;
        }
        let over = match term.has_resigned() {
            true => Over::Resigned,
            false => Over::ByBody,
        };
        // Handles of the term learn of its end now.
        term.resign();
        if let Err(lost @ Error::Lost { .. }) = term.0.guard.release_shared().await {
            tracing::warn!(
                lock.name = term.name().as_str(),
                lock.token = term.token().get(),
                lock.holder = term.holder(),
                "{lost}, just before its body ended: another process may have led at the same time"
            );
        }
        // Another failure changes nothing: the lock was held until the body ended, and the release
        // goes on in the background.
        over
    }
}

impl Drop for TermOwner {
    fn drop(&mut self) {
        self.0.resign();
        self.0.0.guard.release_in_background();
    }
}
