//! Holders that are frozen and killed, and write to a guarded table without a fence, as a program does
//! that knows nothing of fences.

use std::time::Duration;

use testkit::time::{ms, wait_until};
use testkit::{ChildProcess, TestDb, db_tests, promise};

const WRITER: &str = env!("CARGO_BIN_EXE_fenced-writer");
/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A guarded table with one row.
async fn guarded(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE data (writer bigint)");
    db.sql("INSERT INTO data VALUES (0)");
    locks.guard_table("data", "job").await.unwrap();
}

fn writer_of(db: &TestDb) -> i64 {
    db.sql("SELECT writer FROM data").parse().unwrap()
}

/// A process that holds the lock, and writes when it is sent a line.
fn holder(db: &TestDb, ttl: Duration, how: &str) -> (ChildProcess, i64) {
    let ttl = ttl.as_millis().to_string();
    let process = ChildProcess::spawn(WRITER, [&db.url, "job", &ttl, how]);
    let message = process.expect_line(TIMEOUT);
    let token = message
        .strip_prefix("held ")
        .unwrap_or_else(|| panic!("{message}"));
    let token = token.parse().unwrap();
    (process, token)
}

async fn a_holder_writes_and_a_program_without_the_ticket_does_not(db: &TestDb) {
    guarded(db).await;
    for (how, wrote) in [("shown", true), ("fenced", true), ("unfenced", false)] {
        let before = writer_of(db);
        let (mut process, token) = holder(db, TIMEOUT, how);
        process.send_line("go").unwrap();
        let message = process.expect_line(TIMEOUT);
        assert_eq!(message == "wrote", wrote, "{how}: {message}");
        assert_eq!(writer_of(db), if wrote { token } else { before }, "{how}");
        assert!(process.wait(TIMEOUT).is_some());
        if !wrote {
            // It has ended without a release.
            db.locks().await.force_release("job").await.unwrap();
        }
    }
    promise("P16", db.engine);
}

/// Frozen past its ttl and thawed when another client has the lock: it believes that it holds it.
async fn a_late_write_of_a_frozen_holder_is_refused(db: &TestDb) {
    guarded(db).await;
    let locks = db.locks().await;
    for how in ["shown", "unfenced", "fenced", "attribute"] {
        let (mut process, old) = holder(db, ms(2500), how);
        process.freeze();
        let next = locks.lock("job").wait(TIMEOUT).acquire().await.unwrap();
        assert!(next.token().get() > old);
        process.send_line("go").unwrap();
        process.thaw();
        let message = process.expect_line(TIMEOUT);
        assert!(message.starts_with("refused: "), "{how}: {message}");
        assert_eq!(writer_of(db), 0, "{how}: {message}");
        next.release().await.unwrap();
    }
    promise("P16", db.engine);
}

/// Killed within its transaction: the server rolls it back, and the next one gets lock and table.
async fn the_next_holder_writes_after_one_that_was_killed(db: &TestDb) {
    guarded(db).await;
    let (mut process, _) = holder(db, ms(4000), "open");
    process.send_line("go").unwrap();
    assert_eq!(process.expect_line(TIMEOUT), "open");
    process.kill9();
    let (mut next, token) = holder(db, TIMEOUT, "shown");
    next.send_line("go").unwrap();
    assert_eq!(next.expect_line(TIMEOUT), "wrote");
    assert!(wait_until(TIMEOUT, || writer_of(db) == token));
    promise("P16", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        a_holder_writes_and_a_program_without_the_ticket_does_not,
        a_late_write_of_a_frozen_holder_is_refused,
        the_next_holder_writes_after_one_that_was_killed,
    ); )* };
}
on!(postgres, mariadb, mysql);
