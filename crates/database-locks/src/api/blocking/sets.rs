//! Several locks at once, without async.

use std::ops::Deref;
use std::time::Duration;

use serde_json::Value;

use crate::api::delegate::{settings, waits};
use crate::api::fence::FenceTransaction;
use crate::api::lock_set::OpenFences;
use crate::api::run::after_release;
use crate::api::{all_locks, lock_set};
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime::block_on;
use protocol::{LockName, Ttl};

use super::lock::may_wait;

/// [`crate::AllLocks`] without async.
#[derive(Clone, Debug)]
#[must_use = "locks do nothing until they are acquired"]
pub struct AllLocks(all_locks::AllLocks);

impl AllLocks {
    /// See [`crate::AllLocks::names`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    settings! { self.0, "crate::AllLocks";
        ttl(ttl: impl Into<Ttl>);
        wait(limit: Duration);
        poll(longest: Duration);
        renew_every(period: Duration);
        auto_renew(on: bool);
        margin(margin: Duration);
        holder(holder: impl Into<String>);
        metadata(key: impl Into<String>, value: impl Into<Value>);
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
        after_release(output, set.release())
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
    waits! { self, (**self), "crate::LockSet";
        check() -> ();
        extend(ttl: impl Into<Ttl>) -> ();
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
        may_wait(block_on(self.lost()))
    }

    /// See [`crate::LockSet::release`].
    pub fn release(mut self) -> Result<(), Error> {
        self.0.take().map_or(Ok(()), |set| block_on(set.release())?)
    }
}

impl Deref for LockSet {
    type Target = lock_set::LockSet;

    fn deref(&self) -> &lock_set::LockSet {
        // Only `release` and `drop` take it, and both end this value.
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
