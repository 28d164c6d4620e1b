//! Calls about the table of locks: create, list, prune and examine it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::locks::Locks;
use crate::client::read::{note_waits, observe, read, read_semaphore};
use crate::doctor::Report;
use crate::error::Error;
use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::retry::while_contended;
use protocol::{
    ListFilter, LockInfo, LockName, LockState, MAX_PERMITS, Prune, REQUEST_TIMEOUT, Semaphore, Slot,
};

/// Timeout of DDL, which waits on a busy server for transactions that use the table.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of all reads of one examination, which reads every row once.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The permits of semaphores are among them, and left out if an earlier version made the table and
    /// [`Locks::migrate`] has not been called since.
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
            let mut found = BTreeMap::new();
            for of in [Rows::Locks, Rows::Permits] {
                let mut after = None;
                loop {
                    let page = while_contended(REQUEST_TIMEOUT, || {
                        client.store.page(of, &filter, after, REQUEST_TIMEOUT)
                    });
                    let page = page.await;
                    if let (Rows::Permits, Err(refused @ StoreError::Rejected { .. })) = (of, &page)
                    {
                        tracing::debug!("permits are left out: {refused}");
                        break;
                    }
                    let mut page = page.map_err(|e| e.into_error("read the locks"))?;
                    observe(&client, &mut page.rows);
                    // The rest of a row may have ended, and a release by force leaves the row of a
                    // shared grant.
                    let hides_free = |row: &LockInfo| filter.not_free || row.is_shared();
                    let kept = |row: &LockInfo| row.state != LockState::Free || !hides_free(row);
                    page.rows.retain(kept);
                    // A row that was deleted and inserted again meanwhile is found twice: the later
                    // one counts.
                    let key = |row: &LockInfo| (row.name.clone(), row.row_slot());
                    found.extend(page.rows.into_iter().map(|row| (key(&row), row)));
                    after = page.last;
                    if after.is_none() {
                        break;
                    }
                }
            }
            let mut found: Vec<LockInfo> = found.into_values().collect();
            note_waits(&mut found);
            Ok(found)
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
            let mut total = 0;
            for of in [Rows::Locks, Rows::Permits] {
                let legacy = legacy && of == Rows::Locks;
                let mut after = None;
                // Each page is a separate request, so that renewals are sent in between.
                loop {
                    let page = while_contended(REQUEST_TIMEOUT, || {
                        client.store.prune(of, idle, legacy, after, REQUEST_TIMEOUT)
                    });
                    let page = page.await;
                    if of == Rows::Permits && page.as_ref().is_err_and(StoreError::is_missing_table)
                    {
                        break;
                    }
                    let page = page.map_err(|e| {
                        e.into_error("delete the rows of locks that have been free for long")
                    })?;
                    total += page.deleted;
                    after = page.last;
                    if after.is_none() {
                        break;
                    }
                }
            }
            Ok(total)
        })
    }

    /// Read a semaphore: its permits, who holds them, and the operator's limit.
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
    /// let guard = locks.semaphore("partner api", 3).acquire().await?;
    /// let api = locks.show_semaphore("partner api").await?;
    /// assert_eq!((api.held(), api.effective_limit()), (1, Some(3)));
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn show_semaphore<N: AsRef<str>>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Semaphore, Error>> + Send + use<N> {
        let name = LockName::new(name);
        self.in_background(move |client| async move { read_semaphore(&client, &name?).await })
    }

    /// Read the limits that operators have set, by the names of their semaphores; 0: paused.
    ///
    /// It is empty if an earlier version made the table and [`Locks::migrate`] has not been called
    /// since, or if this user may not read the table of permits.
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
    /// locks.set_limit("partner api", Some(0)).await?;
    /// for (name, limit) in locks.limits().await? {
    ///     println!("{name}: {limit}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn limits(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<LockName, u32>, Error>> + Send + use<> {
        self.in_background(|client| async move {
            let read = while_contended(REQUEST_TIMEOUT, || client.store.limits(REQUEST_TIMEOUT));
            match read.await {
                Ok(limits) => Ok(limits.into_iter().collect()),
                Err(refused @ StoreError::Rejected { .. }) => {
                    tracing::debug!("limits are left out: {refused}");
                    Ok(BTreeMap::new())
                }
                Err(failure) => Err(failure.into_error("read the limits")),
            }
        })
    }

    /// Set the limit of a semaphore in the database, which takes precedence over the limits of all
    /// callers; `None` removes it. 0 to 65,536; 0 pauses the semaphore.
    ///
    /// It counts from the next try of each caller. Holders above a lowered limit keep their permits
    /// until they release them.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an invalid name or limit; [`Error::Unavailable`];
    /// [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the limit may or may not be set.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// locks.set_limit("partner api", Some(0)).await?; // paused
    /// assert!(locks.semaphore("partner api", 3).try_acquire().await?.is_none());
    /// locks.set_limit("partner api", None).await?;
    /// # Ok(()) }
    /// ```
    pub fn set_limit<N: AsRef<str>>(
        &self,
        name: N,
        limit: Option<u32>,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<N> {
        let name = LockName::new(name);
        self.in_background(move |client| async move {
            let name = name?;
            if limit.is_some_and(|limit| limit > MAX_PERMITS) {
                let got = limit.unwrap_or_default().to_string();
                return Err(Error::config("limit", got, "0 to 65,536; 0 pauses"));
            }
            let set = while_contended(REQUEST_TIMEOUT, || {
                client.store.set_limit(&name, limit, REQUEST_TIMEOUT)
            });
            let set = set.await;
            set.map_err(|e| e.into_error(format!("set the limit of semaphore `{name}`")))?;
            client.queues(Slot::AnyPermit).wake(&name);
            Ok(())
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
