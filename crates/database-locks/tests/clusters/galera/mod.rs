//! What is promised on a cluster of which every node can be written to: three nodes, and clients
//! spread over them. In one program, since a cluster takes long to start.

use std::time::Duration;

use database_locks::{LockGuard, Locks};
use testkit::time::ms;
use testkit::{Galera as Cluster, TestDb, contract_tests};

mod clocks;
mod contention;
mod cut_off;
mod fence;
mod guarded;
mod leader;
mod node;
mod node_failures;

/// Long enough for anything that takes its usual time, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(30);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A client of some of the nodes, the first of which is tried first.
fn client(cluster: &Cluster, nodes: &[usize], database: &str) -> Locks {
    Locks::builder(cluster.url_of(nodes, database))
        .connect_lazy()
        .unwrap()
}

/// An empty database with the table, which every node knows.
async fn database(cluster: &Cluster) -> String {
    let url = cluster.fresh_database();
    client(cluster, &[0], &url).migrate().await.unwrap();
    for node in 0..3 {
        let there = "SET SESSION wsrep_sync_wait = 1; SELECT COUNT(*) FROM database_locks_lock";
        cluster.query(node, &url, there).unwrap();
    }
    url
}

async fn held(locks: &Locks, name: &str, ttl: Duration) -> LockGuard {
    let lock = locks.lock(name).ttl(ttl).wait(TIMEOUT);
    lock.acquire().await.unwrap()
}

contract_tests!(
    #[ignore = "make prove"]
    galera,
    TestDb::galera()
);
contract_tests!(
    #[ignore = "make prove"]
    galera_direct,
    TestDb::galera().map(TestDb::with_direct_connection),
    a_repeated_acquire_recognises_its_own_grant,
    first_use_by_twenty_at_once_has_one_winner,
    an_expired_lease_has_one_successor,
    a_large_batch_of_acquires_is_answered_one_by_one,
    a_large_batch_of_releases_is_answered_one_by_one,
);

/// One node five minutes behind, and one ahead.
fn set_clocks_wrong(cluster: &mut Cluster) {
    cluster.set_clock(1, -300);
    cluster.set_clock(2, 300);
}
