//! Many clients at every node want the same locks. Transactions that conflict fail at a statement
//! or at their commit, and no caller sees an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use testkit::promise;

use super::{Cluster, TIMEOUT, client, database, ms, secs};

const NAMES: usize = 3;
const CLIENTS: usize = 9;

/// The holder at work under each name, and the greatest token that was granted.
#[derive(Default)]
struct Watched {
    inside: [AtomicU32; NAMES],
    token: [AtomicI64; NAMES],
    grants: AtomicU32,
}

/// While the nodes' clocks are minutes apart, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn contending_clients_at_all_nodes_hold_a_lock_one_at_a_time_and_tokens_grow() {
    let Some(mut cluster) = Cluster::shared_alone() else {
        return;
    };
    super::set_clocks_wrong(&mut cluster);
    let url = database(&cluster).await;
    let before = cluster.conflicts();
    let (watched, began) = (Arc::new(Watched::default()), testkit::time::now());
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let locks = client(&cluster, &[n % 3], &url);
            let watched = Arc::clone(&watched);
            tokio::spawn(async move {
                while began.elapsed() < secs(8) {
                    let which = fastrand::usize(..NAMES);
                    let lock = locks
                        .lock(format!("job {which}"))
                        .ttl(secs(20))
                        .wait(TIMEOUT);
                    let guard = lock.acquire().await.unwrap();
                    assert_eq!(watched.inside[which].fetch_add(1, Ordering::SeqCst), 0);
                    let token = guard.token().get();
                    let last = watched.token[which].swap(token, Ordering::SeqCst);
                    assert!(token > last, "{token} after {last}");
                    tokio::time::sleep(ms(fastrand::u64(0..3))).await;
                    watched.inside[which].fetch_sub(1, Ordering::SeqCst);
                    watched.grants.fetch_add(1, Ordering::SeqCst);
                    guard.release().await.unwrap();
                    // A client at another node tries while this write is still being replicated.
                    if fastrand::bool() {
                        tokio::time::sleep(ms(fastrand::u64(0..5))).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let grants = watched.grants.load(Ordering::SeqCst);
    let conflicts = cluster.conflicts() - before;
    eprintln!("{grants} grants, {conflicts} conflicts");
    assert!(grants > 50, "only {grants} grants");
    assert!(conflicts > 0, "no conflicts");
    for id in ["P1", "P2", "P15"] {
        promise(id, Cluster::ENGINE);
    }
}

/// Sets of two of the locks, in random order: none is held in part, and no conflict is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn sets_at_all_nodes_exclude_each_other() {
    let Some(cluster) = Cluster::shared_alone() else {
        return;
    };
    let url = database(&cluster).await;
    let before = cluster.conflicts();
    let (watched, began) = (Arc::new(Watched::default()), testkit::time::now());
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let locks = client(&cluster, &[n % 3], &url);
            let watched = Arc::clone(&watched);
            tokio::spawn(async move {
                let mut own = 0;
                while began.elapsed() < secs(8) || own == 0 {
                    let mut which: Vec<usize> = (0..NAMES).collect();
                    fastrand::shuffle(&mut which);
                    which.truncate(2);
                    let names = which.iter().map(|at| format!("job {at}"));
                    let set = locks.all(names).ttl(secs(20)).wait(TIMEOUT);
                    let set = set.acquire().await.unwrap();
                    for at in &which {
                        assert_eq!(watched.inside[*at].fetch_add(1, Ordering::SeqCst), 0);
                        let token = set.guard(format!("job {at}")).unwrap().token().get();
                        let last = watched.token[*at].swap(token, Ordering::SeqCst);
                        assert!(token > last, "{token} after {last}");
                    }
                    tokio::time::sleep(ms(fastrand::u64(0..3))).await;
                    for at in &which {
                        watched.inside[*at].fetch_sub(1, Ordering::SeqCst);
                    }
                    watched.grants.fetch_add(1, Ordering::SeqCst);
                    set.release().await.unwrap();
                    own += 1;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let grants = watched.grants.load(Ordering::SeqCst);
    let conflicts = cluster.conflicts() - before;
    eprintln!("{grants} grants of two, {conflicts} conflicts");
    assert!(grants > 30, "only {grants} grants");
    for id in ["P1", "P2", "P15"] {
        promise(id, Cluster::ENGINE);
    }
}
