//! A holder with rare renewals is notified at once of a release by force, on PostgreSQL.

use std::time::Duration;

use database_locks::seam::{Force, Outcome, Slot, TakeOverCommand};
use database_locks::{LockGuard, Locks, LostReason};
use testkit::contract::{acquire_command, name, take_over};
use testkit::time::now;
use testkit::{TestDb, db_tests, promise};

const LONG: Duration = Duration::from_secs(60);
/// Its first renewal that is not sent at once comes after a third of it: 20 s.
const TIMEOUT: Duration = Duration::from_secs(10);

async fn held(locks: &Locks, lock: &str) -> LockGuard {
    let lock = locks.lock(lock).holder("me").ttl(LONG);
    lock.acquire().await.unwrap()
}

/// Waits until the process listens, which it does once it has held a lock for a while.
async fn listens(db: &TestDb, guard: &LockGuard) {
    listening(db, "1").await;
    assert!(guard.is_held());
}

/// Waits until so many connections listen. LISTEN is the last that such a one was asked for: the
/// next renewal is due much later.
async fn listening(db: &TestDb, connections: &str) {
    let began = now();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                      AND state = 'idle' AND query LIKE 'LISTEN database_locks_%'";
    while db.sql(sessions).trim() != connections {
        assert!(began.elapsed() < TIMEOUT, "not {connections}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn lost_soon(guard: &LockGuard) -> LostReason {
    let began = now();
    let lost = tokio::time::timeout(TIMEOUT, guard.lost()).await;
    let loss = lost.unwrap_or_else(|_| panic!("not lost within {:?}", began.elapsed()));
    loss.reason()
}

async fn a_holder_that_renews_rarely_is_notified_of_a_release_by_force(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.fixture().ready().await);
    let guard = held(&locks, "job").await;
    listens(db, &guard).await;
    let bystander = held(&locks, "other").await;
    let renewed = locks.show("other").await.unwrap().unwrap().renewed_at;
    let forced = other.force(&name("job"), Slot::Lock, LONG).await.unwrap();
    assert!(matches!(forced, Force::Freed(_)), "{forced:?}");
    assert_eq!(lost_soon(&guard).await, LostReason::Forced);
    // A notification about one lock renews no other.
    assert!(bystander.is_held());
    let now = locks.show("other").await.unwrap().unwrap().renewed_at;
    assert_eq!(now, renewed);
    bystander.release().await.unwrap();
    promise("P4", db.engine);
}

async fn a_holder_that_renews_rarely_is_notified_of_a_take_over(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.fixture().ready().await);
    let guard = held(&locks, "job").await;
    listens(db, &guard).await;
    let row = locks.show("job").await.unwrap().unwrap();
    let what = TakeOverCommand {
        to: acquire_command("job", "me", LONG / 2),
        token: row.token,
        grant: row.grant,
    };
    let taken = take_over(&*other, &what).await;
    assert!(matches!(taken, Outcome::Granted { .. }), "{taken:?}");
    assert_eq!(lost_soon(&guard).await, LostReason::Preempted);
    promise("P4", db.engine);
}

/// By the same connection as that which holds it, too.
async fn a_release_by_force_in_the_process_of_the_holder_is_noticed_at_once(db: &TestDb) {
    let locks = db.locks().await;
    let guard = held(&locks, "job").await;
    listens(db, &guard).await;
    assert!(locks.force_release("job").await.unwrap().is_some());
    assert_eq!(lost_soon(&guard).await, LostReason::Forced);
}

/// The connection that listened has gone: the next one listens too, once something is renewed on
/// it.
async fn a_holder_is_notified_on_the_next_connection_too(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.fixture().ready().await);
    let guard = held(&locks, "job").await;
    listens(db, &guard).await;
    db.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    listening(db, "0").await;
    guard.extend(LONG).await.unwrap();
    listens(db, &guard).await;
    while other.force(&name("job"), Slot::Lock, LONG).await.is_err() {}
    assert_eq!(lost_soon(&guard).await, LostReason::Forced);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_holder_that_renews_rarely_is_notified_of_a_release_by_force,
            a_holder_that_renews_rarely_is_notified_of_a_take_over,
            a_release_by_force_in_the_process_of_the_holder_is_noticed_at_once,
            a_holder_is_notified_on_the_next_connection_too,
        );
    )* };
}
on!(postgres, postgres18);
