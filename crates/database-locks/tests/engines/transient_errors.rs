//! Errors that pass, and tables that are blocked: neither ends a wait or a lease, and each is
//! called what it is.

use std::time::Duration;

use database_locks::{Error, Locks};
use testkit::time::ms;
use testkit::{Postgres, TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

/// The table is renamed away for a moment: under a holder, under a waiter, and before the first
/// use.
async fn a_table_that_is_renamed_away_for_a_while_ends_neither_a_lease_nor_a_wait(db: &TestDb) {
    let locks = db.locks().await;
    // Several renewals are due while the table is away.
    let holder = locks.lock("job").ttl(TIMEOUT).renew_every(ms(500));
    let guard = holder.acquire().await.unwrap();
    let (others, waits) = (db.locks().await, 3 * TIMEOUT);
    let waiter = tokio::spawn(async move { others.lock("job").wait(waits).acquire().await });
    tokio::time::sleep(ms(500)).await;
    db.sql("ALTER TABLE database_locks_lock RENAME TO away");
    tokio::time::sleep(ms(1_500)).await;
    let late = Locks::connect(&db.url).await.unwrap();
    let refused = late.lock("job").wait(TIMEOUT).acquire().await.unwrap_err();
    assert!(matches!(refused, Error::Rejected { .. }), "{refused}");
    assert!(refused.chain().contains("`dblock init`"), "{refused}");
    db.sql("ALTER TABLE away RENAME TO database_locks_lock");
    assert!(guard.is_held());
    guard.check().await.unwrap();
    assert!(!waiter.is_finished(), "the waiter has died");
    guard.release().await.unwrap();
    waiter.await.unwrap().unwrap().release().await.unwrap();
    promise("P12", db.engine);
}

/// The lock is free, but another session has locked the table.
async fn the_error_for_a_blocked_table_names_the_blocking_session(db: &TestDb) {
    let locks = db.locks().await;
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let mut session = db.sql_session();
        session.run("BEGIN").unwrap();
        session
            .run(&format!("LOCK TABLE database_locks_lock IN {mode} MODE"))
            .unwrap();
        let pid = session.run("SELECT pg_backend_pid()").unwrap().remove(0);
        let once = locks.lock("never had").try_acquire().await.unwrap_err();
        let message = once.chain();
        assert!(
            matches!(once, Error::Unavailable { .. }),
            "{mode}: {message}"
        );
        assert!(
            message.contains("the database cannot do it now: blocked for ")
                && message.contains("s by the session of pid"),
            "{mode}: {message}"
        );
        assert!(
            message.contains(&format!("pid {pid} (user postgres")),
            "{message}"
        );
        assert!(!message.contains("held"), "{mode}: {message}");
        // Less than a call may take, and more.
        for wait in [4, 8].map(Duration::from_secs) {
            let waiting = locks.lock("never had").wait(wait);
            let waited = waiting.acquire().await.unwrap_err().chain();
            assert!(waited.contains(&format!("pid {pid}")), "{mode}: {waited}");
            assert!(!waited.contains("held"), "{mode}: {waited}");
        }
        session.run("ROLLBACK").unwrap();
        let got = locks
            .lock("never had")
            .wait(TIMEOUT)
            .acquire()
            .await
            .unwrap();
        got.release().await.unwrap();
    }
    promise("P15", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_table_that_is_renamed_away_for_a_while_ends_neither_a_lease_nor_a_wait,
            the_error_for_a_blocked_table_names_the_blocking_session,
        );
    )* };
}
on!(postgres, postgres18);

/// Version 17 ends a session whose transaction takes too long, statements that are blocked among
/// them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_timeout_of_the_server_does_not_end_a_wait() {
    let Some(db) = TestDb::postgres18() else {
        return;
    };
    db.locks().await;
    db.sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET transaction_timeout = 300',
                                    current_database()); END $$",
    );
    let locks = Locks::connect(&db.url).await.unwrap();
    let mut session = db.sql_session();
    session.run("SET transaction_timeout = 0").unwrap();
    session.run("BEGIN").unwrap();
    session
        .run("LOCK TABLE database_locks_lock IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let waiter = tokio::spawn(async move { locks.lock("job").wait(TIMEOUT).acquire().await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiter.is_finished(), "the waiter has died");
    session.run("ROLLBACK").unwrap();
    waiter.await.unwrap().unwrap().release().await.unwrap();
    promise("P12", db.engine);
}

/// Metadata that the library adds never prevents an acquire. Values of the caller that the encoding
/// lacks are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_encoding_refuses_names_that_it_cannot_hold_and_nothing_else() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let database = format!("latin1_{}", std::process::id());
    let made = format!(
        "CREATE DATABASE {database} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    server.query("postgres", &made).unwrap();
    let locks = Locks::connect(server.url_of(&database)).await.unwrap();
    locks.migrate().await.unwrap();
    let lock = locks.lock("tâche").metadata("why", "日本 🔒");
    let guard = lock.acquire().await.unwrap();
    let row = locks.show("tâche").await.unwrap().unwrap();
    assert_eq!(row.parsed_metadata()["meta"]["why"], "日本 🔒");
    guard.release().await.unwrap();
    for lock in [locks.lock("日本"), locks.lock("job").holder("仕事")] {
        let refused = lock.acquire().await.unwrap_err();
        let message = refused.chain();
        assert!(matches!(refused, Error::Rejected { .. }), "{message}");
        assert!(
            message.contains("LATIN1") && message.contains("UTF8"),
            "{message}"
        );
    }
}
