//! A held lock.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::acquire::PATIENCE;
use crate::error::{Error, LostReason};
use crate::fork::Here;
use crate::held::{Held, Status, ms};
use crate::info::LockState;
use crate::inner::Inner;
use crate::loss::Loss;
use crate::name::LockName;
use crate::release::give_back;
use crate::runtime;
use crate::store::{Gone, Grant, Released, Renewal, Return, StoreError};
use crate::ticket::Ticket;
use crate::timing::Ttl;
use crate::token::Token;

/// How long [`LockGuard::release`] waits for the database before it lets the background go on.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// A held lock. It is renewed in the background for as long as this value lives.
///
/// Dropping it releases the lock in the background, best effort: if the process ends at once, or the
/// database is not to be reached, the lock stays held until its ttl ends. Call
/// [`release`](LockGuard::release) where it matters, or [`Locks::drain`](crate::Locks::drain) before
/// the process ends. A guard that is leaked (`std::mem::forget`) is renewed until the process ends.
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
            .field("name", self.name())
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

    /// It was handed over, and nobody says for how long it had been taken: perhaps without end.
    pub(crate) fn perhaps_endless(self) -> Self {
        *self.longest() = Ttl::Infinite;
        self
    }

    fn longest(&self) -> MutexGuard<'_, Ttl> {
        self.ttl.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which lock.
    pub fn name(&self) -> &LockName {
        &self.held.grant.name
    }

    /// The fencing number of this grant: greater than that of every earlier one of this name.
    pub fn token(&self) -> Token {
        self.held.grant.token
    }

    /// The random id of this grant, 32 hexadecimal digits.
    pub fn grant_id(&self) -> &str {
        self.held.grant.id.as_str()
    }

    /// Who holds it, as `locked_by` says.
    pub fn holder(&self) -> &str {
        &self.held.grant.holder
    }

    /// Whether it is still held, as far as can be known without asking. Never waits.
    ///
    /// It turns `false` before the database would give the lock to anybody else, on a clock that goes on
    /// while the machine is suspended. Once it is `false` it stays so, except where a
    /// [fence](LockGuard::fence) on MySQL was open for longer than the lease could be trusted: then the
    /// renewal after it decides.
    pub fn is_held(&self) -> bool {
        !self.trusted_for().is_zero()
    }

    /// Whether trust has run out while a fence that no renewal gets past is open, on MySQL and
    /// MariaDB: it is not [held](LockGuard::is_held), and not lost either until that transaction has
    /// ended. Never waits.
    pub fn is_suspended(&self) -> bool {
        let suspended = self.held.outlives_trust();
        !self.is_held() && suspended && matches!(self.held.status(), Status::Held(_))
    }

    /// How long it would be held if no renewal got through from now on. Never waits.
    ///
    /// Zero: lost. [`Duration::MAX`]: without end.
    pub fn trusted_for(&self) -> Duration {
        match self.held.is_here() {
            true => self.held.trusted_for(),
            false => Duration::ZERO,
        }
    }

    /// Wait until it is lost. Does not resolve if it is released.
    ///
    /// The future does not borrow the guard, so it may be spawned.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and asked for again at any time.
    pub fn lost(&self) -> impl Future<Output = LostReason> + Send + use<> {
        let status = self.held.is_here().then(|| self.held.watch());
        async move {
            let Some(mut status) = status else {
                return LostReason::Forked;
            };
            loop {
                if let Status::Lost(loss) = &*status.borrow_and_update() {
                    return loss.reason();
                }
                if status.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// How it was lost: why, since when, and who has it now, where that is known. Never waits.
    ///
    /// None while it is held, while it is [suspended](LockGuard::is_suspended), and where it was
    /// released before it could be lost. Once [`is_held`](LockGuard::is_held) has answered `false` there
    /// is one.
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
    /// marked lost and the waiters of [`lost`](LockGuard::lost) were woken; at once, on this thread, if
    /// it is lost already. Never once [`release`](LockGuard::release), [`into_ticket`](LockGuard::into_ticket)
    /// or the drop of this guard has begun: `f` is dropped then, and a loss that a release finds is
    /// for its error to tell. A call that had begun before may still be going on.
    ///
    /// It may block, use this library's guards, drop them, and acquire. If it panics, or never
    /// returns, nothing else is disturbed; but no more than 64 callbacks of a process run at once, and
    /// the others wait until one returns. Where `on_lost` is called several times, each `f` is called,
    /// one after another.
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

    /// Ask the database whether it is still ours.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if it is not; the guard is lost from then on. [`Error::Unavailable`] or
    /// [`Error::Rejected`] where there is no answer, which changes nothing.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
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

    /// Renew to `ttl` at once, and to the same from now on. Never shortens what the database has.
    ///
    /// Margin and period follow the new ttl by default.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a ttl out of range; [`Error::Lost`] if the lease ends before the
    /// database has confirmed it. While the database is not to be reached it waits.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the extension may or may not happen.
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

    /// Nothing that asks for a lock that is held may be done unless this says so.
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

    /// What it takes to release this lock in our place, or to renew it after us. We go on holding it.
    pub fn ticket(&self) -> Ticket {
        let grant = &self.held.grant;
        Ticket {
            name: grant.name.clone(),
            token: grant.token,
            grant: grant.id,
        }
    }

    /// Stop renewing and hand the lock over: whoever has the ticket goes on with it.
    ///
    /// It stays held until its present lease ends, so the ticket has to be
    /// [resumed](crate::Locks::resume) before. Extend it first where that takes long.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if there is nothing left to hand over.
    pub fn into_ticket(mut self) -> Result<Ticket, Error> {
        self.forget_listeners();
        self.still_trusted()?;
        self.released = true;
        self.inner.scheduler.remove(self.held.grant.id);
        self.held.released();
        self.inner.turns.left(self.name());
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
    /// [`Error::Lost`] if it was no longer ours; nothing was changed then. [`Error::Unavailable`]
    /// if the database did not answer within 5 s: the attempt goes on in the background, and at the
    /// latest the lock is free when its ttl ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it is carried out even if it is dropped; before, dropping it releases as
    /// dropping the guard does.
    pub async fn release(mut self) -> Result<(), Error> {
        let name = self.name().clone();
        self.forget_listeners();
        match self.still_trusted() {
            // Where trust has run out under a fence it is ours to be released all the same.
            Ok(()) | Err(Error::Conflict { .. }) => {}
            Err(lost) => return Err(lost),
        }
        let Some(work) = self.begin_release() else {
            return Ok(());
        };
        let work = runtime::spawn(work)?;
        let late = async move {
            tokio::time::sleep(RELEASE_PATIENCE).await;
            Err(Error::Unavailable {
                op: format!("release lock `{name}`"),
                source: "no answer within 5s; trying on in the background".into(),
            })
        };
        let done = runtime::run(async {
            tokio::select! {
                done = work => done.unwrap_or_else(|stopped| Err(Error::Unavailable {
                    op: "release a lock".into(),
                    source: Box::new(stopped),
                })),
                late = late => late,
            }
        });
        if done.await? != Released::NotOurs {
            return Ok(());
        }
        let (inner, held) = (Arc::clone(&self.inner), Arc::clone(&self.held));
        let ttl = *self.longest();
        let why =
            runtime::run(async move { Ok(why_lost(&inner, &held, ttl).await.ok().flatten()) });
        let gone = why.await?.unwrap_or(LostReason::Preempted.into());
        Err(self.held.loss(gone).error(self.name()))
    }

    /// From now on a loss is nobody's business any more.
    fn forget_listeners(&self) {
        // In a forked child the mutex around them may be locked by a thread that is not there.
        if self.held.is_here() {
            drop(self.held.listeners.take());
        }
    }

    /// Stop the renewals; what is left is to tell the database.
    fn begin_release(
        &mut self,
    ) -> Option<impl Future<Output = Result<Released, Error>> + Send + 'static + use<>> {
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
            self.inner.turns.left(self.name());
        }
        let ttl = *self.longest();
        let what = Return::of(&self.held.grant, ttl);
        let held_for = Some(self.held.held_for());
        ours.then(|| give_back(Arc::clone(&self.inner), what, ttl, held_for))
    }
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
        if let Some(work) = self.begin_release() {
            // The runtime is there, since the guard is.
            let _ = runtime::spawn(work);
        }
    }
}
