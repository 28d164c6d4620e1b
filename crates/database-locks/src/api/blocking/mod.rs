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

mod lock;
mod sets;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::api::delegate::{settings, waits};
use crate::api::force_release::PreviousHolder;
use crate::api::{builder, locks};
use crate::doctor::Report;
use crate::error::{BoxError, Error};
use crate::runtime::{block_on, block_on_for};
use protocol::{ListFilter, LockInfo, LockName, Prune, Semaphore, TableGuard, Ticket, Ttl};

use self::lock::may_wait;

pub use self::lock::{Lock, LockGuard};
pub use self::sets::{AllLocks, LockSet};
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

/// [`crate::LocksBuilder`] without async.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct LocksBuilder(builder::LocksBuilder);

impl LocksBuilder {
    settings! { self.0, "crate::LocksBuilder";
        table(table: impl Into<String>);
        password(ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static);
        url_with(ask: impl Fn() -> Result<String, BoxError> + Send + Sync + 'static);
        environment(looked_up: bool);
        create(made: bool);
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
        Lock::from(self.0.lock(name))
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
        Lock::from(self.0.semaphore(name, permits))
    }

    /// See [`crate::Locks::all`].
    pub fn all<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> AllLocks {
        AllLocks::from(self.0.all(names))
    }

    /// See [`crate::Locks::leader`].
    pub fn leader(&self, name: impl AsRef<str>) -> Leader {
        Leader::new(self.0.leader(name))
    }

    /// See [`crate::Locks::list_filtered`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::Locks::list_filtered`].
    pub fn list_filtered(&self, filter: &ListFilter) -> Result<Vec<LockInfo>, Error> {
        block_on(self.0.list_filtered(filter))?
    }

    waits! { self, self.0, "crate::Locks";
        migrate() -> ();
        list() -> Vec<LockInfo>;
        show(name: impl AsRef<str>) -> Option<LockInfo>;
        show_semaphore(name: impl AsRef<str>) -> Semaphore;
        show_shared(name: impl AsRef<str>) -> Vec<LockInfo>;
        limits() -> BTreeMap<LockName, u32>;
        set_limit(name: impl AsRef<str>, limit: Option<u32>) -> ();
        force_release(name: impl AsRef<str>) -> Option<PreviousHolder>;
        force_release_permit(name: impl AsRef<str>, slot: u16) -> Option<PreviousHolder>;
        force_release_shared(name: impl AsRef<str>) -> Vec<PreviousHolder>;
        guard_table(table: impl AsRef<str>, lock: impl AsRef<str>) -> ();
        guard_table_allowing_cascades(table: impl AsRef<str>, lock: impl AsRef<str>) -> ();
        unguard_table(table: impl AsRef<str>) -> bool;
        guarded_tables() -> Vec<TableGuard>;
        renew(ticket: &Ticket, ttl: impl Into<Ttl>) -> ();
        release(ticket: &Ticket) -> ();
        prune(which: Prune) -> u64;
        doctor() -> Report;
    }

    /// See [`crate::Locks::resume`].
    pub fn resume(&self, ticket: &Ticket) -> Result<LockGuard, Error> {
        block_on(self.0.resume(ticket))?.map(LockGuard::new)
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
