//! Many tasks of one process: on as many locks, and on one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use database_locks::Locks;
use testkit::time;
use tokio::task::JoinSet;

use crate::contender::since;
use crate::report::{Section, digits};
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stats::{median, ratio, spread};
use crate::svg::{Axis, Line, Plot, draw};
use crate::{ours, say};

const TASKS: [usize; 4] = [1, 10, 100, 1000];
/// How many different locks are acquired at once, and one after another.
const MANY: usize = 1000;

pub(crate) fn run(settings: &Settings, servers: &Servers, length: Duration) -> Section {
    let runtime = crate::tasks_runtime();
    let engines: Vec<_> = servers
        .engines()
        .into_iter()
        .map(|engine| (engine.name, ours::connected(&runtime, &engine.url)))
        .collect();
    let rounds = settings.rounds.clamp(2, 4);
    let runs = rounds * engines.len() * TASKS.len() * 2;
    let slice = length.div_f64(runs as f64);
    say(&format!(
        "throughput: {runs} runs of {} ms",
        slice.as_millis()
    ));

    let mut order: Vec<(usize, usize, bool)> = (0..engines.len())
        .flat_map(|engine| TASKS.map(|tasks| (engine, tasks)))
        .flat_map(|(engine, tasks)| [true, false].map(|apart| (engine, tasks, apart)))
        .collect();
    let mut found: BTreeMap<(usize, usize, bool), Vec<f64>> = BTreeMap::new();
    let mut at_once = vec![(Vec::new(), Vec::new()); engines.len()];
    // The rows of the names.
    for (_, locks) in &engines {
        let _ = runtime.block_on(all_at_once(locks));
    }
    for round in 0..rounds {
        fastrand::shuffle(&mut order);
        for &(engine, tasks, apart) in &order {
            let cycles = runtime.block_on(cycles(&engines[engine].1, tasks, apart, slice));
            found
                .entry((engine, tasks, apart))
                .or_default()
                .push(cycles);
        }
        for ((_, locks), (together, alone)) in engines.iter().zip(&mut at_once) {
            together.push(runtime.block_on(all_at_once(locks)));
            // Once is enough of what takes long and differs little.
            if round < 2 {
                alone.push(runtime.block_on(one_by_one(locks)));
            }
        }
    }

    let mut section = Section::default();
    section.paragraph(format!(
        "Cycles a second of one process with one connection: the median of {rounds} runs of {} ms, and in \
         brackets the least and the most.",
        slice.as_millis()
    ));
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    for (number, (name, _)) in engines.iter().enumerate() {
        for (apart, what) in [(true, "as many locks"), (false, "one lock")] {
            let values = |tasks| {
                found
                    .get(&(number, tasks, apart))
                    .cloned()
                    .unwrap_or_default()
            };
            let shown = TASKS.map(|tasks| {
                let values = values(tasks);
                let least = values.iter().copied().fold(f64::MAX, f64::min);
                spread(&values).map_or(String::new(), |of| {
                    format!("{} ({}–{})", digits(of.p50), digits(least), digits(of.max))
                })
            });
            let name = format!("{name}, {what}");
            rows.push(std::iter::once(name.clone()).chain(shown).collect());
            let point = |tasks| Some((tasks as f64, median(&values(tasks))?));
            lines.push(Line {
                name,
                points: TASKS.into_iter().filter_map(point).collect(),
                marked: true,
            });
        }
    }
    section.table(
        &["", "1 task", "10 tasks", "100 tasks", "1,000 tasks"],
        &rows,
    );
    let plot = Plot {
        title: "Cycles a second over the number of tasks",
        x: Axis {
            label: "tasks of one process",
            log: true,
        },
        y: Axis {
            label: "acquire + release, a second",
            log: true,
        },
        lines,
    };
    section.plot("throughput.svg", "cycles a second over tasks", draw(&plot));

    section.paragraph(format!(
        "{MANY} different locks acquired by {MANY} tasks at once, and one after another, in milliseconds:"
    ));
    let mut rows = Vec::new();
    for ((name, _), (together, alone)) in engines.iter().zip(&at_once) {
        let times = ratio(alone, together);
        let shown = |values: &[f64]| median(values).map_or(String::new(), digits);
        let times_shown = times.map(|times| format!("{} ×", digits(times)));
        rows.push(vec![
            (*name).to_owned(),
            shown(together),
            shown(alone),
            times_shown.clone().unwrap_or_default(),
        ]);
        if *name != "SQLite" {
            section.goal(
                &format!("1,000 tasks acquiring 1,000 different locks, {name}"),
                "20 × faster than one after another",
                times_shown,
                times.is_some_and(|times| times >= 20.0),
            );
        }
    }
    section.table(&["", "at once", "one after another", "faster"], &rows);
    section
}

/// Cycles a second.
pub(crate) async fn cycles(locks: &Locks, tasks: usize, apart: bool, slice: Duration) -> f64 {
    let (done, mut set) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let began = time::now();
    for task in 0..tasks {
        let name = if apart {
            format!("lock {task}")
        } else {
            "the one lock".to_owned()
        };
        let (lock, done) = (locks.lock(name), Arc::clone(&done));
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
    let (mut set, mut guards) = (JoinSet::new(), Vec::new());
    let began = time::now();
    for task in 0..MANY {
        let lock = locks.lock(format!("lock {task}"));
        set.spawn(async move { lock.acquire().await.expect("acquires") });
    }
    while let Some(guard) = set.join_next().await {
        guards.push(guard.expect("the task ends"));
    }
    let took = since(began);
    free(locks, guards).await;
    took
}

async fn one_by_one(locks: &Locks) -> f64 {
    let mut guards = Vec::new();
    let began = time::now();
    for task in 0..MANY {
        let lock = locks.lock(format!("lock {task}"));
        guards.push(lock.acquire().await.expect("acquires"));
    }
    let took = since(began);
    free(locks, guards).await;
    took
}

async fn free(locks: &Locks, guards: Vec<database_locks::LockGuard>) {
    drop(guards);
    locks.drain().await;
}
