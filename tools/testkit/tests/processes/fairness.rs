//! Processes that want one lock again and again share it: none keeps it for itself, and no waiter
//! starves.
#![allow(
    clippy::print_stderr,
    reason = "the shares are of interest where they are fair, too"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use testkit::{ChildProcess, TestDb, db_tests, promise};

const TEST_HOLDER: &str = env!("CARGO_BIN_EXE_test-holder");
/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How many grants each thread of each process has by the time that they have `total` together.
/// There are as many processes as numbers of threads.
fn grants(db: &TestDb, threads: &[usize], hold_ms: u32, total: u32) -> Vec<Vec<u32>> {
    // A name of their own: those before were killed, and one of them held it.
    let name = format!("wanted by {threads:?} for {hold_ms} ms");
    let start = |threads: &usize| {
        let [hold, threads] = [hold_ms.to_string(), threads.to_string()];
        ChildProcess::spawn(
            TEST_HOLDER,
            ["loop", &db.url, &name, &hold, &threads].map(String::from),
        )
    };
    let mut takers: Vec<_> = threads.iter().map(start).collect();
    for holder_process in &takers {
        assert_eq!(holder_process.expect_line(TIMEOUT), "ready");
    }
    for holder_process in &mut takers {
        holder_process.send_line("go").expect("it listens");
    }
    let all = AtomicU32::new(0);
    let count = |holder_process: &ChildProcess, threads| {
        let mut grants = vec![0; threads];
        while all.load(Ordering::Relaxed) < total {
            // None while others have it.
            if let Some(message) = holder_process.line(Duration::from_millis(100)) {
                let thread = message.strip_prefix("grant ").expect("a grant");
                grants[thread.parse::<usize>().expect("a thread")] += 1;
                all.fetch_add(1, Ordering::Relaxed);
            }
        }
        grants
    };
    std::thread::scope(|scope| {
        let counting: Vec<_> = takers
            .iter()
            .zip(threads)
            .map(|(holder_process, threads)| scope.spawn(|| count(holder_process, *threads)))
            .collect();
        counting
            .into_iter()
            .map(|counted| counted.join().unwrap())
            .collect()
    })
}

/// Each process has a quarter of a fair share at least. How many grants each thread has.
///
/// So many grants take some seconds: one of the processes may stand still for a part of them.
fn is_fair(db: &TestDb, threads: &[usize], hold_ms: u32, total: u32) -> Vec<Vec<u32>> {
    let grants = grants(db, threads, hold_ms, total);
    let shares: Vec<u32> = grants.iter().map(|threads| threads.iter().sum()).collect();
    let least = total / (4 * threads.len() as u32);
    let what = format!("{}: {threads:?}, {hold_ms} ms: {shares:?}", db.engine);
    eprintln!("{what}");
    let fair = shares.iter().all(|share| *share >= least);
    assert!(fair, "{what}, and {least} would be fair");
    grants
}

async fn equal_loops_have_equal_shares(db: &TestDb) {
    db.locks().await;
    let fair = |loops, hold_ms, total| drop(is_fair(db, &vec![1; loops], hold_ms, total));
    std::thread::scope(|scope| {
        // Beside the others, since it takes long: a hold that is longer than the pause between two
        // polls.
        scope.spawn(|| fair(3, 200, 24));
        scope.spawn(|| fair(3, 50, 72));
        fair(3, 5, 450);
        fair(6, 0, 1200);
    });
    promise("P12", db.engine);
}

async fn processes_with_many_waiters_have_equal_shares_and_each_waiter_has_one(db: &TestDb) {
    db.locks().await;
    let grants = is_fair(db, &[20; 3], 1, 600);
    let each = grants.iter().flatten().all(|grants| *grants > 0);
    assert!(each, "{}: {grants:?}", db.engine);
    promise("P12", db.engine);
}

async fn a_process_with_one_waiter_has_its_share_beside_one_with_many(db: &TestDb) {
    db.locks().await;
    is_fair(db, &[20, 1], 1, 600);
    promise("P12", db.engine);
}

macro_rules! on {
    ($($(# $attribute:tt)? $engine:ident),*) => { $( db_tests!($(# $attribute)? $engine:
        equal_loops_have_equal_shares,
        processes_with_many_waiters_have_equal_shares_and_each_waiter_has_one,
        a_process_with_one_waiter_has_its_share_beside_one_with_many); )* };
}
on!(
    sqlite,
    postgres,
    mariadb,
    mysql,
    pgbouncer,
    #[ignore = "make prove"]
    galera
);
