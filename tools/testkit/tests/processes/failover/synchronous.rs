//! Synchronous replication: each answered grant is on the standby too, and a failover loses none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::{Error, LockGuard, Locks, LostReason, Token};
use testkit::time::{now, sleep};
use testkit::{ChildProcess, Commits, Pair, promise};
use tokio::task::JoinHandle;

use super::{
    ENGINE, TIMEOUT, block_in_place, check, client, held, in_time, ms, pair, release, row, until,
};

const TEST_HOLDER: &str = env!("CARGO_BIN_EXE_test-holder");

/// The latest token of each name, and whether its holder is at work.
#[derive(Debug, Default)]
struct Record(Mutex<HashMap<String, (Option<Token>, bool)>>);

impl Record {
    fn enter(&self, guard: &LockGuard) {
        let mut all = self.0.lock().unwrap();
        let (latest, inside) = all.entry(guard.name().to_string()).or_default();
        assert!(!*inside, "{} has two holders", guard.name());
        let token = guard.token();
        assert!(
            latest.is_none_or(|latest| latest < token),
            "{latest:?}, then {token:?}"
        );
        (*latest, *inside) = (Some(token), true);
    }

    fn leave(&self, guard: &LockGuard) {
        assert!(guard.is_held(), "{} was lost", guard.name());
        self.0
            .lock()
            .unwrap()
            .get_mut(guard.name().as_str())
            .unwrap()
            .1 = false;
    }

    fn latest(&self, name: &str) -> Option<Token> {
        self.0.lock().unwrap().get(name)?.0
    }
}

/// Takes these locks in turn until `stop` is set.
async fn work(url: String, record: Arc<Record>, grants: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let locks = client(&url).await;
    while !stop.load(Ordering::Relaxed) {
        for name in ["one", "two", "three"] {
            // Longer than the outage. If a release is lost with the primary, the lock stays held
            // for that long.
            let lock = locks.lock(name).ttl(Duration::from_secs(20));
            let guard = in_time(lock.acquire()).await.unwrap();
            record.enter(&guard);
            tokio::time::sleep(ms(5)).await;
            record.leave(&guard);
            grants.fetch_add(1, Ordering::Relaxed);
            match in_time(guard.release()).await {
                // Released in the background once a server is back; or freed on the lost primary,
                // and another client has it already.
                Ok(()) | Err(Error::Unavailable { .. } | Error::Lost { .. }) => {}
                Err(error) => panic!("{}", error.chain()),
            }
        }
    }
}

/// Four clients that work under the same locks in turn.
fn start_workers(
    url: &str,
    record: &Arc<Record>,
    grants: &Arc<AtomicU64>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let start = |_| {
        let (record, grants, stop) = (Arc::clone(record), Arc::clone(grants), Arc::clone(stop));
        tokio::spawn(work(url.to_owned(), record, grants, stop))
    };
    (0..4).map(start).collect()
}

/// Four clients with ten waiters each, which return their tokens.
async fn start_waiters(url: &str, name: &str) -> Vec<JoinHandle<i64>> {
    let mut waiters = Vec::new();
    for _ in 0..4 {
        let locks = client(url).await;
        waiters.extend((0..10).map(|_| {
            let lock = locks.lock(name);
            tokio::spawn(async move {
                let guard = lock.acquire().await.unwrap();
                let token = guard.token().get();
                release(guard).await;
                token
            })
        }));
    }
    waiters
}

async fn latest_grants_are_over(pair: &Pair, url: &str, record: &Record) {
    for name in ["one", "two", "three"] {
        let free = format!("f\t{}", record.latest(name).unwrap());
        until("its latest grant is over", || {
            row(pair.standby(), url, name) == free
        })
        .await;
    }
}

/// The URL has two hosts. The first is killed, and the second promoted.
async fn primary_is_killed(version: Option<u32>) {
    let Some((mut pair, url)) = pair(version, Commits::Synchronous).await else {
        return;
    };
    let (record, grants, stop) = Default::default();
    let workers = start_workers(&url, &record, &grants, &stop);

    let locks = client(&url).await;
    let keeper = Arc::new(held(&locks, "kept").await);
    let kept = keeper.token();
    let brief = locks.lock("brief").ttl(ms(6000)).acquire().await.unwrap();
    // Another process waits for each of the two.
    let wait = |name| ChildProcess::spawn(TEST_HOLDER, ["hold", &url, name, "30000"]);
    let (mut for_kept, for_brief) = (wait("kept"), wait("brief"));
    let waiters = start_waiters(&url, "kept").await;
    assert!(for_brief.line(ms(700)).is_none(), "it does not wait");
    until("work begins", || grants.load(Ordering::Relaxed) > 20).await;
    let watch = {
        let (keeper, stop) = (Arc::clone(&keeper), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert!(keeper.is_held(), "not held for a moment");
                tokio::time::sleep(ms(5)).await;
            }
        })
    };

    assert!(brief.is_held());
    block_in_place(|| pair.primary_mut().kill());
    // The ttl is shorter than the outage: the holder is notified before another client can have it.
    let reason = in_time(brief.lost()).await.reason();
    let expected = [LostReason::Unreachable, LostReason::Expired];
    assert!(expected.contains(&reason), "{reason}");
    assert!(!brief.is_held() && for_brief.line(Duration::ZERO).is_none());
    block_in_place(|| pair.promote());
    let before = grants.load(Ordering::Relaxed);

    let got = block_in_place(|| for_brief.expect_line(TIMEOUT));
    let token = got
        .strip_prefix("held ")
        .and_then(|token| token.parse().ok());
    assert!(token > Some(brief.token().get()), "{got}");
    until("work goes on", || {
        grants.load(Ordering::Relaxed) > before + 20
    })
    .await;
    let confirmed = row(pair.standby(), &url, "kept");
    assert_eq!(confirmed, format!("t\t{kept}"), "the same grant");
    check(&keeper).await.unwrap();

    stop.store(true, Ordering::Relaxed);
    in_time(watch).await.unwrap();
    for worker in workers {
        in_time(worker).await.unwrap();
    }
    latest_grants_are_over(&pair, &url, &record).await;
    assert!(for_kept.line(Duration::ZERO).is_none());
    assert!(!waiters.iter().any(|waiter| waiter.is_finished()));
    let keeper = Arc::into_inner(keeper).unwrap();
    release(keeper).await;
    // Each waiter gets the lock once.
    let got = block_in_place(|| for_kept.expect_line(TIMEOUT));
    let mut tokens = vec![got.strip_prefix("held ").unwrap().parse().unwrap()];
    for_kept.send_line("release").unwrap();
    for waiter in waiters {
        tokens.push(in_time(waiter).await.unwrap());
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 41, "{tokens:?}");
    assert!(tokens[0] > kept.get(), "{tokens:?} after {kept}");
    for id in ["P1", "P2", "P4", "P6", "P12"] {
        promise(id, ENGINE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_killed_primary_loses_no_grant() {
    primary_is_killed(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_killed_primary_of_version_18_loses_no_grant() {
    primary_is_killed(Some(18)).await;
}

/// The former primary never answers with a grant: its commits wait for a standby that is gone. Not
/// even when it is asked again and has the row. A client that knows both hosts may find the new
/// primary meanwhile, which may grant.
async fn assert_only_the_new_primary_grants(
    pair: &Pair,
    url: &str,
    only_old: &Locks,
    idle: &Locks,
) {
    let [of_old, of_both] = [only_old, idle].map(|locks| {
        let lock = locks.lock("also free").wait(ms(8000));
        tokio::spawn(async move { lock.acquire().await })
    });
    let refused = |error: Error| {
        let expected = matches!(error, Error::Unavailable { .. } | Error::TimedOut { .. });
        assert!(expected, "{}", error.chain());
    };
    let granted = in_time(of_old).await.unwrap();
    refused(granted.map(|guard| guard.token()).unwrap_err());
    match in_time(of_both).await.unwrap() {
        Ok(guard) => {
            let granted = format!("t\t{}", guard.token());
            assert_eq!(row(pair.standby(), url, "also free"), granted);
            release(guard).await;
        }
        Err(error) => refused(error),
    }
}

/// The primary is frozen with all its connections, and thawed after the standby is promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_frozen_primary_that_comes_back_grants_nothing() {
    let Some((mut pair, url)) = pair(None, Commits::Synchronous).await else {
        return;
    };
    let old_url = pair.primary().locker_url(&url);
    let (locks, idle) = (client(&url).await, client(&url).await);
    let only_old = client(&old_url).await;
    let keeper = held(&locks, "kept").await;
    // All are connected to the old primary, and some are idle.
    for locks in [&idle, &only_old] {
        for name in ["free", "also free"] {
            release(held(locks, name).await).await;
        }
    }

    block_in_place(|| pair.primary_mut().freeze());
    block_in_place(|| pair.promote());
    let renewed = "SELECT renewed_at > clock_timestamp() - interval '5 s' \
                      AND expires_at > clock_timestamp() \
                     FROM database_locks_lock WHERE name = 'kept'";
    let began = now();
    while block_in_place(|| pair.standby().query(&url, renewed)).as_deref() != Ok("t")
        || began.elapsed() < ms(5500)
    {
        assert!(began.elapsed() < TIMEOUT && keeper.is_held());
        tokio::time::sleep(ms(50)).await;
    }
    check(&keeper).await.unwrap();
    let token = held(&locks, "free").await.token();

    block_in_place(|| pair.primary_mut().thaw());
    assert_only_the_new_primary_grants(&pair, &url, &only_old, &idle).await;
    let there = block_in_place(|| {
        pair.primary()
            .query(&url, "SELECT count(*) FROM database_locks_lock")
    });
    assert_eq!(there.as_deref(), Ok("3"), "it answers what it is asked");

    // A client of the new primary does not go back, not even while that is restarted.
    let waited_for = in_time(locks.lock("waited for").acquire()).await.unwrap();
    let waiter = locks.lock("waited for");
    let waiter = tokio::spawn(async move { waiter.acquire().await });
    block_in_place(|| {
        pair.standby_mut().stop();
        sleep(ms(1500));
        pair.standby_mut().restart();
    });
    assert!(waited_for.is_held() && keeper.is_held());
    release(waited_for).await;
    let got = in_time(waiter).await.unwrap().unwrap();
    let granted = format!("t\t{}", got.token());
    assert_eq!(row(pair.standby(), &url, "waited for"), granted);
    let on_old = row(pair.primary(), &url, "waited for");
    assert_eq!(on_old, "", "never requested there");

    // Once the old primary is stopped, its clients find the new one.
    block_in_place(|| pair.primary_mut().kill());
    let moved = held(&idle, "free for all").await;
    assert_eq!(
        row(pair.standby(), &url, "free for all"),
        format!("t\t{}", moved.token())
    );
    assert_eq!(
        row(pair.standby(), &url, "free").split('\t').nth(1),
        Some(&*token.to_string())
    );
    release(keeper).await;
    for id in ["P1", "P6", "P12"] {
        promise(id, ENGINE);
    }
}
