//! The API without async, for code that blocks.
//!
//! Each call waits on the calling thread, which also sends a first try and a release itself;
//! renewals and waits run in the background. The calling thread needs a stack of the default size,
//! not of a few KiB. Do not use this from async code: it would block the worker.
//!
//! ```
//! use database_locks::blocking::Locks;
//!
//! # fn main() -> Result<(), database_locks::Error> {
//! let locks = Locks::connect("memory:")?;
//! let guard = locks.lock("report").acquire()?;
//! assert!(guard.is_held());
//! # Ok(()) }
//! ```
//!
//! # Where no call may block
//!
//! A log subscriber, a metrics recorder or a waker may be called on the thread that renews all
//! leases of the process. A call of this module on that thread would wait for the thread itself. So
//! it fails at once with [`Error::Config`], and a function that returns no `Result` panics. A
//! [`LockGuard`] that is dropped or released there is released in the background. Callbacks of
//! [`on_lost`](crate::LockGuard::on_lost) run on threads of their own and may block.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use serde_json::Value;

pub use crate::api::blocking_sets::{AllLocks, LockSet};
use crate::api::fence::{FenceFailure, FenceTransaction, OpenFence};
use crate::api::force_release::PreviousHolder;
use crate::api::{builder, lock, locks};
use crate::client::guard;
use crate::doctor::Report;
use crate::error::loss::Loss;
use crate::error::{BoxError, Error};
use crate::runtime::{block_on, block_on_for};
use protocol::{ListFilter, LockInfo, LockName, Prune, Semaphore, TableGuard, Ticket, Ttl};

pub use crate::api::leader::blocking::{Leader, LeaderObserver, Term};

/// Wait on this thread for a future of this library, for at most `at_most`; `None` if it takes
/// longer. Then the future may be waited for again.
///
/// For callers that have to check something else from time to time, such as signals. It is as fast
/// as the other calls of this module.
///
/// # Panics
///
/// Where [no call may block](self#where-no-call-may-block).
///
/// # Example
///
/// ```
/// use std::pin::pin;
/// use std::time::Duration;
///
/// use database_locks::blocking::wait_for;
///
/// # fn main() -> Result<(), database_locks::Error> {
/// let locks = database_locks::Locks::builder("memory:").connect_lazy()?;
/// let mut acquiring = pin!(locks.lock("report").acquire());
/// let guard = loop {
///     match wait_for(acquiring.as_mut(), Duration::from_millis(50)) {
///         Some(acquired) => break acquired?,
///         None => println!("still waiting"),
///     }
/// };
/// # drop(guard);
/// # Ok(()) }
/// ```
pub fn wait_for<F: Future + ?Sized>(future: Pin<&mut F>, at_most: Duration) -> Option<F::Output> {
    may_wait(block_on_for(future, at_most))
}

/// Panic on an error, in functions that return no `Result`.
fn may_wait<T, E: Into<Error>>(waited: Result<T, E>) -> T {
    waited.unwrap_or_else(|error| panic!("{}", error.into()))
}

/// [`crate::LocksBuilder`] without async.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct LocksBuilder(builder::LocksBuilder);

impl LocksBuilder {
    /// See [`crate::LocksBuilder::table`].
    pub fn table(self, table: impl Into<String>) -> Self {
        Self(self.0.table(table))
    }

    /// See [`crate::LocksBuilder::password`].
    pub fn password(
        self,
        ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.password(ask))
    }

    /// See [`crate::LocksBuilder::url_with`].
    pub fn url_with(
        self,
        ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.url_with(ask))
    }

    /// See [`crate::LocksBuilder::environment`].
    pub fn environment(self, looked_up: bool) -> Self {
        Self(self.0.environment(looked_up))
    }

    /// See [`crate::LocksBuilder::create`].
    pub fn create(self, made: bool) -> Self {
        Self(self.0.create(made))
    }

    /// See [`crate::LocksBuilder::connect`].
    pub fn connect(self) -> Result<Locks, Error> {
        block_on(self.0.connect())?.map(Locks)
    }

    /// See [`crate::LocksBuilder::connect_lazy`].
    pub fn connect_lazy(self) -> Result<Locks, Error> {
        self.0.connect_lazy().map(Locks)
    }
}

/// [`crate::Locks`] without async.
#[derive(Clone, Debug)]
pub struct Locks(locks::Locks);

impl Locks {
    /// See [`crate::Locks::connect`].
    pub fn connect(url: impl AsRef<str>) -> Result<Self, Error> {
        block_on(locks::Locks::connect(url))?.map(Self)
    }

    /// See [`crate::Locks::builder`].
    pub fn builder(url: impl AsRef<str>) -> LocksBuilder {
        LocksBuilder(locks::Locks::builder(url))
    }

    /// See [`crate::Locks::builder_from_file`].
    pub fn builder_from_file(path: impl Into<PathBuf>) -> Result<LocksBuilder, Error> {
        locks::Locks::builder_from_file(path).map(LocksBuilder)
    }

    /// See [`crate::Locks::set_default`]: async and blocking code share one default.
    pub fn set_default(locks: Self) {
        locks::Locks::set_default(locks.0);
    }

    /// See [`crate::Locks::get_default`].
    pub fn get_default() -> Result<Self, Error> {
        block_on(locks::Locks::get_default())?.map(Self)
    }

    /// See [`crate::Locks::engine`].
    pub fn engine(&self) -> &'static str {
        self.0.engine()
    }

    /// See [`crate::Locks::lock`].
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock(self.0.lock(name))
    }

    /// See [`crate::Locks::semaphore`].
    ///
    /// ```
    /// # fn main() -> Result<(), database_locks::Error> {
    /// let locks = database_locks::blocking::Locks::connect("memory:")?;
    /// let guard = locks.semaphore("partner api", 3).acquire()?;
    /// assert!(guard.slot().is_some_and(|slot| slot < 3));
    /// assert_eq!(locks.show_semaphore("partner api")?.held(), 1);
    /// guard.release()?;
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, name: impl AsRef<str>, permits: u32) -> Lock {
        Lock(self.0.semaphore(name, permits))
    }

    /// See [`crate::Locks::show_semaphore`].
    pub fn show_semaphore(&self, name: impl AsRef<str>) -> Result<Semaphore, Error> {
        block_on(self.0.show_semaphore(name))?
    }

    /// See [`crate::Locks::limits`].
    pub fn limits(&self) -> Result<BTreeMap<LockName, u32>, Error> {
        block_on(self.0.limits())?
    }

    /// See [`crate::Locks::set_limit`].
    pub fn set_limit(&self, name: impl AsRef<str>, limit: Option<u32>) -> Result<(), Error> {
        block_on(self.0.set_limit(name, limit))?
    }

    /// See [`crate::Locks::all`].
    pub fn all<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> AllLocks {
        AllLocks::from(self.0.all(names))
    }

    /// See [`crate::Locks::leader`].
    pub fn leader(&self, name: impl AsRef<str>) -> Leader {
        Leader::new(self.0.leader(name))
    }

    /// See [`crate::Locks::migrate`].
    pub fn migrate(&self) -> Result<(), Error> {
        block_on(self.0.migrate())?
    }

    /// See [`crate::Locks::guard_table`].
    pub fn guard_table(&self, table: impl AsRef<str>, lock: impl AsRef<str>) -> Result<(), Error> {
        block_on(self.0.guard_table(table, lock))?
    }

    /// See [`crate::Locks::guard_table_allowing_cascades`].
    pub fn guard_table_allowing_cascades(
        &self,
        table: impl AsRef<str>,
        lock: impl AsRef<str>,
    ) -> Result<(), Error> {
        block_on(self.0.guard_table_allowing_cascades(table, lock))?
    }

    /// See [`crate::Locks::unguard_table`].
    pub fn unguard_table(&self, table: impl AsRef<str>) -> Result<bool, Error> {
        block_on(self.0.unguard_table(table))?
    }

    /// See [`crate::Locks::guarded_tables`].
    pub fn guarded_tables(&self) -> Result<Vec<TableGuard>, Error> {
        block_on(self.0.guarded_tables())?
    }

    /// See [`crate::Locks::list`].
    pub fn list(&self) -> Result<Vec<LockInfo>, Error> {
        block_on(self.0.list())?
    }

    /// See [`crate::Locks::list_filtered`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::Locks::list_filtered`].
    pub fn list_filtered(&self, filter: &ListFilter) -> Result<Vec<LockInfo>, Error> {
        block_on(self.0.list_filtered(filter))?
    }

    /// See [`crate::Locks::show`].
    pub fn show(&self, name: impl AsRef<str>) -> Result<Option<LockInfo>, Error> {
        block_on(self.0.show(name))?
    }

    /// See [`crate::Locks::force_release`].
    pub fn force_release(&self, name: impl AsRef<str>) -> Result<Option<PreviousHolder>, Error> {
        block_on(self.0.force_release(name))?
    }

    /// See [`crate::Locks::force_release_permit`].
    pub fn force_release_permit(
        &self,
        name: impl AsRef<str>,
        slot: u16,
    ) -> Result<Option<PreviousHolder>, Error> {
        block_on(self.0.force_release_permit(name, slot))?
    }

    /// See [`crate::Locks::show_shared`].
    pub fn show_shared(&self, name: impl AsRef<str>) -> Result<Vec<LockInfo>, Error> {
        block_on(self.0.show_shared(name))?
    }

    /// See [`crate::Locks::force_release_shared`].
    pub fn force_release_shared(
        &self,
        name: impl AsRef<str>,
    ) -> Result<Vec<PreviousHolder>, Error> {
        block_on(self.0.force_release_shared(name))?
    }

    /// See [`crate::Locks::doctor`].
    pub fn doctor(&self) -> Result<Report, Error> {
        block_on(self.0.doctor())?
    }

    /// See [`crate::Locks::resume`].
    pub fn resume(&self, ticket: &Ticket) -> Result<LockGuard, Error> {
        block_on(self.0.resume(ticket))?.map(|guard| LockGuard(Some(guard)))
    }

    /// See [`crate::Locks::renew`].
    pub fn renew(&self, ticket: &Ticket, ttl: impl Into<Ttl>) -> Result<(), Error> {
        block_on(self.0.renew(ticket, ttl))?
    }

    /// See [`crate::Locks::release`].
    pub fn release(&self, ticket: &Ticket) -> Result<(), Error> {
        block_on(self.0.release(ticket))?
    }

    /// See [`crate::Locks::prune`].
    pub fn prune(&self, which: Prune) -> Result<u64, Error> {
        block_on(self.0.prune(which))?
    }

    /// See [`crate::Locks::drain`]. Returns at once where
    /// [no call may block](self#where-no-call-may-block).
    pub fn drain(&self) {
        let _ = block_on(self.0.drain());
    }
}

impl From<locks::Locks> for Locks {
    fn from(locks: locks::Locks) -> Self {
        Self(locks)
    }
}

impl AsRef<locks::Locks> for Locks {
    fn as_ref(&self) -> &locks::Locks {
        &self.0
    }
}

/// [`crate::Lock`] without async.
#[derive(Clone, Debug)]
#[must_use = "a lock does nothing until it is acquired"]
pub struct Lock(lock::Lock);

impl Lock {
    /// See [`crate::Lock::name`].
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// See [`crate::Lock::ttl`].
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Self {
        Self(self.0.ttl(ttl))
    }

    /// See [`crate::Lock::wait`].
    pub fn wait(self, limit: Duration) -> Self {
        Self(self.0.wait(limit))
    }

    /// See [`crate::Lock::poll`].
    pub fn poll(self, longest: Duration) -> Self {
        Self(self.0.poll(longest))
    }

    /// See [`crate::Lock::renew_every`].
    pub fn renew_every(self, period: Duration) -> Self {
        Self(self.0.renew_every(period))
    }

    /// See [`crate::Lock::auto_renew`].
    pub fn auto_renew(self, on: bool) -> Self {
        Self(self.0.auto_renew(on))
    }

    /// See [`crate::Lock::margin`].
    pub fn margin(self, margin: Duration) -> Self {
        Self(self.0.margin(margin))
    }

    /// See [`crate::Lock::holder`].
    pub fn holder(self, holder: impl Into<String>) -> Self {
        Self(self.0.holder(holder))
    }

    /// See [`crate::Lock::preempt`].
    pub fn preempt(self, on: bool) -> Self {
        Self(self.0.preempt(on))
    }

    /// See [`crate::Lock::shared`].
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::blocking::Locks::connect("memory:")?;
    /// let mut guard = locks.lock("price list").acquire()?;
    /// guard.downgrade()?;
    /// let other = locks.lock("price list").shared().acquire()?;
    /// assert_eq!(locks.show_shared("price list")?.len(), 2);
    /// # drop((guard, other));
    /// # Ok(()) }
    /// ```
    pub fn shared(self) -> Self {
        Self(self.0.shared())
    }

    #[doc(hidden)]
    pub fn shared_if(self, on: bool) -> Self {
        Self(self.0.shared_if(on))
    }

    /// See [`crate::Lock::at_least`].
    pub fn at_least(self, length: Duration) -> Self {
        Self(self.0.at_least(length))
    }

    /// See [`crate::Lock::once_per`].
    pub fn once_per(self, period: Duration) -> Self {
        Self(self.0.once_per(period))
    }

    /// See [`crate::Lock::metadata`].
    pub fn metadata(self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        Self(self.0.metadata(key, value))
    }

    /// See [`crate::Lock::try_acquire`].
    pub fn try_acquire(&self) -> Result<Option<LockGuard>, Error> {
        Ok(block_on(self.0.try_acquire())??.map(|guard| LockGuard(Some(guard))))
    }

    /// See [`crate::Lock::resume`].
    pub fn resume(&self, ticket: &Ticket) -> Result<LockGuard, Error> {
        block_on(self.0.resume(ticket))?.map(|guard| LockGuard(Some(guard)))
    }

    /// See [`crate::Lock::acquire`].
    pub fn acquire(&self) -> Result<LockGuard, Error> {
        block_on(self.0.acquire())?.map(|guard| LockGuard(Some(guard)))
    }

    /// Run `work` while holding the lock.
    ///
    /// Unlike the future of [`crate::Lock::run`] it cannot be stopped: if the lock is lost, `work`
    /// runs to its end, then its result is dropped and the loss returned. Work that is long, or
    /// harmful without the lock, should use a [`LockGuard`] and check it.
    ///
    /// # Errors
    ///
    /// As [`crate::Lock::acquire`], before `work` begins; [`Error::Lost`] after it has ended.
    ///
    /// # Panics
    ///
    /// If `work` does; the lock is released first.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::blocking::Locks::connect("memory:")?;
    /// let sum = locks.lock("report").run(|| 1 + 1)?;
    /// assert_eq!(sum, 2);
    /// # Ok(()) }
    /// ```
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let guard = self.acquire()?;
        let output = work();
        match guard.release() {
            Err(lost @ Error::Lost { .. }) => Err(lost),
            // The lock was held until the work ended. A failed release does not change the result,
            // and continues in the background.
            Ok(()) | Err(_) => Ok(output),
        }
    }

    /// Run `work` that returns a `Result` while holding the lock.
    ///
    /// As [`Lock::run`], with one `?` instead of two. The lock is released whichever way the work
    /// ends.
    ///
    /// # Errors
    ///
    /// The error of `work`, or an error of [`Lock::run`], converted.
    ///
    /// # Panics
    ///
    /// As [`Lock::run`].
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let locks = database_locks::blocking::Locks::connect("memory:")?;
    /// let lock = locks.lock("count");
    /// let count = lock.try_run(|| Ok::<u32, Box<dyn std::error::Error>>("17".parse()?))?;
    /// assert_eq!(count, 17);
    /// # Ok(()) }
    /// ```
    pub fn try_run<T, E: From<Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.run(work)?
    }
}

impl From<lock::Lock> for Lock {
    fn from(lock: lock::Lock) -> Self {
        Self(lock)
    }
}

/// A held lock. Dropping it releases the lock and waits for that, for at most 5 s; where
/// [no call may block](self#where-no-call-may-block) it is released in the background.
///
/// It derefs to [`crate::LockGuard`] for all methods that do not wait.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard(Option<guard::LockGuard>);

impl LockGuard {
    /// See [`crate::LockGuard::check`].
    pub fn check(&self) -> Result<(), Error> {
        block_on(guard::LockGuard::check(self))?
    }

    /// See [`crate::LockGuard::extend`].
    pub fn extend(&self, ttl: impl Into<Ttl>) -> Result<(), Error> {
        block_on(guard::LockGuard::extend(self, ttl))?
    }

    /// See [`crate::LockGuard::downgrade`].
    pub fn downgrade(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Some(guard) => block_on(guard.downgrade())?,
            None => Ok(()),
        }
    }

    /// See [`crate::LockGuard::open_fence`].
    pub fn open_fence(&self, lasting: Option<Duration>) -> Result<OpenFence, Error> {
        block_on(guard::LockGuard::open_fence(self, lasting))?
    }

    /// See [`crate::LockGuard::fence_failed`].
    pub fn fence_failed(&self, failure: FenceFailure) -> Error {
        block_on(guard::LockGuard::fence_failed(self, failure)).unwrap_or_else(Error::from)
    }

    /// See [`crate::LockGuard::fence`]: for a transaction that blocks, such as that of rusqlite.
    pub fn fence<T: FenceTransaction>(&self, tx: &mut T) -> Result<OpenFence, Error> {
        block_on(guard::LockGuard::fence(self, tx))?
    }

    /// See [`crate::LockGuard::fence_with_duration`].
    pub fn fence_with_duration<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Duration,
    ) -> Result<OpenFence, Error> {
        block_on(guard::LockGuard::fence_with_duration(self, tx, lasting))?
    }

    /// Wait until the lock is lost; see [`crate::LockGuard::lost`].
    ///
    /// # Panics
    ///
    /// Where [no call may block](crate::api::blocking#where-no-call-may-block).
    pub fn wait_lost(&self) -> Loss {
        may_wait(block_on(self.lost()))
    }

    /// See [`crate::LockGuard::into_ticket`].
    #[allow(
        clippy::expect_used,
        reason = "only `release`, `into_ticket` and `drop` take it"
    )]
    pub fn into_ticket(mut self) -> Result<Ticket, Error> {
        self.0
            .take()
            .expect("a guard that was not released")
            .into_ticket()
    }

    /// See [`crate::LockGuard::release`].
    pub fn release(mut self) -> Result<(), Error> {
        self.0
            .take()
            .map_or(Ok(()), |guard| block_on(guard.release())?)
    }
}

impl Deref for LockGuard {
    type Target = guard::LockGuard;

    #[allow(
        clippy::expect_used,
        reason = "only `release` and `drop` take it, and both end this value"
    )]
    fn deref(&self) -> &guard::LockGuard {
        self.0.as_ref().expect("a guard that was not released")
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take().filter(guard::LockGuard::is_held) {
            let _ = block_on(guard.release());
        }
    }
}
