//! Many tasks at once share statements, and do not keep others out. One test counts, since the recorder of
//! metrics is one for the process.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::future::Future;
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use testkit::lab::Lab;
use testkit::promise;

const TASKS: usize = 500;

/// How many requests of this kind were made since the last look.
fn requests(recorder: &Snapshotter, operation: &str) -> usize {
    let seen = recorder.snapshot().into_vec();
    let of = |key: &metrics_util::CompositeKey| {
        key.key().name() == "database_locks_request_seconds"
            && (key.key().labels()).any(|l| l.key() == "operation" && l.value() == operation)
    };
    let count = seen.iter().filter(|(key, ..)| of(key)).map(|(.., value)| {
        let DebugValue::Histogram(all) = value else {
            panic!("{value:?}")
        };
        all.len()
    });
    count.sum()
}

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
    let recorder = DebuggingRecorder::new();
    let counted = recorder.snapshotter();
    recorder.install().unwrap();
    for lab in [Lab::postgres(), Lab::mariadb(), Lab::mysql(), Lab::sqlite()] {
        let Some(lab) = lab else { continue };
        let locks = Locks::connect(&lab.url).await.unwrap();
        locks.migrate().await.unwrap();
        // Locks that are new, and then those that are there.
        for _ in 0..2 {
            requests(&counted, "acquire");
            let acquired = all((0..TASKS).map(|i| {
                let lock = locks.lock(format!("lock {i}"));
                async move { lock.acquire().await.unwrap() }
            }));
            let guards: Vec<LockGuard> = acquired.await;
            assert!(guards.iter().all(LockGuard::is_held));
            let acquires = requests(&counted, "acquire");
            all((guards.into_iter()).map(|guard| async { guard.release().await.unwrap() })).await;
            let releases = requests(&counted, "release");
            let engine = lab.engine;
            assert!(acquires > 0 && releases > 0, "{engine}: not counted");
            assert!(acquires < TASKS / 5, "{engine}: {acquires} requests");
            assert!(releases < TASKS / 5, "{engine}: {releases} requests");
        }
    }
}

/// A hundred tasks of one process that ask again and again, and one of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_one_process_keeps_no_other_out() {
    for lab in [Lab::postgres(), Lab::mariadb(), Lab::mysql(), Lab::sqlite()] {
        let Some(lab) = lab else { continue };
        let (here, there) = (lab.locks().await, lab.locks().await);
        let crowd: Vec<_> = (0..100)
            .map(|_| {
                let lock = here.lock("wanted");
                tokio::spawn(async move {
                    loop {
                        lock.acquire().await.unwrap().release().await.unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            let wait = Duration::from_secs(20);
            let stranger = there.lock("wanted").wait(wait).acquire().await;
            let stranger = stranger.unwrap_or_else(|error| panic!("{}: {error}", lab.engine));
            stranger.release().await.unwrap();
        }
        crowd.iter().for_each(tokio::task::JoinHandle::abort);
        promise("P12", lab.engine);
    }
}
