//! The release of a lock with a minimum hold, through a network that fails.

use std::time::Duration;

use database_locks::{LockInfo, LockState};
use testkit::time::{ms, now};
use testkit::{Proxy, TestDb, db_tests};

const AT_LEAST: Duration = Duration::from_secs(600);
const OUTAGE: Duration = Duration::from_secs(8);
const TIMEOUT: Duration = Duration::from_secs(30);

/// From the grant to the end of the rest, by the database's clock.
fn unavailable_for(row: &LockInfo) -> Duration {
    assert!(matches!(row.state, LockState::Resting { .. }), "{row:?}");
    let (from, until) = (row.acquired_at.unwrap(), row.expires_at.unwrap());
    until.duration_since(from).unwrap()
}

/// The release is repeated, and finds that the first one was carried out.
async fn a_lost_reply_to_a_release_makes_no_rest_longer(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    let guard = locks
        .lock("job")
        .at_least(AT_LEAST)
        .acquire()
        .await
        .unwrap();
    proxy.lose_next_reply(guard.grant_id());
    tokio::time::timeout(TIMEOUT, guard.release())
        .await
        .expect("in time")
        .expect("released");
    assert_eq!(proxy.faults_hit(), 1);
    let row = locks.show("job").await.unwrap().expect("a row");
    assert!(unavailable_for(&row) <= AT_LEAST + ms(5_000), "{row:?}");
}

/// What is left of the rest counts when the release is sent, and not when the guard was dropped.
async fn a_release_that_is_sent_late_lets_the_lock_rest_for_what_is_left(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let (locks, other) = (db.locks_at(&proxy.url(&db.url)).await, db.locks().await);
    let guard = locks
        .lock("job")
        .at_least(AT_LEAST)
        .acquire()
        .await
        .unwrap();
    proxy.refuse(true);
    proxy.cut();
    let began = now();
    drop(guard);
    tokio::time::sleep(OUTAGE).await;
    assert!(other.show("job").await.unwrap().expect("a row").is_held());
    proxy.refuse(false);
    tokio::time::timeout(TIMEOUT, locks.drain())
        .await
        .expect("released");
    assert!(began.elapsed() >= OUTAGE);
    let row = other.show("job").await.unwrap().expect("a row");
    let unavailable = unavailable_for(&row);
    assert!(unavailable <= AT_LEAST + OUTAGE / 2, "{unavailable:?}");
    // The holder counts from before its acquire was sent.
    assert!(unavailable >= AT_LEAST - OUTAGE, "{unavailable:?}");
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_lost_reply_to_a_release_makes_no_rest_longer,
            a_release_that_is_sent_late_lets_the_lock_rest_for_what_is_left,
        );
    )* };
}
on!(postgres, mariadb, mysql);
