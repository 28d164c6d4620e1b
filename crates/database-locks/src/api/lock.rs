//! A lock as it is wanted: a name and settings, to be acquired any number of times.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::Instrument;

use crate::api::locks::Locks;
use crate::client::acquire::{LONGEST_POLL, Want, acquire};
use crate::client::guard::LockGuard;
use crate::client::handover::resume;
use crate::client::holder::{check_holder, metadata};
use crate::error::Error;
use crate::error::loss::Loss;
use protocol::{GrantId, Human, LockName, Renewing, Short, Ticket, Timing, Ttl};

/// What a ttl is unless given.
const DEFAULT_TTL: Duration = Duration::from_secs(30);
/// What `poll` is at least: less would be one statement after another.
const MIN_POLL: Duration = Duration::from_millis(1);

/// A lock's name and settings. Reusable: it holds nothing; a [`LockGuard`] does.
///
/// All rules, and those between settings, are checked by the call that acquires, before any I/O.
///
/// | setting       | meaning                                                        | default |
/// | ---           | ---                                                            | --- |
/// | `ttl`         | how long the lease lasts after its last renewal, and so how long the lock stays held if its holder dies: 100 ms to 10 years, or [`Ttl::Infinite`] | 30 s |
/// | `wait`        | how long to wait for it; zero: try once                        | without limit |
/// | `poll`        | the longest pause between two polls of a lock that another client holds, where notifications do not work; 1 ms at least | 250 ms |
/// | `renew_every` | the period of renewals: 10 ms to half of ttl less margin       | a third of the ttl |
/// | `auto_renew`  | whether to renew at all                                        | yes |
/// | `margin`      | how long before the end of the lease the holder stops trusting it; less than half of the ttl | a tenth of the ttl up to 30 s; 3 s for a ttl of 30 s to 5 min; 1 % above that |
/// | `holder`      | the holder, for people: 1 to 255 characters                    | `host.pid.random` |
/// | `preempt`     | whether to take it at once from the same `holder` in another process | no |
/// | `metadata`    | what the holder wants to say, as JSON; 4 KiB in all            | program, host, pid, version |
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// # let locks = database_locks::Locks::connect("memory:").await?;
/// let nightly = locks.lock("nightly report").ttl(Duration::from_secs(10)).wait(Duration::ZERO);
///
/// let guard = nightly.acquire().await?;
/// assert!(nightly.try_acquire().await?.is_none(), "one holder at a time");
/// drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a lock does nothing until it is acquired"]
pub struct Lock {
    locks: Locks,
    name: String,
    ttl: Ttl,
    wait: Option<Duration>,
    poll: Duration,
    renewing: Renewing,
    margin: Option<Duration>,
    holder: Option<String>,
    preempt: bool,
    metadata: Map<String, Value>,
}

/// On one line, without the settings that are as by default.
impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Lock");
        debug
            .field("name", &Short(&self.name))
            .field("engine", &self.locks.engine())
            .field("ttl", &format_args!("{}", self.ttl));
        if let Some(wait) = self.wait {
            debug.field("wait", &wait);
        }
        if let Some(holder) = &self.holder {
            debug.field("holder", &Short(holder));
        }
        debug.finish_non_exhaustive()
    }
}

impl Lock {
    pub(crate) fn new(locks: Locks, name: &str) -> Self {
        Self {
            locks,
            name: name.to_owned(),
            ttl: Ttl::Finite(DEFAULT_TTL),
            wait: None,
            poll: LONGEST_POLL,
            renewing: Renewing::ByDefault,
            margin: None,
            holder: None,
            preempt: false,
            metadata: Map::new(),
        }
    }

    /// The name, as it was given: an acquire checks it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the lease lasts after each renewal; 100 ms to 10 years, or [`Ttl::Infinite`].
    ///
    /// The lock stays held for this long if its holder dies, and an infinite one until it is
    /// released by force. It does not limit the work: a lock is renewed for as long as its guard
    /// lives.
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// How long [`Lock::acquire`] waits; zero: it tries once; without limit by default.
    ///
    /// On a cluster with several primaries (Galera, Group Replication) no clock says that a lease
    /// has ended: it has, when its row was seen unchanged for as long as it lasts. So where the
    /// holder looks dead at the end of the wait, because by the clock of the node that was asked
    /// its lease has ended or was renewed in the future, the wait goes on until that is over, for
    /// one ttl of the holder at most; [`Lock::try_acquire`] does the same. Otherwise no run of a
    /// job that tries once every few minutes would ever get the lock of one that has crashed.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// The longest pause between two polls of a lock that another client holds; 250 ms by default,
    /// 1 ms at least.
    ///
    /// On PostgreSQL a release in another process notifies the waiter, and the pause is 5 s, or
    /// this if it is longer; not so through a pooler. The other engines have no notifications.
    ///
    /// The first pauses are 6 to 10 ms. In the first minute with the same holder the waiter polls
    /// every `poll`/10, at least every 30 to 50 ms: a lock that another process releases stays free
    /// for some 20 ms on average. Then the pauses grow, to `poll` after some five minutes. No pause
    /// is longer than `poll`, nor goes beyond the end of the lease. One poll, a read-only
    /// statement, is for all names that this process waits for; a release within the process wakes
    /// its next waiter without one. A `poll` of seconds spares the database statements; one below
    /// 50 ms gets a lock sooner. While the database cannot be reached the pauses are up to 1 s,
    /// whatever this is.
    pub fn poll(mut self, longest: Duration) -> Self {
        self.poll = longest;
        self
    }

    /// Renew when this much time has passed since the last success; 10 ms at least, and half of ttl
    /// less margin at most. A third of the ttl by default.
    pub fn renew_every(mut self, period: Duration) -> Self {
        self.renewing = Renewing::Every(period);
        self
    }

    /// Whether to renew at all. Without, the lock is lost when its ttl ends.
    pub fn auto_renew(mut self, on: bool) -> Self {
        self.renewing = match (on, self.renewing) {
            (false, _) => Renewing::Never,
            (true, Renewing::Never) => Renewing::ByDefault,
            (true, as_it_is) => as_it_is,
        };
        self
    }

    /// Stop trusting the lease this long before the database ends it; less than half of the ttl.
    ///
    /// It is the time to stop the work in when the lock is lost. It also absorbs drift of the local
    /// clock. By default it is a tenth of the ttl up to 30 s, 3 s for a ttl of 30 s to 5 min, and 1 %
    /// above that.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// The holder, for people to read: 1 to 255 characters. It decides nothing unless
    /// [`preempt`](Lock::preempt) is on.
    pub fn holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = Some(holder.into());
        self
    }

    /// Whether to take it at once from a holder of the same name in another process. Off by
    /// default.
    ///
    /// For a service of which there is one: restarted after a crash, or moved to another machine,
    /// it goes on without waiting until the lease of the one before has run out. It gets a new
    /// token, and the older holder, should it still be there, has lost the lock
    /// ([`LostReason::Preempted`](crate::LostReason::Preempted)), but learns it at its next renewal
    /// only: until then both may be at work. What such a service writes should be checked by the
    /// token.
    ///
    /// Within one process a holder of the same name excludes like any other, and a lock that
    /// another holder has is waited for as ever. It takes a [`holder`](Lock::holder) that is given,
    /// and the same each time. Two processes that live with the same one take the lock from each
    /// other.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let lock = locks.lock("importer").holder("importer of node 7").preempt(true);
    /// let guard = lock.acquire().await?;
    /// assert!(lock.try_acquire().await?.is_none(), "not within one process");
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn preempt(mut self, on: bool) -> Self {
        self.preempt = on;
        self
    }

    /// Something that the holder wants to say; shown under `meta`. All metadata together is 4 KiB
    /// at most, as JSON.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    fn want(&self, wait: Option<Duration>, from: Option<GrantId>) -> Result<Want, Error> {
        let holder = match &self.holder {
            Some(holder) => {
                check_holder(holder)?;
                holder.as_str().into()
            }
            None if self.preempt => {
                let allowed =
                    "given together with a `holder`: the one by default is another each time";
                return Err(Error::config(
                    "preempt",
                    "on, and no `holder` is given",
                    allowed,
                ));
            }
            None => Arc::clone(&self.locks.inner()?.holder),
        };
        if self.poll < MIN_POLL {
            let got = Human(self.poll).to_string();
            return Err(Error::config("poll", got, "1ms at least"));
        }
        Ok(Want {
            name: LockName::new(&self.name)?,
            holder,
            metadata: metadata(&self.metadata, from, self.preempt)?,
            timing: Timing::new(self.ttl, self.renewing, self.margin)?,
            wait,
            preempt: self.preempt,
            poll: self.poll,
        })
    }

    /// Take the lock now, or return `None` if another client holds it. On a cluster it may wait:
    /// see [`Lock::wait`].
    ///
    /// The future borrows nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting out of range; [`Error::Unavailable`] if the database does
    /// not answer within 5 s; [`Error::Rejected`], for a missing table for one; [`Error::Conflict`]
    /// if no client is known to hold it, but its row or the table stays locked.
    ///
    /// # Cancel safety
    ///
    /// Dropped at any point, it leaves nothing held: a grant that was made meanwhile is given back
    /// in the background, and at the latest runs out after 30 s.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// match locks.lock("invoices").try_acquire().await? {
    ///     Some(guard) => {
    ///         // … the work …
    ///         guard.release().await?;
    ///     }
    ///     None => println!("another process does it already"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<LockGuard>, Error>> + Send + use<> {
        let lock = self.clone();
        async move {
            let want = lock.want(Some(Duration::ZERO), None)?;
            acquire(lock.locks.inner()?, want).await
        }
    }

    /// Take the lock, waiting for it as long as [`wait`](Lock::wait) says.
    ///
    /// A wait outlives restarts of the database. Waiters of one process come in order.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] when the wait is over, naming the holder; [`Error::Unavailable`] when it
    /// is over and the database could not be reached at its end; [`Error::Config`] and
    /// [`Error::Rejected`] at once.
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::try_acquire`]; its place in the queue is lost. A future that was polled and is then kept
    /// without being polled keeps its place, and may be granted the lock, which is renewed until it is
    /// dropped: no other client gets it meanwhile.
    ///
    /// # Example
    ///
    /// The future borrows nothing, so it can be spawned, joined and selected on as it is:
    ///
    /// ```
    /// # use database_locks::{Error, Locks};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let (debit, credit) =
    ///     tokio::try_join!(locks.lock("account 1").acquire(), locks.lock("account 2").acquire())?;
    /// let audit = tokio::spawn(locks.lock("audit").acquire()).await??;
    /// # drop((debit, credit, audit));
    /// # Ok(()) }
    /// ```
    pub fn acquire(&self) -> impl Future<Output = Result<LockGuard, Error>> + Send + use<> {
        let lock = self.clone();
        async move { lock.acquire_or_time_out().await }
    }

    async fn acquire_or_time_out(&self) -> Result<LockGuard, Error> {
        let want = self.want(self.wait, None)?;
        let name = want.name.clone();
        let inner = self.locks.inner()?;
        if let Some(guard) = acquire(Arc::clone(&inner), want).await? {
            return Ok(guard);
        }
        // Only a wait of zero ends so. The error names the holder.
        let info = self.locks.show(&self.name).await.ok().flatten();
        // A free row names the last holder.
        let by = info.and_then(|info| info.held_by());
        let (holder, held_for) = by.map_or((None, None), |by| (by.holder, by.held_for));
        Err(Error::TimedOut {
            name,
            waited: Duration::ZERO,
            holder,
            held_for,
        })
    }

    /// Go on with a lock that was handed over, under the settings of this one. See
    /// [`Locks::resume`]. The future borrows nothing.
    ///
    /// # Errors
    ///
    /// As [`Locks::resume`], and [`Error::Config`] where the ticket is one for another lock.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the lock held by the ticket, or gives it back in the background.
    pub fn resume(
        &self,
        ticket: &Ticket,
    ) -> impl Future<Output = Result<LockGuard, Error>> + Send + use<> {
        let (lock, ticket) = (self.clone(), ticket.clone());
        async move {
            let want = lock.want(None, Some(ticket.grant))?;
            if want.name != ticket.name {
                let got = format!("one for lock `{}`", ticket.name);
                let allowed = format!("one for `{}`", want.name);
                return Err(Error::config("ticket", got, allowed));
            }
            resume(lock.locks.inner()?, want, ticket).await
        }
    }

    /// Run `work` while holding the lock, and stop it, by dropping it, if the lock is lost.
    ///
    /// The work begins when the lock is acquired. A future is stopped only where it awaits: work
    /// that blocks goes on. For work that returns a `Result` see [`try_run`](Lock::try_run).
    ///
    /// What it returns is `Send` if `work` and its output are, and borrows what `work` borrows.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`]; [`Error::Lost`] when the work was stopped, or had just ended when the
    /// loss was found.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it drops the work first and then releases in the background.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let sum = locks.lock("report").run(async { 1 + 1 }).await?;
    /// assert_eq!(sum, 2);
    /// # Ok(()) }
    /// ```
    pub fn run<F: Future>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        let acquiring = self.acquire();
        async move {
            let guard = acquiring.await?;
            let done = until_lost(&guard, work).await;
            released_after(guard, done).await
        }
    }

    /// Run `work` that can fail while holding the lock, and stop it, by dropping it, if the lock is
    /// lost.
    ///
    /// As [`Lock::run`], but what `work` returns is a `Result`, and so there is one `?` and not
    /// two. The lock is released whichever it returns.
    ///
    /// # Errors
    ///
    /// The error of `work`; or, converted, one of [`Lock::run`].
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::run`].
    ///
    /// # Example
    ///
    /// ```
    /// type BoxError = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// async fn count() -> Result<u32, BoxError> {
    ///     Ok("17".parse()?)
    /// }
    ///
    /// let count = locks.lock("count").try_run(count()).await?;
    /// assert_eq!(count, 17);
    /// # Ok(()) }
    /// ```
    pub fn try_run<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>> + use<T, E, F>
    where
        F: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let running = self.run(work);
        async move { running.await? }
    }
}

/// What `work` returns, or how the lock was lost before it did.
async fn until_lost<F: Future>(guard: &LockGuard, work: F) -> Result<F::Output, Loss> {
    // What the work logs says under which lock, and which grant of it.
    let span = tracing::debug_span!(
        "locked",
        lock.name = guard.name().as_str(),
        lock.token = guard.token().get(),
        lock.holder = guard.holder()
    );
    let (lost, work) = (guard.lost(), std::pin::pin!(work.instrument(span)));
    tokio::select! {
        biased;
        loss = lost => Err(loss),
        output = work => Ok(output),
    }
}

/// Release the lock of work that has ended, and return what it came to.
async fn released_after<T>(guard: LockGuard, done: Result<T, Loss>) -> Result<T, Error> {
    let output = done.map_err(|loss| loss.error(guard.name()))?;
    match guard.release().await {
        // The work blocked past the end of the lease, or the lock was released by force since the
        // last renewal.
        Err(lost @ Error::Lost { .. }) => Err(lost),
        // The lock was held until the work ended. A release that failed does not change the result of
        // the work, and goes on in the background.
        Ok(()) | Err(_) => Ok(output),
    }
}
