//! What is promised on a group of MySQL (Group Replication) of which every node can be written to,
//! and on one with a single primary: three nodes, and clients spread over them.

use std::time::Duration;

use database_locks::{LockGuard, Locks};
use testkit::time::ms;
use testkit::{Group as Cluster, TestDb, contract_tests};

#[allow(clippy::duplicate_mod, reason = "the same tests on another cluster")]
#[path = "../galera/contention.rs"]
mod contention;
mod fence;
mod guarded;
mod members;

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

/// An empty database with the table, which every node has.
async fn database(cluster: &Cluster) -> String {
    let url = cluster.fresh_database();
    client(cluster, &[0], &url).migrate().await.unwrap();
    (0..3).for_each(|node| cluster.catch_up(node));
    url
}

async fn held(locks: &Locks, name: &str, ttl: Duration) -> LockGuard {
    let lock = locks.lock(name).ttl(ttl).wait(TIMEOUT);
    lock.acquire().await.unwrap()
}

contract_tests!(
    #[ignore = "make prove"]
    group,
    TestDb::group()
);
contract_tests!(
    #[ignore = "make prove"]
    group_direct,
    TestDb::group().map(TestDb::with_direct_connection),
    a_repeated_acquire_recognises_its_own_grant,
    first_use_by_twenty_at_once_has_one_winner,
    an_expired_lease_has_one_successor,
    a_large_batch_of_acquires_is_answered_one_by_one,
    a_large_batch_of_releases_is_answered_one_by_one,
);

/// Not here: servers of MySQL under faketime take all of a machine's processors, so clocks that
/// differ are tested on Galera alone.
fn set_clocks_wrong(_: &mut Cluster) {}
