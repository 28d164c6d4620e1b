//! A guarded table that is written to at one node while the lock is taken over at another.

use std::sync::Arc;

use database_locks::seam::{Outcome, TakeOverCommand};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use testkit::contract::{acquire_command, take_over};
use testkit::time::now;
use testkit::{Galera, promise};
use tokio::sync::Barrier;

use super::{TIMEOUT, client, database, held, ms, secs};

const ROUNDS: u32 = 600;
/// What ends the rounds on a machine that is too busy for all of them.
const AT_MOST: std::time::Duration = std::time::Duration::from_secs(40);
/// How many of them say something.
const AT_LEAST: u32 = 60;

const WRITTEN: &str = "SET SESSION wsrep_sync_wait = 15; SELECT COUNT(*) FROM written";

async fn open(cluster: &Galera, node: usize, url: &str) -> Conn {
    let opts = Opts::from_url(&cluster.url_at(node, url)).unwrap();
    Conn::new(opts).await.unwrap()
}

/// Where the last commit of a connection is in the one order in which all nodes commit.
async fn place(conn: &mut Conn) -> i64 {
    let query = "SELECT CONVERT(WSREP_LAST_WRITTEN_GTID() USING utf8mb4)";
    let place: Option<String> = conn.query_first(query).await.unwrap();
    let place = place.unwrap();
    let (_, number) = place.trim_end_matches('\0').rsplit_once('-').unwrap();
    number.parse().unwrap()
}

async fn guarded(cluster: &Galera) -> String {
    let url = database(cluster).await;
    let table = "CREATE TABLE written (round INT, token BIGINT, PRIMARY KEY (round, token))";
    cluster.query(0, &url, table).unwrap();
    let filler = "CREATE TABLE filler (round INT, n INT, PRIMARY KEY (round, n))";
    cluster.query(0, &url, filler).unwrap();
    let locks = client(cluster, &[0], &url);
    locks.guard_table("written", "ledger").await.unwrap();
    for node in 0..3 {
        let there = "SET SESSION wsrep_sync_wait = 1; SELECT COUNT(*) FROM written, filler";
        cluster.query(node, &url, there).unwrap();
    }
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn only_the_holder_writes_to_a_guarded_table_at_any_node() {
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let url = guarded(&cluster).await;
    let locks = client(&cluster, &[0], &url);
    for node in 0..3 {
        let insert = format!("INSERT INTO written VALUES ({node}, 1)");
        let refused = cluster.query(node, &url, &insert).unwrap_err().to_string();
        assert!(
            refused.contains("is guarded by lock \"ledger\""),
            "{refused}"
        );
        let found = client(&cluster, &[node], &url)
            .guarded_tables()
            .await
            .unwrap();
        assert_eq!((found.len(), found[0].gaps.len()), (1, 0), "{found:?}");
        let guard = held(&locks, "ledger", secs(30)).await;
        let mut user = open(&cluster, node, &url).await;
        user.query_drop("SET SESSION wsrep_sync_wait = 15")
            .await
            .unwrap();
        let show = "SET @database_locks_ticket = ?";
        user.exec_drop(show, (guard.grant_id(),)).await.unwrap();
        user.query_drop(&insert).await.unwrap();
        // As documented: the trigger changes the table that the statement reads.
        let both = "INSERT INTO written SELECT 7, 7 FROM database_locks_lock LIMIT 1";
        let refused = user.query_drop(both).await.unwrap_err().to_string();
        assert!(refused.contains("1442"), "{refused}");
        // Waiters still see a lease of the same length.
        guard.check().await.unwrap();
        guard.release().await.unwrap();
        let refused = user.query_drop("DELETE FROM written").await.unwrap_err();
        assert!(
            refused.to_string().contains("is guarded by lock"),
            "{refused}"
        );
    }
    promise("P16", "galera");
}

/// A renewal through another node changes the row that the trigger has changed: the transaction ends,
/// at the latest at its commit, with the error for conflicts, and the lock stays held. Repeated, it
/// writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_renewal_through_another_node_ends_a_guarded_transaction_with_1213() {
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let url = guarded(&cluster).await;
    let locks = client(&cluster, &[1], &url);
    let mut user = open(&cluster, 0, &url).await;
    // So long that no other renewal comes in between.
    let guard = held(&locks, "ledger", secs(600)).await;
    user.query_drop("SET SESSION wsrep_sync_wait = 15")
        .await
        .unwrap();
    let show = "SET @database_locks_ticket = ?";
    user.exec_drop(show, (guard.grant_id(),)).await.unwrap();
    // Before the commit, and before a later statement.
    for (round, later) in ["COMMIT", "INSERT INTO written VALUES (100, 1)"]
        .into_iter()
        .enumerate()
    {
        user.query_drop("BEGIN").await.unwrap();
        let insert = format!("INSERT INTO written VALUES ({round}, 1)");
        user.query_drop(&insert).await.unwrap();
        guard.extend(secs(700)).await.unwrap();
        // The other node applies it.
        cluster
            .query(0, &url, "SET SESSION wsrep_sync_wait = 15; SELECT 1")
            .unwrap();
        let ended = user.query_drop(later).await.unwrap_err().to_string();
        assert!(ended.contains("1213"), "{later}: {ended}");
        user.query_drop("ROLLBACK").await.unwrap();
        assert_eq!(cluster.query(0, &url, WRITTEN).unwrap(), round.to_string());
        guard.check().await.unwrap();
        user.query_drop("BEGIN").await.unwrap();
        user.query_drop(&insert).await.unwrap();
        user.query_drop("COMMIT").await.unwrap();
    }
    // Through the same node the renewal waits, and the transaction commits.
    let near = client(&cluster, &[0], &url);
    guard.release().await.unwrap();
    let guard = held(&near, "ledger", secs(30)).await;
    user.exec_drop(show, (guard.grant_id(),)).await.unwrap();
    user.query_drop("BEGIN").await.unwrap();
    user.query_drop("INSERT INTO written VALUES (2, 1)")
        .await
        .unwrap();
    let renewal = guard.extend(TIMEOUT);
    let commit = async {
        tokio::time::sleep(ms(500)).await;
        user.query_drop("COMMIT").await
    };
    let (renewed, committed) = tokio::join!(renewal, commit);
    committed.unwrap();
    renewed.unwrap();
    assert_eq!(cluster.query(0, &url, WRITTEN).unwrap(), "3");
    promise("P16", "galera");
}

/// How the older grant's writes ended.
#[derive(Debug, Default)]
struct Tally {
    rounds: u32,
    /// Committed before the newer grant's.
    before: u32,
    /// Refused, by the trigger or at the commit.
    refused: u32,
    /// Committed after the newer grant's.
    stale: u32,
}

/// In either order of the commits, no write of the older grant follows one of the later grant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn no_guarded_write_is_committed_after_that_of_a_later_grant() {
    // Alone, so that there are as many rounds as there can be.
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let url = guarded(&cluster).await;
    let tally = race(&cluster, &url).await;
    eprintln!("{tally:?}");
    assert_eq!(tally.stale, 0, "{tally:?}");
    assert!(
        tally.rounds >= AT_LEAST && tally.before > 0 && tally.refused > 0,
        "{tally:?}"
    );
    promise("P16", "galera");
}

/// The control: without the guard they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn without_the_guard_late_writes_are_committed() {
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let url = guarded(&cluster).await;
    let locks = client(&cluster, &[0], &url);
    assert!(locks.unguard_table("written").await.unwrap());
    let tally = race(&cluster, &url).await;
    eprintln!("{tally:?}");
    assert!(tally.stale > 0, "{tally:?}");
}

async fn race(cluster: &Galera, url: &str) -> Tally {
    let (mut user_a, mut user_b) = (open(cluster, 0, url).await, open(cluster, 1, url).await);
    let locks = client(cluster, &[0], url);
    let store = database_locks::seam::open(&cluster.url_at(1, url), &Default::default()).unwrap();
    let show = "SET @database_locks_ticket = ?";
    let (mut tally, began) = (Tally::default(), now());
    while tally.rounds < ROUNDS && began.elapsed() < AT_MOST {
        let rounds = tally.rounds;
        let lock = locks
            .lock("ledger")
            .ttl(secs(25))
            .holder("worker")
            .wait(TIMEOUT);
        let old = lock.auto_renew(false).acquire().await.unwrap();
        let token = old.token().get();
        let over = TakeOverCommand {
            to: acquire_command("ledger", "worker", secs(25)),
            token: old.token(),
            grant: Some(old.grant_id().to_owned()),
        };
        let start = Arc::new(Barrier::new(2));
        let newer = async {
            start.wait().await;
            // While node A applies this, it has not applied what follows.
            let filler = format!("INSERT INTO filler SELECT {rounds}, seq FROM seq_1_to_2000");
            user_b.query_drop(filler).await.unwrap();
            let token = loop {
                match take_over(&*store, &over).await {
                    Outcome::Granted { token, .. } => break token.get(),
                    // The older grant has not reached the node yet.
                    _ => tokio::time::sleep(ms(1)).await,
                }
                assert!(began.elapsed() < AT_MOST + TIMEOUT, "never taken over");
            };
            user_b
                .exec_drop(show, (over.to.grant.as_str(),))
                .await
                .unwrap();
            let write = format!("INSERT INTO written VALUES ({rounds}, {token})");
            user_b.query_drop(write).await.unwrap();
            place(&mut user_b).await
        };
        let older = async {
            start.wait().await;
            tokio::time::sleep(ms(fastrand::u64(0..30))).await;
            user_a.exec_drop(show, (old.grant_id(),)).await.unwrap();
            user_a.query_drop("BEGIN").await.unwrap();
            let write = format!("INSERT INTO written VALUES ({rounds}, {token})");
            let written = match user_a.query_drop(write).await {
                Ok(()) => {
                    tokio::time::sleep(ms(fastrand::u64(0..10))).await;
                    user_a.query_drop("COMMIT").await
                }
                failed => failed,
            };
            if written.is_err() {
                let _ = user_a.query_drop("ROLLBACK").await;
            }
            written.is_ok()
        };
        let (newer, written) = tokio::join!(newer, older);
        match written {
            false => tally.refused += 1,
            true if place(&mut user_a).await > newer => tally.stale += 1,
            true => tally.before += 1,
        }
        while locks.force_release("ledger").await.is_err() {}
        tally.rounds += 1;
    }
    tally
}
