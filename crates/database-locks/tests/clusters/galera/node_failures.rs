//! Nodes that are killed, frozen and cut off, and clients that go on at another.

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks, LostReason};
use testkit::haproxy::Balance;
use testkit::time::now;
use testkit::{Galera, HaProxy, promise};

use super::{TIMEOUT, client, database, held, ms, secs};

/// Twice as long as it takes, on a busy machine, until the others go on without a node and a
/// renewal that hung was tried again there.
const TTL: Duration = Duration::from_secs(40);

/// A waiter for the lock of `holder`, which reports when it got the lock.
fn waiter(locks: &Locks, name: &str) -> tokio::task::JoinHandle<Result<LockGuard, Error>> {
    let lock = locks.lock(name).ttl(TTL).wait(secs(120));
    tokio::spawn(async move { lock.acquire().await })
}

/// The guard is good, by the database's word, and stays so for longer than it takes to renew it.
pub(super) async fn goes_on(guard: &LockGuard) {
    let began = now();
    while began.elapsed() < TIMEOUT {
        assert!(guard.is_held());
        if guard.check().await.is_ok() {
            return;
        }
        tokio::time::sleep(ms(100)).await;
    }
    panic!("the database reports the lock as free");
}

/// The node of a holder and of a waiter is killed, then the next one frozen: with several hosts in
/// the URL the holder keeps its lock at another, and the waiter gets it when it is released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn with_several_hosts_a_holder_keeps_its_lock_and_a_waiter_goes_on() {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let url = database(&cluster).await;
    let (locks, other) = (
        client(&cluster, &[0, 1, 2], &url),
        client(&cluster, &[0, 2, 1], &url),
    );
    let guard = held(&locks, "job", TTL).await;
    let token = guard.token();
    let waiting = waiter(&other, "job");
    tokio::time::sleep(ms(500)).await;

    cluster.kill(0);
    goes_on(&guard).await;
    tokio::task::block_in_place(|| cluster.start_node(0));

    cluster.freeze(1);
    goes_on(&guard).await;
    cluster.thaw(1);

    assert!(!waiting.is_finished(), "given away");
    guard.release().await.unwrap();
    let next = tokio::time::timeout(TIMEOUT, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(next.token() > token);
    for id in ["P6", "P12"] {
        promise(id, "galera");
    }
}

/// A node that is cut off from the others is unavailable, and grants nothing; its holders have lost
/// nothing while there is another node to go to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_node_that_is_cut_off_grants_nothing() {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let url = database(&cluster).await;
    let there = Locks::builder(cluster.locker_url(&[2], &url))
        .connect_lazy()
        .unwrap();
    let guard = held(&client(&cluster, &[2, 0], &url), "kept", TTL).await;
    held(&there, "used", TTL).await.release().await.unwrap();

    cluster.isolate(2);
    cluster.wait_until_cut_off(2);
    for name in ["kept", "used", "never used"] {
        for locks in [&there, &client(&cluster, &[2], &url)] {
            let tried = locks.lock(name).try_acquire().await;
            assert!(matches!(tried, Err(Error::Unavailable { .. })), "{tried:?}");
            let waited = locks.lock(name).wait(ms(300)).acquire().await;
            let waited = waited.expect_err("granted");
            assert!(matches!(waited, Error::Unavailable { .. }), "{waited:?}");
            let message = format!("{waited} {waited:?} {locks:?}");
            assert!(
                !message.contains("p@ss") && !message.contains("p%40ss"),
                "{message}"
            );
        }
    }
    let elsewhere = client(&cluster, &[2, 1], &url);
    let used = held(&elsewhere, "used", TTL).await;
    assert!(
        elsewhere
            .lock("kept")
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    goes_on(&guard).await;

    cluster.rejoin(2);
    cluster.wait_until_healthy();
    assert!(there.lock("used").try_acquire().await.unwrap().is_none());
    used.release().await.unwrap();
    drop(held(&there, "used", TTL).await);
    goes_on(&guard).await;
    promise("P14", "galera");
    promise("P1", "galera");
}

/// Through a proxy that knows no SQL: when the node behind a connection is gone the next one is at
/// another, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_connection_that_a_proxy_moves_loses_nothing() {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let Some(proxy) = HaProxy::start(&cluster, Balance::First) else {
        return;
    };
    let url = database(&cluster).await;
    let (locks, other) = (
        Locks::builder(proxy.url(&url)).connect_lazy().unwrap(),
        Locks::builder(proxy.url(&url)).connect_lazy().unwrap(),
    );
    let guard = held(&locks, "job", TTL).await;
    let waiting = waiter(&other, "job");
    tokio::time::sleep(ms(500)).await;
    assert!(proxy.connections()[0] > 0, "{:?}", proxy.connections());

    // Moved once by the operator of the proxy, and once by the end of the node.
    proxy.take_out(0);
    goes_on(&guard).await;
    assert!(proxy.connections()[1] > 0, "{:?}", proxy.connections());
    proxy.put_back(0);
    cluster.kill(1);
    goes_on(&guard).await;
    assert!(!waiting.is_finished(), "given away");

    let token = guard.token();
    guard.release().await.unwrap();
    let next = tokio::time::timeout(TIMEOUT, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(next.token() > token);
    promise("P12", "galera");
}

/// All nodes stop answering. Each holder gets its loss before its lease has ended, and `is_held`
/// never blocks. When the nodes go on, holders and waiters do too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn trust_ends_before_the_lease_while_no_node_answers() {
    let Some(mut cluster) = Galera::shared_alone() else {
        return;
    };
    let url = database(&cluster).await;
    let locks = client(&cluster, &[0, 1, 2], &url);
    let ttl = secs(20);
    let guard = held(&locks, "job", ttl).await;
    for node in 0..3 {
        cluster.freeze(node);
    }
    let frozen = now();
    let lost = guard.lost();
    tokio::pin!(lost);
    let reason = loop {
        let asked = now();
        let held = guard.is_held();
        // A request would hang for five seconds.
        assert!(asked.elapsed() < secs(3), "the question waits");
        tokio::select! {
            reason = &mut lost => break reason,
            () = tokio::time::sleep(ms(20)) => assert!(frozen.elapsed() < ttl, "held: {held}"),
        }
    };
    // Its lease was renewed before they were frozen, and so ends before this.
    assert!(frozen.elapsed() < ttl, "{:?}", frozen.elapsed());
    assert_eq!(reason.reason(), LostReason::Unreachable);
    for node in 0..3 {
        cluster.thaw(node);
    }
    cluster.wait_until_healthy();
    held(&locks, "job", ttl).await.release().await.unwrap();
    for id in ["P4", "P8"] {
        promise(id, "galera");
    }
}
