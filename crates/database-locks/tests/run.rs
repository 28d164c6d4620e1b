//! `run`: work under a lock that ends with its loss, with and without async.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use database_locks::{Error, Locks, LostReason, blocking};

/// A client, and a lock of it that waits.
async fn start(url: &str) -> (Locks, database_locks::Lock) {
    let locks = Locks::connect(url).await.unwrap();
    let lock = locks.lock("job").wait(Duration::from_secs(10));
    (locks, lock)
}

fn why<T>(ended: Result<T, Error>) -> LostReason {
    match ended {
        Err(Error::Lost { reason, .. }) => reason,
        Err(other) => panic!("{}", other.chain()),
        Ok(_) => panic!("no loss"),
    }
}

#[tokio::test]
async fn a_loss_found_by_the_release_is_an_error() {
    let (locks, lock) = start("memory:run-tail").await;
    let ended = lock.run(async { locks.force_release("job").await.unwrap() });
    assert_eq!(why(ended.await), LostReason::Forced);
}

#[tokio::test]
async fn a_future_that_blocks_past_its_lease_ends_with_the_loss() {
    let (_, lock) = start("memory:run-blocks").await;
    let lock = lock.ttl(Duration::from_millis(200)).auto_renew(false);
    let ended = lock.run(async { block_for(Duration::from_millis(400)) });
    assert_eq!(why(ended.await), LostReason::Expired);
}

#[test]
fn blocking_work_returns_its_result_and_frees_the_lock() {
    let locks = blocking::Locks::connect("memory:run-blocking").unwrap();
    let lock = locks.lock("job").wait(Duration::from_secs(10));
    assert_eq!(lock.run(|| 42).unwrap(), 42);
    let again = lock.clone();
    let panicking = std::thread::spawn(move || again.run(|| panic!("in the work")));
    assert!(panicking.join().is_err());
    assert!(lock.try_acquire().unwrap().is_some());
}

#[test]
fn blocking_work_runs_to_its_end_and_then_returns_the_loss() {
    let locks = blocking::Locks::connect("memory:run-lost").unwrap();
    let mut ended = false;
    let result = locks.lock("job").run(|| {
        locks.force_release("job").unwrap();
        ended = true;
    });
    assert_eq!(why(result), LostReason::Forced);
    assert!(ended);
}

#[allow(
    clippy::disallowed_methods,
    reason = "work that blocks is what is tested"
)]
fn block_for(time: Duration) {
    std::thread::sleep(time);
}
