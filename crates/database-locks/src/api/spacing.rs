//! How far apart the grants of a lock are.

use std::time::Duration;

use crate::api::lock::Lock;

impl Lock {
    /// How long the lock stays unavailable from the beginning of the grant, even if it is released
    /// before: 0 (the default) to 10 years. It may be longer than the ttl.
    ///
    /// For a short job that several machines start at about the same time, each with a clock of its
    /// own: the slowest of them must not find the lock free again. A release before that time, by
    /// [`release`](crate::LockGuard::release), a drop or the end of the process, lets the lock
    /// **rest** for what is left of it ([`LockState::Resting`](crate::LockState::Resting)). No
    /// client holds a lock that rests, and none can acquire it: a try returns `None`, and a wait
    /// goes on until the rest has ended. [`Locks::force_release`](crate::Locks::force_release) ends
    /// it; [`preempt`](Lock::preempt) does not.
    ///
    /// A lock does not rest if it is lost, or if its holder is killed: then its lease expires. A
    /// [ticket](crate::LockGuard::into_ticket) does not contain the setting. The release of a lock
    /// that will rest waits for the disk of the database, so that a crash does not end the rest. On
    /// a cluster the rest ends by the clock of the node that is asked. Legacy
    /// (django-database-locks 0.5) sees a lock that rests as a held one.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let job = locks.lock("cleanup").at_least(Duration::from_secs(50)).wait(Duration::ZERO);
    /// job.run(async { /* takes a second */ }).await?;
    /// assert!(job.try_acquire().await?.is_none(), "it rests");
    /// # Ok(()) }
    /// ```
    pub fn at_least(mut self, length: Duration) -> Self {
        self.at_least = length;
        self
    }

    /// Acquire the lock only once in each period of this length: 100 ms to 10 years. By default as
    /// often as it is free.
    ///
    /// For a job that several machines start in each period: the first one runs it, and the others
    /// do without. The lock is refused if its latest grant began less than the period ago, by the
    /// database's clock, less a tolerance of a tenth of the period, at most a minute: the machines
    /// do not start at exactly the same time in each period. [`try_acquire`](Lock::try_acquire)
    /// then returns `None`, and [`acquire`](Lock::acquire) at once
    /// [`Error::AlreadyRan`](crate::Error::AlreadyRan), whether the lock is free or still held. If
    /// the holder's grant began earlier, `acquire` waits for the lock as usual.
    ///
    /// **A grant counts, whether its work succeeded or not**: a job that failed is not run again in
    /// the same period. Each grant of this name counts, also one of a caller without this setting;
    /// that of legacy (django-database-locks 0.5) does not, since it is not recorded. The time of
    /// the latest grant is in the row, so [`Locks::prune`](crate::Locks::prune) has to leave rows
    /// for longer than the period.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use database_locks::Error;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let hourly = locks.lock("hourly report").once_per(Duration::from_secs(3600));
    /// hourly.run(async { /* … */ }).await?;
    /// match hourly.run(async { unreachable!() }).await {
    ///     Err(Error::AlreadyRan { ago, .. }) => println!("another machine ran it {ago:?} ago"),
    ///     other => other?,
    /// }
    /// # Ok(()) }
    /// ```
    pub fn once_per(mut self, period: Duration) -> Self {
        self.once_per = Some(period);
        self
    }
}
