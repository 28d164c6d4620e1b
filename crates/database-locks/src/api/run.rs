//! Running a future under a lock.

use tracing::Instrument;

use crate::api::lock::Lock;
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::error::loss::Loss;

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
            let done = until_lost(&guard, work).await;
            released_after(guard, done).await
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

/// Run `work` until it ends or the lock is lost.
async fn until_lost<F: Future>(guard: &LockGuard, work: F) -> Result<F::Output, Loss> {
    // Log records of the work belong to this lock and grant.
    let span = tracing::debug_span!(
        "locked",
        lock.name = guard.name().as_str(),
        lock.token = guard.token().get(),
        lock.holder = guard.holder()
    );
    let (lost, work) = (guard.lost(), std::pin::pin!(work.instrument(span)));
    tokio::select! {
        biased;
        loss = lost => Err(loss),
        output = work => Ok(output),
    }
}

/// Release the lock after the work has ended, and return the result of the work.
async fn released_after<T>(guard: LockGuard, done: Result<T, Loss>) -> Result<T, Error> {
    let output = done.map_err(|loss| Error::lost(guard.name(), loss))?;
    match guard.release().await {
        // The work blocked past the end of the lease, or the lock was released by force since the
        // last renewal.
        Err(lost @ Error::Lost { .. }) => Err(lost),
        // The lock was held until the work ended. A failed release does not change the result of
        // the work, and continues in the background.
        Ok(()) | Err(_) => Ok(output),
    }
}
