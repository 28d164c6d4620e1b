//! Throughput of many tasks that share a semaphore or a lock, beside as many with plain locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use database_locks::{Lock, Locks};
use testkit::time;
use tokio::task::JoinSet;

use crate::console::progress;
use crate::drive::multi_thread;
use crate::report::{Section, digits};
use crate::servers::Engine;
use crate::stats::{median, ratio};
use crate::subject;

const ROUNDS: usize = 5;
/// The part of a round before the measurement begins. Until then all tasks ask at once, and the
/// queues form.
const BEFORE: f64 = 0.1;

/// Tasks, and which lock or permit each uses.
struct Crowd {
    what: &'static str,
    tasks: usize,
    lock: fn(&Locks, usize) -> Lock,
}

/// A crowd, and the one that it is compared with.
struct Pair {
    one: Crowd,
    other: Crowd,
    /// The part of the other's cycles to reach.
    goal: Option<f64>,
}

const PAIRS: [Pair; 2] = [
    Pair {
        one: Crowd {
            what: "a semaphore of 10 permits, 100 tasks",
            tasks: 100,
            lock: |locks, _| locks.semaphore("crowd", 10),
        },
        other: Crowd {
            what: "10 plain locks",
            tasks: 100,
            lock: |locks, task| locks.lock(format!("crowd {}", task % 10)),
        },
        goal: Some(0.7),
    },
    Pair {
        one: Crowd {
            what: "a lock that 8 tasks share",
            tasks: 8,
            lock: |locks, _| locks.lock("shared by a crowd").shared(),
        },
        other: Crowd {
            what: "8 plain locks",
            tasks: 8,
            lock: |locks, task| locks.lock(format!("crowd {task}")),
        },
        goal: None,
    },
];

pub(super) fn run(engines: &[Engine], length: Duration, section: &mut Section) {
    let runtime = multi_thread();
    let slice = length.div_f64((2 * ROUNDS * engines.len() * PAIRS.len()) as f64);
    progress(&format!(
        "kinds: crowds, {ROUNDS} rounds of {} ms each",
        slice.as_millis()
    ));
    section.paragraph(format!(
        "Cycles a second of many tasks of one process: the median of {ROUNDS} runs of {} ms each.",
        slice.as_millis()
    ));
    let mut rows = Vec::new();
    for engine in engines {
        let locks = subject::connected(&runtime, &engine.url);
        for Pair { one, other, goal } in &PAIRS {
            // The first acquire of a name makes its row.
            for crowd in [one, other] {
                runtime.block_on(cycles(&locks, crowd, slice / 4));
            }
            let (mut rates, mut beside) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let mut pair = [(one, &mut rates), (other, &mut beside)];
                if round % 2 == 1 {
                    pair.reverse();
                }
                for (crowd, rates) in pair {
                    rates.push(runtime.block_on(cycles(&locks, crowd, slice)));
                }
            }
            let part = ratio(&rates, &beside);
            let percent = part.map(|part| format!("{} %", digits(part * 100.0)));
            rows.push(vec![
                format!("{}, {}", engine.name, one.what),
                median(&rates).map_or(String::new(), digits),
                format!("{}: {}", other.what, digits(median(&beside).unwrap_or(0.0))),
                percent.clone().unwrap_or_default(),
            ]);
            if let Some(goal) = goal {
                section.goal(
                    &format!("{}, {}", one.what, engine.name),
                    &format!(
                        "at least {} % of the cycles of {}",
                        goal * 100.0,
                        other.what
                    ),
                    percent,
                    part.is_some_and(|part| part >= *goal),
                );
            }
        }
    }
    section.table(&["", "cycles a second", "compared with", "part"], &rows);
}

/// Cycles a second. Each task ends with a whole cycle, so that no acquire is dropped.
async fn cycles(locks: &Locks, crowd: &Crowd, slice: Duration) -> f64 {
    let (done, ends, mut set) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
        JoinSet::new(),
    );
    for task in 0..crowd.tasks {
        let lock = (crowd.lock)(locks, task);
        let (done, ends) = (Arc::clone(&done), Arc::clone(&ends));
        set.spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                let guard = lock.acquire().await.expect("acquires");
                guard.release().await.expect("releases");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(slice.mul_f64(BEFORE)).await;
    let (began, before) = (time::now(), done.load(Ordering::Relaxed));
    tokio::time::sleep(slice.mul_f64(1.0 - BEFORE)).await;
    let cycles = done.load(Ordering::Relaxed) - before;
    let rate = cycles as f64 / began.elapsed().as_secs_f64();
    ends.store(true, Ordering::Relaxed);
    while let Some(ended) = set.join_next().await {
        ended.expect("a task ends");
    }
    rate
}
