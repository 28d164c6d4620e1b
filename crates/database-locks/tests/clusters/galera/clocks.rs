//! Nodes whose clocks are minutes apart.

use std::time::Duration;

use database_locks::seam::{Table, open};
use database_locks::{LockState, Locks};
use testkit::contract::granted;
use testkit::promise;
use testkit::time::now;

use super::{Cluster, client, database, held, ms, secs};

/// The lease of the locks here.
const TTL: Duration = Duration::from_secs(6);
/// What it may take longer on a machine that is busy.
const SLACK: Duration = Duration::from_secs(20);

/// The node where the lock is granted, and the one where another client waits for it.
fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..3).flat_map(|by| (0..3).map(move |to| (by, to)))
}

fn name(by: usize, to: usize) -> String {
    format!("granted at {by}, wanted at {to}")
}

/// At the same time, since each of the two is mostly waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_node_with_a_wrong_clock_grants_a_lock_only_after_its_lease_has_ended() {
    let Some(mut cluster) = Cluster::shared_alone() else {
        return;
    };
    cluster.set_clock(1, -300);
    cluster.set_clock(2, 300);
    let url = database(&cluster).await;
    tokio::join!(
        no_clock_jump_frees_a_held_lock(&cluster, &url),
        a_dead_holders_lock_is_taken_over_when_its_lease_has_ended(&cluster, &url),
        a_rest_ends_by_the_clock_of_the_node_that_is_asked_or_by_observation(&cluster, &url)
    );
    for id in ["P5", "P7", "P11"] {
        promise(id, Cluster::ENGINE);
    }
}

/// A lock is held and renewed through each node, and tried at each, for longer than its lease. No
/// other client gets it, and the time that it has left is reported about right.
async fn no_clock_jump_frees_a_held_lock(cluster: &Cluster, url: &str) {
    let mut tasks = Vec::new();
    for (by, to) in pairs() {
        let (holders, others) = (client(cluster, &[by], url), client(cluster, &[to], url));
        tasks.push(tokio::spawn(async move {
            let name = name(by, to);
            let guard = held(&holders, &name, TTL).await;
            let began = now();
            while began.elapsed() < 2 * TTL {
                let tried = others.lock(name.as_str()).try_acquire().await.unwrap();
                assert!(tried.is_none(), "{name}: given away");
                let waited = others.lock(name.as_str()).wait(ms(500)).acquire().await;
                assert!(waited.is_err(), "{name}: given away");
                if let Some(row) = others.show(name.as_str()).await.unwrap() {
                    let LockState::Held {
                        free_in: Some(left),
                    } = row.state
                    else {
                        panic!("{name}: {row:?}")
                    };
                    assert!(left <= TTL + ms(100), "{name}: {left:?}");
                }
                assert!(guard.is_held(), "{name}: lost");
            }
            guard.release().await.unwrap();
            let next = held(&others, &name, TTL).await;
            assert!(
                others
                    .lock(name.as_str())
                    .try_acquire()
                    .await
                    .unwrap()
                    .is_none()
            );
            drop(next);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// The holder has ended. Programs that try once a second, each a new one, and waiters that wait for
/// less than the lease get the lock when the lease has ended, and not before.
async fn a_dead_holders_lock_is_taken_over_when_its_lease_has_ended(cluster: &Cluster, url: &str) {
    let mut tasks = Vec::new();
    for (by, to) in pairs() {
        for how in ["by cron", "waiting"] {
            let (holders, others) = (cluster.url_at(by, url), cluster.url_at(to, url));
            tasks.push(tokio::spawn(async move {
                let name = format!("{}, {how}", name(by, to));
                let store = open(&holders, &Table::default()).unwrap();
                let began = now();
                let old = granted(&*store, &name, "gone", TTL).await;
                let guard = loop {
                    // Another program each time: nothing is remembered of the time before.
                    let locks = Locks::builder(&others).connect_lazy().unwrap();
                    let lock = locks.lock(name.as_str()).ttl(TTL);
                    let tried = match how {
                        "by cron" => lock.try_acquire().await.unwrap(),
                        _ => lock.wait(ms(700)).acquire().await.ok(),
                    };
                    if let Some(guard) = tried {
                        break guard;
                    }
                    assert!(began.elapsed() < 3 * TTL + SLACK, "{name}: never");
                    tokio::time::sleep(secs(1)).await;
                };
                let after = began.elapsed();
                assert!(after > TTL, "{name}: after {after:?}");
                // If the node's clock says that the lease goes on, the client asks once more after
                // its end, and observes only then.
                assert!(after < 2 * TTL + SLACK, "{name}: after {after:?}");
                assert!(guard.token() > old.token, "{name}");
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// A rest protects no work: a node whose clock is ahead ends it early, and one whose clock is
/// behind when a waiter has observed it for its whole length.
async fn a_rest_ends_by_the_clock_of_the_node_that_is_asked_or_by_observation(
    cluster: &Cluster,
    url: &str,
) {
    let (right, behind, ahead) = (0, 1, 2);
    for node in [right, behind, ahead] {
        let (holders, others) = (
            client(cluster, &[right], url),
            client(cluster, &[node], url),
        );
        let name = format!("rests, wanted at {node}");
        let lock = || others.lock(name.as_str());
        let resting = holders.lock(name.as_str()).at_least(TTL);
        let began = now();
        resting.acquire().await.unwrap().release().await.unwrap();
        // The node receives the release a moment later.
        let released = async {
            loop {
                let row = others.show(name.as_str()).await.unwrap();
                if row.is_some_and(|row| {
                    matches!(row.state, LockState::Resting { .. } | LockState::Free)
                }) {
                    break;
                }
                tokio::time::sleep(ms(20)).await;
            }
        };
        tokio::time::timeout(SLACK, released)
            .await
            .expect("it arrives");
        if node == ahead {
            let early = lock().try_acquire().await.unwrap();
            drop(early.expect("it is over there"));
            continue;
        }
        assert!(lock().try_acquire().await.unwrap().is_none(), "{name}");
        let row = others.show(name.as_str()).await.unwrap().unwrap();
        let LockState::Resting { free_in } = row.state else {
            panic!("{row:?}")
        };
        assert!(free_in <= TTL, "{free_in:?}");
        if node == right {
            // Without an observation, by a program that knows nothing of the row.
            tokio::time::sleep(TTL).await;
            let asked = now();
            let new = client(cluster, &[node], url);
            let tried = new.lock(name.as_str()).try_acquire().await.unwrap();
            drop(tried.expect("it is free"));
            // An observation would take the whole rest.
            assert!(asked.elapsed() < TTL - secs(1), "{:?}", asked.elapsed());
        } else {
            let next = lock().wait(TTL + SLACK).acquire().await.unwrap();
            assert!(began.elapsed() > TTL - ms(500), "{:?}", began.elapsed());
            drop(next);
        }
    }
}
