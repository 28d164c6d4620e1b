//! Acquires with the `locked_by` of the holder: from another process, and within one.

use std::time::Duration;

use database_locks::seam::Outcome;
use database_locks::{Error, Lock, Locks, LostReason};
use testkit::contract::{granted, over, take_over};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};

const LONG: Duration = Duration::from_secs(25);
const TIMEOUT: Duration = Duration::from_secs(20);
/// To wait would take the whole lease, or until the row is unlocked.
const AT_ONCE: Duration = Duration::from_secs(10);

fn mine(locks: &Locks) -> Lock {
    locks.lock("job").holder("me").preempt(true)
}

/// What a client of another process holds: this one knows nothing of its grant.
async fn held_elsewhere(db: &TestDb) -> database_locks::seam::Grant {
    granted(&*db.fixture().ready().await, "job", "me", LONG).await
}

async fn the_same_holder_in_another_client_takes_over_the_lock(db: &TestDb) {
    let locks = db.locks().await;
    for wait in [Duration::ZERO, TIMEOUT] {
        let old = held_elsewhere(db).await;
        let other = locks.lock("job").holder("you").preempt(true);
        assert!(other.try_acquire().await.unwrap().is_none(), "another one");
        let unasked = locks.lock("job").holder("me");
        assert!(unasked.try_acquire().await.unwrap().is_none(), "not asked");
        let began = now();
        let guard = mine(&locks).wait(wait).acquire().await.unwrap();
        assert!(began.elapsed() < AT_ONCE, "it waited");
        assert!(guard.token() > old.token);
        guard.check().await.unwrap();
        guard.release().await.unwrap();
    }
    promise("P1", db.engine);
    promise("P2", db.engine);
}

/// Within a process the same holder excludes itself, on each connection.
async fn within_a_process_the_same_holder_excludes_itself(db: &TestDb) {
    let (locks, others) = (db.locks().await, db.locks().await);
    let guard = mine(&locks).acquire().await.unwrap();
    for locks in [&locks, &others] {
        assert!(mine(locks).try_acquire().await.unwrap().is_none());
        let waited = mine(locks).wait(ms(2_000)).acquire().await.unwrap_err();
        assert!(matches!(waited, Error::TimedOut { .. }), "{waited}");
    }
    guard.check().await.expect("still held");
    let waiter = tokio::spawn(async move { mine(&others).wait(TIMEOUT).acquire().await });
    tokio::time::sleep(ms(200)).await;
    guard.release().await.unwrap();
    let next = waiter.await.unwrap().unwrap();
    let ticket = next.into_ticket().unwrap();
    let taken = mine(&locks).resume(&ticket).await.unwrap();
    assert!(mine(&locks).try_acquire().await.unwrap().is_none());
    taken.check().await.expect("still held");
    promise("P1", db.engine);
}

/// Twenty tasks of one process that come at once: one of them gets it, and keeps it.
async fn one_of_many_tasks_takes_the_lock_over(db: &TestDb) {
    let locks = db.locks().await;
    held_elsewhere(db).await;
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let locks = locks.clone();
            tokio::spawn(async move { mine(&locks).try_acquire().await.unwrap() })
        })
        .collect();
    let mut guards = Vec::new();
    for task in tasks {
        guards.extend(task.await.unwrap());
    }
    assert_eq!(guards.len(), 1);
    guards[0].check().await.expect("not taken over");
    promise("P1", db.engine);
}

/// Rows of django-database-locks 0.5 have no grant id, and a token of 0.
async fn a_legacy_row_is_taken_over(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "INSERT INTO database_locks_lock (name, locked_by, expires_at) \
         VALUES ('job', 'me', '2999-01-01 00:00:00')",
    );
    let guard = mine(&locks)
        .try_acquire()
        .await
        .unwrap()
        .expect("free for this holder");
    assert!(
        guard.token().get() > 1_700_000_000_000,
        "it begins at the clock"
    );
    guard.check().await.unwrap();

    // A legacy client takes the lock and leaves the grant id in the row, which no longer counts
    // then.
    db.sql("UPDATE database_locks_lock SET expires_at = '2999-01-02 00:00:00' WHERE name = 'job'");
    let next = mine(&locks).try_acquire().await.unwrap().expect("from it");
    assert!(next.token() > guard.token());
    let message = guard.check().await.unwrap_err();
    assert!(
        matches!(
            message,
            Error::Lost {
                reason: LostReason::Preempted,
                ..
            }
        ),
        "{message}"
    );
    promise("P2", db.engine);
}

/// A row that is locked, for example by a fence, is not taken over, and no client blocks on it.
async fn a_locked_row_prevents_a_take_over(db: &TestDb) {
    let store = db.fixture().ready().await;
    let old = held_elsewhere(db).await;
    let locks = db.locks().await;
    let hold = db.lock_row("job");
    let began = now();
    assert_eq!(take_over(&*store, &over(&old, "me")).await, Outcome::Busy);
    assert!(mine(&locks).try_acquire().await.unwrap().is_none());
    assert!(began.elapsed() < AT_ONCE, "it waited for a row");
    let waiter = tokio::spawn(async move { mine(&locks).wait(TIMEOUT).acquire().await });
    tokio::time::sleep(ms(500)).await;
    assert!(!waiter.is_finished());
    hold.rollback();
    let guard = waiter.await.unwrap().unwrap();
    assert!(guard.token() > old.token);
    promise("P15", db.engine);
}

/// What a fence holds in PostgreSQL: renewals pass it, a take-over does not.
async fn a_fence_on_postgres_prevents_a_take_over_and_permits_renewals(db: &TestDb) {
    let store = db.fixture().ready().await;
    let old = held_elsewhere(db).await;
    let select = "SELECT id FROM database_locks_lock WHERE name = 'job' FOR KEY SHARE";
    let hold = db.begin_with(select);
    let renewed = store.renew(&[(old.clone(), LONG.into())], TIMEOUT).await;
    assert!(renewed.unwrap()[0].is_renewed());
    assert_eq!(take_over(&*store, &over(&old, "me")).await, Outcome::Busy);
    hold.commit();
    let taken = take_over(&*store, &over(&old, "me")).await;
    assert!(matches!(taken, Outcome::Granted { .. }), "{taken:?}");
}

#[tokio::test]
async fn preempt_requires_an_explicit_holder() {
    let db = TestDb::memory().unwrap();
    let locks = db.locks().await;
    let message = locks.lock("job").preempt(true).acquire().await.unwrap_err();
    assert!(matches!(message, Error::Config { .. }), "{message}");
    assert!(
        message.to_string().starts_with("`preempt` is on"),
        "{message}"
    );
    assert!(
        locks.show("job").await.unwrap().is_none(),
        "nothing was sent"
    );
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            the_same_holder_in_another_client_takes_over_the_lock,
            within_a_process_the_same_holder_excludes_itself,
            one_of_many_tasks_takes_the_lock_over,
            a_legacy_row_is_taken_over,
        );
    )* };
}
on!(sqlite, postgres, mariadb, mysql);
db_tests!(memory:
    the_same_holder_in_another_client_takes_over_the_lock,
    within_a_process_the_same_holder_excludes_itself,
    one_of_many_tasks_takes_the_lock_over,
);

mod locked {
    use super::{
        a_fence_on_postgres_prevents_a_take_over_and_permits_renewals,
        a_locked_row_prevents_a_take_over,
    };
    testkit::db_tests!(postgres: a_locked_row_prevents_a_take_over, a_fence_on_postgres_prevents_a_take_over_and_permits_renewals);
    testkit::db_tests!(mariadb: a_locked_row_prevents_a_take_over);
    testkit::db_tests!(mysql: a_locked_row_prevents_a_take_over);
}
