//! A lock and its guard, without async.

use std::ops::Deref;
use std::time::Duration;

use serde_json::Value;

use crate::api::delegate::{settings, waits};
use crate::api::fence::{FenceFailure, FenceTransaction, OpenFence};
use crate::api::lock;
use crate::api::run::after_release;
use crate::client::guard;
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime::block_on;
use protocol::{Ticket, Ttl};

/// Panic on an error, in functions that return no `Result`.
pub(super) fn may_wait<T, E: Into<Error>>(waited: Result<T, E>) -> T {
    waited.unwrap_or_else(|error| panic!("{}", error.into()))
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

    settings! { self.0, "crate::Lock";
        ttl(ttl: impl Into<Ttl>);
        wait(limit: Duration);
        poll(longest: Duration);
        renew_every(period: Duration);
        auto_renew(on: bool);
        margin(margin: Duration);
        holder(holder: impl Into<String>);
        preempt(on: bool);
        at_least(length: Duration);
        once_per(period: Duration);
        metadata(key: impl Into<String>, value: impl Into<Value>);
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

    /// See [`crate::Lock::try_acquire`].
    pub fn try_acquire(&self) -> Result<Option<LockGuard>, Error> {
        Ok(block_on(self.0.try_acquire())??.map(LockGuard::new))
    }

    /// See [`crate::Lock::resume`].
    pub fn resume(&self, ticket: &Ticket) -> Result<LockGuard, Error> {
        block_on(self.0.resume(ticket))?.map(LockGuard::new)
    }

    /// See [`crate::Lock::acquire`].
    pub fn acquire(&self) -> Result<LockGuard, Error> {
        block_on(self.0.acquire())?.map(LockGuard::new)
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
        after_release(output, guard.release())
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
/// [no call may block](crate::blocking#where-no-call-may-block) it is released in the background.
///
/// It derefs to [`crate::LockGuard`] for all methods that do not wait.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard(Option<guard::LockGuard>);

impl LockGuard {
    pub(super) fn new(guard: guard::LockGuard) -> Self {
        Self(Some(guard))
    }

    waits! { self, (**self), "crate::LockGuard";
        check() -> ();
        extend(ttl: impl Into<Ttl>) -> ();
        open_fence(lasting: Option<Duration>) -> OpenFence;
    }

    /// See [`crate::LockGuard::downgrade`].
    pub fn downgrade(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Some(guard) => block_on(guard.downgrade())?,
            None => Ok(()),
        }
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
    /// Where [no call may block](crate::blocking#where-no-call-may-block).
    pub fn wait_lost(&self) -> Loss {
        may_wait(block_on(self.lost()))
    }

    /// See [`crate::LockGuard::into_ticket`].
    pub fn into_ticket(mut self) -> Result<Ticket, Error> {
        let guard = self.0.take();
        guard.expect("a guard that was not released").into_ticket()
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

    fn deref(&self) -> &guard::LockGuard {
        // Only `release`, `into_ticket` and `drop` take it, and each ends this value.
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
