//! What it costs to hold many locks: a process of its own that does nothing else.

use std::time::Duration;

use serde_json::Value;
use testkit::time;

use crate::report::{Section, digits, thousands};
use crate::servers::Servers;
use crate::svg::{Axis, Line, Plot, draw};
use crate::tap::Tap;
use crate::{Settings, floors, ours, say, worker};

/// How many are renewed in one round while it is watched.
const ROUNDS: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Held {
    connections: u64,
    /// A round.
    statements: f64,
    up: f64,
    down: f64,
    /// In all, and beyond what the process has without any.
    memory: f64,
    cpu_ms: f64,
    lost: u64,
}

pub(crate) fn run(settings: &Settings, servers: &Servers) -> Section {
    let mut section = Section::default();
    section.paragraph(
        "A process that holds so many locks and does nothing else. A round renews all of them, each third \
         of their ttl; statements and bytes as they pass on the wire, processor time of the process.",
    );
    let (mut rows, mut lines) = (Vec::new(), [Vec::new(), Vec::new()]);
    for engine in [servers.postgres(), servers.mariadb()]
        .into_iter()
        .flatten()
    {
        let Some(url) = &engine.tcp else { continue };
        drop(ours::connected(&floors::runtime(), url));
        let mut points = (Vec::new(), Vec::new());
        let mut sizes = vec![1, 100, 10_000];
        if settings.seconds >= 300.0 {
            sizes.push(100_000);
        }
        for locks in sizes {
            let Some(held) = hold(url, locks) else {
                continue;
            };
            say(&format!("held: {}, {locks}: {held:?}", engine.name));
            rows.push(vec![
                engine.name.to_owned(),
                thousands(locks as i64),
                held.connections.to_string(),
                digits(held.statements),
                thousands(held.up.round() as i64),
                thousands(held.down.round() as i64),
                digits(held.cpu_ms),
                digits(held.memory),
                held.lost.to_string(),
            ]);
            points
                .0
                .push((locks as f64, (held.up + held.down) / 1024.0));
            points.1.push((locks as f64, held.cpu_ms));
            if locks == 10_000 {
                let met = held.connections <= 2
                    && held.statements <= 2.0
                    && held.memory <= 64.0
                    && held.lost == 0;
                section.goal(
                    &format!("10,000 locks held by one process, {}", engine.name),
                    "1 connection (2 at most), at most 2 statements a round, 64 MiB in all, none lost",
                    Some(format!(
                        "{} connections, {} statements, {} MiB, {} lost",
                        held.connections,
                        digits(held.statements),
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
            "statements a round",
            "bytes sent a round",
            "bytes received",
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

fn hold(url: &str, locks: u64) -> Option<Held> {
    let tap = Tap::to(url);
    // Long enough for all to be acquired within a third of it, and so renewed together.
    let ttl = match locks {
        0..=100 => Duration::from_secs(3),
        101..=10_000 => Duration::from_secs(6),
        _ => Duration::from_secs(24),
    };
    let rounds = if locks > 10_000 { 1 } else { ROUNDS };
    let mut worker = worker::start(&[
        "hold",
        &tap.url(url),
        &locks.to_string(),
        &ttl.as_millis().to_string(),
    ])?;
    say(&format!("held: {}", worker.what));
    let connections = tap.counts().connections;
    let mut stat =
        || -> Value { serde_json::from_str(&worker.ask("stat")).expect("it answers in JSON") };
    // The rounds of what was acquired over a while fall together.
    time::sleep(ttl / 3 + ttl / 6);
    tap.reset();
    let before = stat();
    time::sleep(ttl / 3 * rounds);
    let (after, counts) = (stat(), tap.counts());
    let number = |stat: &Value, key: &str| stat[key].as_f64().unwrap_or(f64::NAN);
    let rounds = f64::from(rounds);
    Some(Held {
        connections: connections + counts.connections,
        statements: counts.statements as f64 / rounds,
        up: counts.up as f64 / rounds,
        down: counts.down as f64 / rounds,
        memory: number(&after, "memory_kib") / 1024.0,
        cpu_ms: (number(&after, "cpu_s") - number(&before, "cpu_s")) * 1e3 / rounds,
        lost: number(&after, "lost") as u64,
    })
}
