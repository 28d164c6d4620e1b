//! The locks of one table: what a program connects to once and clones freely.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::PATIENCE;
use crate::builder::LocksBuilder;
use crate::doctor::Report;
use crate::error::Error;
use crate::guard::LockGuard;
use crate::info::{ListFilter, LockInfo, LockState, Prune};
use crate::inner::{Inner, Place};
use crate::lock::Lock;
use crate::name::LockName;
use crate::release::force_after_fence;
use crate::resume::{ByTicket, by_ticket};
use crate::runtime;
use crate::store::{Force, Lapse, Occupant, StoreError};
use crate::ticket::Ticket;
use crate::timing::{Renewing, Timing, Ttl};
use crate::token::Token;

/// How long DDL may take: on a busy server it has to wait for others to let go of the table.
const INSTALL_PATIENCE: Duration = Duration::from_secs(30);
/// How long all the looks of an examination may take together: it reads every row once.
const EXAMINE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a release by force goes on trying where the row is locked.
const FORCE_PATIENCE: Duration = Duration::from_secs(2);

/// The locks of one table of one database. Cheap to clone: clones share one connection, one
/// scheduler and one line of waiters for each lock.
///
/// # Example
///
/// ```
/// use database_locks::Locks;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// let locks = Locks::connect("memory:").await?;
/// let guard = locks.lock("report").acquire().await?;
/// assert!(guard.is_held());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Locks(Arc<Place>);

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Locks {
    /// Connect to a database; its table is `database_locks_lock`.
    ///
    /// | URL | engine |
    /// | --- | --- |
    /// | `postgres://user:password@host:port/database` | PostgreSQL 12 and later |
    /// | `mysql://…` or `mariadb://…` | MySQL 8.0.17, MariaDB 10.6 and later |
    /// | `sqlite:///absolute/path`, `sqlite:relative/path` | a file of its own, made where it is missing |
    /// | `memory:`, `memory:name` | this process |
    ///
    /// A user name or password that holds `@`, `:` or `/` is percent-encoded. Unix sockets:
    /// `postgres:///database?host=/folder`, `mysql://user@localhost/database?socket=/file`.
    ///
    /// Several hosts, `postgres://one,two:5433/database`, are tried in their order, each within a time
    /// of its own; one that cannot be written to is passed over. Options of both servers: `sslmode`
    /// (or `ssl-mode`) is `disable`, `prefer` (the default: TLS where the server offers it, its
    /// certificate unchecked), `require`, `verify-ca` or `verify-full`; `sslrootcert` a file of
    /// certificates, or `system`; `sslcert` and `sslkey` files of a certificate of ours and its key;
    /// `connect_timeout` in seconds for each host. The guide, `docs/rust.md`, has all of them. An
    /// option that is unknown is refused.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a URL that cannot be understood, before any I/O; it never repeats the
    /// URL. [`Error::Unavailable`] where nobody answers within 5 s, [`Error::Rejected`] where the
    /// server refuses us or is not fit: too old, read-only. A missing table is found when it is
    /// used: see [`Locks::migrate`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the connection is then closed.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// Connect with more than a URL says: another table, or not before the first call.
    pub fn builder(url: impl AsRef<str>) -> LocksBuilder {
        LocksBuilder::new(url.as_ref())
    }

    pub(crate) fn at(place: Arc<Place>) -> Self {
        Self(place)
    }

    /// Name a lock. Nothing is checked and nothing happens until it is acquired.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock::new(self.clone(), name.as_ref())
    }

    /// Make the table, or add to one of `django-database-locks` 0.5 what it lacks. A second run
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] without the right to create tables; [`Error::Conflict`] where somebody has
    /// the table locked for 30 s; [`Error::Unavailable`].
    pub async fn migrate(&self) -> Result<(), Error> {
        let inner = self.inner()?;
        runtime::run(async move {
            again(INSTALL_PATIENCE, || inner.store.install(INSTALL_PATIENCE))
                .await
                .map_err(|e| e.into_error("make the table"))
        })
        .await
    }

    /// Read every lock that the table knows, free ones too, in the order of their names.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::Rejected`].
    pub async fn list(&self) -> Result<Vec<LockInfo>, Error> {
        self.list_filtered(&ListFilter::new()).await
    }

    /// Read those locks that a filter lets through, in the order of their names.
    ///
    /// The table is read in pages: neither this nor [`Locks::list`] keeps renewals waiting, however
    /// many rows there are. What changes meanwhile is shown as it was, or as it is then.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::Rejected`].
    ///
    /// # Example
    ///
    /// ```
    /// # use database_locks::{ListFilter, Locks};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let guard = locks.lock("report-1").acquire().await?;
    /// let held = locks.list_filtered(&ListFilter::new().not_free().prefix("report-")).await?;
    /// assert_eq!(held[0].name.as_str(), "report-1");
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub async fn list_filtered(&self, filter: &ListFilter) -> Result<Vec<LockInfo>, Error> {
        let (inner, filter) = (self.inner()?, filter.clone());
        runtime::run(async move {
            let (mut after, mut found) = (None, BTreeMap::new());
            loop {
                let page = again(PATIENCE, || inner.store.page(&filter, after, PATIENCE)).await;
                let mut page = page.map_err(|e| e.into_error("read the locks"))?;
                observe(&inner, &mut page.rows);
                // A row that was deleted and made anew meanwhile is found twice: the later one counts.
                found.extend(page.rows.into_iter().map(|row| (row.name.clone(), row)));
                match page.last {
                    Some(last) => after = Some(last),
                    None => return Ok(found.into_values().collect()),
                }
            }
        })
        .await
    }

    /// Read one lock; `None` where the table has none of that name.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a bad name; [`Error::Unavailable`], [`Error::Rejected`].
    pub async fn show(&self, name: impl AsRef<str>) -> Result<Option<LockInfo>, Error> {
        let name = LockName::new(name)?;
        let (inner, names) = (self.inner()?, [name]);
        runtime::run(async move {
            let read = again(PATIENCE, || inner.store.read(&names, PATIENCE)).await;
            let mut rows = read.map_err(|e| e.into_error("read the locks"))?;
            observe(&inner, &mut rows);
            Ok(rows.pop())
        })
        .await
    }

    /// Take a lock from its holder. The holder learns it at its next renewal (on PostgreSQL at once
    /// where its renewals are more than 5 s apart), and its work goes on until then: make sure first
    /// that it is dead, or stopped.
    ///
    /// Answers with who had it; `None` where it was free already. If a fenced transaction of this very
    /// process is open under the lock, it is released when that transaction ends, and a warning is
    /// logged that says so.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] where its row stays locked for 2 s: a fenced transaction of another process
    /// may be open; [`Error::Unavailable`], [`Error::Rejected`]; [`Error::Config`] for a bad name.
    pub async fn force_release(
        &self,
        name: impl AsRef<str>,
    ) -> Result<Option<PreviousHolder>, Error> {
        let from = self.force(LockName::new(name)?).await?;
        Ok(from.map(|from| PreviousHolder {
            holder: from.holder,
            held_for: from.held_for,
        }))
    }

    pub(crate) async fn force(&self, name: LockName) -> Result<Option<Occupant>, Error> {
        let inner = self.inner()?;
        runtime::run(async move {
            let forced = again(FORCE_PATIENCE, || async {
                match inner.store.force(&name, PATIENCE).await? {
                    Force::Freed(from) => Ok((Some(from), true)),
                    Force::WasFree => Ok((None, true)),
                    Force::Busy => match force_after_fence(&inner, &name) {
                        Some(from) => Ok((Some(from), false)),
                        None => Err(StoreError::Contention(
                            "its row is locked: a fenced transaction may be open".into(),
                        )),
                    },
                }
            });
            let (from, done) = forced
                .await
                .map_err(|e| e.into_error(format!("release lock `{name}` by force")))?;
            if !done {
                return Ok(from);
            }
            inner.turns.ring(&name);
            if let Some(from) = &from {
                tracing::warn!(
                    lock.name = name.as_str(),
                    lock.token = from.token.map(Token::get),
                    lock.holder = from.holder.as_deref(),
                    "lock released by force"
                );
            }
            Ok(from)
        })
        .await
    }

    /// Go on with a lock that was handed over: the same token, a new grant.
    ///
    /// What its giver, or a second taker, still sends changes nothing. Settings: see
    /// [`Lock::resume`].
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] where the ticket is dead: resumed already, released, or expired;
    /// [`Error::Unavailable`], [`Error::Rejected`].
    ///
    /// # Example
    ///
    /// ```
    /// # use database_locks::Locks;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let ticket = locks.lock("report").acquire().await?.into_ticket()?;
    /// // … somewhere else …
    /// let guard = locks.resume(&ticket).await?;
    /// assert_eq!(guard.token(), ticket.token());
    /// assert!(locks.resume(&ticket).await.is_err(), "only once");
    /// # Ok(()) }
    /// ```
    pub async fn resume(&self, ticket: &Ticket) -> Result<LockGuard, Error> {
        self.lock(ticket.name().as_str()).resume(ticket).await
    }

    /// Renew a lock that was handed over, without taking it up: it goes on for `ttl` from now.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] where the ticket is dead; [`Error::Config`] for a ttl out of range;
    /// [`Error::Unavailable`], [`Error::Rejected`].
    pub async fn renew(&self, ticket: &Ticket, ttl: impl Into<Ttl>) -> Result<(), Error> {
        let ttl = Timing::new(ttl.into(), Renewing::Never, None)?.ttl();
        by_ticket(self.inner()?, ticket.clone(), ByTicket::Renew(ttl)).await
    }

    /// Release a lock that was handed over.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] where the ticket is dead, which changes nothing; [`Error::Unavailable`],
    /// [`Error::Rejected`].
    pub async fn release(&self, ticket: &Ticket) -> Result<(), Error> {
        by_ticket(self.inner()?, ticket.clone(), ByTicket::Release).await
    }

    /// Delete the rows of locks that no holder has had for some time, and answer how many that were.
    ///
    /// Tokens go on growing if such a lock is used again.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::Rejected`] (it takes the right to DELETE).
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use database_locks::{Locks, Prune};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = Locks::connect("memory:").await?;
    /// let month = Duration::from_secs(30 * 86_400);
    /// assert_eq!(locks.prune(Prune::older_than(month)).await?, 0);
    /// # Ok(()) }
    /// ```
    pub async fn prune(&self, what: Prune) -> Result<u64, Error> {
        let Prune { idle, legacy } = what;
        let inner = self.inner()?;
        runtime::run(async move {
            let (mut total, mut after) = (0, None);
            // Each page is a call of its own, so that renewals get in between.
            loop {
                let prune = || inner.store.prune(idle, legacy, after, PATIENCE);
                let page = again(PATIENCE, prune).await;
                let page = page.map_err(|e| e.into_error("delete what nobody has had for long"))?;
                total += page.deleted;
                match page.last {
                    Some(last) => after = Some(last),
                    None => return Ok(total),
                }
            }
        })
        .await
    }

    /// Look for what is wrong with connection, rights, table, clock, durability, replicas, settings
    /// and locks, and for what to do about it. Changes nothing, and needs no special rights: what
    /// this user may not see is said to be unseen.
    ///
    /// [`doctor`](crate::doctor) lists everything that can be found.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], [`Error::Rejected`]. A server that is not fit at all was refused by
    /// [`Locks::connect`] already.
    pub async fn doctor(&self) -> Result<Report, Error> {
        let inner = self.inner()?;
        runtime::run(async move {
            again(PATIENCE, || inner.store.examine(EXAMINE_PATIENCE))
                .await
                .map_err(|e| e.into_error("look for what is wrong"))
        })
        .await
    }

    /// Wait until every release that goes on in the background has been carried out: those of
    /// guards that were dropped, and of acquires that were given up.
    ///
    /// Call it before a process ends, or what it has just dropped stays held for up to its ttl.
    pub async fn drain(&self) {
        let Ok(inner) = self.inner() else { return };
        while inner.is_pending() {
            let nap = async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok(())
            };
            if runtime::run(nap).await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn inner(&self) -> Result<Arc<Inner>, Error> {
        self.0.inner().map(Arc::clone)
    }
}

/// So that whatever has the locks of a program can be where they are asked for: it implements this.
impl AsRef<Self> for Locks {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// Where a lease ends by being watched, what was read is one look more.
fn observe(inner: &Inner, rows: &mut [LockInfo]) {
    let now = crate::clock::now();
    for row in rows {
        let Some(Lapse {
            version,
            length,
            overdue,
        }) = &row.lapse
        else {
            continue;
        };
        let left = (inner.watches).saw(&row.name, version, *length, *overdue, now);
        row.state = match inner.watches.over_for(&row.name, now) {
            Some(since) => LockState::Expired { since },
            None => LockState::Held {
                free_in: Some(left),
            },
        };
    }
}

/// Who lost a lock by [`Locks::force_release`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousHolder {
    /// `locked_by`.
    pub holder: Option<String>,
    /// For how long it had been held.
    pub held_for: Option<Duration>,
}

/// Try again while it is only contention that stands in the way, for so long at most.
pub(crate) async fn again<T, F: Future<Output = Result<T, StoreError>>>(
    limit: Duration,
    work: impl Fn() -> F,
) -> Result<T, StoreError> {
    let until = crate::clock::now() + limit;
    loop {
        match work().await {
            Err(StoreError::Contention(_)) if crate::clock::now() < until => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(5..=30))).await;
            }
            done => return done,
        }
    }
}
