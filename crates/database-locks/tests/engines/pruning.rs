//! Pruning of rows that have been free for long, and durations beyond every clock.

use std::time::Duration;

use database_locks::{Locks, Prune, Token, Ttl};
use testkit::contract::{granted, release};
use testkit::time::now;
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

async fn cycle(locks: &Locks, name: &str) -> Token {
    let guard = locks.lock(name).wait(TIMEOUT).acquire().await.unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    token
}

/// A lock that was granted more than a thousand times a second, all its life long.
async fn with_a_token_ahead_of_the_clock(db: &TestDb, locks: &Locks) -> Token {
    let first = cycle(locks, "busy").await;
    if db.engine == "memory" {
        // Of the store itself, which is many times as quick as the locks.
        let store = db.fixture().ready().await;
        let began = now();
        let mut latest = first;
        while u128::from((latest.get() - first.get()).unsigned_abs())
            < began.elapsed().as_millis() + 3_000
        {
            let grant = granted(&*store, "busy", "me", TIMEOUT).await;
            latest = grant.token;
            release(&*store, &grant).await;
            assert!(began.elapsed() < TIMEOUT, "not a thousand grants a second");
        }
        return latest;
    }
    // In the year 2100.
    db.sql("UPDATE database_locks_lock SET token = 4102444800000 WHERE name = 'busy'");
    let token = locks.show("busy").await.unwrap().unwrap().token;
    assert_eq!(token.get(), 4_102_444_800_000);
    token
}

async fn tokens_grow_in_spite_of_pruning(db: &TestDb) {
    let locks = db.locks().await;
    let latest = with_a_token_ahead_of_the_clock(db, &locks).await;
    let usual = cycle(&locks, "usual").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(
        locks
            .prune(Prune::older_than(Duration::ZERO).include_legacy())
            .await
            .unwrap(),
        1
    );
    assert!(locks.show("usual").await.unwrap().is_none());
    assert!(cycle(&locks, "busy").await > latest, "a token went back");
    assert!(cycle(&locks, "usual").await > usual);
    promise("P2", db.engine);
}

async fn the_longest_durations_are_accepted(db: &TestDb) {
    let locks = db.locks().await;
    cycle(&locks, "job").await;
    for idle in [Duration::MAX, Duration::from_secs(u64::MAX / 1_000_000)] {
        assert_eq!(
            locks.prune(Prune::older_than(idle)).await.unwrap(),
            0,
            "{idle:?}"
        );
    }
    assert!(locks.show("job").await.unwrap().is_some());

    let lock = locks.lock("job").ttl(Ttl::Infinite);
    let lock = lock.renew_every(Duration::MAX).margin(Duration::MAX);
    let guard = lock.wait(Duration::MAX).acquire().await.unwrap();
    assert_eq!(guard.trusted_for(), Duration::MAX);
    guard.check().await.unwrap();
    let other = locks.lock("other").ttl(Ttl::Infinite);
    let other = other.renew_every(Duration::MAX).acquire().await.unwrap();
    assert!(other.is_held());
    guard.release().await.unwrap();

    let ten_years = Duration::from_secs(315_576_000);
    let guard = locks.lock("long").ttl(ten_years).acquire().await.unwrap();
    assert!(guard.trusted_for() > ten_years / 2);
    for ttl in [Duration::MAX, ten_years + Duration::from_nanos(1)] {
        locks.lock("longer").ttl(ttl).acquire().await.unwrap_err();
        locks.renew(&guard.ticket(), ttl).await.unwrap_err();
    }
    let margin = locks.lock("longer").margin(Duration::MAX);
    margin.acquire().await.unwrap_err();
    guard.release().await.unwrap();
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine: tokens_grow_in_spite_of_pruning, the_longest_durations_are_accepted);
    )* };
}
on!(memory, sqlite, postgres, postgres18, mariadb, mysql);
