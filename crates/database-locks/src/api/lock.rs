//! A lock before it is acquired: its name and settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::api::busy::Busy;
use crate::client::acquire::acquire;
use crate::client::acquire::poll_interval::LONGEST_POLL;
use crate::client::acquire::request::AcquireRequest;
use crate::client::endpoint::Endpoint;
use crate::client::guard::LockGuard;
use crate::client::handover::resume;
use crate::client::holder::{check_holder, metadata};
use crate::error::Error;
use crate::runtime;
use protocol::{
    GrantId, Human, Kind, LockName, MAX_PERMITS, OncePer, Renewing, Short, Ticket, Timing, Ttl,
    checked_at_least,
};

/// The default ttl.
const DEFAULT_TTL: Duration = Duration::from_secs(30);
/// The minimum of `poll`. Less would send statements without a pause.
const MIN_POLL: Duration = Duration::from_millis(1);

/// A lock's name and settings. It can be acquired many times; a [`LockGuard`] is the held lock.
///
/// Settings, and the rules between them, are checked by the call that acquires, before any I/O.
///
/// | setting       | meaning                                                        | default |
/// | ---           | ---                                                            | --- |
/// | `ttl`         | length of the lease from its last renewal, and so how long the lock stays held if its holder dies: 100 ms to 10 years, or [`Ttl::Infinite`] | 30 s |
/// | `wait`        | how long to wait; zero: one try                                | no limit |
/// | `poll`        | the longest pause between two polls of a lock that another client holds, where notifications do not work; 1 ms at least | 250 ms |
/// | `renew_every` | period of renewals: 10 ms to `(ttl - margin) / 2`              | a third of the ttl; 10 s for an infinite one |
/// | `auto_renew`  | whether to renew at all                                        | yes |
/// | `margin`      | how long before the end of the lease the holder stops trusting it; less than half of the ttl | a tenth of the ttl up to 30 s; 3 s for a ttl of 30 s to 5 min; 1 % above that |
/// | `holder`      | the holder, for people: 1 to 255 characters                    | `host.pid.random` |
/// | `at_least`    | how long no client can acquire the lock again, from the beginning of the grant, even if it is released before: 0 to 10 years | 0 |
/// | `once_per`    | the period in which the lock is granted once: 100 ms to 10 years | none |
/// | `shared`      | whether other shared holders may hold the lock at the same time | no |
/// | `preempt`     | whether to take the lock at once from the same `holder` in another process | no |
/// | `metadata`    | JSON values to show with the lock; 4 KiB in all                | program, host, pid, version |
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
    pub(super) endpoint: Arc<Endpoint>,
    name: String,
    ttl: Ttl,
    pub(super) wait: Option<Duration>,
    pub(super) poll: Duration,
    renewing: Renewing,
    margin: Option<Duration>,
    holder: Option<String>,
    pub(super) preempt: bool,
    pub(super) at_least: Duration,
    pub(super) once_per: Option<Duration>,
    metadata: Map<String, Value>,
    /// The number of permits of a semaphore; `None` for a lock.
    pub(super) permits: Option<u32>,
    pub(super) shared: bool,
}

/// Leaves out settings with their default values.
impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Lock");
        debug
            .field("name", &Short(&self.name))
            .field("engine", &self.endpoint.engine())
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
    pub(crate) fn new(endpoint: Arc<Endpoint>, name: &str) -> Self {
        Self {
            endpoint,
            name: name.to_owned(),
            ttl: Ttl::Finite(DEFAULT_TTL),
            wait: None,
            poll: LONGEST_POLL,
            renewing: Renewing::ByDefault,
            margin: None,
            holder: None,
            preempt: false,
            at_least: Duration::ZERO,
            once_per: None,
            metadata: Map::new(),
            permits: None,
            shared: false,
        }
    }

    pub(crate) fn with_permits(mut self, permits: u32) -> Self {
        self.permits = Some(permits);
        self
    }

    /// The name as it was given. It is checked when the lock is acquired.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length of the lease from each renewal: 100 ms to 10 years, or [`Ttl::Infinite`]. 30 s by
    /// default.
    ///
    /// If its holder dies, the lock stays held for this long, with [`Ttl::Infinite`] until it is
    /// released by force. The ttl does not limit the work: the lock is renewed while its guard
    /// lives.
    pub fn ttl(mut self, ttl: impl Into<Ttl>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// How long [`Lock::acquire`] waits. No limit by default; zero: one try.
    ///
    /// **Clusters with several primaries** (Galera, Group Replication): no clock is trusted there.
    /// A lease has ended when its row was observed unchanged for the length of the lease. If the
    /// holder looks dead at the end of the wait (by the clock of the node that was asked, its lease
    /// has ended or was renewed in the future), the wait goes on until the observation ends, for at
    /// most one ttl of the holder. [`Lock::try_acquire`] does the same. Otherwise a job that tries
    /// once every few minutes would never get the lock of a crashed run.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// The longest pause between two polls of a lock that another client holds. 250 ms by default,
    /// at least 1 ms.
    ///
    /// | | pause |
    /// | --- | --- |
    /// | PostgreSQL, which notifies waiters of a release | up to 5 s, or `poll` if that is longer, at most 30 s |
    /// | other engines; PostgreSQL behind a transaction pooler: the first polls | 6 to 10 ms |
    /// | the first minute with the same holder | `poll` / 10, but at least 30 to 50 ms |
    /// | later | grows to `poll` after some five minutes |
    /// | while the database cannot be reached | up to 1 s, whatever `poll` is |
    ///
    /// Without notifications a released lock stays free for some 20 ms on average. A `poll` of
    /// seconds spares the database statements; one below 50 ms notices a release sooner. No pause
    /// is longer than `poll` or goes beyond the end of the lease. One read-only statement polls for
    /// all names that this process waits for; a release within the process wakes its next waiter
    /// directly.
    pub fn poll(mut self, longest: Duration) -> Self {
        self.poll = longest;
        self
    }

    /// The time from one successful renewal to the next: 10 ms to `(ttl - margin) / 2`. By default
    /// a third of the ttl, 10 s for an infinite one.
    pub fn renew_every(mut self, period: Duration) -> Self {
        self.renewing = Renewing::Every(period);
        self
    }

    /// Whether to renew at all. On by default. If off, the lock is lost when its ttl ends.
    pub fn auto_renew(mut self, on: bool) -> Self {
        self.renewing = match (on, self.renewing) {
            (false, _) => Renewing::Never,
            (true, Renewing::Never) => Renewing::ByDefault,
            (true, unchanged) => unchanged,
        };
        self
    }

    /// How long before the end of the lease the holder stops trusting it: less than half of the
    /// ttl.
    ///
    /// It is the time for stopping the work when the lock is lost, and it absorbs local clock
    /// drift. By default a tenth of the ttl up to 30 s, 3 s for a ttl of 30 s to 5 min, and 1 %
    /// above that.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// The name of the holder, for people: 1 to 255 characters, by default `host.pid.random`. It
    /// decides nothing unless [`preempt`](Lock::preempt) is on.
    pub fn holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = Some(holder.into());
        self
    }

    /// Whether to take the lock at once from the same [`holder`](Lock::holder) in another process.
    /// Off by default.
    ///
    /// For a service of which one instance runs: after a crash, or on another machine, it does not
    /// wait for its own former lease to expire. The grant has a new token. A former instance that
    /// is still alive has lost the lock ([`LostReason::Preempted`](crate::LostReason::Preempted))
    /// but **learns of it only at its next renewal**: until then both may be at work, so check the
    /// token where they write.
    ///
    /// Requires a `holder` that is set and stays the same. Two running processes with the same
    /// holder take the lock from each other. Within one process the same holder excludes like any
    /// other, and a lock of another holder is waited for as usual.
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

    /// A value to show with the lock, under `meta`. All metadata together is at most 4 KiB of JSON.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The same settings for a lock of this name.
    pub(super) fn named(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    /// The lease that the settings ask for.
    pub(super) fn timing(&self) -> Result<Timing, Error> {
        Ok(Timing::new(self.ttl, self.renewing, self.margin)?)
    }

    pub(super) fn request(
        &self,
        wait: Option<Duration>,
        from: Option<GrantId>,
    ) -> Result<AcquireRequest, Error> {
        let holder = match &self.holder {
            Some(holder) => {
                check_holder(holder)?;
                holder.as_str().into()
            }
            None if self.preempt => {
                let allowed =
                    "given together with a `holder`: the default one differs in each process";
                return Err(Error::config(
                    "preempt",
                    "on, and no `holder` is given",
                    allowed,
                ));
            }
            None => Arc::clone(&self.endpoint.client()?.holder),
        };
        if let Some(permits) = self.permits {
            if !(1..=MAX_PERMITS).contains(&permits) {
                let allowed =
                    "1 to 65,536; to pause the semaphore for all callers set its limit to 0";
                return Err(Error::config("permits", permits.to_string(), allowed));
            }
            if self.preempt {
                let allowed = "left out for a semaphore: its holders are not told apart by name";
                return Err(Error::config("preempt", "on", allowed));
            }
            if let Some(period) = self.once_per {
                let got = Human(period).to_string();
                let allowed = "left out for a semaphore: it is for a lock, which has one holder";
                return Err(Error::config("once_per", got, allowed));
            }
        }
        self.check_shared()?;
        if self.poll < MIN_POLL {
            let got = Human(self.poll).to_string();
            return Err(Error::config("poll", got, "1ms at least"));
        }
        Ok(AcquireRequest {
            name: LockName::new(&self.name)?,
            holder,
            metadata: metadata(&self.metadata, from, self.preempt)?,
            timing: self.timing()?,
            wait,
            preempt: self.preempt,
            at_least: checked_at_least(self.at_least)?,
            once_per: self.once_per.map(OncePer::new).transpose()?,
            poll: self.poll,
            kind: match self.permits {
                Some(limit) => Kind::Permit {
                    limit,
                    expired: Vec::new(),
                },
                None if self.shared => Kind::Shared { beside: None },
                None => Kind::Exclusive,
            },
        })
    }

    /// Acquire the lock now, or return `None` if another client holds it, if it
    /// [rests](Lock::at_least), or if it was granted too recently for [`once_per`](Lock::once_per).
    /// On a cluster it may wait: see [`Lock::wait`].
    ///
    /// The future borrows nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting out of range; [`Error::Unavailable`] if the database does
    /// not answer within 5 s; [`Error::Rejected`], for example for a missing table;
    /// [`Error::Conflict`] if no holder is known but the row or the table stays locked.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time and leaves nothing held: a grant that was made meanwhile is
    /// released in the background, and expires after 30 s at the latest.
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
    ///     None => println!("another process is doing it"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn try_acquire(
        &self,
    ) -> impl Future<Output = Result<Option<LockGuard>, Error>> + Send + use<> {
        let lock = self.clone();
        async move {
            let request = lock.request(Some(Duration::ZERO), None)?;
            match acquire(Arc::clone(lock.endpoint.client()?), request).await {
                Err(Error::AlreadyRan { .. }) => Ok(None),
                done => done,
            }
        }
    }

    /// Acquire the lock, waiting for it as long as [`wait`](Lock::wait) allows.
    ///
    /// A wait survives restarts of the database. Waiters of one process are served in order.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] when the wait is over, naming the holder; [`Error::AlreadyRan`] at once
    /// if the latest grant is too recent for [`once_per`](Lock::once_per); [`Error::Unavailable`]
    /// if the database could not be reached at its end; [`Error::Conflict`] if no holder is known
    /// but the row or the table stayed locked; [`Error::Config`] and [`Error::Rejected`] at once.
    ///
    /// # Cancel safety
    ///
    /// As [`Lock::try_acquire`]; the future's place in the queue is lost. A future that is kept
    /// without being polled keeps its place and may be granted the lock, which is renewed until the
    /// future is dropped: no other client gets it meanwhile.
    ///
    /// # Example
    ///
    /// The future borrows nothing, so it can be spawned, joined and selected on:
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
        let request = self.request(self.wait, None)?;
        let name = request.name.clone();
        let client = self.endpoint.client()?;
        if let Some(guard) = acquire(Arc::clone(client), request).await? {
            return Ok(guard);
        }
        // Only a wait of zero returns `None`. The error names the holder.
        let (client, of, permits) = (Arc::clone(client), name.clone(), self.permits);
        let busy = runtime::run(async move {
            match permits {
                None => Busy::of_lock(&client, &of).await,
                Some(limit) => Busy::of_semaphore(&client, &of, limit).await,
            }
        });
        let busy = busy.await.unwrap_or_default();
        Err(busy.timed_out(name, Duration::ZERO))
    }

    /// Resume a lock that was handed over, with the settings of this one: see
    /// [`Locks::resume`](crate::Locks::resume). The future borrows nothing.
    ///
    /// [`at_least`](Lock::at_least) counts from this call; [`once_per`](Lock::once_per) has no
    /// effect.
    ///
    /// # Errors
    ///
    /// As [`Locks::resume`](crate::Locks::resume), and [`Error::Config`] if the ticket is for
    /// another lock.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the ticket stays valid or the lock is released in the background.
    pub fn resume(
        &self,
        ticket: &Ticket,
    ) -> impl Future<Output = Result<LockGuard, Error>> + Send + use<> {
        let (lock, ticket) = (self.clone(), ticket.clone());
        async move {
            let request = lock.request(None, Some(ticket.grant))?;
            if request.name != ticket.name {
                let got = format!("one for lock `{}`", ticket.name);
                let allowed = format!("one for `{}`", request.name);
                return Err(Error::config("ticket", got, allowed));
            }
            resume(Arc::clone(lock.endpoint.client()?), request, ticket).await
        }
    }
}
