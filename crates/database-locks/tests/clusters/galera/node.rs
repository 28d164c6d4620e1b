//! Nodes of a cluster: `doctor` examines them, and no node's clock ends, shortens or deletes a
//! lease.

#![allow(
    clippy::await_holding_lock,
    reason = "the cluster is held by whole tests, each of which has a thread of its own"
)]

use std::time::Duration;

use database_locks::doctor::Report;
use database_locks::{Error, LockState, Locks, Prune, Ticket};
use testkit::galera::Alone;
use testkit::{Galera, time};

const TIMEOUT: Duration = Duration::from_secs(40);
/// Outwaited by a test; long enough for a few round trips on a busy machine.
const SHORT: Duration = Duration::from_millis(1500);

async fn connected(url: &str) -> Locks {
    let locks = Locks::connect(url).await.expect("connects");
    locks.migrate().await.expect("makes the table");
    locks
}

/// Node 1 is five minutes behind, and node 2 as much ahead.
fn skewed() -> Option<Alone> {
    let mut cluster = Galera::shared_alone()?;
    cluster.set_clock(1, -300);
    cluster.set_clock(2, 300);
    Some(cluster)
}

fn ids(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|found| found.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make prove"]
async fn doctor_reports_the_faults_of_a_node() {
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let url = cluster.fresh_database();
    let locks = connected(&url).await;
    let report = locks.doctor().await.unwrap();
    let check = report.checks.iter().find(|check| check.area == "cluster");
    let message = &check.expect("it looks at the cluster").message;
    assert!(
        message.starts_with("Galera: node") && message.ends_with("one of 3, synced"),
        "{message}"
    );
    // The servers of the tests do not wait for their disks.
    assert_eq!(ids(&report), ["cluster-not-flushed"], "{report:#?}");

    let set = |setting: &str| drop(cluster.query(0, "mysql", setting).expect("is set"));
    set("SET GLOBAL wsrep_OSU_method = RSU; SET GLOBAL wsrep_desync = ON");
    let report = connected(&url).await.doctor().await.unwrap();
    set("SET GLOBAL wsrep_desync = OFF; SET GLOBAL wsrep_OSU_method = TOI");
    for id in ["cluster-behind", "cluster-ddl"] {
        assert!(ids(&report).contains(&id), "{report:#?}");
    }
    cluster.wait_until_healthy();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make prove"]
async fn a_node_that_does_not_replicate_its_writes_is_refused() {
    let Some(cluster) = Galera::shared() else {
        return;
    };
    let url = cluster.fresh_database();
    let init = format!("{url}?init_command=SET%20wsrep_on%20%3D%200");
    let Err(error @ Error::Rejected { .. }) = Locks::connect(&init).await else {
        panic!("connected")
    };
    assert!(
        format!("{error:?}").contains("wsrep_on is OFF"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make prove"]
async fn a_list_shows_a_lease_as_expired_once_it_was_observed_for_its_length() {
    let Some(cluster) = skewed() else {
        return;
    };
    let url = cluster.fresh_database();
    let holder = connected(&url).await;
    let held = (holder.lock("job").ttl(SHORT).auto_renew(false))
        .acquire()
        .await
        .unwrap();
    std::mem::forget(held);
    for node in [1, 2] {
        let locks = connected(&cluster.url_at(node, &url)).await;
        let began = time::now();
        let first = locks.show("job").await.unwrap().expect("a row");
        let LockState::Held {
            free_in: Some(left),
        } = first.state
        else {
            panic!("node {node}: {first:?}")
        };
        assert!(left == SHORT, "node {node}: all of it: {left:?}");
        loop {
            let row = locks.show("job").await.unwrap().expect("a row");
            match row.state {
                LockState::Held { free_in } => {
                    assert!(free_in.is_some_and(|left| left <= SHORT), "{row:?}");
                }
                _ => break assert!(matches!(row.state, LockState::Expired { .. }), "{row:?}"),
            }
            assert!(began.elapsed() < TIMEOUT, "node {node}: held without end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            began.elapsed() >= SHORT,
            "node {node}: {:?}",
            began.elapsed()
        );
    }
}

/// By the clock of that node the lease is long over, and the other lock long free.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make prove"]
async fn pruning_through_a_node_whose_clock_is_ahead_deletes_no_lease() {
    let Some(cluster) = skewed() else {
        return;
    };
    let url = cluster.fresh_database();
    let locks = connected(&url).await;
    let held = locks.lock("held").acquire().await.unwrap();
    let young = locks.lock("young").acquire().await.unwrap();
    young.release().await.unwrap();
    let old = locks.lock("old").acquire().await.unwrap();
    old.release().await.unwrap();
    let aged = "UPDATE database_locks_lock SET token = 5 WHERE name = 'old'";
    cluster.query(0, &url, aged).expect("is altered");

    let ahead = connected(&cluster.url_at(2, &url)).await;
    let minute = Duration::from_secs(60);
    let (mut pruned, began) = (0, time::now());
    // The row may not have reached it yet.
    while pruned == 0 && began.elapsed() < TIMEOUT {
        pruned = ahead.prune(Prune::older_than(minute)).await.unwrap();
    }
    let left = locks.list().await.unwrap();
    let left: Vec<&str> = left.iter().map(|row| row.name.as_str()).collect();
    // A row made anew on a node that is behind would begin below the token of one so young.
    assert_eq!((pruned, left), (1, vec!["held", "young"]));
    assert!(held.is_held());
    held.release().await.unwrap();
}

/// The length of a lease is what all the others watch: a holder trusts all of it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make prove"]
async fn a_renewal_through_a_node_with_a_wrong_clock_shortens_no_lease() {
    let Some(cluster) = skewed() else {
        return;
    };
    let url = cluster.fresh_database();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let read = "SET SESSION wsrep_sync_wait = 1; \
                SELECT ROUND(TIMESTAMPDIFF(MICROSECOND, renewed_at, expires_at) / 1e6), \
                       granted_until = expires_at FROM database_locks_lock WHERE name = 'job'";
    let length = || {
        cluster
            .query(0, &url, read)
            .expect("a row")
            .replace('\t', " ")
    };
    // Through the one that is behind, then the one that is ahead, and back.
    for [first, second] in [[1, 2], [2, 1]] {
        let locks = connected(&cluster.url_at(first, &url)).await;
        let guard = locks.lock("job").ttl(minutes(4)).acquire().await.unwrap();
        let ticket = guard.into_ticket().unwrap();
        assert_eq!(length(), "240 1");
        let other = connected(&cluster.url_at(second, &url)).await;
        renew(&other, &ticket, minutes(1)).await;
        assert_eq!(length(), "240 1", "shorter by node {second}");
        renew(&other, &ticket, minutes(5)).await;
        assert_eq!(length(), "300 1", "longer by node {second}");
        let ticket = other.resume(&ticket).await.unwrap().into_ticket().unwrap();
        assert_eq!(length(), "300 1", "resumed by node {second}");
        other.release(&ticket).await.unwrap();
    }
}

/// The grant may not have reached that node yet.
async fn renew(locks: &Locks, ticket: &Ticket, ttl: Duration) {
    let renewed = locks.renew(ticket, ttl).await;
    renewed.unwrap_or_else(|error| panic!("{error:?}"));
}
