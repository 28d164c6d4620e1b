//! A fenced write at one node against a take-over at another. In either order of the commits, no
//! write of the older grant follows a write of the later one.

use std::sync::Arc;

use database_locks::LockGuard;
use database_locks::seam::{Outcome, TakeOverCommand};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, Transaction, TxOpts};
use testkit::contract::{acquire_command, take_over};
use testkit::time::now;
use testkit::{Galera, promise};
use tokio::sync::Barrier;

use super::{TIMEOUT, client, database, ms, secs};

const ROUNDS: u32 = 1000;
/// What ends the rounds on a machine that is too busy for all of them.
const AT_MOST: std::time::Duration = std::time::Duration::from_secs(40);
/// How many of them say something.
const AT_LEAST: u32 = 100;

/// How the older grant's write ended.
#[derive(Debug, Default)]
struct Tally {
    rounds: u32,
    /// It was committed before the newer grant's.
    before: u32,
    /// The fence itself found the grant gone.
    at_the_fence: u32,
    /// The fence had found the grant, and its transaction was not committed.
    at_the_commit: u32,
    /// It was committed after the newer grant's.
    stale: u32,
}

/// What the older grant's transaction begins with.
#[derive(Clone, Copy)]
enum Begins {
    WithTheFence,
    /// As a control: with a read that finds the grant and locks no row.
    WithARead,
}

impl Begins {
    /// The first statement of the transaction; whether it finds the grant.
    async fn finds_the_grant(self, tx: &mut Transaction<'_>, grant: &LockGuard) -> bool {
        match self {
            Self::WithTheFence => grant.fence(tx).await.is_ok(),
            Self::WithARead => {
                let read = "SELECT id FROM database_locks_lock
                             WHERE name = ? AND token = ? AND grant_id = ?";
                let grant = (grant.name().as_str(), grant.token().get(), grant.grant_id());
                let found = tx.exec_first::<u64, _, _>(read, grant).await;
                matches!(found, Ok(Some(_)))
            }
        }
    }
}

/// Where the last commit of a connection is in the one order in which all nodes commit.
async fn place(conn: &mut Conn) -> i64 {
    let place: Option<String> = conn
        .query_first("SELECT CONVERT(WSREP_LAST_WRITTEN_GTID() USING utf8mb4)")
        .await
        .unwrap();
    let place = place.unwrap();
    let (_, number) = place.trim_end_matches('\0').rsplit_once('-').unwrap();
    number.parse().unwrap()
}

/// That it is one order: of writes that came one after another, each at a node that had seen the
/// one before.
async fn is_one_order(a: &mut Conn, b: &mut Conn) {
    let mut last = 0;
    for n in 0..6 {
        let conn = if n % 2 == 0 { &mut *a } else { &mut *b };
        let seen = "SET SESSION wsrep_sync_wait = 1; SELECT COUNT(*) FROM filler; \
                    SET SESSION wsrep_sync_wait = 0";
        for statement in seen.split("; ") {
            conn.query_drop(statement).await.unwrap();
        }
        let write = format!("INSERT INTO filler VALUES (-1, {n})");
        conn.query_drop(write).await.unwrap();
        let place = place(conn).await;
        assert!(place > last, "{place} after {last}");
        last = place;
    }
}

async fn race(cluster: &Galera, begins: Begins) -> Tally {
    let url = database(cluster).await;
    for table in [
        "CREATE TABLE written (round INT, token BIGINT, PRIMARY KEY (round, token))",
        "CREATE TABLE filler (round INT, n INT, PRIMARY KEY (round, n))",
    ] {
        cluster.query(0, &url, table).unwrap();
    }
    let open = async |node| {
        let opts = Opts::from_url(&cluster.url_at(node, &url)).unwrap();
        Conn::new(opts).await.unwrap()
    };
    let (mut user_a, mut user_b) = (open(0).await, open(1).await);
    let locks = client(cluster, &[0], &url);
    let store = database_locks::seam::open(&cluster.url_at(1, &url), &Default::default()).unwrap();
    is_one_order(&mut user_a, &mut user_b).await;
    let (mut tally, began) = (Tally::default(), now());
    while tally.rounds < ROUNDS && began.elapsed() < AT_MOST {
        let round = tally.rounds;
        let name = format!("job {round}");
        let lock = locks.lock(name.as_str()).ttl(secs(25)).holder("worker");
        let old = lock.auto_renew(false).acquire().await.unwrap();
        let token = old.token().get();
        let over = TakeOverCommand {
            to: acquire_command(&name, "worker", secs(25)),
            token: old.token(),
            grant: Some(old.grant_id().to_owned()),
        };
        let start = Arc::new(Barrier::new(2));

        let newer = async {
            start.wait().await;
            // While node A applies this, it has not applied what follows.
            let filler = format!("INSERT INTO filler SELECT {round}, seq FROM seq_1_to_2000");
            user_b.query_drop(filler).await.unwrap();
            let token = loop {
                match take_over(&*store, &over).await {
                    Outcome::Granted { token, .. } => break token.get(),
                    // The older grant has not reached the node yet.
                    _ => tokio::time::sleep(ms(1)).await,
                }
                assert!(began.elapsed() < AT_MOST + TIMEOUT, "never taken over");
            };
            let write = format!("INSERT INTO written VALUES ({round}, {token})");
            user_b.query_drop(write).await.unwrap();
            place(&mut user_b).await
        };
        let older = async {
            start.wait().await;
            tokio::time::sleep(ms(fastrand::u64(0..30))).await;
            let mut tx = user_a.start_transaction(TxOpts::default()).await.unwrap();
            if !begins.finds_the_grant(&mut tx, &old).await {
                tally.at_the_fence += 1;
                return false;
            }
            // The work between the fence and the commit.
            tokio::time::sleep(ms(fastrand::u64(0..10))).await;
            let write = format!("INSERT INTO written VALUES ({round}, {token})");
            let written = match tx.query_drop(write).await {
                Ok(()) => tx.commit().await,
                refused => refused,
            };
            if written.is_err() {
                tally.at_the_commit += 1;
            }
            written.is_ok()
        };
        let (newer, written) = tokio::join!(newer, older);
        if written && place(&mut user_a).await > newer {
            tally.stale += 1;
        } else if written {
            tally.before += 1;
        }
        tally.rounds += 1;
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn no_fenced_write_is_committed_after_that_of_a_later_grant() {
    // Alone, so that there are as many rounds as there can be.
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let tally = race(&cluster, Begins::WithTheFence).await;
    eprintln!("{tally:?}");
    assert_eq!(tally.stale, 0, "{tally:?}");
    assert!(tally.rounds >= AT_LEAST, "{tally:?}");
    assert!(
        tally.before > 0 && tally.at_the_commit > 0,
        "no race: {tally:?}"
    );
    promise("P9", "galera");
}

/// The control: writes that begin with a read alone are committed after those of a later grant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn a_read_without_a_row_lock_is_no_fence() {
    let Some(cluster) = Galera::shared_alone() else {
        return;
    };
    let tally = race(&cluster, Begins::WithARead).await;
    eprintln!("{tally:?}");
    assert!(tally.stale > 0, "{tally:?}");
}
