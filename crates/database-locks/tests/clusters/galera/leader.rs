//! Leader election while the nodes' clocks are minutes apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use testkit::promise;

use super::{Cluster, TIMEOUT, client, database, held, ms, secs};

/// A leader that dies leaves its lease, and its successor waits for the end of it, whatever the
/// clock of its node says. Candidates at all nodes lead one at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn candidates_at_all_nodes_lead_one_at_a_time_and_an_observer_sees_the_first() {
    let Some(mut cluster) = Cluster::shared_alone() else {
        return;
    };
    super::set_clocks_wrong(&mut cluster);
    let url = database(&cluster).await;
    let dead = held(&client(&cluster, &[0], &url), "job", secs(4)).await;
    let first = dead.token();
    let mut observer = client(&cluster, &[1], &url).leader("job").observe();
    let seen = tokio::time::timeout(TIMEOUT, observer.next())
        .await
        .unwrap();
    assert_eq!(seen.unwrap().expect("it leads").token, first);
    let trusted = dead.trusted_for();
    let died = testkit::time::now();
    // Neither renewed nor released from now on.
    dead.into_ticket().unwrap();

    let (inside, token) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicI64::new(first.get())),
    );
    let tasks: Vec<_> = (0..3)
        .map(|node| {
            let leader = client(&cluster, &[node], &url).leader("job").ttl(secs(20));
            let (inside, token) = (Arc::clone(&inside), Arc::clone(&token));
            tokio::spawn(async move {
                for _ in 0..5 {
                    let led = leader.run(|term| {
                        let (inside, token) = (Arc::clone(&inside), Arc::clone(&token));
                        async move {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            let last = token.swap(term.token().get(), Ordering::SeqCst);
                            assert!(last < term.token().get());
                            tokio::time::sleep(ms(5)).await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                            died.elapsed()
                        }
                    });
                    assert!(led.await.unwrap() >= trusted);
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(TIMEOUT * 2, task)
            .await
            .unwrap()
            .unwrap();
    }
    let next = tokio::time::timeout(TIMEOUT, observer.next())
        .await
        .unwrap();
    assert_ne!(next.unwrap().map(|leader| leader.token), Some(first));
    promise("P1", Cluster::ENGINE);
    promise("P11", Cluster::ENGINE);
}
