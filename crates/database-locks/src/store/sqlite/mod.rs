//! SQLite: one file for all processes of one machine.
//!
//! SQLite blocks, so the connection has its own thread: a disk that hangs must not delay the
//! scheduler. Each request has a deadline, after which only that thread still hangs. Blocking
//! callers have a second connection, on their own threads: [`direct`].
//!
//! The clock is the machine's, read by SQLite while it has the write lock. Every write begins with
//! that lock (`BEGIN IMMEDIATE`), which replaces `FOR UPDATE SKIP LOCKED`. A busy file is
//! contention, and tried again.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::connection::database::Database;
use self::connection::thread::Thread;
use self::connection::worker::Worker;
use self::direct::SqliteDirect;
use self::statements::{
    acquire, fence as fencing, handover, permit, prune, read, release, renew, shared,
};
use crate::doctor::Report;
use crate::store::api::{Barrier, DirectConnection, Reply, Store, StoreError};
use crate::store::connect::table::{Rows, Table};
use crate::store::retry::while_contended;
use protocol::{
    AcquireCommand, AllOutcome, Force, Gone, Grant, Holder, ListFilter, LockName, LockRow, Outcome,
    Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, Slot, TakeOverCommand, Ttl,
    Version,
};

mod connection;
mod direct;
mod doctor;
mod error;
mod fence;
mod rows;
mod statements;

#[cfg(test)]
pub(crate) use statements::sql::PUBLISHED;

/// The engine `sqlite:`.
pub(crate) struct Sqlite {
    table: Table,
    database: Arc<Database>,
    thread: Thread,
    direct: Arc<SqliteDirect>,
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
            direct: Arc::new(SqliteDirect::new(Arc::clone(&database))),
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
    fn direct(&self) -> Option<Arc<dyn DirectConnection>> {
        Some(Arc::clone(&self.direct) as Arc<dyn DirectConnection>)
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        // Several processes may be making the same file.
        Box::pin(while_contended(within, move || {
            self.call(within, |worker| worker.connection().map(drop))
        }))
    }

    fn acquire<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Outcome>> {
        let commands = commands.to_vec();
        Box::pin(self.call(within, move |worker| acquire::acquire(worker, &commands)))
    }

    fn acquire_all<'a>(
        &'a self,
        commands: &'a [AcquireCommand],
        within: Duration,
    ) -> Reply<'a, AllOutcome> {
        let commands = commands.to_vec();
        Box::pin(self.call(within, move |worker| {
            acquire::acquire_all(worker, &commands)
        }))
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        let grants = grants.to_vec();
        Box::pin(self.call(within, move |worker| renew::renew(worker, &grants)))
    }

    fn release<'a>(
        &'a self,
        commands: &'a [ReleaseCommand],
        within: Duration,
    ) -> Reply<'a, Vec<Released>> {
        let commands = commands.to_vec();
        Box::pin(self.call(within, move |worker| release::release(worker, &commands)))
    }

    fn rows<'a>(
        &'a self,
        of: Rows,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<LockRow>> {
        let names = names.to_vec();
        Box::pin(self.call(within, move |worker| read::rows(worker, of, &names)))
    }

    fn page<'a>(
        &'a self,
        of: Rows,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let filter = filter.clone();
        Box::pin(self.call(within, move |worker| read::page(worker, of, &filter, after)))
    }

    fn take_over<'a>(
        &'a self,
        command: &'a TakeOverCommand,
        within: Duration,
    ) -> Reply<'a, Outcome> {
        let command = command.clone();
        Box::pin(self.call(within, move |worker| handover::take_over(worker, &command)))
    }

    fn resume<'a>(&'a self, command: &'a ResumeCommand, within: Duration) -> Reply<'a, Renewal> {
        let command = command.clone();
        Box::pin(self.call(within, move |worker| handover::resume(worker, &command)))
    }

    fn prune(
        &self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        Box::pin(self.call(within, move |worker| {
            prune::prune(worker, of, idle, include_legacy, after)
        }))
    }

    fn open_fence<'a>(
        &'a self,
        grant: &'a Grant,
        within: Duration,
    ) -> Reply<'a, Result<Barrier, Gone>> {
        let grant = grant.clone();
        Box::pin(self.call(within, move |worker| fencing::open_fence(worker, &grant)))
    }

    fn force<'a>(&'a self, name: &'a LockName, slot: Slot, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        Box::pin(self.call(within, move |worker| release::force(worker, &name, slot)))
    }

    fn limits(&self, within: Duration) -> Reply<'_, Vec<(LockName, u32)>> {
        Box::pin(self.call(within, permit::limits))
    }

    fn set_limit<'a>(
        &'a self,
        name: &'a LockName,
        limit: Option<u32>,
        within: Duration,
    ) -> Reply<'a, ()> {
        let name = name.clone();
        Box::pin(self.call(within, move |worker| {
            permit::set_limit(worker, &name, limit)
        }))
    }

    fn readers<'a>(
        &'a self,
        name: &'a LockName,
        _expired: &'a [(Slot, Version)],
        within: Duration,
    ) -> Reply<'a, Option<Holder>> {
        let name = name.clone();
        Box::pin(self.call(within, move |worker| shared::readers(worker, &name)))
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(self.call(within, |worker| {
            let database = Arc::clone(&worker.database);
            worker.with(|session| database.install(session.connection))
        }))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        let table = self.table.clone();
        Box::pin(self.call(within, move |worker| doctor::examine(worker, &table)))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// One test counts the threads of this process.
    pub(crate) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    pub(crate) fn command(name: &str) -> AcquireCommand {
        AcquireCommand {
            name: LockName::new(name).unwrap(),
            grant: crate::client::grant_id::random_grant_id().unwrap(),
            holder: "me".into(),
            length: SOON,
            not_within: None,
            metadata: "x".repeat(2000).into(),
            expired_version: None,
            kind: Default::default(),
        }
    }

    /// A file that may not grow stands for a full disk: SQLite reports the same error for both.
    #[tokio::test]
    async fn a_full_disk_is_called_so_and_passes() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::new(folder.path().join("locks.sqlite3"), true, &Table::default());
        sqlite.connect(SOON).await.unwrap();
        let fill = |worker: &mut Worker| {
            let connection = worker.connection()?;
            connection
                .pragma_update(None, "max_page_count", 1)
                .map_err(|error| StoreError::Unavailable(error.into()))
        };
        sqlite.call(SOON, fill).await.unwrap();
        let commands: Vec<AcquireCommand> =
            (0..50).map(|at| command(&format!("lock {at}"))).collect();
        let failure = sqlite.acquire(&commands, SOON).await.unwrap_err();
        assert!(matches!(failure, StoreError::Unavailable(_)), "{failure:?}");
        let message = failure.into_error("acquire lock `job`").chain();
        assert!(message.ends_with(": the disk is full"), "{message}");
        assert!(!message.contains("cannot be reached"), "{message}");
        // The file is opened anew, and now there is room.
        let outcomes = sqlite.acquire(&commands, SOON).await.unwrap();
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
        let first = sqlite.acquire(&[command("job")], SOON).await.unwrap_err();
        assert!(matches!(first, StoreError::Rejected { hint: Some(_), .. }));
        sqlite.install(SOON).await.unwrap();
        sqlite.acquire(&[command("job")], SOON).await.unwrap();
        let rename = |to: &str, from: &str| {
            let file = Connection::open(&path).unwrap();
            let rename = format!("ALTER TABLE {from} RENAME TO {to}");
            file.execute_batch(&rename).unwrap();
        };
        rename("away", "database_locks_lock");
        let later = sqlite.acquire(&[command("other")], SOON).await.unwrap_err();
        assert!(matches!(later, StoreError::Unavailable(_)), "{later:?}");
        rename("database_locks_lock", "away");
        sqlite.acquire(&[command("other")], SOON).await.unwrap();
    }

    /// Another client may look at the file, or this one may be killed, between the two tables.
    #[tokio::test]
    async fn the_tables_are_made_together_or_not_at_all() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks.sqlite3");
        let file = Connection::open(&path).unwrap();
        let in_the_way = "CREATE TABLE other (x); CREATE INDEX database_locks_permit ON other (x)";
        file.execute_batch(in_the_way).unwrap();
        let sqlite = Sqlite::new(path, true, &Table::default());
        sqlite.install(SOON).await.unwrap_err();
        let first = "SELECT count(*) FROM sqlite_schema WHERE name = 'database_locks_lock'";
        let made: i64 = file.query_row(first, [], |row| row.get(0)).unwrap();
        assert_eq!(made, 0);
        file.execute_batch("DROP INDEX database_locks_permit")
            .unwrap();
        sqlite.install(SOON).await.unwrap();
        sqlite
            .set_limit(&LockName::new("api").unwrap(), Some(1), SOON)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_table_without_the_columns_is_refused_and_keeps_no_caller_waiting() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks.sqlite3");
        Connection::open(&path)
            .unwrap()
            .execute_batch(
                "CREATE TABLE database_locks_lock (id integer PRIMARY KEY, \
                 name varchar(255) UNIQUE, locked_by text, expires_at datetime)",
            )
            .unwrap();
        let sqlite = Sqlite::new(path, true, &Table::default());
        for _ in 0..2 {
            let refused = sqlite.acquire(&[command("job")], SOON).await.unwrap_err();
            let StoreError::Rejected { hint, .. } = refused else {
                panic!("{refused:?}");
            };
            assert!(hint.unwrap().contains("of another program or version"));
        }
    }
}
