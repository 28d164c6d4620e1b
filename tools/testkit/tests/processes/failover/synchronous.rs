//! What was answered is on the standby as well: nothing is forgotten.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::{Error, LockGuard, LostReason, Token};
use testkit::time::{now, sleep};
use testkit::{Commits, Killable, promise};

use super::{
    ENGINE, SOON, checked, client, given_back, held, meanwhile, ms, pair, row, soon, until,
};

const TAKER: &str = env!("CARGO_BIN_EXE_lock-taker");

/// Who is at work, and the latest token of each name.
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

/// Take these locks in turn until told to stop.
async fn work(url: String, record: Arc<Record>, grants: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let locks = client(&url).await;
    while !stop.load(Ordering::Relaxed) {
        for name in ["one", "two", "three"] {
            // Longer than the outage. But a release may be lost with the primary, and then the lock
            // stays held for that long.
            let lock = locks.lock(name).ttl(Duration::from_secs(20));
            let guard = soon(lock.acquire()).await.unwrap();
            record.enter(&guard);
            tokio::time::sleep(ms(5)).await;
            record.leave(&guard);
            grants.fetch_add(1, Ordering::Relaxed);
            match soon(guard.release()).await {
                // In the background, once there is a server again; or it was freed on the one that
                // is gone, and somebody else has it already.
                Ok(()) | Err(Error::Unavailable { .. } | Error::Lost { .. }) => {}
                Err(error) => panic!("{}", error.chain()),
            }
        }
    }
}

/// Two hosts in the URL, the first of them killed and the second promoted.
async fn killed(version: Option<u32>) {
    let Some((mut pair, url)) = pair(version, Commits::Synchronous).await else {
        return;
    };
    let (record, stop) = (
        Arc::new(Record::default()),
        Arc::new(AtomicBool::new(false)),
    );
    let grants = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(work(
                url.clone(),
                Arc::clone(&record),
                Arc::clone(&grants),
                Arc::clone(&stop),
            ))
        })
        .collect();

    let locks = client(&url).await;
    let keeper = Arc::new(held(&locks, "kept").await);
    let kept = keeper.token();
    let brief = locks.lock("brief").ttl(ms(6000)).acquire().await.unwrap();
    // Somebody in another process waits for each of the two.
    let wait = |name| Killable::spawn(TAKER, ["hold", &url, name, "30000"]);
    let (mut for_kept, for_brief) = (wait("kept"), wait("brief"));
    let mut crowd = Vec::new();
    for _ in 0..4 {
        let locks = client(&url).await;
        crowd.extend((0..10).map(|_| {
            let lock = locks.lock("kept");
            tokio::spawn(async move {
                let guard = lock.acquire().await.unwrap();
                let token = guard.token().get();
                given_back(guard).await;
                token
            })
        }));
    }
    assert!(for_brief.line(ms(700)).is_none(), "nobody waits");
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
    meanwhile(|| pair.primary_mut().kill());
    // Its ttl is shorter than the outage: its holder is told before anybody else can have it.
    let reason = soon(brief.lost()).await.reason();
    let told = [LostReason::Unreachable, LostReason::Expired];
    assert!(told.contains(&reason), "{reason}");
    assert!(!brief.is_held() && for_brief.line(Duration::ZERO).is_none());
    meanwhile(|| pair.promote());
    let before = grants.load(Ordering::Relaxed);

    let got = meanwhile(|| for_brief.expect_line(SOON));
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
    checked(&keeper).await.unwrap();

    stop.store(true, Ordering::Relaxed);
    soon(watch).await.unwrap();
    for worker in workers {
        soon(worker).await.unwrap();
    }
    for name in ["one", "two", "three"] {
        let free = format!("f\t{}", record.latest(name).unwrap());
        until("its latest grant is over", || {
            row(pair.standby(), &url, name) == free
        })
        .await;
    }
    assert!(for_kept.line(Duration::ZERO).is_none());
    assert!(!crowd.iter().any(|waiter| waiter.is_finished()));
    let keeper = Arc::into_inner(keeper).unwrap();
    given_back(keeper).await;
    // Everybody who waited through it has a turn, and nobody the same.
    let got = meanwhile(|| for_kept.expect_line(SOON));
    let mut tokens = vec![got.strip_prefix("held ").unwrap().parse().unwrap()];
    for_kept.send_line("release").unwrap();
    for waiter in crowd {
        tokens.push(soon(waiter).await.unwrap());
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
async fn a_killed_primary_takes_no_grant_with_it() {
    killed(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_killed_primary_of_version_18_takes_no_grant_with_it() {
    killed(Some(18)).await;
}

/// It is frozen, and so is every connection to it; it is thawed when another one serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "make prove"]
async fn a_frozen_primary_that_comes_back_grants_nothing() {
    let Some((mut pair, url)) = pair(None, Commits::Synchronous).await else {
        return;
    };
    let old_url = pair.primary().locker_url(&url);
    let (locks, idle, only_old) = (
        client(&url).await,
        client(&url).await,
        client(&old_url).await,
    );
    let keeper = held(&locks, "kept").await;
    // Connected to the old one, all of them, and nothing to do for some.
    for locks in [&idle, &only_old] {
        for name in ["free", "also free"] {
            given_back(held(locks, name).await).await;
        }
    }

    meanwhile(|| pair.primary_mut().freeze());
    meanwhile(|| pair.promote());
    let renewed = "SELECT renewed_at > clock_timestamp() - interval '5 s' \
                      AND expires_at > clock_timestamp() \
                     FROM database_locks_lock WHERE name = 'kept'";
    let began = now();
    while meanwhile(|| pair.standby().query(&url, renewed)).as_deref() != Ok("t")
        || began.elapsed() < ms(5500)
    {
        assert!(began.elapsed() < SOON && keeper.is_held());
        tokio::time::sleep(ms(50)).await;
    }
    checked(&keeper).await.unwrap();
    let token = held(&locks, "free").await.token();

    meanwhile(|| pair.primary_mut().thaw());
    // The former primary never answers with a grant: its commits wait for a standby that is gone.
    // Not even when it is asked again and has the row. A client that knows both hosts may find the
    // new primary meanwhile, which may grant.
    let [of_old, of_both] = [&only_old, &idle].map(|locks| {
        let lock = locks.lock("also free").wait(ms(8000));
        tokio::spawn(async move { lock.acquire().await })
    });
    let refused = |error: Error| {
        let expected = matches!(error, Error::Unavailable { .. } | Error::TimedOut { .. });
        assert!(expected, "{}", error.chain());
    };
    let granted = soon(of_old).await.unwrap();
    refused(granted.map(|guard| guard.token()).unwrap_err());
    match soon(of_both).await.unwrap() {
        Ok(guard) => {
            let granted = format!("t\t{}", guard.token());
            assert_eq!(row(pair.standby(), &url, "also free"), granted);
            given_back(guard).await;
        }
        Err(error) => refused(error),
    }
    let there = meanwhile(|| {
        pair.primary()
            .query(&url, "SELECT count(*) FROM database_locks_lock")
    });
    assert_eq!(there.as_deref(), Ok("3"), "it answers what it is asked");

    // Whom the new one has served does not go back, not even while that is restarted.
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("waited for").acquire().await })
    };
    let waited_for = soon(waiter).await.unwrap().unwrap();
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("waited for").acquire().await })
    };
    meanwhile(|| {
        pair.standby_mut().stop();
        sleep(ms(1500));
        pair.standby_mut().restart();
    });
    assert!(waited_for.is_held() && keeper.is_held());
    given_back(waited_for).await;
    let got = soon(waiter).await.unwrap().unwrap();
    assert_eq!(
        row(pair.standby(), &url, "waited for"),
        format!("t\t{}", got.token())
    );
    assert_eq!(
        row(pair.primary(), &url, "waited for"),
        "",
        "never asked for there"
    );

    // Once somebody has seen to the old one, who was connected to it finds the new one.
    meanwhile(|| pair.primary_mut().kill());
    let moved = held(&idle, "free for all").await;
    assert_eq!(
        row(pair.standby(), &url, "free for all"),
        format!("t\t{}", moved.token())
    );
    assert_eq!(
        row(pair.standby(), &url, "free").split('\t').nth(1),
        Some(&*token.to_string())
    );
    given_back(keeper).await;
    for id in ["P1", "P6", "P12"] {
        promise(id, ENGINE);
    }
}
