//! On a group the fence is decided at the commit: of two transactions that write the same row
//! without having seen each other only the first one commits.

use std::path::{Path, PathBuf};
use std::process::Command;

use database_locks::seam::{Outcome, TakeOverCommand, open};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, TxOpts};
use testkit::contract::{acquire_command, take_over};
use testkit::mysql::Flavor;
use testkit::{Group, promise, time};

use super::{TIMEOUT, client, database, ms, secs};

const ROUNDS: usize = 40;

/// What the rounds came to.
#[derive(Debug, Default)]
struct Tally {
    /// Ended by the fence, since the later grant had reached the node.
    at_the_fence: usize,
    /// Refused later, by a statement or the commit.
    at_the_commit: usize,
    committed: usize,
}

/// In each round a fenced transaction at one node, and at another a grant to the same holder, which
/// preempts itself and so need not wait. In every second round that is asked for once the fence has
/// been passed.
async fn race(group: &Group, url: &str) -> Tally {
    let conn = async |node| {
        let opts = Opts::from_url(&format!("{}?prefer_socket=false", group.url_at(node, url)));
        Conn::new(opts.unwrap()).await.unwrap()
    };
    let (mut older, mut newer) = (conn(0).await, conn(1).await);
    let locks = client(group, &[0], url);
    let store = open(&group.url_at(1, url), &Default::default()).unwrap();
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let name = format!("job {round}");
        let lock = locks.lock(name.as_str()).ttl(secs(25)).holder("worker");
        let old = lock.auto_renew(false).acquire().await.unwrap();
        let over = TakeOverCommand {
            to: acquire_command(&name, "worker", secs(25)),
            token: old.token(),
            grant: Some(old.grant_id().to_owned()),
        };
        let (passed, has_passed) = tokio::sync::oneshot::channel();
        let succeed = async {
            if round % 2 == 1 {
                // Dropped where the fence was not passed.
                let _: Result<(), _> = has_passed.await;
            }
            let began = time::now();
            let token = loop {
                match take_over(&*store, &over).await {
                    Outcome::Granted { token, .. } => break token.get(),
                    // The older grant has not reached the node yet.
                    _ => tokio::time::sleep(ms(1)).await,
                }
                assert!(began.elapsed() < TIMEOUT, "never taken over");
            };
            let write = format!("INSERT INTO written VALUES ({round}, {token})");
            newer.query_drop(write).await.unwrap();
        };
        let write = async {
            tokio::time::sleep(ms(fastrand::u64(0..10))).await;
            let mut tx = older.start_transaction(TxOpts::default()).await.unwrap();
            if old.fence(&mut tx).await.is_err() {
                tally.at_the_fence += 1;
                return;
            }
            let _ = passed.send(());
            // The work between the fence and the commit.
            tokio::time::sleep(ms(fastrand::u64(0..20))).await;
            let token = old.token().get();
            let write = format!("INSERT INTO written VALUES ({round}, {token})");
            let done = match tx.query_drop(write).await {
                Ok(()) => tx.commit().await,
                refused => refused,
            };
            match done {
                Ok(()) => tally.committed += 1,
                Err(_) => tally.at_the_commit += 1,
            }
        };
        tokio::join!(succeed, write);
        // Some of what is refused costs the connection.
        if older.ping().await.is_err() {
            older = conn(0).await;
        }
    }
    tally
}

/// The tokens that were written in each round, in the one order in which all nodes commit.
fn written(group: &Group, database: &str) -> Vec<Vec<i64>> {
    let node = group.node(2);
    let mut files: Vec<PathBuf> = std::fs::read_dir(node.data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_stem().is_some_and(|stem| stem == "bin"))
        .filter(|path| path.extension().is_some_and(|number| number != "index"))
        .collect();
    files.sort();
    let program = Flavor::MySql.program().unwrap();
    let decoded = Command::new(program.with_file_name("mysqlbinlog"))
        .args(["--no-defaults", "--base64-output=DECODE-ROWS", "--verbose"])
        .args(&files)
        .output()
        .unwrap();
    assert!(decoded.status.success(), "{decoded:?}");
    let message = String::from_utf8_lossy(&decoded.stdout);
    let insert = format!("### INSERT INTO `{database}`.`written`");
    let mut rounds = vec![Vec::new(); ROUNDS];
    for row in message.split(&insert).skip(1) {
        let value = |column: &str| -> i64 {
            let (_, rest) = row.split_once(column).unwrap();
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
            digits.unwrap().parse().unwrap()
        };
        rounds[usize::try_from(value("@1=")).unwrap()].push(value("@2="));
    }
    rounds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make prove"]
async fn no_fenced_write_is_committed_after_that_of_a_later_grant() {
    let Some(group) = Group::shared_alone() else {
        return;
    };
    let url = database(&group).await;
    let table = "CREATE TABLE written (round INT, token BIGINT, PRIMARY KEY (round, token))";
    group.query(0, &url, table).unwrap();
    (0..3).for_each(|node| group.catch_up(node));
    let tally = race(&group, &url).await;
    eprintln!("{tally:?}");
    group.catch_up(2);
    let name = Path::new(&url).file_name().unwrap().to_str().unwrap();
    let rounds = written(&group, name);
    let rows: usize = rounds.iter().map(Vec::len).sum();
    assert_eq!(rows, ROUNDS + tally.committed, "{tally:?}: {rounds:?}");
    for tokens in &rounds {
        assert!(tokens.is_sorted(), "{tally:?}: {rounds:?}");
    }
    assert!(tally.at_the_commit > 0, "no race: {tally:?}");
    promise("P9", Group::ENGINE);
}
