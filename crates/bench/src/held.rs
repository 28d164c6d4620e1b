//! What it costs to hold many locks: a process of its own that does nothing else.

use std::time::Duration;

use serde_json::Value;
use testkit::time;

use crate::report::{Section, digits, thousands};
use crate::servers::Servers;
use crate::settings::Settings;
use crate::svg::{Axis, Line, Plot, draw};
use crate::tap::Tap;
use crate::{floors, ours, say, worker};

/// How many rounds are watched of what is renewed each second.
const ROUNDS: u32 = 3;

/// Where the part has less time than this, it leaves out what takes longest.
const TIME_FOR_MOST: Duration = Duration::from_secs(60);

/// What it costs to hold so many locks. Of a file, nothing passes on a wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    connections: Option<u64>,
    /// A round.
    pub(crate) wire: Option<Wire>,
    /// Of the process.
    memory: f64,
    pub(crate) cpu_ms: f64,
    pub(crate) lost: u64,
    /// Until all were held, in milliseconds.
    acquired: f64,
}

/// What passes in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) statements: f64,
    up: f64,
    down: f64,
    /// From the statement to the end of its answer, in milliseconds.
    pub(crate) answered: f64,
}

pub(crate) fn run(_: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut section = Section::default();
    let mut sizes = vec![1, 100, 10_000];
    if length >= TIME_FOR_MOST {
        sizes.push(100_000);
    }
    section.paragraph(
        "A process that holds so many locks, each acquired by a task of its own, 2,000 at a time, and does \
         nothing else. A round renews all of them, each third of their ttl; statements and bytes as they pass \
         on the wire, how long the server takes to answer them, and the processor time of the process. To a \
         file nothing passes.",
    );
    let (mut rows, mut lines) = (Vec::new(), [Vec::new(), Vec::new()]);
    for engine in servers.engines() {
        let url = engine.tcp.as_ref().unwrap_or(&engine.url);
        drop(ours::connected(&floors::runtime(), url));
        let mut points = (Vec::new(), Vec::new());
        for locks in sizes.iter().copied() {
            let Some(held) = hold(url, locks, engine.tcp.is_some()) else {
                continue;
            };
            say(&format!("held: {}, {locks}: {held:?}", engine.name));
            let wire = |shown: fn(&Wire) -> String| {
                held.wire.as_ref().map_or_else(|| "–".to_owned(), shown)
            };
            rows.push(vec![
                engine.name.to_owned(),
                thousands(locks as i64),
                held.connections
                    .map_or_else(|| "–".to_owned(), |count| count.to_string()),
                digits(held.acquired),
                wire(|wire| digits(wire.statements)),
                wire(|wire| thousands(wire.up.round() as i64)),
                wire(|wire| thousands(wire.down.round() as i64)),
                wire(|wire| digits(wire.answered)),
                digits(held.cpu_ms),
                digits(held.memory),
                held.lost.to_string(),
            ]);
            if let Some(wire) = held.wire {
                points
                    .0
                    .push((locks as f64, (wire.up + wire.down) / 1024.0));
            }
            points.1.push((locks as f64, held.cpu_ms));
            if let (10_000, Some(connections), Some(wire)) = (locks, held.connections, held.wire) {
                let met = connections <= 2
                    && wire.statements <= 2.0
                    && held.memory <= 64.0
                    && held.lost == 0;
                section.goal(
                    &format!("10,000 locks held by one process, {}", engine.name),
                    "1 connection (2 at most), at most 2 statements a round, 64 MiB in all, none lost",
                    Some(format!(
                        "{connections} connection{}, {} statements, {} MiB, {} lost",
                        if connections == 1 { "" } else { "s" },
                        digits(wire.statements),
                        digits(held.memory),
                        held.lost
                    )),
                    met,
                );
            }
        }
        for (line, (what, points)) in lines
            .iter_mut()
            .zip([("KiB", points.0), ("ms of processor", points.1)])
        {
            if points.is_empty() {
                continue;
            }
            line.push(Line {
                name: format!("{}, {what}", engine.name),
                points,
                marked: true,
            });
        }
    }
    section.table(
        &[
            "",
            "locks",
            "connections",
            "ms until all were held",
            "statements a round",
            "bytes sent a round",
            "bytes received",
            "answered within, ms a round",
            "processor, ms a round",
            "memory of the process, MiB",
            "lost",
        ],
        &rows,
    );
    let plot = Plot {
        title: "One round of renewals over the locks held",
        x: Axis {
            label: "locks held by one process",
            log: true,
        },
        y: Axis {
            label: "a round",
            log: true,
        },
        lines: lines.into_iter().flatten().collect(),
    };
    section.plot(
        "held.svg",
        "bytes and processor time of a renewal round over locks held",
        draw(&plot),
    );
    section
}

/// Hold so many in a process of its own; what passes is counted where there is a wire.
pub(crate) fn hold(url: &str, locks: u64, wire: bool) -> Option<Held> {
    let tap = wire.then(|| Tap::to(url));
    let through = tap
        .as_ref()
        .map_or_else(|| url.to_owned(), |tap| tap.url(url));
    // Long enough for all to be acquired within a third of it, and so renewed together.
    let (ttl, rounds) = match locks {
        0..=100 => (Duration::from_secs(3), ROUNDS),
        101..=10_000 => (Duration::from_secs(6), 2),
        _ => (Duration::from_secs(24), 1),
    };
    let mut worker = worker::start(&[
        "hold",
        &through,
        &locks.to_string(),
        &ttl.as_millis().to_string(),
    ])?;
    let acquired = worker.what.parse().unwrap_or(f64::NAN);
    let connections = tap.as_ref().map(|tap| tap.counts().connections);
    let mut stat =
        || -> Value { serde_json::from_str(&worker.ask("stat")).expect("it answers in JSON") };
    // The rounds of what was acquired over a while fall together, at the second one at the latest.
    let settled = if locks > 10_000 { 5 } else { 3 };
    time::sleep(ttl / 6 * settled);
    if let Some(tap) = &tap {
        tap.reset();
    }
    let before = stat();
    time::sleep(ttl / 3 * rounds);
    let (after, counts) = (stat(), tap.map(|tap| tap.counts()));
    let number = |stat: &Value, key: &str| stat[key].as_f64().unwrap_or(f64::NAN);
    let rounds = f64::from(rounds);
    Some(Held {
        connections: connections
            .zip(counts.as_ref())
            .map(|(before, counts)| before + counts.connections),
        wire: counts.map(|counts| Wire {
            statements: counts.statements as f64 / rounds,
            up: counts.up as f64 / rounds,
            down: counts.down as f64 / rounds,
            answered: counts.waited.as_secs_f64() * 1e3 / rounds,
        }),
        memory: number(&after, "memory_kib") / 1024.0,
        cpu_ms: (number(&after, "cpu_s") - number(&before, "cpu_s")) * 1e3 / rounds,
        lost: number(&after, "lost") as u64,
        acquired,
    })
}
