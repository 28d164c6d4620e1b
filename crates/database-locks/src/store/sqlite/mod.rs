//! SQLite: one file for all processes of one machine.
//!
//! A connection is a thread of its own, since SQLite blocks: a disk that hangs must not delay what
//! the scheduler has to say. Each call has its deadline, and the one thread hangs on alone. Callers that
//! block anyway have a second connection, on their own threads: [`lane`]. The clock is
//! the machine's, read by SQLite itself while it has the write lock. Everything that writes begins with that lock (`BEGIN IMMEDIATE`), which is what `FOR UPDATE
//! SKIP LOCKED` is elsewhere; a file that is busy is contention, tried again.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::lane::BlockingLane;
use super::{Barrier, Lane, Reply, Store, StoreError, Table};
use crate::doctor::Report;
use crate::store::sqlite::connection::thread::Thread;
use crate::store::sqlite::connection::worker::{Database, Worker};
use protocol::{
    AcquireCommand, Force, Gone, Grant, Holder, ListFilter, LockInfo, LockName, Outcome, Page,
    Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Ttl,
};

mod connection;
mod doctor;
mod fence;
mod lane;
mod statements;

#[cfg(test)]
pub(crate) use statements::PUBLISHED;

/// The engine `sqlite:`.
pub(crate) struct Sqlite {
    table: Table,
    database: Arc<Database>,
    thread: Thread,
    lane: Arc<BlockingLane>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite")
            .field("path", &self.database.path)
            .finish_non_exhaustive()
    }
}

impl Sqlite {
    pub(crate) fn new(path: PathBuf, create: bool, table: &Table) -> Self {
        // A relative path must not change its meaning with the program's folder.
        let path = std::path::absolute(&path).unwrap_or(path);
        let database = Arc::new(Database::new(path, create, table));
        Self {
            table: table.clone(),
            thread: Thread::new(Arc::clone(&database)),
            lane: Arc::new(BlockingLane::new(Arc::clone(&database))),
            database,
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl FnOnce(&mut Worker) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.thread.call(within, work).await
    }
}

impl Store for Sqlite {
    fn lane(&self) -> Option<Arc<dyn Lane>> {
        Some(Arc::clone(&self.lane) as Arc<dyn Lane>)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(async move {
            let until = crate::runtime::clock::now() + within;
            loop {
                match self
                    .call(within, |worker| worker.connection().map(|_| ()))
                    .await
                {
                    // Sixteen processes that make the same file at once.
                    Err(StoreError::Contention(_)) if crate::runtime::clock::now() < until => {
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(2..20))).await;
                    }
                    done => return done,
                }
            }
        })
    }

    fn acquire<'a>(
        &'a self,
        asks: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        let asks = asks.to_vec();
        Box::pin(self.call(within, move |worker| statements::acquire(worker, &asks)))
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        let grants = grants.to_vec();
        Box::pin(self.call(within, move |worker| statements::renew(worker, &grants)))
    }

    fn release<'a>(
        &'a self,
        returns: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        let returns = returns.to_vec();
        Box::pin(self.call(within, move |worker| statements::release(worker, &returns)))
    }

    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        let names = names.to_vec();
        Box::pin(self.call(within, move |worker| statements::read(worker, &names)))
    }

    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let filter = filter.clone();
        Box::pin(self.call(within, move |worker| {
            statements::page(worker, &filter, after)
        }))
    }

    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Holder>>> {
        let names = names.to_vec();
        Box::pin(self.call(within, move |worker| statements::look_at(worker, &names)))
    }

    fn take_over<'a>(&'a self, what: &'a TakeOverCommand, within: Duration) -> Reply<'a, Outcome> {
        let what = what.clone();
        Box::pin(self.call(within, move |worker| statements::take_over(worker, &what)))
    }

    fn resume<'a>(&'a self, what: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        let what = what.clone();
        Box::pin(self.call(within, move |worker| statements::resume(worker, &what)))
    }

    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        let since = statements::ago(idle);
        Box::pin(self.call(within, move |worker| {
            statements::prune(worker, &since, unknown, after)
        }))
    }

    fn open_fence<'a>(
        &'a self,
        grant: &'a Grant,
        within: Duration,
    ) -> Reply<'a, Result<Barrier, Gone>> {
        let grant = grant.clone();
        Box::pin(self.call(within, move |worker| statements::open_fence(worker, &grant)))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        Box::pin(self.call(within, move |worker| statements::force(worker, &name)))
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let install = |worker: &mut Worker| {
            worker.with(|connection, sql| connection.execute_batch(&sql.install))
        };
        Box::pin(self.call(within, install))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        let table = self.table.clone();
        Box::pin(self.call(within, move |worker| {
            doctor::examine(worker, table.as_str())
        }))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::statements::modifier;
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// One test counts the threads of this process.
    pub(crate) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    pub(crate) fn ask(name: &str) -> AcquireCommand {
        AcquireCommand {
            name: LockName::new(name).unwrap(),
            grant: crate::client::grant_id::random_grant_id().unwrap(),
            holder: "me".into(),
            length: SOON,
            metadata: "x".repeat(2000).into(),
            expired_version: None,
        }
    }

    /// A file that may not grow stands for a disk that is full: SQLite says the same of both.
    #[tokio::test]
    async fn a_full_disk_is_called_so_and_passes() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::new(folder.path().join("locks.sqlite3"), true, &Table::default());
        sqlite.connect(SOON).await.unwrap();
        let fill = |worker: &mut Worker| {
            let (connection, _) = worker.connection()?;
            connection
                .pragma_update(None, "max_page_count", 1)
                .map_err(|error| StoreError::Unavailable(error.into()))
        };
        sqlite.call(SOON, fill).await.unwrap();
        let asks: Vec<AcquireCommand> = (0..50).map(|at| ask(&format!("lock {at}"))).collect();
        let failure = sqlite.acquire(&asks, SOON).await.unwrap_err();
        assert!(matches!(failure, StoreError::Unavailable(_)), "{failure:?}");
        let said = failure.into_error("acquire lock `job`").chain();
        assert!(said.ends_with(": the disk is full"), "{said}");
        assert!(!said.contains("cannot be reached"), "{said}");
        // The file is opened anew, and now there is room.
        let outcomes = sqlite.acquire(&asks, SOON).await.unwrap();
        assert!(matches!(outcomes[49], Outcome::Granted { .. }));
    }

    #[tokio::test]
    async fn a_table_that_goes_while_it_is_used_may_come_back_and_one_that_never_was_is_refused() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks.sqlite3");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE other (x)")
            .unwrap();
        let sqlite = Sqlite::new(path.clone(), true, &Table::default());
        let first = sqlite.acquire(&[ask("job")], SOON).await.unwrap_err();
        assert!(matches!(first, StoreError::Rejected { hint: Some(_), .. }));
        sqlite.install(SOON).await.unwrap();
        sqlite.acquire(&[ask("job")], SOON).await.unwrap();
        let rename = |to: &str, from: &str| {
            let file = Connection::open(&path).unwrap();
            let rename = format!("ALTER TABLE {from} RENAME TO {to}");
            file.execute_batch(&rename).unwrap();
        };
        rename("away", "database_locks_lock");
        let later = sqlite.acquire(&[ask("other")], SOON).await.unwrap_err();
        assert!(matches!(later, StoreError::Unavailable(_)), "{later:?}");
        rename("database_locks_lock", "away");
        sqlite.acquire(&[ask("other")], SOON).await.unwrap();
    }

    #[test]
    fn a_length_is_never_rounded_down() {
        assert_eq!(modifier(Duration::from_micros(1_500_001)), "+1.501 seconds");
        assert_eq!(
            modifier(Duration::from_secs(315_576_000)),
            "+315576000.000 seconds"
        );
    }
}
