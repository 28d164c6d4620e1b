//! The cost of a process that holds many locks, or whose tasks wait for one.

use std::time::Duration;

use serde_json::Value;
use testkit::time;

use crate::console::progress;
use crate::drive::current_thread;
use crate::report::{Section, digits, thousands};
use crate::results::Results;
use crate::servers::Servers;
use crate::svg::{Axis, Line, Plot, draw};
use crate::wire_counter::WireCounter;
use crate::worker;
use crate::{proc, subject};

const SIZES: [u64; 4] = [100, 1_000, 10_000, 100_000];

/// A part with less time than this leaves out the largest size.
const TIME_FOR_MOST: Duration = Duration::from_secs(60);

/// The cost of holding so many locks. SQLite has no connections to count.
#[derive(Clone, Copy, Debug)]
struct Held {
    connections: Option<u64>,
    /// Per round of renewals.
    statements: Option<f64>,
    /// Of the process, in MiB.
    memory: f64,
    cpu_ms: f64,
    lost: u64,
    /// Milliseconds until all were held.
    acquired: f64,
}

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let mut section = Section::default();
    section.paragraph(
        "One process holds all the locks of a row and does nothing else. It acquired each in a task of its own, \
         2,000 at a time. A round renews all of them, every third of their ttl. SQLite is a file: it has no \
         connections to count and no statements on the wire.",
    );
    let (mut rows, mut lines, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for engine in servers.engines() {
        let url = engine.tcp.as_ref().unwrap_or(&engine.url);
        drop(subject::connected(&current_thread(), url));
        let mut points = Vec::new();
        for locks in SIZES {
            if locks == 100_000 && length < TIME_FOR_MOST {
                continue;
            }
            let held = hold(url, locks, engine.tcp.is_some());
            all.push((engine.name, locks, held));
            let Some(held) = held else { continue };
            progress(&format!("held: {}, {locks}: {held:?}", engine.name));
            let or_none = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
            rows.push(vec![
                engine.name.to_owned(),
                thousands(locks as i64),
                or_none(held.connections.map(|count| count as f64)),
                digits(held.acquired),
                or_none(held.statements),
                digits(held.cpu_ms),
                digits(held.memory),
                held.lost.to_string(),
            ]);
            points.push((locks as f64, held.cpu_ms));
        }
        lines.push(Line {
            name: engine.name.to_owned(),
            points,
        });
    }
    let head = [
        "",
        "locks",
        "connections",
        "ms until all were held",
        "statements a round",
        "processor, ms a round",
        "memory, MiB",
        "lost",
    ];
    section.table(&head, &rows);
    let plot = Plot {
        title: "One round of renewals, over the locks that one process holds",
        x: Axis {
            label: "locks held",
            log: true,
        },
        y: Axis {
            label: "processor time of the client, ms",
            log: true,
        },
        lines,
    };
    section.plot("held.svg", draw(&plot));
    goals(&mut section, &all);
    section
}

fn goals(section: &mut Section, all: &[(&str, u64, Option<Held>)]) {
    for (name, locks, held) in all {
        let what = format!(
            "{} locks held by one process, {name}",
            thousands(*locks as i64)
        );
        let lost = held.map(|held| format!("{} lost", held.lost));
        let none_lost = held.is_some_and(|held| held.lost == 0);
        match locks {
            10_000 if *name != "SQLite" => {
                let few = |held: &Held| {
                    let (connections, statements) = (held.connections?, held.statements?);
                    let met = connections <= 2 && statements <= 2.0 && held.memory <= 64.0;
                    let statements = digits(statements);
                    let shown = format!("{connections}, {statements}, {} MiB", digits(held.memory));
                    Some((shown, met))
                };
                let few = held.as_ref().and_then(few);
                section.goal(
                    &what,
                    "at most 2 connections, 2 statements a round and 64 MiB in all; none lost",
                    few.clone()
                        .zip(lost)
                        .map(|((shown, _), lost)| format!("{shown}, {lost}")),
                    none_lost && few.is_some_and(|(_, met)| met),
                );
            }
            100_000 => section.goal(&what, "none lost", lost, none_lost),
            _ => {}
        }
    }
}

/// Holds so many locks in a process of its own; with a server, counts the statements too.
fn hold(url: &str, locks: u64, wire: bool) -> Option<Held> {
    let counter = wire.then(|| WireCounter::to(url));
    let through = counter
        .as_ref()
        .map_or_else(|| url.to_owned(), |counter| counter.url(url));
    // All locks are acquired within a third of the ttl, and so renewed in one round.
    let (ttl, rounds) = match locks {
        0..=1_000 => (Duration::from_secs(3), 3),
        1_001..=10_000 => (Duration::from_secs(6), 2),
        _ => (Duration::from_secs(24), 1),
    };
    let ms = ttl.as_millis().to_string();
    let mut worker = worker::start(&["hold", &through, &locks.to_string(), &ms])?;
    let acquired = worker.description.parse().unwrap_or(f64::NAN);
    let mut stat =
        || -> Value { serde_json::from_str(&worker.request("stat")).expect("it answers in JSON") };
    // Locks that were acquired over a while share a round from the second renewal on, at the
    // latest.
    let settled = if locks > 10_000 { 5 } else { 3 };
    time::sleep(ttl / 6 * settled);
    let statements = || counter.as_ref().map(WireCounter::statements);
    let (before, sent) = (stat(), statements());
    time::sleep(ttl / 3 * rounds);
    let (after, rounds) = (stat(), f64::from(rounds));
    let number = |stat: &Value, key: &str| stat[key].as_f64().unwrap_or(f64::NAN);
    Some(Held {
        connections: counter.as_ref().map(WireCounter::connections),
        statements: statements()
            .zip(sent)
            .map(|(now, then)| (now - then) as f64 / rounds),
        memory: number(&after, "memory_kib") / 1024.0,
        cpu_ms: (number(&after, "cpu_s") - number(&before, "cpu_s")) * 1e3 / rounds,
        lost: number(&after, "lost") as u64,
        acquired,
    })
}

/// A thousand tasks of one process that wait for a lock that another process holds.
pub(crate) fn idle(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let mut section = Section::default();
    let runtime = current_thread();
    let (mut watched, mut holders) = (Vec::new(), Vec::new());
    for engine in servers.engines() {
        let url = engine.tcp.as_ref().unwrap_or(&engine.url);
        let lock = subject::connected(&runtime, url).lock("idle");
        holders.push(runtime.block_on(lock.acquire()).expect("acquires"));
        let counter = engine.tcp.as_ref().map(|url| WireCounter::to(url));
        let through = counter
            .as_ref()
            .map_or_else(|| url.clone(), |counter| counter.url(url));
        let worker = worker::start(&["idle", &through, "idle", "1000"]);
        watched.extend(worker.map(|worker| (engine.name, counter, worker)));
    }
    time::sleep(Duration::from_secs(4));
    let statements = |counter: &Option<WireCounter>| counter.as_ref().map(WireCounter::statements);
    let before: Vec<_> = watched
        .iter()
        .map(|(_, counter, worker)| (statements(counter), proc::cpu_seconds(worker.pid())))
        .collect();
    time::sleep(length);
    let seconds = length.as_secs_f64();
    section.paragraph(format!(
        "A thousand tasks of one process wait for one lock. The measurement begins when they have waited for \
         some seconds, and lasts {seconds:.0} s."
    ));
    let mut rows = Vec::new();
    for ((name, counter, worker), (sent, cpu)) in watched.iter().zip(&before) {
        let rate = statements(counter)
            .zip(*sent)
            .map(|(now, then)| (now - then) as f64 / seconds);
        rows.push(vec![
            (*name).to_owned(),
            rate.map_or_else(|| "–".to_owned(), digits),
            digits((proc::cpu_seconds(worker.pid()) - cpu) / seconds * 1e3),
            digits(proc::memory_kib(worker.pid()) as f64 / 1024.0),
        ]);
        if let ("PostgreSQL", Some(rate)) = (*name, rate) {
            section.goal(
                "1,000 waiters of one process on one lock, idle, PostgreSQL",
                "at most 1 statement a second",
                Some(format!("{} a second", digits(rate))),
                rate <= 1.0,
            );
        }
    }
    let head = [
        "",
        "statements a second",
        "processor, ms a second",
        "memory, MiB",
    ];
    section.table(&head, &rows);
    section
}
