//! Processes and tasks that contend for one lock: how they share it, and what that costs.

use std::time::Duration;

use serde_json::Value;

use crate::drive::current_thread;
use crate::report::{Section, digits};
use crate::results::Results;
use crate::servers::{Engine, Servers};
use crate::stats::spread;
use crate::subject;
use crate::wire_counter::WireCounter;
use crate::worker;

/// Processes, tasks of each, and how long each grant is held in µs.
const CONTENDERS: [(usize, usize, u32); 3] = [(3, 1, 0), (1, 50, 1_000), (10, 50, 1_000)];

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let mut section = Section::default();
    let engines = servers.engines();
    let slice = length
        .mul_f64(0.9)
        .div_f64((engines.len() * CONTENDERS.len()) as f64);
    section.paragraph(format!(
        "For {} s all tasks of all processes share one lock: each task acquires it, holds it, releases it and \
         asks again. *Statements each* is the number of statements for one grant; the least is 2, for an acquire \
         and a release. Waits are in milliseconds.",
        digits(slice.as_secs_f64())
    ));
    let mut rows = Vec::new();
    for engine in &engines {
        for contenders in CONTENDERS {
            rows.extend(row(engine, contenders, slice));
        }
    }
    let head = [
        "",
        "processes × tasks",
        "held",
        "grants a second",
        "statements each",
        "wait: p50",
        "p99",
        "longest",
        "grants of each process",
        "tasks never served",
    ];
    section.table(&head, &rows);
    section
}

fn row(
    engine: &Engine,
    (processes, tasks, hold): (usize, usize, u32),
    length: Duration,
) -> Option<Vec<String>> {
    let url = engine.tcp.as_ref().unwrap_or(&engine.url);
    drop(subject::connected(&current_thread(), url));
    let counter = engine.tcp.as_ref().map(|url| WireCounter::to(url));
    let through = counter
        .as_ref()
        .map_or_else(|| url.clone(), |counter| counter.url(url));
    let name = format!("{processes} of {tasks}");
    let (each, held) = (tasks.to_string(), hold.to_string());
    let ms = length.as_millis().to_string();
    let mut workers = Vec::new();
    for _ in 0..processes {
        workers.push(worker::start(&[
            "contend", &through, &name, &each, &held, &ms,
        ])?);
    }
    let statements = || counter.as_ref().map(WireCounter::statements);
    let before = statements();
    workers.iter_mut().for_each(|worker| worker.send("go"));
    let (mut waits, mut shares, mut never) = (Vec::new(), Vec::new(), 0);
    for worker in &workers {
        let answer: Value =
            serde_json::from_str(&worker.receive(length)).expect("it answers in JSON");
        let served = answer["waits"].as_array().into_iter().flatten();
        let served: Vec<f64> = served.filter_map(Value::as_f64).collect();
        shares.push(served.len());
        waits.extend(served);
        never += answer["never"].as_u64().unwrap_or(0);
    }
    let statements = statements()
        .zip(before)
        .map(|(now, then)| (now - then) as f64);
    let of = spread(&waits)?;
    let grants = of.count as f64;
    shares.sort_unstable();
    let shares = match shares[..] {
        [fewest, .., most] if shares.len() > 3 => format!("{fewest} to {most}"),
        _ => shares
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    Some(vec![
        engine.name.to_owned(),
        format!("{processes} × {tasks}"),
        format!("{} ms", hold / 1000),
        digits(grants / length.as_secs_f64()),
        statements.map_or_else(|| "–".to_owned(), |count| digits(count / grants)),
        digits(of.p50),
        digits(of.p99),
        digits(of.max),
        shares,
        never.to_string(),
    ])
}
