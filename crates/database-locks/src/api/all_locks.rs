//! Several locks before they are acquired: their names and settings.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::api::busy::Busy;
use crate::api::delegate::settings;
use crate::api::lock::Lock;
use crate::api::lock_set::LockSet;
use crate::api::run::{after_release, until_lost};
use crate::client::acquire::all_attempt::AllRequest;
use crate::client::acquire::several::acquire_all;
use crate::client::read::locked_unheld;
use crate::error::Error;
use crate::runtime;
use protocol::{LockInfo, LockName, REQUEST_TIMEOUT, Ttl};

/// The largest number of locks that are acquired at once. It bounds the duration of one statement.
const MAX_NAMES: usize = 100;

/// Several locks, acquired all or none: their names and settings. A [`LockSet`] holds them.
///
/// [`Locks::all`](crate::Locks::all) makes one. The settings are those of a [`Lock`], and hold for
/// each of the locks; there is no `at_least`, `once_per`, `preempt` or `shared`. Names and settings
/// are checked by the call that acquires, before any I/O.
///
/// # What is promised
///
/// - All locks are granted in one transaction, or none. While it waits, the caller holds none of
///   them, so sets that overlap cannot block each other, whatever the order of their names.
/// - There is one wait with one limit for all of them. It names the lock that it waits for.
/// - Each lock is an ordinary one: it has its own token, lease and row, excludes callers that want
///   it alone, and can be listed, shown and released by force.
/// - If one lock is lost, the set is [lost](LockSet::lost).
///
/// **Order.** The locks have to be free at the same moment. Within one process a wait for several
/// does not starve: now and then, for a quarter of its time and ever longer, up to 10 s, it lets
/// callers wait that want one of its locks. Between processes chance decides: while other processes
/// hold one or another of the locks almost without a pause, a set may wait for long. Limit it by
/// [`wait`](AllLocks::wait).
///
/// # Example
///
/// ```
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// # let locks = database_locks::Locks::connect("memory:").await?;
/// let transfer = locks.all(["account 7", "account 3"]).wait(Duration::from_secs(5));
///
/// let both = transfer.acquire().await?;
/// for guard in both.guards() {
///     println!("{} has token {}", guard.name(), guard.token());
/// }
/// both.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "locks do nothing until they are acquired"]
pub struct AllLocks {
    /// The settings of each. Its own name is not used.
    each: Lock,
    names: Vec<String>,
}

impl fmt::Debug for AllLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllLocks")
            .field("names", &self.names.len())
            .field("each", &self.each)
            .finish()
    }
}

impl AllLocks {
    pub(crate) fn new<N: AsRef<str>>(each: Lock, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(|name| name.as_ref().to_owned());
        // In order, and each once. One too many is enough to be refused.
        let names: BTreeSet<String> = names.collect();
        Self {
            each,
            names: names.into_iter().collect(),
        }
    }

    /// The names in order, each once. They are checked when the locks are acquired.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    settings! { self.each;
        /// See [`Lock::ttl`].
        ttl(ttl: impl Into<Ttl>);
        /// How long [`AllLocks::acquire`] waits for all of them. No limit by default; zero: one try.
        ///
        /// On clusters with several primaries it may be extended: see [`Lock::wait`].
        wait(limit: Duration);
        /// See [`Lock::poll`].
        poll(longest: Duration);
        /// See [`Lock::renew_every`].
        renew_every(period: Duration);
        /// See [`Lock::auto_renew`].
        auto_renew(on: bool);
        /// See [`Lock::margin`].
        margin(margin: Duration);
        /// The name of the holder, for people: see [`Lock::holder`].
        holder(holder: impl Into<String>);
        /// A value to show with each of the locks: see [`Lock::metadata`].
        metadata(key: impl Into<String>, value: impl Into<Value>);
    }

    fn request(&self, wait: Option<Duration>) -> Result<AllRequest, Error> {
        if !(1..=MAX_NAMES).contains(&self.names.len()) {
            let got = match self.names.len() {
                0 => "empty".to_owned(),
                many => format!("a list of {many}"),
            };
            let allowed = format!("1 to {MAX_NAMES} names of locks to acquire at once");
            return Err(Error::config("names", got, allowed));
        }
        let one = |name: &String| self.each.named(name).request(wait, None).map(Arc::new);
        let all = self.names.iter().map(one);
        all.collect::<Result<_, _>>().map(AllRequest)
    }

    /// Acquire all of them now, or return `None` if another client holds one. On a cluster it may
    /// wait: see [`Lock::wait`].
    ///
    /// The future borrows nothing.
    ///
    /// # Errors
    ///
    /// As [`Lock::try_acquire`], and [`Error::Config`] for no name or more than 100.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time and leaves nothing held, as [`Lock::try_acquire`].
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let other = locks.lock("orders").acquire().await?;
    /// assert!(locks.all(["orders", "stock"]).try_acquire().await?.is_none());
    /// assert!(locks.lock("stock").try_acquire().await?.is_some(), "none of them was acquired");
    /// # drop(other);
    /// # Ok(()) }
    /// ```
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<LockSet>, Error>> + Send + use<> {
        let locks = self.clone();
        async move {
            let request = locks.request(Some(Duration::ZERO))?;
            let client = Arc::clone(locks.each.endpoint.client()?);
            Ok(acquire_all(client, request).await?.map(LockSet::new))
        }
    }

    /// Acquire all of them, waiting as long as [`wait`](AllLocks::wait) allows. None is held until
    /// all are.
    ///
    /// The future borrows nothing. A wait survives restarts of the database.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`]: [`Error::TimedOut`] names one lock that was held, and its holder. And
    /// [`Error::Config`] for no name or more than 100.
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::acquire`].
    pub fn acquire(&self) -> impl Future<Output = Result<LockSet, Error>> + Send + use<> {
        let locks = self.clone();
        async move { locks.acquire_or_time_out().await }
    }

    async fn acquire_or_time_out(&self) -> Result<LockSet, Error> {
        let request = self.request(self.each.wait)?;
        let (names, client) = (request.names(), self.each.endpoint.client()?);
        if let Some(guards) = acquire_all(Arc::clone(client), request).await? {
            return Ok(LockSet::new(guards));
        }
        // Only a wait of zero returns `None`. The error names one that is held.
        let (shared, all) = (Arc::clone(client), names.clone());
        let found = runtime::run(async move {
            let rows = shared.store.read(&all, REQUEST_TIMEOUT).await;
            let rows = rows.unwrap_or_default();
            let locker = match rows.iter().any(LockInfo::is_taken) {
                true => None,
                false => locked_unheld(&shared, &all).await,
            };
            Ok::<_, Error>((rows, locker))
        });
        let (rows, locker) = found.await.unwrap_or_default();
        let (locked, row_locker) = locker.unzip();
        let row_of = |name: &LockName| rows.iter().find(|row| row.name == *name);
        let is_taken = |name: &&LockName| row_of(name).is_some_and(LockInfo::is_taken);
        let taken = names.iter().find(is_taken);
        let name = locked.as_ref().or(taken).unwrap_or(&names[0]);
        let busy = Busy {
            row_locker: row_locker.map(Into::into),
            ..row_of(name).map(Busy::of_row).unwrap_or_default()
        };
        Err(busy.timed_out(name.clone(), Duration::ZERO))
    }

    /// Run `work` while holding all of them; drop it if one is lost. As [`Lock::run`].
    ///
    /// # Errors
    ///
    /// As [`AllLocks::acquire`]; [`Error::Lost`], which names the lock, if the work was stopped, or
    /// had just ended when the loss was found.
    ///
    /// # Panics
    ///
    /// If `work` does; the locks are then released in the background.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the work is dropped first and then the locks are released in the
    /// background.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let sum = locks.all(["orders", "stock"]).run(async { 1 + 1 }).await?;
    /// assert_eq!(sum, 2);
    /// # Ok(()) }
    /// ```
    pub fn run<F: Future>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        let acquiring = self.acquire();
        async move {
            let set = acquiring.await?;
            let span = tracing::debug_span!("locked", lock.names = set.guards().len());
            let done = until_lost(set.lost(), work, span).await;
            let output = done.map_err(|(name, loss)| Error::lost(&name, loss))?;
            after_release(output, set.release().await)
        }
    }

    /// Run `work` that returns a `Result` while holding all of them. As [`Lock::try_run`].
    ///
    /// # Errors
    ///
    /// The error of `work`, or an error of [`AllLocks::run`], converted.
    ///
    /// # Cancel safety
    ///
    /// As [`AllLocks::run`].
    pub fn try_run<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>> + use<T, E, F>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let running = self.run(work);
        async move { running.await? }
    }
}
