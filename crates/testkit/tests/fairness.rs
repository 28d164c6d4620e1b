//! Equal loops in several processes share one lock: none keeps it for itself.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]
#![allow(
    clippy::print_stderr,
    reason = "the shares are of interest where they are fair, too"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use testkit::{Killable, Lab, lab_tests, promise};

const TAKER: &str = env!("CARGO_BIN_EXE_lock-taker");
/// Longer than anything that a test waits for should take.
const SOON: Duration = Duration::from_secs(60);

/// How many grants each of so many loops has by the time that they have `total` together.
fn shares(lab: &Lab, loops: usize, hold_ms: u32, total: u32) -> Vec<u32> {
    // A name of their own: those before were killed, and one of them held it.
    let name = format!("wanted by {loops} for {hold_ms} ms");
    let args = ["loop", &lab.url, &name, &hold_ms.to_string()].map(String::from);
    let mut takers: Vec<_> = (0..loops).map(|_| Killable::spawn(TAKER, &args)).collect();
    for taker in &takers {
        assert_eq!(taker.expect_line(SOON), "ready");
    }
    for taker in &mut takers {
        taker.send_line("go").expect("it listens");
    }
    let all = AtomicU32::new(0);
    let count = |taker: &Killable| {
        let mut grants = 0;
        while all.load(Ordering::Relaxed) < total {
            // None while others have it.
            if let Some(said) = taker.line(Duration::from_millis(100)) {
                assert_eq!(said, "grant");
                grants += 1;
                all.fetch_add(1, Ordering::Relaxed);
            }
        }
        grants
    };
    std::thread::scope(|scope| {
        let counting: Vec<_> = takers
            .iter()
            .map(|taker| scope.spawn(|| count(taker)))
            .collect();
        counting
            .into_iter()
            .map(|counted| counted.join().unwrap())
            .collect()
    })
}

fn is_fair(lab: &Lab, loops: u32, hold_ms: u32, total: u32) {
    let shares = shares(lab, loops as usize, hold_ms, total);
    let least = total / (4 * loops);
    eprintln!("{}: {shares:?} of {hold_ms} ms", lab.engine);
    assert!(
        shares.iter().all(|share| *share >= least),
        "{}: {shares:?} of {hold_ms} ms, and {least} would be fair",
        lab.engine
    );
}

async fn equal_loops_have_equal_shares(lab: &Lab) {
    lab.locks().await;
    let short = [(3, 5, 600), (3, 50, 90), (6, 0, 600)];
    // A hold that is longer than the pause between two looks.
    let long = (3, 400, 24);
    let fair = |(loops, hold_ms, total)| is_fair(lab, loops, hold_ms, total);
    std::thread::scope(|scope| {
        // Beside the others, since it takes long.
        scope.spawn(|| fair(long));
        short.into_iter().for_each(fair);
    });
    promise("P12", lab.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $( lab_tests!($engine: equal_loops_have_equal_shares); )* };
}
on!(sqlite, postgres, mariadb, mysql, pgbouncer, galera);
