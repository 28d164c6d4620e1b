//! Waiters that nobody serves.

use std::time::Duration;

use testkit::time;

use crate::report::{Section, digits, thousands};
use crate::servers::Servers;
use crate::settings::Settings;
use crate::svg::{Axis, Line, Plot, draw};
use crate::tap::Tap;
use crate::{floors, machine, ours, worker};

const WAITERS: [u64; 3] = [1, 100, 1000];

pub(crate) fn idle(_: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut section = Section::default();
    section.paragraph(format!(
        "What one process costs whose tasks all wait for one lock that somebody else holds, over {} s, when they \
         had been waiting for some seconds. What a file is asked passes nowhere; the processor time tells it.",
        digits(length.as_secs_f64())
    ));
    let engines = servers.engines();
    let mut watched = Vec::new();
    let mut holders = Vec::new();
    for engine in &engines {
        let url = engine.tcp.as_ref().unwrap_or(&engine.url);
        let runtime = floors::runtime();
        let locks = ours::connected(&runtime, url);
        for waiters in WAITERS {
            let name = format!("idle {waiters}");
            let lock = locks.lock(&name);
            holders.push(runtime.block_on(lock.acquire()).expect("acquires"));
            let tap = engine.tcp.as_ref().map(|url| Tap::to(url));
            let through = tap.as_ref().map_or_else(|| url.clone(), |tap| tap.url(url));
            let worker = worker::start(&["idle", &through, &name, &waiters.to_string()]);
            watched.extend(worker.map(|worker| (engine.name, waiters, tap, worker)));
        }
    }
    time::sleep(Duration::from_secs(4));
    let mut before = Vec::new();
    for (_, _, tap, worker) in &watched {
        if let Some(tap) = tap {
            tap.reset();
        }
        before.push((time::now(), machine::cpu_seconds(worker.pid())));
    }
    time::sleep(length);
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for engine in &engines {
        let mut points = Vec::new();
        for ((name, waiters, tap, worker), (began, cpu)) in watched.iter().zip(&before) {
            if *name != engine.name {
                continue;
            }
            let a_second = |amount: f64| amount / began.elapsed().as_secs_f64();
            let counts = tap.as_ref().map(Tap::counts);
            let rate = counts
                .as_ref()
                .map(|counts| a_second(counts.statements as f64));
            let bytes = counts
                .as_ref()
                .map(|counts| a_second((counts.up + counts.down) as f64));
            let or_none = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
            rows.push(vec![
                engine.name.to_owned(),
                thousands(*waiters as i64),
                or_none(rate),
                or_none(bytes),
                digits(a_second(machine::cpu_seconds(worker.pid()) - cpu) * 1e3),
                digits(machine::memory_kib(worker.pid()) as f64 / 1024.0),
            ]);
            let Some(rate) = rate else { continue };
            points.push((*waiters as f64, rate));
            if *waiters == 1000 && engine.name == "PostgreSQL" {
                section.goal(
                    "1,000 waiters of one process on one lock, idle, PostgreSQL",
                    "at most 1 statement a second",
                    Some(format!("{} a second", digits(rate))),
                    rate <= 1.0,
                );
            }
        }
        if !points.is_empty() {
            lines.push(Line {
                name: engine.name.to_owned(),
                points,
                marked: true,
            });
        }
    }
    section.table(
        &[
            "",
            "waiters",
            "statements a second",
            "bytes a second",
            "processor, ms a second",
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
