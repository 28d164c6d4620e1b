//! Waiters that nobody serves, and a crowd of them that take turns.

use std::time::Duration;

use serde_json::Value;
use testkit::time;

use crate::report::{Section, digits, thousands};
use crate::servers::{Engine, Servers};
use crate::stats::spread;
use crate::svg::{Axis, Line, Plot, draw};
use crate::tap::Tap;
use crate::{Settings, floors, ours, say, worker};

const WAITERS: [u64; 3] = [1, 100, 1000];
const PROCESSES: usize = 20;
const EACH: usize = 50;

pub(crate) fn idle(settings: &Settings, servers: &Servers) -> Section {
    let mut section = Section::default();
    let length = settings.share(0.04);
    section.paragraph(format!(
        "Statements a second of one process whose tasks all wait for one lock that somebody else holds, over \
         {} s, when they had been waiting for some seconds.",
        digits(length.as_secs_f64())
    ));
    let mut watched = Vec::new();
    let mut holders = Vec::new();
    for engine in [servers.postgres(), servers.mariadb()]
        .into_iter()
        .flatten()
    {
        let Some(url) = &engine.tcp else { continue };
        let runtime = floors::runtime();
        let locks = ours::connected(&runtime, url);
        for waiters in WAITERS {
            let name = format!("idle {waiters}");
            let lock = locks.lock(&name);
            holders.push(runtime.block_on(lock.acquire()).expect("acquires"));
            let tap = Tap::to(url);
            let worker = worker::start(&["idle", &tap.url(url), &name, &waiters.to_string()]);
            watched.extend(worker.map(|worker| (engine.name, waiters, tap, worker)));
        }
    }
    time::sleep(Duration::from_secs(4));
    watched.iter().for_each(|(_, _, tap, _)| tap.reset());
    let began = time::now();
    time::sleep(length);
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for name in ["PostgreSQL", "MariaDB"] {
        let mut points = Vec::new();
        for (_, waiters, tap, worker) in watched.iter().filter(|(engine, ..)| *engine == name) {
            let counts = tap.counts();
            let rate = counts.statements as f64 / began.elapsed().as_secs_f64();
            let bytes = (counts.up + counts.down) as f64 / began.elapsed().as_secs_f64();
            let memory = crate::machine::memory_kib(worker.pid()) as f64 / 1024.0;
            rows.push(vec![
                name.to_owned(),
                thousands(*waiters as i64),
                digits(rate),
                digits(bytes),
                digits(memory),
            ]);
            points.push((*waiters as f64, rate));
            if *waiters == 1000 && name == "PostgreSQL" {
                section.goal(
                    "1,000 waiters of one process on one lock, idle, PostgreSQL",
                    "at most 1 statement a second",
                    Some(format!("{} a second", digits(rate))),
                    rate <= 1.0,
                );
            }
        }
        lines.push(Line {
            name: name.to_owned(),
            points,
            marked: true,
        });
    }
    section.table(
        &[
            "",
            "waiters",
            "statements a second",
            "bytes a second",
            "memory, MiB",
        ],
        &rows,
    );
    let plot = Plot {
        title: "Idle waiters of one process on one lock",
        x: Axis {
            label: "waiters",
            log: true,
        },
        y: Axis {
            label: "statements a second",
            log: false,
        },
        lines,
    };
    section.plot(
        "idle.svg",
        "statements a second over idle waiters",
        draw(&plot),
    );
    section
}

pub(crate) fn storm(settings: &Settings, servers: &Servers) -> Section {
    let mut section = Section::default();
    let length = settings.share(0.05);
    section.paragraph(format!(
        "{PROCESSES} processes with {EACH} tasks each, on one lock, for {} s: each task acquires it, holds it for \
         1 ms, releases it, and asks again. A wasted try is a statement that could have granted the lock and did \
         not. Waits in milliseconds; those that were not over at the end count with what they had lasted.",
        digits(length.as_secs_f64())
    ));
    let mut rows = Vec::new();
    for engine in [servers.postgres(), servers.mariadb()]
        .into_iter()
        .flatten()
    {
        let Some(row) = crowd(servers, &engine, length) else {
            continue;
        };
        rows.push(row);
    }
    section.table(
        &[
            "",
            "hand-overs",
            "a second",
            "statements each",
            "wasted tries each",
            "mean wait",
            "p99",
            "longest",
            "longest / mean",
            "fewest and most of a process",
            "tasks never served",
        ],
        &rows,
    );
    section
}

/// How many statements a MariaDB server has carried out that might grant or release.
fn updates(servers: &Servers) -> u64 {
    let server = servers.mariadb.as_ref().expect("it runs");
    let sql = "SELECT SUM(variable_value) FROM information_schema.global_status \
        WHERE variable_name IN ('COM_UPDATE', 'COM_UPDATE_MULTI')";
    let sum = server.query("mysql", sql).unwrap_or_default();
    sum.trim().parse::<f64>().unwrap_or(0.0) as u64
}

fn crowd(servers: &Servers, engine: &Engine, length: Duration) -> Option<Vec<String>> {
    let url = engine.tcp.as_ref()?;
    drop(ours::connected(&floors::runtime(), url));
    let tap = Tap::to(url);
    let args = [EACH.to_string(), length.as_millis().to_string()];
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        workers.push(worker::start(&[
            "storm",
            &tap.url(url),
            "crowd",
            &args[0],
            &args[1],
        ])?);
    }
    let before = (engine.name == "MariaDB").then(|| updates(servers));
    tap.reset();
    workers.iter_mut().for_each(|worker| worker.tell("go"));
    let (mut waits, mut shares, mut never) = (Vec::new(), Vec::new(), 0);
    let mut unserved = Vec::new();
    for worker in &workers {
        let answer: Value = serde_json::from_str(&worker.hear(length)).expect("it answers in JSON");
        let list = |key: &str| -> Vec<f64> {
            let values = answer[key].as_array().into_iter().flatten();
            values.filter_map(Value::as_f64).collect()
        };
        let served = list("waits");
        shares.push(served.len());
        waits.extend(served);
        unserved.extend(list("unserved"));
        never += answer["never"].as_u64().unwrap_or(0);
    }
    let counts = tap.counts();
    say(&format!(
        "storm: {}: {} hand-overs, {counts:?}",
        engine.name,
        waits.len()
    ));
    let grants = waits.len() as f64;
    let tries = match before {
        // Each grant is one and each release another.
        Some(before) => (updates(servers) - before) as f64 - grants,
        None => counts.kinds.get("acquire").copied().unwrap_or(0) as f64,
    };
    waits.extend(unserved);
    let of = spread(&waits)?;
    Some(vec![
        engine.name.to_owned(),
        thousands(grants as i64),
        digits(grants / length.as_secs_f64()),
        digits(counts.statements as f64 / grants),
        digits((tries - grants).max(0.0) / grants),
        digits(of.mean),
        digits(of.p99),
        digits(of.max),
        digits(of.max / of.mean),
        format!("{}–{}", shares.iter().min()?, shares.iter().max()?),
        never.to_string(),
    ])
}
