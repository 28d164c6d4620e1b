//! What tests of programs that use locks are given: a lock that is lost when they want it.

use std::time::Duration;

use database_locks::__testing::{expire, lose};
use database_locks::{Error, LockState, LostReason, Ttl};
use testkit::time::now;
use testkit::{TestDb, db_tests};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Less than a third of the ttl, which is when the holder would learn it by itself.
const AT_ONCE: Duration = Duration::from_secs(9);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

async fn a_lease_ends_when_the_test_wants_it(db: &TestDb) {
    let (locks, others) = (db.locks().await, db.locks().await);
    for ttl in [Ttl::from(Duration::from_secs(3600)), Ttl::Infinite] {
        let guard = locks.lock("job").ttl(ttl).acquire().await.unwrap();
        let waiter = locks.lock("job").wait(TIMEOUT);
        let waiter = tokio::spawn(async move { waiter.acquire().await });
        let kept = locks.lock("kept").acquire().await.unwrap();
        let began = now();
        // By another connection to the same table.
        assert!(expire(&others, "job").await.unwrap());
        assert!(!guard.is_held(), "the loss comes before the call ends");
        assert_eq!(in_time(guard.lost()).await.reason(), LostReason::Expired);
        let next = in_time(waiter).await.unwrap().unwrap();
        assert!(began.elapsed() < AT_ONCE);
        assert!(next.token() > guard.token());
        let message = guard.release().await.unwrap_err();
        assert!(
            matches!(
                message,
                Error::Lost {
                    reason: LostReason::Expired,
                    ..
                }
            ),
            "{message}"
        );
        next.check().await.expect("not touched by the late release");
        next.release().await.unwrap();
        assert!(!expire(&locks, "job").await.unwrap(), "it is free");
        kept.check().await.expect("another lock");
    }
    assert!(!expire(&locks, "never made").await.unwrap());
    assert!(locks.show("never made").await.unwrap().is_none());
}

async fn work_is_stopped_as_by_a_real_loss(db: &TestDb) {
    let locks = db.locks().await;
    let (started, begun) = tokio::sync::oneshot::channel();
    let work = {
        let locks = locks.clone();
        tokio::spawn(async move {
            let body = async {
                started.send(()).unwrap();
                std::future::pending::<()>().await;
            };
            // Without the test, no loss comes within an hour.
            locks
                .lock("job")
                .ttl(Duration::from_secs(10_800))
                .run(body)
                .await
        })
    };
    begun.await.unwrap();
    assert!(expire(&locks, "job").await.unwrap());
    let message = in_time(work).await.unwrap().unwrap_err();
    assert!(
        matches!(
            message,
            Error::Lost {
                reason: LostReason::Expired,
                ..
            }
        ),
        "{message}"
    );
}

async fn leases_of_a_real_database_cannot_be_expired_by_tests(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.unwrap();
    let message = expire(&locks, "job").await.unwrap_err();
    assert!(
        matches!(message, Error::Config { setting: "url", .. }),
        "{message}"
    );
    guard.check().await.expect("nothing happened");
}

async fn a_forced_loss_is_reported_at_once(db: &TestDb) {
    let (locks, others) = (db.locks().await, db.locks().await);
    let guard = locks.lock("job").acquire().await.unwrap();
    let began = now();
    assert!(lose(&others, "job").await.unwrap());
    assert!(!guard.is_held(), "the loss comes before the call ends");
    assert_eq!(in_time(guard.lost()).await.reason(), LostReason::Forced);
    assert!(began.elapsed() < AT_ONCE);
    let row = locks.show("job").await.unwrap().expect("a row");
    assert_eq!(row.state, LockState::Free);
    assert!(!lose(&locks, "job").await.unwrap(), "it is free");
    let next = locks.lock("job").acquire().await.unwrap();
    assert!(next.token() > guard.token());
    drop(guard);
    locks.drain().await;
    next.check()
        .await
        .expect("not touched by the one that was lost");
}

db_tests!(memory:
    a_lease_ends_when_the_test_wants_it,
    work_is_stopped_as_by_a_real_loss,
    a_forced_loss_is_reported_at_once,
);
db_tests!(sqlite: leases_of_a_real_database_cannot_be_expired_by_tests, a_forced_loss_is_reported_at_once);
db_tests!(postgres: leases_of_a_real_database_cannot_be_expired_by_tests, a_forced_loss_is_reported_at_once);
db_tests!(mariadb: leases_of_a_real_database_cannot_be_expired_by_tests, a_forced_loss_is_reported_at_once);
db_tests!(mysql: leases_of_a_real_database_cannot_be_expired_by_tests, a_forced_loss_is_reported_at_once);
