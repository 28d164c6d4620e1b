//! Many tasks of one process on as many locks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use testkit::time;
use tokio::task::JoinSet;

use crate::report::{Section, digits};
use crate::servers::Servers;
use crate::stats::{median, ratio, spread};
use crate::svg::{Axis, Line, Plot, draw};
use crate::taker::since;
use crate::{Results, say, subject};

const TASKS: [usize; 4] = [1, 10, 100, 1000];
const ROUNDS: usize = 5;
/// How many different locks are acquired at once, and one after another.
const MANY: usize = 1000;

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let runtime = crate::worker::multi_thread();
    let engines: Vec<_> = servers
        .engines()
        .into_iter()
        .map(|engine| (engine.name, subject::connected(&runtime, &engine.url)))
        .collect();
    let slice = length.div_f64((ROUNDS * engines.len() * (TASKS.len() + 2)) as f64);
    say(&format!(
        "tasks: {ROUNDS} rounds of {} ms each",
        slice.as_millis()
    ));
    let pairs = (0..engines.len()).flat_map(|engine| TASKS.map(|tasks| (engine, tasks)));
    let mut order: Vec<(usize, usize)> = pairs.collect();
    let mut found: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    let mut at_once = vec![(Vec::new(), Vec::new()); engines.len()];
    // The rows of the names.
    for (_, locks) in &engines {
        let _ = runtime.block_on(all_at_once(locks));
    }
    for _ in 0..ROUNDS {
        fastrand::shuffle(&mut order);
        for &(engine, tasks) in &order {
            let rate = runtime.block_on(cycles(&engines[engine].1, tasks, slice));
            found.entry((engine, tasks)).or_default().push(rate);
        }
        for ((_, locks), (together, alone)) in engines.iter().zip(&mut at_once) {
            together.push(runtime.block_on(all_at_once(locks)));
            alone.push(runtime.block_on(one_by_one(locks)));
        }
    }
    let mut section = Section::default();
    section.paragraph(format!(
        "Cycles a second of one process on as many locks as it has tasks: the median of {ROUNDS} runs of {} ms, \
         and in brackets the least and the most. Behind them, in milliseconds, {MANY} locks acquired by {MANY} \
         tasks at once, and one after another.",
        slice.as_millis()
    ));
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for (number, ((name, _), (together, alone))) in engines.iter().zip(&at_once).enumerate() {
        let values = |tasks| found.get(&(number, tasks)).cloned().unwrap_or_default();
        let mut row = vec![(*name).to_owned()];
        row.extend(TASKS.map(|tasks| {
            let values = values(tasks);
            let least = values.iter().copied().fold(f64::MAX, f64::min);
            spread(&values).map_or(String::new(), |of| {
                format!("{} ({}–{})", digits(of.p50), digits(least), digits(of.max))
            })
        }));
        let times = ratio(alone, together);
        let faster = times.map(|times| format!("{} ×", digits(times)));
        row.extend([together, alone].map(|values| median(values).map_or(String::new(), digits)));
        row.extend(faster.clone());
        rows.push(row);
        let point = |tasks| Some((tasks as f64, median(&values(tasks))?));
        let points = TASKS.into_iter().filter_map(point).collect();
        lines.push(Line {
            name: (*name).to_owned(),
            points,
        });
        if *name != "SQLite" {
            section.goal(
                &format!("1,000 tasks acquiring 1,000 different locks, {name}"),
                "20 × faster than one after another",
                faster,
                times.is_some_and(|times| times >= 20.0),
            );
        }
    }
    let head = [
        "",
        "1 task",
        "10 tasks",
        "100 tasks",
        "1,000 tasks",
        "at once",
        "one by one",
        "faster",
    ];
    section.table(&head, &rows);
    let plot = Plot {
        title: "Cycles a second, over the tasks of one process",
        x: Axis {
            label: "tasks, each on a lock of its own",
            log: true,
        },
        y: Axis {
            label: "acquire + release, a second",
            log: true,
        },
        lines,
    };
    section.plot("throughput.svg", draw(&plot));
    section
}

/// Cycles a second.
async fn cycles(locks: &Locks, tasks: usize, slice: Duration) -> f64 {
    let (done, mut set) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let began = time::now();
    for task in 0..tasks {
        let (lock, done) = (locks.lock(format!("lock {task}")), Arc::clone(&done));
        set.spawn(async move {
            loop {
                let guard = lock.acquire().await.expect("acquires");
                guard.release().await.expect("releases");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(slice).await;
    let rate = done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    set.shutdown().await;
    locks.drain().await;
    rate
}

/// Milliseconds until all are held.
async fn all_at_once(locks: &Locks) -> f64 {
    let mut set = JoinSet::new();
    let began = time::now();
    for task in 0..MANY {
        let lock = locks.lock(format!("lock {task}"));
        set.spawn(async move { lock.acquire().await.expect("acquires") });
    }
    let guards = set.join_all().await;
    let took = since(began);
    free(locks, guards).await;
    took
}

/// The same in one task, on the same runtime.
async fn one_by_one(locks: &Locks) -> f64 {
    let owned = locks.clone();
    let task = tokio::spawn(async move {
        let mut guards = Vec::new();
        let began = time::now();
        for task in 0..MANY {
            let lock = owned.lock(format!("lock {task}"));
            guards.push(lock.acquire().await.expect("acquires"));
        }
        (since(began), guards)
    });
    let (took, guards) = task.await.expect("the task ends");
    free(locks, guards).await;
    took
}

async fn free(locks: &Locks, guards: Vec<LockGuard>) {
    drop(guards);
    locks.drain().await;
}
