//! Releases in the background, and callers that wait for them.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use database_locks::{Error, LockState, Locks, LostReason};
use testkit::{TestDb, db_tests, promise};

async fn is_free(locks: &Locks) -> bool {
    let row = locks.show("job").await.expect("answers");
    row.is_none_or(|row| row.state == LockState::Free)
}

/// A program drops its guard and ends: what it has dropped must not stay held.
async fn a_drain_waits_for_the_release_of_a_dropped_guard(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    for round in 0..50 {
        let guard = locks.lock("job").acquire().await.expect("free");
        drop(guard);
        locks.drain().await;
        assert!(is_free(&other).await, "round {round}");
    }
    promise("P7", db.engine);
}

async fn a_drain_waits_for_the_release_of_a_dropped_acquire(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    for round in 0..50 {
        {
            let lock = locks.lock("job");
            let mut acquire = pin!(lock.acquire());
            let once = poll_fn(|cx| Poll::Ready(acquire.as_mut().poll(cx)));
            drop(once.await);
            tokio::time::sleep(Duration::from_micros(round * 20)).await;
        }
        locks.drain().await;
        assert!(is_free(&other).await, "round {round}");
    }
    promise("P7", db.engine);
}

/// These waiters have given up nothing.
async fn a_drain_does_not_wait_for_waiters(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.expect("free");
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("job").acquire().await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let drained = tokio::time::timeout(Duration::from_secs(20), locks.drain());
    drained.await.expect("in time");
    guard.release().await.expect("releases");
    let next = waiter.await.expect("no panic").expect("its turn");
    next.release().await.expect("releases");
}

async fn a_late_release_says_why_it_failed(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    // Too short for its process to listen for a release by force.
    let lock = locks.lock("job").ttl(Duration::from_secs(15));
    let lock = lock.auto_renew(false);
    let guard = lock.acquire().await.expect("free");
    other.force_release("job").await.expect("answers");
    let lost = guard.release().await.expect_err("it is gone");
    assert!(
        matches!(
            lost,
            Error::Lost {
                reason: LostReason::Forced,
                ..
            }
        ),
        "{lost}"
    );

    let guard = lock.acquire().await.expect("free");
    other.force_release("job").await.expect("answers");
    let _next = other.lock("job").acquire().await.expect("free");
    let lost = guard.release().await.expect_err("it is gone");
    assert!(
        matches!(
            lost,
            Error::Lost {
                reason: LostReason::Preempted,
                ..
            }
        ),
        "{lost}"
    );
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_drain_waits_for_the_release_of_a_dropped_guard,
            a_drain_waits_for_the_release_of_a_dropped_acquire,
            a_drain_does_not_wait_for_waiters,
            a_late_release_says_why_it_failed,
        );
    )* };
}
on!(memory, sqlite);
