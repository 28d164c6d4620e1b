//! Real processes that write under a lock, frozen and killed at the worst moment.

use std::time::Duration;

use testkit::cleanup::ScratchDir;
use testkit::time::{ms, now, wait_until};
use testkit::{ChildProcess, TestDb, db_tests, promise};

const WRITER: &str = env!("CARGO_BIN_EXE_fenced-writer");
/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The table that is written to: on SQLite in a file of its own.
struct Data<'a> {
    db: &'a TestDb,
    folder: ScratchDir,
}

impl<'a> Data<'a> {
    fn new(db: &'a TestDb) -> Self {
        let data = Self {
            db,
            folder: ScratchDir::new("data"),
        };
        let make = "CREATE TABLE data (writer bigint); INSERT INTO data VALUES (0)";
        match db.has_server() {
            true => drop(make.split(';').map(|one| db.sql(one)).collect::<Vec<_>>()),
            false => data.file().execute_batch(make).unwrap(),
        }
        data
    }

    fn file(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.join("data.sqlite3")).unwrap()
    }

    fn writer(&self) -> i64 {
        match self.db.has_server() {
            true => self.db.sql("SELECT writer FROM data").parse().unwrap(),
            false => self
                .file()
                .query_row("SELECT writer FROM data", [], |row| row.get(0))
                .unwrap(),
        }
    }

    fn write(&self, token: i64) {
        let write = format!("UPDATE data SET writer = {token}");
        match self.db.has_server() {
            true => drop(self.db.sql(&write)),
            false => self.file().execute_batch(&write).unwrap(),
        }
    }

    /// A process that holds the lock, and writes when it is sent a line.
    fn holder(&self, ttl: Duration, how: &str) -> (ChildProcess, i64) {
        let (ttl, file) = (
            ttl.as_millis().to_string(),
            self.folder.join("data.sqlite3"),
        );
        let args = [&self.db.url, "job", &ttl, how, file.to_str().unwrap()];
        let process = ChildProcess::spawn(WRITER, args);
        let message = process.expect_line(TIMEOUT);
        let token = message
            .strip_prefix("held ")
            .unwrap_or_else(|| panic!("{message}"));
        let token = token.parse().unwrap();
        (process, token)
    }
}

/// The holder is frozen past its ttl, another client takes the lock and writes, and the holder is
/// thawed. Returns what the holder prints and whose write is in the table.
async fn frozen(db: &TestDb, how: &str) -> (String, bool) {
    let (data, locks) = (Data::new(db), db.locks().await);
    let (mut process, old) = data.holder(ms(2500), how);
    process.freeze();
    let next = locks.lock("job").wait(TIMEOUT).acquire().await.unwrap();
    let new = next.token().get();
    assert!(new > old);
    data.write(new);
    next.release().await.unwrap();
    process.send_line("go").unwrap();
    process.thaw();
    let message = process.expect_line(TIMEOUT);
    (message, data.writer() == new)
}

async fn a_frozen_holder_cannot_write(db: &TestDb) {
    let (message, kept) = frozen(db, "fenced").await;
    assert!(kept, "{message}");
    assert!(message.starts_with("refused: lock `job` lost"), "{message}");
    promise("P9", db.engine);
}

/// The database refuses the write, although the process trusts its lease.
async fn a_frozen_holder_that_trusts_itself_cannot_write(db: &TestDb) {
    let (message, kept) = frozen(db, "statement").await;
    assert!(kept, "{message}");
    assert!(message.starts_with("refused: lock `job` lost"), "{message}");
    promise("P9", db.engine);
}

/// The control: without the fence it writes over its successor's work.
async fn without_a_fence_a_frozen_holder_writes(db: &TestDb) {
    assert_eq!(frozen(db, "unfenced").await, ("wrote".into(), false));
}

/// Frozen within its transaction, past its ttl: no other client gets the lock before its write is
/// committed.
async fn a_holder_frozen_in_its_fenced_transaction_is_waited_for(db: &TestDb) {
    let (data, locks) = (Data::new(db), db.locks().await);
    let (mut process, old) = data.holder(ms(4000), "open");
    process.send_line("go").unwrap();
    assert_eq!(process.expect_line(TIMEOUT), "open");
    process.freeze();
    let asked = now();
    let next = locks.lock("job").wait(ms(7000)).acquire().await;
    assert!(next.is_err() && asked.elapsed() >= ms(7000), "{next:?}");
    process.send_line("commit").unwrap();
    process.thaw();
    assert_eq!(process.expect_line(TIMEOUT), "wrote");
    let next = locks.lock("job").wait(TIMEOUT).acquire().await.unwrap();
    assert_eq!(data.writer(), old);
    assert!(next.token().get() > old);
    promise("P9", db.engine);
}

/// Killed within its transaction: nothing is written, and the lock is free when the ttl has ended.
async fn a_holder_killed_in_its_fenced_transaction_blocks_no_successor(db: &TestDb) {
    let (data, locks) = (Data::new(db), db.locks().await);
    let (mut process, _) = data.holder(ms(4000), "open");
    process.send_line("go").unwrap();
    assert_eq!(process.expect_line(TIMEOUT), "open");
    process.kill9();
    drop(locks.lock("job").wait(TIMEOUT).acquire().await.unwrap());
    assert!(wait_until(TIMEOUT, || data.writer() == 0));
    if db.engine == "sqlite" {
        // The row is deleted only when it has been free for long; what was left behind is.
        locks
            .prune(database_locks::Prune::older_than(TIMEOUT))
            .await
            .unwrap();
        let path = db.url.strip_prefix("sqlite://").unwrap();
        let left = std::fs::read_dir(format!("{path}-fences")).unwrap();
        assert_eq!(left.count(), 0);
    }
    promise("P7", db.engine);
}

db_tests!(sqlite: a_frozen_holder_cannot_write, without_a_fence_a_frozen_holder_writes,
    a_holder_frozen_in_its_fenced_transaction_is_waited_for, a_holder_killed_in_its_fenced_transaction_blocks_no_successor);
db_tests!(postgres: a_frozen_holder_cannot_write, without_a_fence_a_frozen_holder_writes,
    a_frozen_holder_that_trusts_itself_cannot_write,
    a_holder_frozen_in_its_fenced_transaction_is_waited_for, a_holder_killed_in_its_fenced_transaction_blocks_no_successor);
db_tests!(mariadb: a_frozen_holder_cannot_write, without_a_fence_a_frozen_holder_writes,
    a_frozen_holder_that_trusts_itself_cannot_write,
    a_holder_frozen_in_its_fenced_transaction_is_waited_for, a_holder_killed_in_its_fenced_transaction_blocks_no_successor);
db_tests!(mysql: a_frozen_holder_cannot_write, without_a_fence_a_frozen_holder_writes,
    a_frozen_holder_that_trusts_itself_cannot_write,
    a_holder_frozen_in_its_fenced_transaction_is_waited_for, a_holder_killed_in_its_fenced_transaction_blocks_no_successor);
