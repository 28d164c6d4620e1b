//! Failover of PostgreSQL from a primary to its standby.

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks};
use testkit::time::ms;
use testkit::{Commits, Pair, Postgres};

mod asynchronous;
mod direct;
mod pooled;
mod synchronous;

/// Its name in promises.
const ENGINE: &str = "postgres-failover";

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// Runs a blocking function while the other tasks of the test go on.
fn block_in_place<T>(what: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(what)
}

/// Waits for a condition while the other tasks of the test go on.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = testkit::time::now();
    while !is_so() {
        assert!(began.elapsed() < TIMEOUT, "never: {what}");
        tokio::time::sleep(ms(10)).await;
    }
}

/// A primary with its standby, and the URL of a database with the table on both.
async fn pair(version: Option<u32>, commits: Commits) -> Option<(Pair, String)> {
    let mut options = Postgres::options();
    if let Some(major) = version {
        options = options.version(major);
    }
    let pair = block_in_place(|| Pair::start(options, commits))?;
    let database = block_in_place(|| pair.primary().fresh_database());
    let url = pair.locker_url(&database);
    client(&url).await.migrate().await.unwrap();
    block_in_place(|| pair.catch_up());
    Some((pair, url))
}

/// A new client with its own connections.
async fn client(url: &str) -> Locks {
    let began = testkit::time::now();
    loop {
        match Locks::connect(url).await {
            Ok(locks) => return locks,
            // A busy machine, on which a login takes seconds.
            Err(Error::Unavailable { .. }) if began.elapsed() < TIMEOUT => {}
            Err(error) => panic!("{}", error.chain()),
        }
    }
}

/// A guard with a long lease and frequent renewals, which reach the new primary soon.
async fn held(locks: &Locks, name: &str) -> LockGuard {
    let lock = locks.lock(name).ttl(Duration::from_secs(30));
    in_time(lock.renew_every(ms(500)).acquire()).await.unwrap()
}

/// Releases it. On a busy machine the release may go on in the background.
async fn release(guard: LockGuard) {
    match in_time(guard.release()).await {
        Ok(()) | Err(Error::Unavailable { .. }) => {}
        Err(error) => panic!("{}", error.chain()),
    }
}

/// Repeats `check` until the database answers.
async fn check(guard: &LockGuard) -> Result<(), Error> {
    let began = testkit::time::now();
    loop {
        match guard.check().await {
            Err(Error::Unavailable { .. }) if began.elapsed() < TIMEOUT => {}
            message => return message,
        }
    }
}

/// Whether the lock is held and its token, as `t\t17`, read from a server that may be a standby.
fn row(of: &Postgres, url: &str, name: &str) -> String {
    let sql = format!(
        "SELECT coalesce(expires_at > clock_timestamp(), false), token \
           FROM database_locks_lock WHERE name = '{name}'"
    );
    block_in_place(|| of.query(url, &sql)).unwrap()
}
