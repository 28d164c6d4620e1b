//! The node that a client prefers is cut off from the others, or silent: another node serves the
//! client soon, in whichever way the node fails.

use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, Locks};
use testkit::time::now;
use testkit::{Galera, promise};

use super::node_failures::goes_on;
use super::{client, database, held, secs};

/// Longer than the tests take: no lease ends, so that nothing is granted because of that.
const TTL: Duration = Duration::from_secs(240);
/// The timeout of a request, five seconds, and as long again for a second one on a busy machine.
const SOON: Duration = Duration::from_secs(12);

/// What is done to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It is cut off, and knows: it refuses statements.
    Refuses,
    /// It is cut off, and does not know: it answers reads, and commits hang.
    Hangs,
    /// It accepts connections, and says nothing.
    Silent,
}

/// The node fails while a client holds locks and waits for one. The others go on after some
/// seconds, and then all that the client asks for is done within [`SOON`].
async fn another_node_serves(fault: Fault) {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let url = database(&cluster).await;
    let (here, elsewhere) = (
        client(&cluster, &[1, 2, 0], &url),
        client(&cluster, &[2, 0], &url),
    );
    let kept = held(&here, "kept", TTL).await;
    let given_back = held(&here, "given back", TTL).await;
    let awaited = held(&elsewhere, "awaited", TTL).await;
    let permits = |locks: &Locks| locks.semaphore("permits", 1).ttl(TTL).wait(secs(100));
    let permit = permits(&elsewhere).acquire().await.unwrap();
    let waiting = spawn(here.lock("awaited").ttl(TTL).wait(secs(100)));
    let waiting_for_permit = spawn(permits(&here));
    tokio::time::sleep(secs(1)).await;

    tokio::task::block_in_place(|| fail(&mut cluster, fault));
    drop(held(&elsewhere, "the others go on", TTL).await);

    let began = now();
    let (acquired, (), released, ()) = tokio::join!(
        held(&here, "free", TTL),
        goes_on(&kept),
        given_back.release(),
        async {
            awaited.release().await.unwrap();
            permit.release().await.unwrap();
        },
    );
    let waited = waiting.await.unwrap().unwrap();
    drop(waiting_for_permit.await.unwrap().unwrap());
    let took = began.elapsed();
    assert!(took < SOON, "{took:?}, {released:?}");
    // A release whose outcome is unknown reports that, and a renewal is tried again by itself.
    assert!(kept.is_held() && acquired.is_held() && waited.is_held());
    if fault == Fault::Hangs {
        let state = cluster.status(1, "wsrep_cluster_status");
        assert_eq!(state.as_deref(), Some("Primary"), "it has noticed");
    }
    let retaken = held(&elsewhere, "given back", TTL).await;
    drop((retaken, waited, acquired, kept));
    promise("P12", "galera");
}

fn fail(cluster: &mut Galera, fault: Fault) {
    match fault {
        Fault::Refuses => {
            cluster.isolate(1);
            cluster.wait_until_cut_off(1);
        }
        Fault::Hangs => {
            cluster.make_patient(1);
            cluster.isolate(1);
        }
        Fault::Silent => cluster.freeze(1),
    }
}

type Waiting = tokio::task::JoinHandle<Result<LockGuard, Error>>;

fn spawn(lock: Lock) -> Waiting {
    tokio::spawn(async move { lock.acquire().await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn another_node_serves_the_clients_of_one_that_refuses_statements() {
    another_node_serves(Fault::Refuses).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn another_node_serves_the_clients_of_one_that_does_not_know_that_it_is_cut_off() {
    another_node_serves(Fault::Hangs).await;
}

/// Reads alone are answered, with rows that show a holder for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_client_that_only_waits_does_not_believe_a_node_that_is_cut_off() {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let url = database(&cluster).await;
    let elsewhere = client(&cluster, &[2, 0], &url);
    let lock = |locks: &Locks| locks.lock("lock").ttl(TTL).wait(secs(100));
    let semaphore = |locks: &Locks| locks.semaphore("permits", 1).ttl(TTL).wait(secs(100));
    let awaited = lock(&elsewhere).acquire().await.unwrap();
    let permit = semaphore(&elsewhere).acquire().await.unwrap();
    let of_lock = client(&cluster, &[1, 2, 0], &url);
    let of_permit = client(&cluster, &[1, 2, 0], &url);
    let waiting = [spawn(lock(&of_lock)), spawn(semaphore(&of_permit))];
    tokio::time::sleep(secs(1)).await;

    tokio::task::block_in_place(|| fail(&mut cluster, Fault::Hangs));
    drop(held(&elsewhere, "the others go on", TTL).await);

    let began = now();
    awaited.release().await.unwrap();
    permit.release().await.unwrap();
    for waiting in waiting {
        assert!(waiting.await.unwrap().unwrap().is_held());
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let state = cluster.status(1, "wsrep_cluster_status");
    assert_eq!(state.as_deref(), Some("Primary"), "it has noticed");
    promise("P12", "galera");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn another_node_serves_the_clients_of_one_that_is_silent() {
    another_node_serves(Fault::Silent).await;
}
