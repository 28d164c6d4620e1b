//! A held lock.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::Client;
use crate::client::renewal::grant_state::{GrantState, Status};
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime::fork::ForkSafe;
use protocol::{LockName, LostReason, Short, Ticket, Token, Ttl};

mod ending;
pub(crate) mod lease;
pub(crate) mod start;

/// A held lock, renewed in the background while this value lives.
///
/// Dropping it releases the lock in the background. [`release`](LockGuard::release) waits for the
/// release and reports whether the lock was held to the end.
///
/// # At the end of the process
///
/// A return from `main` and `std::process::exit`, on any thread, wait for releases that are under
/// way, for at most 2 s: the lock of a guard that `?` dropped in `main` is free when the process
/// has ended. They also release what other threads, a `static` or a leaked guard
/// (`std::mem::forget`) still hold; from then on [`is_held`](LockGuard::is_held) is `false`. The
/// last moments of such a thread are not protected, so join the threads whose work matters.
///
/// If the database does not answer within these 2 s, or if the process is killed or aborts, the
/// locks stay held until their ttl ends. This is tested with glibc on Linux.
///
/// A thread that ends earlier waits in the same way, if it has dropped a guard or an unfinished
/// acquire: for releases under way at that moment, usually less than a millisecond, and at most 2
/// s.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard {
    pub(crate) client: ForkSafe<Arc<Client>>,
    pub(crate) state: ForkSafe<Arc<GrantState>>,
    /// The longest ttl that the row may have. A release has to assume it.
    longest_ttl: Mutex<Ttl>,
    released: AtomicBool,
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &Short(self.name().as_str()))
            .field("token", &self.token())
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}

impl LockGuard {
    pub(crate) fn new(client: Arc<Client>, state: Arc<GrantState>, ttl: Ttl) -> Self {
        Self {
            client: ForkSafe::new(client),
            state: ForkSafe::new(state),
            longest_ttl: Mutex::new(ttl),
            released: AtomicBool::new(false),
        }
    }

    fn longest_ttl(&self) -> MutexGuard<'_, Ttl> {
        self.longest_ttl
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the lock.
    pub fn name(&self) -> &LockName {
        &self.state.grant.name
    }

    /// The fencing number of this grant, greater than that of every earlier grant of this name.
    ///
    /// Send it along with writes to other systems, and let them refuse a smaller one than they have
    /// seen. It stays the same when the lock is renewed, extended or resumed.
    pub fn token(&self) -> Token {
        self.state.grant.token
    }

    /// The number of this permit, from 0, if the guard holds one of a semaphore; `None` for a lock.
    ///
    /// No other holder has the same number meanwhile: it can choose a shard, a port or a directory.
    /// It may be at or above the limit of this caller if other callers give, or an operator has
    /// set, a greater limit.
    pub fn slot(&self) -> Option<u16> {
        self.state.grant.slot.number()
    }

    /// The random id of this grant, 32 hexadecimal digits.
    pub fn grant_id(&self) -> &str {
        self.state.grant.id.as_str()
    }

    /// The name of the holder, for people: that of [`Lock::holder`](crate::Lock::holder), or
    /// `host.pid.random`.
    pub fn holder(&self) -> &str {
        &self.state.grant.holder
    }

    /// Whether the lease is trusted. Never waits for I/O.
    ///
    /// It turns `false` before the database would grant the lock to another client, by a clock that
    /// runs while the machine is suspended. Exception: a release by force or a preemption is
    /// noticed at the next renewal. Once `false` it stays so, except while the guard is
    /// [suspended](LockGuard::is_suspended) under a fence on MySQL or MariaDB; then the renewal
    /// after the fence decides.
    ///
    /// The answer holds for the moment of the call: the process may be frozen right after it. A
    /// write that a former holder must not make needs a [fence](LockGuard::fence) or the
    /// [token](LockGuard::token).
    pub fn is_held(&self) -> bool {
        !self.trusted_for().is_zero()
    }

    /// Whether trust has ended under an open fence that blocks renewals, on MySQL and MariaDB.
    /// Never waits for I/O.
    ///
    /// The guard is then not [held](LockGuard::is_held), but not lost before that transaction has
    /// ended.
    pub fn is_suspended(&self) -> bool {
        let suspended = self.state.outlives_trust();
        !self.is_held() && suspended && matches!(self.state.status(), Status::Held(_))
    }

    /// How long the lease is trusted if no further renewal succeeds: until its end, minus the
    /// [margin](crate::Lock::margin). Never waits for I/O.
    ///
    /// Zero exactly if the guard is not [held](LockGuard::is_held); [`Duration::MAX`] for an
    /// infinite ttl. Right after a renewal it is the ttl minus the margin and the round trip of
    /// that renewal.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").ttl(Duration::from_secs(30)).acquire().await?;
    /// // Before a step of five seconds that cannot be stopped:
    /// if guard.trusted_for() < Duration::from_secs(5) {
    ///     guard.extend(Duration::from_secs(30)).await?;
    /// }
    /// # assert!(guard.trusted_for() <= Duration::from_secs(27)); // the margin is 3 s
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn trusted_for(&self) -> Duration {
        match self.state.is_in_owner_process() {
            true => self.state.trusted_for(),
            false => Duration::ZERO,
        }
    }

    /// Wait until the lock is lost, and return the loss. Never resolves if the lock is released
    /// first.
    ///
    /// The future does not borrow the guard, so it may be spawned.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; call this again for another future.
    ///
    /// # Example
    ///
    /// ```
    /// use database_locks::{Locks, LostReason};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// let locks = Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").acquire().await?;
    /// # locks.force_release("report").await?;
    /// # let _ = guard.check().await;
    /// tokio::select! {
    ///     loss = guard.lost() => {
    ///         eprintln!("lock `report` {loss}: stopped"); // lost after 12s: released by force
    ///         assert_eq!(loss.reason(), LostReason::Forced);
    ///     }
    ///     () = work() => guard.release().await?,
    /// }
    /// # Ok(()) }
    ///
    /// async fn work() {
    ///     // …
    /// #   std::future::pending().await
    /// }
    /// ```
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + use<> {
        let status = self.state.is_in_owner_process().then(|| self.state.watch());
        async move {
            let Some(mut status) = status else {
                return Loss::of_other_grant(LostReason::Forked);
            };
            loop {
                if let Status::Lost(loss) = &*status.borrow_and_update() {
                    return loss.clone();
                }
                if status.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// The loss: why, since when, and the new holder, if known. Never waits for I/O.
    ///
    /// `None` while the lock is held or [suspended](LockGuard::is_suspended), and if it was
    /// released before it could be lost. Otherwise `Some` once [`is_held`](LockGuard::is_held) has
    /// returned `false`.
    pub fn loss(&self) -> Option<Loss> {
        if !self.state.is_in_owner_process() {
            return Some(Loss::of_other_grant(LostReason::Forked));
        }
        // In this order: each state may change to the next one between two reads.
        let suspended = self.state.outlives_trust();
        let ended = !self.is_held() && !suspended;
        match self.state.status() {
            Status::Lost(loss) => Some(loss),
            // The scheduler has not marked the loss yet.
            Status::Held(_) if ended => Some(self.state.loss(LostReason::Expired)),
            Status::Held(_) | Status::Released => None,
        }
    }

    /// Call `f` with the loss when the lock is lost, at most once.
    ///
    /// - `f` runs on a thread for callbacks, after the guard was marked lost and the waiters of
    ///   [`lost`](LockGuard::lost) were woken. If the lock is lost already, it runs at once on this
    ///   thread.
    /// - Once [`release`](LockGuard::release), [`into_ticket`](LockGuard::into_ticket) or the drop
    ///   of this guard has begun, `f` is dropped instead; a loss that a release finds is in its
    ///   error. A call that began before may still be running.
    /// - `f` may block, panic, use or drop guards, and acquire. At most 64 callbacks of a process
    ///   run at once; the others wait until one returns.
    /// - If `on_lost` is called several times, the callbacks run one after another.
    ///
    /// # Example
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), database_locks::Error> {
    /// let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").acquire().await?;
    /// let stop = Arc::new(AtomicBool::new(false));
    /// guard.on_lost({
    ///     let stop = Arc::clone(&stop);
    ///     move |loss| {
    ///         eprintln!("lock `report` {loss}: stopping");
    ///         stop.store(true, Ordering::Relaxed);
    ///     }
    /// });
    /// # Ok(()) }
    /// ```
    pub fn on_lost(&self, f: impl FnOnce(Loss) + Send + 'static) {
        if !self.state.is_in_owner_process() {
            return f(Loss::of_other_grant(LostReason::Forked));
        }
        let is_held = || matches!(self.state.status(), Status::Held(_));
        let refused = self.state.listeners.add(Box::new(f), is_held);
        if let (Some(f), Status::Lost(loss)) = (refused, self.state.status()) {
            f(loss);
        }
    }

    /// An error unless the guard is trusted. Every operation that needs the lock has to check this
    /// first.
    pub(crate) fn still_trusted(&self) -> Result<(), Error> {
        // Read before trust: a suspension is cleared only after trust was renewed.
        let suspended = self.state.outlives_trust();
        if self.is_held() {
            return Ok(());
        }
        if !self.state.is_in_owner_process() {
            return Err(Error::lost(
                self.name(),
                Loss::of_ticket(self.state.grant.slot, LostReason::Forked),
            ));
        }
        if suspended && matches!(self.state.status(), Status::Held(_)) {
            return Err(Error::Conflict {
                op: format!("say whether {} is held", self.what()),
                source:
                    "a fenced transaction lasts longer than the lease and blocks its renewals: the \
                         first renewal after it decides"
                        .into(),
            });
        }
        // The scheduler has not marked the loss yet, for example after a suspended process
        // continues.
        Err(Error::lost(
            self.name(),
            self.state.lose(LostReason::Expired),
        ))
    }

    /// `lock` or `permit`, with the name.
    pub(crate) fn what(&self) -> impl fmt::Display {
        self.state.grant.slot.named(&self.state.grant.name)
    }

    /// A ticket of this grant, with which another process can release or renew the lock while this
    /// guard holds it. To hand the lock over see [`into_ticket`](LockGuard::into_ticket).
    pub fn ticket(&self) -> Ticket {
        let grant = &self.state.grant;
        Ticket {
            name: grant.name.clone(),
            slot: grant.slot,
            token: grant.token,
            grant: grant.id,
        }
    }
}
