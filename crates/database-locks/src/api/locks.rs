//! `Locks`: the locks of one table of one database.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::all_locks::AllLocks;
use crate::api::lock::Lock;
use crate::client::Client;
use crate::client::endpoint::Endpoint;
use crate::client::guard::LockGuard;
use crate::client::handover::{ByTicket, by_ticket};
use crate::error::Error;
use crate::runtime;
use protocol::{Renewing, Ticket, Timing, Ttl};

/// The locks of one table of one database.
///
/// Cheap to clone: clones share at most two connections, one renewal scheduler, and one queue of
/// waiters for each lock. The futures of its methods, and of those of [`Lock`], borrow nothing and
/// can be spawned.
///
/// # Example
///
/// ```
/// use database_locks::Locks;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// let locks = Locks::connect("memory:").await?;
/// let guard = locks.lock("report").acquire().await?;
/// assert!(guard.is_held());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Locks(Arc<Endpoint>);

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Locks {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self(endpoint)
    }

    /// The engine that the URL names: `postgres`, `mysql` (MariaDB too), `sqlite` or `memory`, as
    /// in logs and metrics.
    pub fn engine(&self) -> &'static str {
        self.0.engine()
    }

    /// A lock of this name, with the default settings. The name is checked when the lock is
    /// acquired.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock::new(Arc::clone(&self.0), name.as_ref())
    }

    /// A semaphore of this name: a lock that up to `permits` holders have at the same time, with
    /// the default settings. 1 to 65,536 permits; checked when a permit is acquired.
    ///
    /// Everything that a lock offers is there for each permit: lease, renewal, token, ticket, fence
    /// and loss. A guard knows the number of its permit: [`LockGuard::slot`](crate::LockGuard::slot).
    ///
    /// - The limit is the caller's. Callers that give different limits, or one that was lowered
    ///   meanwhile, may together exceed the lower one until holders have released.
    /// - An operator can set a limit in the database, which takes precedence over that of every
    ///   caller at its next try: [`Locks::set_limit`], `dblock limit`. 0 pauses the semaphore.
    /// - A semaphore and a lock of the same name are independent of each other.
    /// - Tokens of different permits cannot be compared. What the permits protect together is
    ///   fenced by the database ([`LockGuard::fence`](crate::LockGuard::fence)), or by the grant id.
    /// - [`preempt`](Lock::preempt) is refused.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let api = locks.semaphore("partner api", 2);
    /// let (first, second) = (api.acquire().await?, api.acquire().await?);
    /// assert!(api.try_acquire().await?.is_none(), "two at a time");
    /// assert_ne!(first.slot(), second.slot());
    /// # drop((first, second));
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, name: impl AsRef<str>, permits: u32) -> Lock {
        self.lock(name).with_permits(permits)
    }

    /// Several locks at once, all or none, with the default settings: 1 to 100 names, of which a
    /// repeated one counts once. They are checked when the locks are acquired.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// // The two accounts of a transfer, in any order.
    /// let both = locks.all(["account 7", "account 3"]).acquire().await?;
    /// assert!(both.is_held() && locks.lock("account 3").try_acquire().await?.is_none());
    /// both.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn all<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> AllLocks {
        AllLocks::new(self.lock(""), names)
    }

    /// Resume a lock that was handed over: the same token, a new grant.
    ///
    /// A late request of the former holder, or of a second client with the same ticket, changes
    /// nothing. The guard has the default settings; for others see [`Lock::resume`].
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the ticket is no longer valid: resumed, released, or expired;
    /// [`Error::Unavailable`] if the database does not answer within 5 s; [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::resume`].
    ///
    /// # Example
    ///
    /// ```
    /// # use database_locks::Locks;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let ticket = locks.lock("report").acquire().await?.into_ticket()?;
    /// // … in another task or process …
    /// let guard = locks.resume(&ticket).await?;
    /// assert_eq!(guard.token(), ticket.token());
    /// assert!(locks.resume(&ticket).await.is_err(), "only once");
    /// # Ok(()) }
    /// ```
    pub fn resume(
        &self,
        ticket: &Ticket,
    ) -> impl Future<Output = Result<LockGuard, Error>> + Send + use<> {
        self.lock(ticket.name()).resume(ticket)
    }

    /// Renew a lock that was handed over, without resuming it.
    ///
    /// The lease then ends `ttl` from now (100 ms to 10 years, or never). A longer lease is not
    /// shortened.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the ticket is no longer valid; [`Error::Config`] for a ttl out of range;
    /// [`Error::Conflict`] if the row stays locked for 5 s; [`Error::Unavailable`],
    /// [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lease may or may not be renewed.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let ticket = locks.lock("deploy").acquire().await?.into_ticket()?;
    /// // The steps of a longer job, each in a process of its own:
    /// let minute = std::time::Duration::from_secs(60);
    /// locks.renew(&ticket, minute).await?;
    /// // The last one:
    /// locks.release(&ticket).await?;
    /// assert!(locks.renew(&ticket, minute).await.is_err());
    /// # Ok(()) }
    /// ```
    pub fn renew<T: Into<Ttl>>(
        &self,
        ticket: &Ticket,
        ttl: T,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static + use<T> {
        let timing = Timing::new(ttl.into(), Renewing::Never, None);
        let (locks, ticket) = (self.clone(), ticket.clone());
        async move {
            let ttl = timing?.ttl();
            by_ticket(locks.client()?, ticket, ByTicket::Renew(ttl)).await
        }
    }

    /// Release a lock that was handed over. [`Locks::renew`] has an example.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the ticket is no longer valid, which changes nothing; [`Error::Conflict`]
    /// if the row stays locked for 5 s; [`Error::Unavailable`], [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lock may or may not be released.
    pub fn release(
        &self,
        ticket: &Ticket,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (locks, ticket) = (self.clone(), ticket.clone());
        async move { by_ticket(locks.client()?, ticket, ByTicket::Release).await }
    }

    /// Wait for all background releases: those of dropped guards and of abandoned acquires.
    ///
    /// Waits without a limit. The end of a process waits for these releases too, for at most 2 s:
    /// see [`LockGuard`](crate::LockGuard#at-the-end-of-the-process).
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the releases go on.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// drop(locks.lock("report").acquire().await?);
    /// let _ = tokio::time::timeout(Duration::from_secs(5), locks.drain()).await;
    /// # Ok(()) }
    /// ```
    pub fn drain(&self) -> impl Future<Output = ()> + Send + use<> {
        let locks = self.clone();
        async move {
            let Ok(client) = locks.client() else { return };
            while !client.pending_releases.is_empty() {
                let pause = async {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    Ok::<_, Error>(())
                };
                if runtime::run(pause).await.is_err() {
                    return;
                }
            }
        }
    }

    /// A future that borrows nothing and runs `work` in the background once it is polled.
    pub(in crate::api) fn in_background<T, W, F>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, W, F>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Client>) -> F + Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let locks = self.clone();
        async move { runtime::run(work(locks.client()?)).await }
    }

    pub(crate) fn client(&self) -> Result<Arc<Client>, Error> {
        self.0.client().map(Arc::clone)
    }
}

/// For `via` of `#[locked]`. A type of the application that contains its locks can implement it
/// too.
impl AsRef<Self> for Locks {
    fn as_ref(&self) -> &Self {
        self
    }
}
