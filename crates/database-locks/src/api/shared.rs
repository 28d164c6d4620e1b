//! Sharing a lock: many holders that only read, or one that writes.

use std::sync::Arc;

use crate::api::force_release::PreviousHolder;
use crate::api::lock::Lock;
use crate::api::locks::Locks;
use crate::client::downgrade::downgrade;
use crate::client::guard::LockGuard;
use crate::client::read::read_shared;
use crate::error::Error;
use protocol::{BootInstant, Human, LockInfo, LockName};

impl Lock {
    /// Share the lock: any number of shared holders hold it at the same time, and never one together
    /// with an exclusive holder (a *reader-writer lock*). By default a lock is exclusive.
    ///
    /// An exclusive caller goes first: from its first try that finds no exclusive holder on, no
    /// shared caller gets in, and it waits for the shared holders to release the lock, or for the
    /// leases of dead ones to end. With `wait` of zero it does not wait for them.
    ///
    /// A shared holder has a lease, a [ticket](LockGuard::into_ticket) and a
    /// [fence](LockGuard::fence) of its own. Its [token](LockGuard::token) is greater than those of
    /// all exclusive grants before, and smaller than those of all after it. Shared holders between
    /// the same exclusive grants have the same one.
    ///
    /// - Whoever changes what the lock protects needs an exclusive grant. It cannot be made of a
    ///   shared one: release that first, and read again. [`LockGuard::downgrade`] does the opposite.
    /// - Legacy (django-database-locks 0.5) does not see shared holders, and would acquire the lock
    ///   beside them. **Share only locks that it does not use.** A lock that it holds is refused
    ///   with [`Error::Rejected`], as far as its row shows that.
    /// - [`at_least`](Lock::at_least), [`once_per`](Lock::once_per) and [`preempt`](Lock::preempt) are
    ///   for exclusive grants. A lock that was ever shared is refused with `once_per`.
    /// - The row of a lock that was ever shared is not pruned.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let prices = locks.lock("price list");
    /// let (one, two) = (prices.clone().shared().acquire().await?, prices.clone().shared().acquire().await?);
    /// assert!(prices.try_acquire().await?.is_none(), "two holders share it");
    /// one.release().await?;
    /// two.release().await?;
    ///
    /// let guard = prices.acquire().await?;
    /// assert!(prices.clone().shared().try_acquire().await?.is_none(), "exclusive");
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// [`shared`](Self::shared), if it is on: for `#[locked]`.
    #[doc(hidden)]
    pub fn shared_if(mut self, on: bool) -> Self {
        self.shared = on;
        self
    }

    /// The settings that do not go together with [`shared`](Self::shared).
    pub(super) fn check_shared(&self) -> Result<(), Error> {
        if !self.shared {
            return Ok(());
        }
        let refused = |setting, got: String, why: &str| {
            let allowed = format!("left out for a shared lock: {why}");
            Err(Error::config(setting, got, allowed))
        };
        if let Some(permits) = self.permits {
            let why = "a semaphore has a limit, and no exclusive holder";
            return refused("permits", permits.to_string(), why);
        }
        if self.preempt {
            let why = "its holders are not told apart by name";
            return refused("preempt", "on".into(), why);
        }
        if let Some(period) = self.once_per {
            let why = "it is for a grant that excludes others";
            return refused("once_per", Human(period).to_string(), why);
        }
        if !self.at_least.is_zero() {
            let why = "it is for a grant that excludes others";
            return refused("at_least", Human(self.at_least).to_string(), why);
        }
        Ok(())
    }
}

impl Locks {
    /// Read the [shared](Lock::shared) holders of a lock: a row for each, dead ones among them, whose
    /// state is [`LockState::Expired`](crate::LockState::Expired). [`Locks::show`] reads the exclusive
    /// holder, which may still wait for them.
    ///
    /// # Errors
    ///
    /// As [`Locks::show`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("price list").shared().holder("web-2").acquire().await?;
    /// let readers = locks.show_shared("price list").await?;
    /// assert_eq!(readers[0].holder.as_deref(), Some("web-2"));
    /// assert!(!locks.show("price list").await?.expect("a row").is_held());
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn show_shared<N: AsRef<str>>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Vec<LockInfo>, Error>> + Send + use<N> {
        let name = LockName::new(name);
        self.in_background(move |client| async move {
            let name = name?;
            let read = read_shared(&client, &name).await;
            read.map_err(|e| e.into_error(format!("read the shared holders of lock `{name}`")))
        })
    }

    /// [`Locks::force_release`] for all [shared](Lock::shared) holders of a lock; returns who they
    /// were.
    ///
    /// # Errors
    ///
    /// As [`Locks::force_release`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, some or all of them may be released.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("price list").shared().acquire().await?;
    /// assert_eq!(locks.force_release_shared("price list").await?.len(), 1);
    /// assert!(guard.check().await.is_err());
    /// # Ok(()) }
    /// ```
    pub fn force_release_shared<N: AsRef<str>>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Vec<PreviousHolder>, Error>> + Send + use<N> {
        let (locks, name) = (self.clone(), LockName::new(name));
        async move {
            let (name, mut released) = (name?, Vec::new());
            for row in locks.show_shared(&name).await? {
                let forced = locks.force(name.clone(), row.row_slot()).await?;
                released.extend(forced.map(PreviousHolder::of));
            }
            Ok(released)
        }
    }
}

impl LockGuard {
    /// Whether the guard shares the lock: see [`Lock::shared`](crate::Lock::shared).
    pub fn is_shared(&self) -> bool {
        self.state.grant.slot.is_shared()
    }

    /// Make an exclusive guard a [shared](crate::Lock::shared) one, without letting another exclusive
    /// holder in between: other shared callers get in from now on.
    ///
    /// The guard has another token, grant id and ticket then, and no
    /// [`at_least`](crate::Lock::at_least). Callbacks of [`on_lost`](LockGuard::on_lost) and futures of
    /// [`lost`](LockGuard::lost) from before do not fire any more: make them anew.
    ///
    /// # Errors
    ///
    /// The guard stays exclusive. [`Error::Config`] if it shares the lock already, has a permit of a
    /// semaphore, or a fenced transaction of it is open; [`Error::Lost`] if it was lost; [`Error::Unavailable`] if the database does not
    /// answer within 5 s; [`Error::Conflict`] if the row stays locked for as long;
    /// [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the guard is exclusive or shared, as
    /// [`is_shared`](LockGuard::is_shared) tells; the other grant is released in the background.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let mut guard = locks.lock("price list").acquire().await?;
    /// // … change the prices …
    /// guard.downgrade().await?;
    /// // … read them, together with others …
    /// let other = locks.lock("price list").shared().acquire().await?;
    /// assert!(guard.is_shared() && guard.is_held());
    /// # drop((guard, other));
    /// # Ok(()) }
    /// ```
    pub async fn downgrade(&mut self) -> Result<(), Error> {
        let shared = self.shared_beside().await?;
        // An error of the release changes nothing: it goes on in the background, or the exclusive
        // grant was lost after the shared one was made.
        let _ = std::mem::replace(self, shared).release().await;
        Ok(())
    }

    /// The first step of [`downgrade`](Self::downgrade): a shared grant beside this exclusive one,
    /// which the caller then releases.
    #[doc(hidden)]
    pub async fn shared_beside(&self) -> Result<LockGuard, Error> {
        if self.is_shared() || self.slot().is_some() {
            let got = match self.is_shared() {
                true => "with a guard that shares the lock already",
                false => "with a permit of a semaphore",
            };
            return Err(Error::config(
                "downgrade",
                got,
                "called with an exclusive guard",
            ));
        }
        self.still_trusted()?;
        let client = Arc::clone(&self.client);
        if client.fences.end_of(self.state.grant.id).is_some() {
            let got = "while a fenced transaction of the guard is open";
            return Err(Error::config("downgrade", got, "called after its end"));
        }
        if let Some(shared) = downgrade(client, &self.state.grant).await? {
            // The lock does not rest: it is held on.
            self.state.set_unavailable_until(BootInstant::ZERO);
            return Ok(shared);
        }
        self.check().await?;
        Err(Error::Conflict {
            op: format!("share lock `{}`", self.name()),
            source: "its row changed meanwhile".into(),
        })
    }
}
