//! A held lock.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::Inner;
use crate::client::acquire::PATIENCE;
use crate::client::pending;
use crate::client::release::GiveBack;
use crate::client::renewal::grant_state::{Held, Status, ms};
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::Here;
use crate::store::StoreError;
use protocol::{
    Gone, Grant, LockName, LockState, LostReason, ReleaseCommand, Released, Renewal, Short, Ticket,
    Time, Token, Ttl,
};

/// How long [`LockGuard::release`] waits for the database before it lets the background go on.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// A held lock. It is renewed in the background for as long as this value lives.
///
/// Dropping it releases the lock in the background. [`release`](LockGuard::release) waits for that,
/// and says whether the lock was held to the end: call it where that matters.
///
/// # At the end of the process
///
/// A return from `main` and `std::process::exit`, on whichever thread, wait until the releases that
/// are under way are done, for 2 s at most: a guard that a `?` dropped in `main` is free when the
/// process has ended. They also release what other threads, a `static` or a leaked guard
/// (`std::mem::forget`) still hold; from then on [`is_held`](LockGuard::is_held) is `false`. What
/// such a thread does in the moment until it is gone is not protected, so join the threads whose
/// work matters.
///
/// If the database does not answer within these 2 s, or if the process is killed or aborts, these
/// locks stay held until their ttl ends. This is tested with glibc on Linux.
///
/// A thread that ends in the middle of the program waits in the same way if it has dropped a guard
/// or an unfinished acquire: for what is being released at that moment, usually less than a
/// millisecond, and 2 s at most.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard {
    pub(crate) inner: Here<Arc<Inner>>,
    pub(crate) held: Here<Arc<Held>>,
    /// The longest that the row may have had: what a release must reckon with.
    ttl: Mutex<Ttl>,
    released: bool,
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
    pub(crate) fn new(inner: Arc<Inner>, held: Arc<Held>, ttl: Ttl) -> Self {
        Self {
            inner: Here::new(inner),
            held: Here::new(held),
            ttl: Mutex::new(ttl),
            released: false,
        }
    }

    /// It was handed over by a ticket, which does not say its ttl: perhaps infinite.
    pub(crate) fn perhaps_endless(self) -> Self {
        *self.longest() = Ttl::Infinite;
        self
    }

    fn longest(&self) -> MutexGuard<'_, Ttl> {
        self.ttl.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the lock.
    pub fn name(&self) -> &LockName {
        &self.held.grant.name
    }

    /// The fencing number of this grant, greater than that of every earlier grant of this name.
    ///
    /// Send it with what you write to other systems, and let these refuse a smaller one than they
    /// have seen. It stays the same when the lock is renewed, extended or resumed.
    pub fn token(&self) -> Token {
        self.held.grant.token
    }

    /// The random id of this grant, 32 hexadecimal digits.
    pub fn grant_id(&self) -> &str {
        self.held.grant.id.as_str()
    }

    /// The holder, for people: what [`Lock::holder`](crate::Lock::holder) was given, or
    /// `host.pid.random`.
    pub fn holder(&self) -> &str {
        &self.held.grant.holder
    }

    /// Whether it is still held, as far as can be known without asking. Never waits for I/O.
    ///
    /// It turns `false` before the database would grant the lock to another client, on a clock that
    /// goes on while the machine is suspended. Once it is `false` it stays so, except while it is
    /// [suspended](LockGuard::is_suspended) under a fence on MySQL or MariaDB: then the renewal
    /// after the fence decides.
    ///
    /// It is exact at the moment of the call alone: a process may be frozen right after it. What
    /// must not be written by a former holder needs a [fence](LockGuard::fence) or the
    /// [token](LockGuard::token).
    pub fn is_held(&self) -> bool {
        !self.trusted_for().is_zero()
    }

    /// Whether trust has run out under an open fence that no renewal gets past, on MySQL and
    /// MariaDB.
    ///
    /// It is then not [held](LockGuard::is_held), and not lost either until that transaction has
    /// ended. Never waits for I/O.
    pub fn is_suspended(&self) -> bool {
        let suspended = self.held.outlives_trust();
        !self.is_held() && suspended && matches!(self.held.status(), Status::Held(_))
    }

    /// How long it is still held if no renewal gets through from now on: until the end of the
    /// lease, less the [margin](crate::Lock::margin). Never waits for I/O.
    ///
    /// Zero exactly when it is not [held](LockGuard::is_held); [`Duration::MAX`] for an infinite
    /// ttl. Right after a renewal it is the ttl less the margin and the round trip of that renewal.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").ttl(Duration::from_secs(30)).acquire().await?;
    /// // A step that cannot be stopped and takes five seconds: not if the lock could be lost meanwhile.
    /// if guard.trusted_for() < Duration::from_secs(5) {
    ///     guard.extend(Duration::from_secs(30)).await?;
    /// }
    /// # assert!(guard.trusted_for() <= Duration::from_secs(27)); // the margin is 3 s
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn trusted_for(&self) -> Duration {
        match self.held.is_here() {
            true => self.held.trusted_for(),
            false => Duration::ZERO,
        }
    }

    /// Wait until it is lost, and return how. Never resolves if it is released first.
    ///
    /// The future does not borrow the guard, so it may be spawned.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and asked for again at any time.
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
        let status = self.held.is_here().then(|| self.held.watch());
        async move {
            let Some(mut status) = status else {
                return Loss::of_another(LostReason::Forked);
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

    /// How it was lost: why, since when, and its present holder, where that is known. Never waits
    /// for I/O.
    ///
    /// None while it is held, while it is [suspended](LockGuard::is_suspended), and where it was
    /// released before it could be lost. Once [`is_held`](LockGuard::is_held) has answered `false`
    /// there is one.
    pub fn loss(&self) -> Option<Loss> {
        if !self.held.is_here() {
            return Some(Loss::of_another(LostReason::Forked));
        }
        // In this order: each may turn into the next meanwhile.
        let suspended = self.held.outlives_trust();
        let ended = !self.is_held() && !suspended;
        match self.held.status() {
            Status::Lost(loss) => Some(loss),
            // Where the scheduler has not come round to it.
            Status::Held(_) if ended => Some(self.held.loss(LostReason::Expired)),
            Status::Held(_) | Status::Released => None,
        }
    }

    /// Call `f` when it is lost, with what there is to say of that.
    ///
    /// At most once, on a thread that runs callbacks and nothing else, right after the guard was
    /// marked lost and the waiters of [`lost`](LockGuard::lost) were woken; at once, on this
    /// thread, if it is lost already. Never once [`release`](LockGuard::release),
    /// [`into_ticket`](LockGuard::into_ticket) or the drop of this guard has begun: `f` is dropped
    /// then, and a loss that a release finds is for its error to tell. A call that had begun before
    /// may still be going on.
    ///
    /// It may block, use this library's guards, drop them, and acquire. If it panics, or never
    /// returns, nothing else is disturbed; but no more than 64 callbacks of a process run at once,
    /// and the others wait until one returns. Where `on_lost` is called several times, each `f` is
    /// called, one after another.
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
        if !self.held.is_here() {
            return f(Loss::of_another(LostReason::Forked));
        }
        let wanted = || matches!(self.held.status(), Status::Held(_));
        let unwanted = self.held.listeners.add(Box::new(f), wanted);
        if let (Some(f), Status::Lost(loss)) = (unwanted, self.held.status()) {
            f(loss);
        }
    }

    /// Ask the database whether the lock is still held by this grant. It renews nothing.
    ///
    /// One read, answered within 5 s or not at all. It finds a release by force before the next
    /// renewal does. Where nothing has to be found early, [`is_held`](LockGuard::is_held) is
    /// enough.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if it is not held; the guard is lost from then on. [`Error::Unavailable`] or
    /// [`Error::Rejected`] if the database does not say, which changes nothing. [`Error::Conflict`]
    /// while the guard is [suspended](LockGuard::is_suspended).
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
    /// let guard = locks.lock("report").acquire().await?;
    /// guard.check().await?;
    /// locks.force_release("report").await?;
    /// assert!(guard.is_held(), "not known yet");
    /// assert!(guard.check().await.is_err() && !guard.is_held());
    /// # Ok(()) }
    /// ```
    pub async fn check(&self) -> Result<(), Error> {
        self.still_trusted()?;
        let (inner, held) = (Arc::clone(&self.inner), Arc::clone(&self.held));
        let ttl = *self.longest();
        runtime::run(async move {
            let op = || format!("check lock `{}`", held.grant.name);
            let names = [held.grant.name.clone()];
            let rows = inner.store.read(&names, PATIENCE).await;
            let ours = rows
                .map_err(|e| e.into_error(op()))?
                .pop()
                .is_some_and(|row| {
                    row.token == held.grant.token
                        && row.grant.as_deref() == Some(held.grant.id.as_str())
                        && matches!(row.state, LockState::Held { .. })
                });
            if ours {
                return Ok(());
            }
            match why_lost(&inner, &held, ttl)
                .await
                .map_err(|e| e.into_error(op()))?
            {
                Some(gone) => Err(not_ours(&inner, &held, gone)),
                None => Ok(()),
            }
        })
        .await
    }

    /// Renew to `ttl` at once, and to the same from now on.
    ///
    /// The present lease is never shortened: a shorter `ttl` counts once the lease has come down to
    /// it. The margin that was given is kept, and so is the renewal period unless it is too long for
    /// the new ttl; what was not given follows the new ttl. It returns when the database has
    /// confirmed the new end; while the database cannot be reached it waits for that.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a ttl out of range (100 ms to 10 years, or infinite), or one that
    /// the margin that was given is half of or more. [`Error::Lost`] if trust ends before the database
    /// has confirmed it. [`Error::Conflict`] while the guard is [suspended](LockGuard::is_suspended).
    ///
    /// # Cancel safety
    ///
    /// Dropped, the extension may or may not happen.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("import").acquire().await?;
    /// guard.extend(Duration::from_secs(600)).await?; // the next step needs no database for minutes
    /// assert!(guard.trusted_for() > Duration::from_secs(500));
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub async fn extend(&self, ttl: impl Into<Ttl>) -> Result<(), Error> {
        let (ttl, id) = (ttl.into(), self.held.grant.id);
        self.still_trusted()?;
        let Some(timing) = self.inner.scheduler.timing(id) else {
            return self.still_trusted();
        };
        let timing = timing.with_ttl(ttl)?;
        {
            // Never shortened in the database.
            let mut longest = self.longest();
            *longest = match (*longest, ttl) {
                (Ttl::Finite(before), Ttl::Finite(now)) => Ttl::Finite(before.max(now)),
                _ => Ttl::Infinite,
            };
        }
        let mut status = self.held.watch();
        self.inner.scheduler.extend(id, timing);
        let settled = status
            .wait_for(|status| *status != Status::Held(None))
            .await;
        drop(settled);
        self.still_trusted()
    }

    /// Nothing that needs the lock may be done unless this says so.
    pub(crate) fn still_trusted(&self) -> Result<(), Error> {
        // Asked first: it is given up only after trust was renewed.
        let suspended = self.held.outlives_trust();
        if self.is_held() {
            return Ok(());
        }
        if !self.held.is_here() {
            return Err(Loss::of_another(LostReason::Forked).error(self.name()));
        }
        if suspended && matches!(self.held.status(), Status::Held(_)) {
            return Err(Error::Conflict {
                op: format!("say whether lock `{}` is held", self.name()),
                source: "a fenced transaction is open that lasts longer than the lease: no renewal gets \
                         past it, and what comes after it decides"
                    .into(),
            });
        }
        // Where the scheduler has not come round to it: a thawed process asks first.
        Err(self.held.lose(LostReason::Expired).error(self.name()))
    }

    /// A ticket of this grant, with which another process can release or renew the lock while this
    /// guard goes on holding it. To hand the lock over, see
    /// [`into_ticket`](LockGuard::into_ticket).
    pub fn ticket(&self) -> Ticket {
        let grant = &self.held.grant;
        Ticket {
            name: grant.name.clone(),
            token: grant.token,
            grant: grant.id,
        }
    }

    /// Hand the lock over: stop renewing it, and return the ticket with which another task or
    /// process goes on with it. No I/O.
    ///
    /// The lock stays held until its present lease ends, which is in
    /// [`trusted_for`](LockGuard::trusted_for) plus the margin. The ticket has to be
    /// [resumed](crate::Locks::resume) or [renewed](crate::Locks::renew) before that. If that may
    /// take longer, [extend](LockGuard::extend) it first.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if there is nothing left to hand over. [`Error::Conflict`] while the guard
    /// is [suspended](LockGuard::is_suspended): the guard is then dropped, and the lock released.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("import").acquire().await?;
    /// let text = guard.into_ticket()?.to_string(); // to a queue, a file, an environment variable
    /// // … in another process …
    /// let guard = locks.resume(&text.parse()?).await?;
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn into_ticket(mut self) -> Result<Ticket, Error> {
        self.forget_listeners();
        self.still_trusted()?;
        self.released = true;
        self.inner.scheduler.remove(self.held.grant.id);
        self.held.released();
        self.inner.queues.left(self.name());
        let Grant {
            name,
            token,
            holder,
            ..
        } = &self.held.grant;
        tracing::debug!(
            lock.name = name.as_str(),
            lock.token = token.get(),
            lock.holder = &**holder,
            lock.held_ms = ms(self.held.held_for()),
            "lock handed over"
        );
        Ok(self.ticket())
    }

    /// Release the lock.
    ///
    /// If one of its own [fences](LockGuard::fence) is open and holds the lock's row, on MySQL and MariaDB,
    /// this does not wait for it: the lock is released when that transaction ends, which a log line at
    /// `info` says.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if this grant no longer held it: the work was not protected to its end, and
    /// nothing was changed. [`Error::Unavailable`] if the database did not answer within 5 s: the
    /// attempt goes on in the background, and the lock is free when its ttl ends at the latest.
    /// [`Error::Rejected`] if the database refused it, and tries go on as well.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it is carried out even if it is dropped; before, dropping it releases as
    /// dropping the guard does.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").acquire().await?;
    /// // … the work …
    /// guard.release().await?; // an error if the work was not protected to its end
    /// assert!(!locks.show("report").await?.expect("its row stays").is_held());
    /// # Ok(()) }
    /// ```
    pub async fn release(mut self) -> Result<(), Error> {
        let (name, began) = (self.name().clone(), clock::now());
        self.forget_listeners();
        match self.still_trusted() {
            // Where trust has run out under a fence it is ours to be released all the same.
            Ok(()) | Err(Error::Conflict { .. }) => {}
            Err(lost) => return Err(lost),
        }
        let Some(mut release) = self.begin_release() else {
            return Ok(());
        };
        let done = match release.directly().await {
            Some(done) => done,
            None => in_background(name, release, began + RELEASE_PATIENCE).await?,
        };
        if done != Released::NotHeld {
            return Ok(());
        }
        let (inner, held) = (Arc::clone(&self.inner), Arc::clone(&self.held));
        let ttl = *self.longest();
        let why =
            runtime::run(async move { Ok(why_lost(&inner, &held, ttl).await.ok().flatten()) });
        let gone = why.await?.unwrap_or(LostReason::Preempted.into());
        Err(self.held.loss(gone).error(self.name()))
    }

    /// From now on no listener is told of a loss.
    fn forget_listeners(&self) {
        // In a forked child the mutex around them may be locked by a thread that is not there.
        if self.held.is_here() {
            drop(self.held.listeners.take());
        }
    }

    /// Stop the renewals; what is left is to tell the database.
    fn begin_release(&mut self) -> Option<GiveBack> {
        // In a forked child there is nothing of ours to be released, nor to be touched.
        if std::mem::replace(&mut self.released, true) || !self.held.is_here() {
            return None;
        }
        self.forget_listeners();
        self.inner.scheduler.remove(self.held.grant.id);
        let _ = self.still_trusted();
        let before = self.held.status();
        self.held.released();
        // A row that is another's, or gone, has nothing of ours to be released.
        let ours = match before {
            Status::Held(_) => true,
            Status::Lost(loss) => loss.reason().leaves_a_lease(),
            Status::Released => false,
        };
        if !ours {
            self.inner.queues.left(self.name());
        }
        let ttl = *self.longest();
        let what = ReleaseCommand::of(&self.held.grant, ttl);
        let held_for = Some(self.held.held_for());
        ours.then(|| GiveBack::new(Arc::clone(&self.inner), what, ttl, held_for))
    }
}

/// Release in the background, and wait for it no longer than a caller should.
async fn in_background(name: LockName, release: GiveBack, until: Time) -> Result<Released, Error> {
    let work = runtime::spawn(release.carry_on())?;
    runtime::run(async move {
        tokio::select! {
            done = work => done.unwrap_or_else(|stopped| Err(Error::Unavailable {
                op: "release a lock".into(),
                source: Box::new(stopped),
            })),
            () = clock::sleep_until(until) => Err(Error::Unavailable {
                op: format!("release lock `{name}`"),
                source: "no answer within 5s; trying on in the background".into(),
            }),
        }
    })
    .await
}

/// Why a grant that is not ours any more is not: a renewal, which must fail, says so.
async fn why_lost(inner: &Inner, held: &Held, ttl: Ttl) -> Result<Option<Gone>, StoreError> {
    let answers = inner
        .store
        .renew(&[(held.grant.clone(), ttl)], PATIENCE)
        .await?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        Renewal::Lost(gone) => Some(gone),
        Renewal::Renewed | Renewal::Busy => None,
    }))
}

/// The database said so, and not at a renewal.
pub(crate) fn not_ours(inner: &Inner, held: &Held, gone: Gone) -> Error {
    let loss = held.lose(gone);
    inner.scheduler.remove(held.grant.id);
    loss.error(&held.grant.name)
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(release) = self.begin_release() {
            drop(release);
            pending::guard_dropped();
        }
    }
}
