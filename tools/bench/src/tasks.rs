//! Throughput of many tasks of one process, each on its own lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use testkit::time;
use tokio::task::JoinSet;

use crate::child::since;
use crate::console::progress;
use crate::drive::multi_thread;
use crate::report::{Section, digits};
use crate::results::Results;
use crate::servers::Servers;
use crate::stats::{median, ratio, spread};
use crate::subject;
use crate::svg::{Axis, Line, Plot, draw};

const TASKS: [usize; 4] = [1, 10, 100, 1000];
const ROUNDS: usize = 5;
/// How many different locks are acquired at once, and one after another.
const MANY: usize = 1000;

/// What was measured on one engine.
struct Measured {
    name: &'static str,
    locks: Locks,
    /// Cycles a second, of each round, by the number of tasks.
    rates: BTreeMap<usize, Vec<f64>>,
    /// Milliseconds for [`MANY`] acquires by as many tasks, of each round.
    at_once: Vec<f64>,
    /// Milliseconds for [`MANY`] acquires by one task, of each round.
    one_by_one: Vec<f64>,
}

impl Measured {
    fn rates(&self, tasks: usize) -> &[f64] {
        self.rates.get(&tasks).map_or(&[], Vec::as_slice)
    }
}

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let (measured, slice) = measure(servers, length);
    let mut section = Section::default();
    section.paragraph(format!(
        "Cycles a second of one process, each of whose tasks has a lock of its own: the median of {ROUNDS} runs \
         of {} ms and, in brackets, the least and the most. The last three columns are the milliseconds in which \
         {MANY} tasks at once acquire {MANY} locks, those in which one task does, and the ratio.",
        slice.as_millis()
    ));
    let mut rows = Vec::new();
    for engine in &measured {
        let mut row = vec![engine.name.to_owned()];
        row.extend(TASKS.map(|tasks| {
            let values = engine.rates(tasks);
            let least = values.iter().copied().fold(f64::MAX, f64::min);
            spread(values).map_or(String::new(), |of| {
                format!("{} ({}–{})", digits(of.p50), digits(least), digits(of.max))
            })
        }));
        let times = ratio(&engine.one_by_one, &engine.at_once);
        let faster = times.map(|times| format!("{} ×", digits(times)));
        for values in [&engine.at_once, &engine.one_by_one] {
            row.push(median(values).map_or(String::new(), digits));
        }
        row.extend(faster.clone());
        rows.push(row);
        if engine.name != "SQLite" {
            section.goal(
                &format!(
                    "1,000 tasks acquiring 1,000 different locks, {}",
                    engine.name
                ),
                "at least 20 × faster than one task",
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
    section.plot("throughput.svg", curves(&measured));
    section
}

/// All engines in random order, round by round; and how long each rate was measured.
fn measure(servers: &Servers, length: Duration) -> (Vec<Measured>, Duration) {
    let runtime = multi_thread();
    let engines = servers.engines().into_iter().map(|engine| Measured {
        name: engine.name,
        locks: subject::connected(&runtime, &engine.url),
        rates: BTreeMap::new(),
        at_once: Vec::new(),
        one_by_one: Vec::new(),
    });
    let mut engines: Vec<Measured> = engines.collect();
    let slice = length.div_f64((ROUNDS * engines.len() * (TASKS.len() + 2)) as f64);
    progress(&format!(
        "tasks: {ROUNDS} rounds of {} ms each",
        slice.as_millis()
    ));
    let pairs = (0..engines.len()).flat_map(|engine| TASKS.map(|tasks| (engine, tasks)));
    let mut order: Vec<(usize, usize)> = pairs.collect();
    // The first acquire of a name makes its row.
    for engine in &engines {
        let _ = runtime.block_on(all_at_once(&engine.locks));
    }
    for _ in 0..ROUNDS {
        fastrand::shuffle(&mut order);
        for &(engine, tasks) in &order {
            let engine = &mut engines[engine];
            let rate = runtime.block_on(cycles(&engine.locks, tasks, slice));
            engine.rates.entry(tasks).or_default().push(rate);
        }
        for engine in &mut engines {
            engine
                .at_once
                .push(runtime.block_on(all_at_once(&engine.locks)));
            engine
                .one_by_one
                .push(runtime.block_on(one_by_one(&engine.locks)));
        }
    }
    (engines, slice)
}

fn curves(measured: &[Measured]) -> String {
    let line = |engine: &Measured| {
        let point = |tasks| Some((tasks as f64, median(engine.rates(tasks))?));
        Line {
            name: engine.name.to_owned(),
            points: TASKS.into_iter().filter_map(point).collect(),
        }
    };
    draw(&Plot {
        title: "Cycles a second, over the tasks of one process",
        x: Axis {
            label: "tasks, each on a lock of its own",
            log: true,
        },
        y: Axis {
            label: "acquire + release, a second",
            log: true,
        },
        lines: measured.iter().map(line).collect(),
    })
}

/// Cycles a second of so many tasks.
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

/// Milliseconds until [`MANY`] tasks hold a lock each.
async fn all_at_once(locks: &Locks) -> f64 {
    let mut set = JoinSet::new();
    let began = time::now();
    for task in 0..MANY {
        let lock = locks.lock(format!("lock {task}"));
        set.spawn(async move { lock.acquire().await.expect("acquires") });
    }
    let guards = set.join_all().await;
    let took = since(began);
    release(locks, guards).await;
    took
}

/// Milliseconds until one task on the same runtime holds as many.
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
    release(locks, guards).await;
    took
}

async fn release(locks: &Locks, guards: Vec<LockGuard>) {
    drop(guards);
    locks.drain().await;
}
