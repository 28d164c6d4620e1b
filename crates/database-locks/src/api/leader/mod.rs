//! Leader election: one of many processes leads, by holding a lock.

pub(crate) mod blocking;
pub(crate) mod observer;
mod term;

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::api::delegate::settings;
use crate::api::lock::Lock;
use crate::api::locks::Locks;
use crate::error::Error;
use crate::runtime;
use protocol::{Human, LockInfo, Ttl};

use self::observer::LeaderObserver;
use self::term::{Over, TermOwner};

pub use self::term::Term;

/// The shortest pause after a resignation.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// A candidate for leadership: of all processes that [`run`](Leader::run) a leader of this name,
/// one leads at a time.
///
/// The leader is the holder of the lock of the same name, an ordinary exclusive lock: `dblock
/// lead`, [`Locks::lock`] and Python exclude it, [`Locks::show`] shows it, and
/// [`Locks::force_release`] takes it away. A new leader has a new *term*, with a greater
/// [token](crate::LockGuard::token).
///
/// The settings are those of a [`Lock`](crate::Lock), with the same bounds and defaults. They are
/// checked by [`run`](Leader::run), before any I/O.
///
/// | setting | meaning | default |
/// | --- | --- | --- |
/// | `ttl` | how long no process leads after the leader has died: 100 ms to 10 years, or [`Ttl::Infinite`]: until a release by force | 30 s |
/// | `margin` | how long before the end of the lease a leader stops; less than half of the ttl | as for a lock |
/// | `grace` | how long an async body may run on after its term has ended; shorter than the margin | 0 |
/// | `renew_every` | period of renewals | a third of the ttl |
/// | `poll` | the longest pause between two polls of a candidate, where notifications do not work | 250 ms |
/// | `holder` | the name of this candidate, for people: 1 to 255 characters | `host.pid.random` |
/// | `metadata` | JSON values to show with the leader | program, host, pid, version |
///
/// # Example
///
/// ```
/// use database_locks::{Error, Locks, Term};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
/// # let url = "memory:";
/// let locks = Locks::connect(url).await?;
/// let scheduler = locks.leader("scheduler");
///
/// // Waits until this process leads. If the term is lost, the body is dropped, and the next term
/// // calls the closure again.
/// scheduler.run(|term| schedule(term)).await?;
///
/// async fn schedule(term: Term) {
///     println!("leading, term {}", term.token());
///     // … until there is nothing more to do …
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "a candidate does nothing until it runs"]
pub struct Leader {
    locks: Locks,
    lock: Lock,
    grace: Duration,
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leader").field(&self.lock).finish()
    }
}

impl Locks {
    /// A candidate for the leadership of this name, with the default settings. The name is checked
    /// by the first call that needs the database.
    pub fn leader(&self, name: impl AsRef<str>) -> Leader {
        Leader {
            locks: self.clone(),
            lock: self.lock(name),
            grace: Duration::ZERO,
        }
    }
}

impl Leader {
    /// The name as it was given.
    pub fn name(&self) -> &str {
        self.lock.name()
    }

    settings! { self.lock;
        /// The length of the lease from each renewal: 100 ms to 10 years, or [`Ttl::Infinite`]. 30 s
        /// by default.
        ///
        /// If the leader dies, no process leads for this long, with [`Ttl::Infinite`] until the
        /// lock is released by force.
        ttl(ttl: impl Into<Ttl>);
        /// How long before the end of the lease a leader stops. See
        /// [`Lock::margin`](crate::Lock::margin).
        margin(margin: Duration);
        /// The time from one successful renewal to the next. See
        /// [`Lock::renew_every`](crate::Lock::renew_every).
        renew_every(period: Duration);
        /// The longest pause between two polls of a candidate. See
        /// [`Lock::poll`](crate::Lock::poll).
        poll(longest: Duration);
        /// The name of this candidate, for people. See [`Lock::holder`](crate::Lock::holder).
        holder(holder: impl Into<String>);
        /// A value to show with the leader. See [`Lock::metadata`](crate::Lock::metadata).
        metadata(key: impl Into<String>, value: impl Into<Value>);
    }

    /// How long the body of [`run`](Leader::run) may run on after its term has ended, for an
    /// orderly stop; shorter than the [margin](Leader::margin). Zero by default: the body is
    /// dropped at once.
    ///
    /// The body learns of the end by [`Term::ended`], and is dropped when the grace is over. After
    /// a loss the grace counts from the end of trust, so that it ends before the lease does. If
    /// another process may lead already (released by force, preempted), there is no grace.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Campaign, run `body` while this process leads, and campaign again if the term ends first.
    ///
    /// | event | consequence |
    /// | --- | --- |
    /// | another process leads, or the database is away | the campaign goes on without limit; an outage is logged once |
    /// | the body ends | the lock is released, and `run` returns the output of the body, an `Err` too |
    /// | the term is lost | the body is dropped, after the [grace](Leader::grace) if there is one; then the next campaign begins |
    /// | [`Term::resign`] | the same; between the two the lock is released, and other candidates go first |
    /// | the body panics | the lock is released in the background, and the panic goes on |
    ///
    /// When trust in the lease has ended, the body is not polled again, not even once, except
    /// during a grace. So a body of a process that was frozen does nothing after it is thawed. Only
    /// what the body waits for is stopped with it: code that blocks, and tasks and threads that it
    /// has spawned, must watch [`Term::is_leader`] themselves. Another process may lead when the
    /// lease has ended, which is a [margin](Leader::margin) after the end of trust.
    ///
    /// The output of a body that ends during the grace is dropped.
    ///
    /// The future borrows nothing, and is `Send` if `body`, its future and its output are.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting out of range, before any I/O; [`Error::Rejected`] if the
    /// database refuses, for example for a missing table; [`Error::Unavailable`] if the background
    /// thread cannot be started. A loss is no error.
    ///
    /// # Panics
    ///
    /// If `body` or its future does.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the body is dropped first, and then the lock is released in the
    /// background.
    ///
    /// # Example
    ///
    /// A body with an orderly stop:
    ///
    /// ```
    /// use std::time::Duration;
    /// # use database_locks::{Error, Locks};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let leader = locks.leader("importer").grace(Duration::from_secs(1));
    /// let imported = leader
    ///     .run(|term| async move {
    ///         let mut imported = 0;
    ///         while term.is_leader() && imported < 3 {
    ///             imported += 1; // … one file …
    ///         }
    ///         imported
    ///     })
    ///     .await?;
    /// assert_eq!(imported, 3);
    /// # Ok(()) }
    /// ```
    pub fn run<F, W>(
        &self,
        mut body: F,
    ) -> impl Future<Output = Result<W::Output, Error>> + use<F, W>
    where
        F: FnMut(Term) -> W,
        W: Future,
    {
        let leader = self.clone();
        async move {
            leader.check_grace()?;
            loop {
                let term = leader.campaign().await?;
                let output = {
                    let work = body(term.term());
                    term.until_ended(work, leader.grace).await
                };
                let over = term.end().await;
                match (over, output) {
                    (Over::ByBody, Some(output)) => return Ok(output),
                    (Over::Resigned, _) => leader.let_others_lead().await?,
                    _ => {}
                }
            }
        }
    }

    /// Read who leads now; `None` if no process does. The leader's name is
    /// [`holder`](LockInfo::holder), its term has [`token`](LockInfo::token), and it has led since
    /// [`acquired_at`](LockInfo::acquired_at), by the database's clock.
    ///
    /// # Errors
    ///
    /// As [`Locks::show`](crate::Locks::show).
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    ///
    /// # Example
    ///
    /// ```
    /// # use database_locks::{Error, Locks};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// match locks.leader("scheduler").current().await? {
    ///     Some(leader) => println!("{} leads", leader.holder.unwrap_or_default()),
    ///     None => println!("no leader"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn current(
        &self,
    ) -> impl Future<Output = Result<Option<LockInfo>, Error>> + Send + 'static + use<> {
        let row = self.locks.show(self.name().to_owned());
        async move { Ok(row.await?.filter(observer::leads)) }
    }

    /// Observe who leads. The observer is no candidate, and reads only while
    /// [`LeaderObserver::next`] is awaited.
    pub fn observe(&self) -> LeaderObserver {
        LeaderObserver::new(self.locks.clone(), self.name())
    }

    /// Wait until this process leads.
    async fn campaign(&self) -> Result<TermOwner, Error> {
        let guard = self.lock.acquire().await?;
        Ok(TermOwner::new(guard))
    }

    fn check_grace(&self) -> Result<(), Error> {
        let timing = self.lock.timing()?;
        let Ttl::Finite(ttl) = timing.ttl() else {
            return Ok(());
        };
        let margin = timing.margin_of(ttl);
        if self.grace.is_zero() || self.grace < margin {
            return Ok(());
        }
        let allowed = format!(
            "shorter than the margin of {}: another process may lead when the lease ends",
            Human(margin)
        );
        Err(Error::config(
            "grace",
            Human(self.grace).to_string(),
            allowed,
        ))
    }

    /// Pause after a resignation, for as long as other candidates need to see the free lock.
    async fn let_others_lead(&self) -> Result<(), Error> {
        let pause = (self.lock.poll * 2).max(SHORTEST_PAUSE);
        // In the background: the caller may have no timer.
        runtime::run(async move {
            tokio::time::sleep(pause).await;
            Ok(())
        })
        .await
    }
}
