//! Several locks at once, without async.

use std::ops::Deref;
use std::time::Duration;

use serde_json::Value;

use crate::api::fence::FenceTransaction;
use crate::api::lock_set::OpenFences;
use crate::api::{all_locks, lock_set};
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime::block_on;
use protocol::{LockName, Ttl};

/// [`crate::AllLocks`] without async.
#[derive(Clone, Debug)]
#[must_use = "locks do nothing until they are acquired"]
pub struct AllLocks(all_locks::AllLocks);

impl AllLocks {
    /// See [`crate::AllLocks::names`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    /// See [`crate::Lock::ttl`].
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Self {
        Self(self.0.ttl(ttl))
    }

    /// See [`crate::AllLocks::wait`].
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

    /// See [`crate::Lock::metadata`].
    pub fn metadata(self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        Self(self.0.metadata(key, value))
    }

    /// See [`crate::AllLocks::try_acquire`].
    pub fn try_acquire(&self) -> Result<Option<LockSet>, Error> {
        Ok(block_on(self.0.try_acquire())??.map(|set| LockSet(Some(set))))
    }

    /// See [`crate::AllLocks::acquire`].
    pub fn acquire(&self) -> Result<LockSet, Error> {
        block_on(self.0.acquire())?.map(|set| LockSet(Some(set)))
    }

    /// Run `work` while holding all of them. As [`Lock::run`](crate::blocking::Lock::run) it cannot be
    /// stopped.
    ///
    /// # Errors
    ///
    /// As [`crate::AllLocks::acquire`], before `work` begins; [`Error::Lost`] after it has ended.
    ///
    /// # Panics
    ///
    /// If `work` does; the locks are released first.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::blocking::Locks::connect("memory:")?;
    /// let sum = locks.all(["orders", "stock"]).run(|| 1 + 1)?;
    /// assert_eq!(sum, 2);
    /// # Ok(()) }
    /// ```
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let set = self.acquire()?;
        let output = work();
        match set.release() {
            Err(lost @ Error::Lost { .. }) => Err(lost),
            // They were held until the work ended, and a failed release continues in the
            // background.
            Ok(()) | Err(_) => Ok(output),
        }
    }

    /// Run `work` that returns a `Result` while holding all of them. As
    /// [`Lock::try_run`](crate::blocking::Lock::try_run).
    ///
    /// # Errors
    ///
    /// The error of `work`, or an error of [`AllLocks::run`], converted.
    ///
    /// # Panics
    ///
    /// As [`AllLocks::run`].
    pub fn try_run<T, E: From<Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.run(work)?
    }
}

impl From<all_locks::AllLocks> for AllLocks {
    fn from(locks: all_locks::AllLocks) -> Self {
        Self(locks)
    }
}

/// Several held locks. Dropping it releases them and waits for that, as
/// [`LockGuard`](crate::blocking::LockGuard).
///
/// It derefs to [`crate::LockSet`] for all methods that do not wait.
#[derive(Debug)]
#[must_use = "the locks are released when this is dropped"]
pub struct LockSet(Option<lock_set::LockSet>);

impl LockSet {
    /// See [`crate::LockSet::check`].
    pub fn check(&self) -> Result<(), Error> {
        block_on(lock_set::LockSet::check(self))?
    }

    /// See [`crate::LockSet::extend`].
    pub fn extend(&self, ttl: impl Into<Ttl>) -> Result<(), Error> {
        block_on(lock_set::LockSet::extend(self, ttl))?
    }

    /// See [`crate::LockSet::fence`]: for a transaction that blocks, such as that of rusqlite.
    pub fn fence<T: FenceTransaction>(&self, tx: &mut T) -> Result<OpenFences, Error> {
        block_on(lock_set::LockSet::fence(self, tx))?
    }

    /// See [`crate::LockSet::fence_with_duration`].
    pub fn fence_with_duration<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Duration,
    ) -> Result<OpenFences, Error> {
        block_on(lock_set::LockSet::fence_with_duration(self, tx, lasting))?
    }

    /// Wait until one of the locks is lost; see [`crate::LockSet::lost`].
    ///
    /// # Panics
    ///
    /// Where [no call may block](crate::blocking#where-no-call-may-block).
    pub fn wait_lost(&self) -> (LockName, Loss) {
        block_on(self.lost()).unwrap_or_else(|error| panic!("{}", Error::from(error)))
    }

    /// See [`crate::LockSet::release`].
    pub fn release(mut self) -> Result<(), Error> {
        self.0.take().map_or(Ok(()), |set| block_on(set.release())?)
    }
}

impl Deref for LockSet {
    type Target = lock_set::LockSet;

    #[allow(
        clippy::expect_used,
        reason = "only `release` and `drop` take it, and both end this value"
    )]
    fn deref(&self) -> &lock_set::LockSet {
        self.0.as_ref().expect("a set that was not released")
    }
}

impl Drop for LockSet {
    fn drop(&mut self) {
        if let Some(set) = self.0.take().filter(lock_set::LockSet::is_held) {
            let _ = block_on(set.release());
        }
    }
}
