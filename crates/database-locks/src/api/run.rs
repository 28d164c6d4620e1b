//! Running a future under a lock.

use tracing::{Instrument, Span};

use crate::api::lock::Lock;
use crate::error::Error;

impl Lock {
    /// Run `work` while holding the lock; drop it if the lock is lost.
    ///
    /// The work begins when the lock is acquired. A future is stopped only where it awaits: work
    /// that blocks goes on. For work that returns a `Result` see [`try_run`](Lock::try_run).
    ///
    /// The future is `Send` if `work` and its output are, and borrows what `work` borrows.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`]; [`Error::Lost`] if the work was stopped, or had just ended when the
    /// loss was found.
    ///
    /// # Panics
    ///
    /// If `work` does; the lock is then released in the background.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the work is dropped first and then the lock is released in the
    /// background.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let sum = locks.lock("report").run(async { 1 + 1 }).await?;
    /// assert_eq!(sum, 2);
    /// # Ok(()) }
    /// ```
    pub fn run<F: Future>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        let acquiring = self.acquire();
        async move {
            let guard = acquiring.await?;
            let span = tracing::debug_span!(
                "locked",
                lock.name = guard.name().as_str(),
                lock.token = guard.token().get(),
                lock.holder = guard.holder()
            );
            let done = until_lost(guard.lost(), work, span).await;
            let output = done.map_err(|loss| Error::lost(guard.name(), loss))?;
            after_release(output, guard.release().await)
        }
    }

    /// Run `work` that returns a `Result` while holding the lock; drop it if the lock is lost.
    ///
    /// As [`Lock::run`], with one `?` instead of two. The lock is released whichever way the work
    /// ends.
    ///
    /// # Errors
    ///
    /// The error of `work`, or an error of [`Lock::run`], converted.
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::run`].
    ///
    /// # Example
    ///
    /// ```
    /// type BoxError = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// async fn count() -> Result<u32, BoxError> {
    ///     Ok("17".parse()?)
    /// }
    ///
    /// let count = locks.lock("count").try_run(count()).await?;
    /// assert_eq!(count, 17);
    /// # Ok(()) }
    /// ```
    pub fn try_run<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>> + use<T, E, F>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let running = self.run(work);
        async move { running.await? }
    }
}

/// Run `work` until it ends or the lock is lost. Log records of the work belong to the span.
pub(super) async fn until_lost<F: Future, L>(
    lost: impl Future<Output = L>,
    work: F,
    span: Span,
) -> Result<F::Output, L> {
    let work = std::pin::pin!(work.instrument(span));
    tokio::select! {
        biased;
        lost = lost => Err(lost),
        output = work => Ok(output),
    }
}

/// The result of work after which the lock was released.
pub(super) fn after_release<T>(output: T, released: Result<(), Error>) -> Result<T, Error> {
    match released {
        // The work blocked past the end of the lease, or the lock was released by force since the
        // last renewal.
        Err(lost @ Error::Lost { .. }) => Err(lost),
        // The lock was held until the work ended. A failed release does not change the result of
        // the work, and continues in the background.
        Ok(()) | Err(_) => Ok(output),
    }
}
