//! Calls about the table of locks: create, list, prune and examine it, and release by force.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::locks::Locks;
use crate::client::read::{observe, read};
use crate::client::release::force_after_fence;
use crate::doctor::Report;
use crate::error::Error;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{
    Force, Holder, ListFilter, LockInfo, LockName, LockState, Prune, REQUEST_TIMEOUT, Token,
};

/// Timeout of DDL, which waits on a busy server for transactions that use the table.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of all reads of one examination, which reads every row once.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a release by force retries while the row is locked.
const FORCE_TIMEOUT: Duration = Duration::from_secs(2);

impl Locks {
    /// Make the table, or add the missing columns to a legacy one (django-database-locks 0.5). A
    /// second run changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] without the right to create tables; [`Error::Conflict`] if other
    /// transactions keep the table locked for 30 s; [`Error::Unavailable`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; a statement that was sent is still carried out.
    pub fn migrate(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.in_background(move |client| async move {
            while_contended(MIGRATE_TIMEOUT, || client.store.install(MIGRATE_TIMEOUT))
                .await
                .map_err(|e| e.into_error("make the table"))
        })
    }

    /// Read all locks of the table, free ones too, ordered by name.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the database does not answer within 5 s a page;
    /// [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    pub fn list(&self) -> impl Future<Output = Result<Vec<LockInfo>, Error>> + Send + use<> {
        self.list_filtered(&ListFilter::new())
    }

    /// Read the locks that match a filter, ordered by name.
    ///
    /// The table is read in pages, so that this and [`Locks::list`] delay no renewal. A row that
    /// changes meanwhile is returned in its old or its new state.
    ///
    /// # Errors
    ///
    /// As [`Locks::list`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
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
    pub fn list_filtered(
        &self,
        filter: &ListFilter,
    ) -> impl Future<Output = Result<Vec<LockInfo>, Error>> + Send + use<> {
        let filter = filter.clone();
        self.in_background(move |client| async move {
            let (mut after, mut found) = (None, BTreeMap::new());
            loop {
                let page = while_contended(REQUEST_TIMEOUT, || {
                    client.store.page(&filter, after, REQUEST_TIMEOUT)
                })
                .await;
                let mut page = page.map_err(|e| e.into_error("read the locks"))?;
                observe(&client, &mut page.rows);
                // The rest of a row may have ended.
                let kept = |row: &LockInfo| !(filter.not_free && row.state == LockState::Free);
                page.rows.retain(kept);
                // A row that was deleted and inserted again meanwhile is found twice: the later one
                // counts.
                found.extend(page.rows.into_iter().map(|row| (row.name.clone(), row)));
                match page.last {
                    Some(last) => after = Some(last),
                    None => return Ok(found.into_values().collect()),
                }
            }
        })
    }

    /// Read one lock; `None` if the table has no row of that name.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an invalid name; [`Error::Unavailable`] if the database does not
    /// answer within 5 s; [`Error::Rejected`].
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
    /// let guard = locks.lock("report").holder("web-2").acquire().await?;
    /// let info = locks.show("report").await?.expect("it was acquired");
    /// assert!(info.is_held() && info.token == guard.token());
    /// assert_eq!(info.holder.as_deref(), Some("web-2"));
    /// assert!(locks.show("never used").await?.is_none());
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn show<N: AsRef<str>>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Option<LockInfo>, Error>> + Send + 'static + use<N> {
        let name = LockName::new(name);
        self.in_background(move |client| async move { read(&client, &name?).await })
    }

    /// Release a lock by force, and return its former holder; `None` if it was free. If it
    /// [rests](crate::Lock::at_least), end the rest, and return the latest holder.
    ///
    /// **The former holder works on until its next renewal**, where it learns of this (on
    /// PostgreSQL at once if its renewals are more than 5 s apart). Make sure first that it is dead
    /// or stopped. If a fenced transaction of this process is open under the lock, the lock is
    /// released when that transaction ends, and a warning says so.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if the row stays locked for 2 s: a fenced transaction of another process
    /// may be open. [`Error::Config`] for an invalid name; [`Error::Unavailable`],
    /// [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lock may or may not be released.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").holder("web-2").acquire().await?;
    /// let former = locks.force_release("report").await?.expect("it was held");
    /// assert_eq!((former.holder.as_deref(), former.token), (Some("web-2"), Some(guard.token())));
    /// assert!(locks.force_release("report").await?.is_none(), "it is free");
    /// assert!(guard.release().await.is_err(), "the holder learns of it now at the latest");
    /// # Ok(()) }
    /// ```
    pub fn force_release<N: AsRef<str>>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Option<PreviousHolder>, Error>> + Send + 'static + use<N> {
        let forced = LockName::new(name).map(|name| self.force(name));
        async move {
            let from = forced?.await?;
            Ok(from.map(|from| PreviousHolder {
                holder: from.holder,
                token: from.token,
                held_for: from.held_for.filter(|_| !from.is_resting),
                rested: from.is_resting,
            }))
        }
    }

    pub(crate) fn force(
        &self,
        name: LockName,
    ) -> impl Future<Output = Result<Option<Holder>, Error>> + Send + use<> {
        self.in_background(move |client| async move {
            let forced = while_contended(FORCE_TIMEOUT, || async {
                match client.store.force(&name, REQUEST_TIMEOUT).await? {
                    Force::Freed(from) => Ok((Some(from), true)),
                    Force::WasFree => Ok((None, true)),
                    Force::Busy => match force_after_fence(&client, &name) {
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
            client.queues.wake(&name);
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
    }

    /// Delete the rows of locks that have been free for some time, and return their number.
    ///
    /// If such a lock is used again, its tokens go on growing. The time of its latest grant is
    /// forgotten: for a lock with [`once_per`](crate::Lock::once_per), leave rows for longer than
    /// its period.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]; [`Error::Rejected`], also without the right to DELETE.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, some or all of the rows may be deleted.
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
    pub fn prune(&self, which: Prune) -> impl Future<Output = Result<u64, Error>> + Send + use<> {
        let Prune { idle, legacy } = which;
        self.in_background(move |client| async move {
            let (mut total, mut after) = (0, None);
            // Each page is a separate request, so that renewals are sent in between.
            loop {
                let prune = || client.store.prune(idle, legacy, after, REQUEST_TIMEOUT);
                let page = while_contended(REQUEST_TIMEOUT, prune).await;
                let page = page.map_err(|e| {
                    e.into_error("delete the rows of locks that have been free for long")
                })?;
                total += page.deleted;
                match page.last {
                    Some(last) => after = Some(last),
                    None => return Ok(total),
                }
            }
        })
    }

    /// Examine connection, rights, table, clock, durability, replicas, settings and locks, and
    /// report problems with their fixes.
    ///
    /// Changes nothing and needs no special rights. A check for which this user lacks a right is
    /// reported as unseen. [`doctor`](crate::doctor) lists all findings and has an example.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the examination takes longer than 30 s; [`Error::Rejected`]. An
    /// unsuitable server was refused by [`Locks::connect`] before.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    pub fn doctor(&self) -> impl Future<Output = Result<Report, Error>> + Send + use<> {
        self.in_background(move |client| async move {
            while_contended(REQUEST_TIMEOUT, || client.store.examine(EXAMINE_TIMEOUT))
                .await
                .map_err(|e| e.into_error("examine the database"))
        })
    }
}

/// The holder that lost a lock by [`Locks::force_release`], or the latest one of a lock that
/// rested.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousHolder {
    /// Its name, as [`Lock::holder`](crate::Lock::holder) set it.
    pub holder: Option<String>,
    /// The fencing token of its grant; `None` for a legacy holder (django-database-locks 0.5).
    pub token: Option<Token>,
    /// How long it had held the lock, by the database's clock; `None` for a legacy holder, and if
    /// the lock rested.
    pub held_for: Option<Duration>,
    /// Whether it had released the lock, which [rested](crate::Lock::at_least).
    pub rested: bool,
}
