//! Many tasks at once share statements. One test, since the recorder of metrics is one for the
//! process.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::future::Future;

use database_locks::{LockGuard, Locks};
use testkit::TestDb;

mod requests;

use requests::{counted, requests};

const TASKS: usize = 500;

async fn all<T: Send + 'static>(
    work: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = work.map(tokio::spawn).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_tasks_shares_its_statements() {
    let counted = counted();
    for db in [
        TestDb::postgres(),
        TestDb::mariadb(),
        TestDb::mysql(),
        TestDb::sqlite(),
    ] {
        let Some(db) = db else { continue };
        let locks = Locks::connect(&db.url).await.unwrap();
        locks.migrate().await.unwrap();
        // Locks that are new, and then those that are there.
        for _ in 0..2 {
            requests(&counted, ["acquire"]);
            let acquired = all((0..TASKS).map(|i| {
                let lock = locks.lock(format!("lock {i}"));
                async move { lock.acquire().await.unwrap() }
            }));
            let guards: Vec<LockGuard> = acquired.await;
            assert!(guards.iter().all(LockGuard::is_held));
            let [acquires] = requests(&counted, ["acquire"]);
            all((guards.into_iter()).map(|guard| async { guard.release().await.unwrap() })).await;
            let [releases] = requests(&counted, ["release"]);
            let engine = db.engine;
            assert!(acquires > 0 && releases > 0, "{engine}: not counted");
            assert!(acquires < TASKS / 5, "{engine}: {acquires} requests");
            assert!(releases < TASKS / 5, "{engine}: {releases} requests");
        }
    }
}
