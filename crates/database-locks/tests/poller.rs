//! Waiters without notifications: one poll reads the locks of all of them. One test, since the
//! recorder of metrics is one for the process.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use database_locks::LockGuard;
use testkit::{Proxy, TestDb, promise, time};

mod requests;

use requests::{counted, requests};

/// So many locks, one waiter each.
const LOCKS: usize = 100;

/// A hundred waiters that poll by themselves would send two thousand statements a second, each of
/// which locks a row or tries to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_poll_reads_all_waited_locks() {
    let counted = counted();
    for db in [
        TestDb::mariadb(),
        TestDb::mysql(),
        TestDb::sqlite(),
        TestDb::pgbouncer(),
    ] {
        let Some(db) = db else { continue };
        let (engine, proxy) = (db.engine, db.has_server().then(|| Proxy::to_url(&db.url)));
        let url = proxy
            .as_ref()
            .map_or(db.url.clone(), |proxy| proxy.url(&db.url));
        let (holder, locks) = (db.locks().await, db.locks_at(&url).await);
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        for i in 0..LOCKS {
            let lock = holder
                .lock(format!("lock {i}"))
                .ttl(Duration::from_secs(300));
            held.push(lock.acquire().await.unwrap());
            let lock = locks.lock(format!("lock {i}"));
            waiting.push(tokio::spawn(async move { lock.acquire().await }));
        }
        // Until each waiter has tried. By then their polls are one.
        let mut quiet = 0;
        while quiet < 2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let [tries] = requests(&counted, ["acquire"]);
            quiet = if tries == 0 { quiet + 1 } else { 0 };
        }
        if let Some(proxy) = &proxy {
            proxy.reset_counts();
        }
        let began = time::now();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let [polls, tries] = requests(&counted, ["poll", "acquire"]);
        let sent = proxy.as_ref().map(|proxy| proxy.counts().chunks_up);
        // A pause is 30 ms at the least.
        let most = 10 + began.elapsed().as_millis() as usize / 30;
        assert!((2..=most).contains(&polls), "{engine}: {polls} polls");
        assert_eq!(tries, 0, "{engine}: only what may be had is tried for");
        if let Some(sent) = sent {
            assert!(sent as usize <= 2 * most, "{engine}: {sent} packets");
        }
        // Each gets its own lock, in any order of releases.
        let odd = |(i, _): &(usize, _)| i % 2 == 1;
        let (first, then): (Vec<_>, Vec<_>) =
            held.into_iter().zip(waiting).enumerate().partition(odd);
        for half in [first, then] {
            let mut next = Vec::new();
            for (_, (guard, waiter)) in half {
                guard.release().await.unwrap();
                next.push(tokio::time::timeout(Duration::from_secs(60), waiter));
            }
            for waiter in next {
                let guard: LockGuard = waiter.await.expect("in time").unwrap().unwrap();
                assert!(guard.is_held());
            }
        }
        promise("P12", engine);
    }
}
