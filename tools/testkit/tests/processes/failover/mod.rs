//! A primary that is lost, and its standby in its place: what happens to locks.

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks};
use testkit::{Commits, Pair, Postgres};

mod asynchronous;
mod direct;
mod pooled;
mod synchronous;

/// As it is called in promises.
const ENGINE: &str = "postgres-failover";

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// Something that blocks, while the other tasks of the test go on.
fn block_in_place<T>(what: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(what)
}

/// Wait until something is so, while the other tasks of the test go on.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = testkit::time::now();
    while !is_so() {
        assert!(began.elapsed() < TIMEOUT, "never: {what}");
        tokio::time::sleep(ms(10)).await;
    }
}

/// Two servers, and the URL of a database with the table of locks on both.
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

/// A client of its own, with its own connection.
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

/// Held for long, and renewed so often that the next server hears of it soon.
async fn held(locks: &Locks, name: &str) -> LockGuard {
    let lock = locks.lock(name).ttl(Duration::from_secs(30));
    in_time(lock.renew_every(ms(500)).acquire()).await.unwrap()
}

/// Release it; on a busy machine that may go on in the background.
async fn release(guard: LockGuard) {
    match in_time(guard.release()).await {
        Ok(()) | Err(Error::Unavailable { .. }) => {}
        Err(error) => panic!("{}", error.chain()),
    }
}

/// What the database says of it, as soon as it says anything.
async fn check(guard: &LockGuard) -> Result<(), Error> {
    let began = testkit::time::now();
    loop {
        match guard.check().await {
            Err(Error::Unavailable { .. }) if began.elapsed() < TIMEOUT => {}
            message => return message,
        }
    }
}

/// What stands in the row, on a server that may be a standby: whether it is held, and its token.
fn row(of: &Postgres, url: &str, name: &str) -> String {
    let sql = format!(
        "SELECT coalesce(expires_at > clock_timestamp(), false), token \
           FROM database_locks_lock WHERE name = '{name}'"
    );
    block_in_place(|| of.query(url, &sql)).unwrap()
}
