//! A crowd that takes turns on one lock.

use std::time::Duration;

use serde_json::Value;
use testkit::MySqlServer;

use crate::report::{Section, digits, thousands};
use crate::servers::{Engine, Servers};
use crate::settings::Settings;
use crate::stats::spread;
use crate::svg::{Axis, Line, Plot, draw};
use crate::tap::Tap;
use crate::{floors, ours, say, worker};

const PROCESSES: [usize; 4] = [1, 5, 10, 20];
/// How many tasks each process has.
const EACH: usize = 50;

/// What a crowd made of its time.
#[derive(Debug)]
struct Crowd {
    grants: f64,
    /// A second.
    rate: f64,
    /// For each hand-over; of a file nothing passes.
    statements: Option<f64>,
    wasted: Option<f64>,
    /// In milliseconds, those that were not over at the end included.
    waits: Vec<f64>,
    /// Hand-overs of each process.
    shares: Vec<usize>,
    /// Tasks that never had it.
    never: u64,
}

pub(crate) fn run(_: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut section = Section::default();
    let engines = servers.engines();
    // The most of them has twice the time of each other, and all of them start their processes first.
    let shares = engines.len() * (PROCESSES.len() + 1);
    let slice = length.mul_f64(0.85).div_f64(shares as f64);
    section.paragraph(format!(
        "Processes with {EACH} tasks each, all on one lock, for {} s, or twice that where there are most of them: \
         each task acquires it, holds it for 1 ms, releases it, and asks again. A wasted try is a statement that \
         could have granted the lock and did not. Waits in milliseconds; those that were not over at the end \
         count with what they had lasted. Who waits longer than a run is long is a task never served in it. \
         What a file is asked passes nowhere.",
        digits(slice.as_secs_f64())
    ));
    let (mut rows, mut rates, mut wasted) = (Vec::new(), Vec::new(), Vec::new());
    for engine in &engines {
        let mut points = (Vec::new(), Vec::new());
        for processes in PROCESSES {
            let most = Some(&processes) == PROCESSES.last();
            let slice = if most { slice * 2 } else { slice };
            let Some(crowd) = crowd(servers, engine, processes, slice) else {
                continue;
            };
            points.0.push((processes as f64, crowd.rate));
            points
                .1
                .extend(crowd.wasted.map(|wasted| (processes as f64, wasted)));
            rows.extend(row(engine, processes, &crowd));
        }
        let line = |points: Vec<_>| Line {
            name: engine.name.to_owned(),
            points,
            marked: true,
        };
        rates.push(line(points.0));
        if !points.1.is_empty() {
            wasted.push(line(points.1));
        }
    }
    section.table(
        &[
            "",
            "processes",
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
    let plot = |title, label, lines| Plot {
        title,
        x: Axis {
            label: "processes with 50 tasks each",
            log: false,
        },
        y: Axis { label, log: false },
        lines,
    };
    section.plot(
        "storm.svg",
        "hand-overs a second over the number of processes",
        draw(&plot("A crowd on one lock", "hand-overs a second", rates)),
    );
    section.plot(
        "storm-wasted.svg",
        "tries in vain for a hand-over over the number of processes",
        draw(&plot(
            "A crowd on one lock: tries in vain",
            "for each hand-over",
            wasted,
        )),
    );
    section
}

fn row(engine: &Engine, processes: usize, crowd: &Crowd) -> Option<Vec<String>> {
    let of = spread(&crowd.waits)?;
    let or_none = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
    Some(vec![
        engine.name.to_owned(),
        processes.to_string(),
        thousands(crowd.grants as i64),
        digits(crowd.rate),
        or_none(crowd.statements),
        or_none(crowd.wasted),
        digits(of.mean),
        digits(of.p99),
        digits(of.max),
        digits(of.max / of.mean),
        format!(
            "{}–{}",
            crowd.shares.iter().min()?,
            crowd.shares.iter().max()?
        ),
        crowd.never.to_string(),
    ])
}

/// How many statements a server of MariaDB or MySQL has carried out that might grant or release.
fn updates(server: &MySqlServer) -> u64 {
    // MySQL has these counters in no table.
    let sql = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_update', 'Com_update_multi')";
    let answer = server.query("mysql", sql).expect("a running server counts");
    let counts = answer.lines().filter_map(|line| line.split_once('\t'));
    counts
        .map(|(_, count)| count.trim().parse::<u64>().expect("a count"))
        .sum()
}

fn crowd(servers: &Servers, engine: &Engine, processes: usize, length: Duration) -> Option<Crowd> {
    let url = engine.tcp.as_ref().unwrap_or(&engine.url);
    drop(ours::connected(&floors::runtime(), url));
    let tap = engine.tcp.as_ref().map(|url| Tap::to(url));
    let through = tap.as_ref().map_or_else(|| url.clone(), |tap| tap.url(url));
    let (name, each, ms) = (
        format!("crowd of {processes}"),
        EACH.to_string(),
        length.as_millis().to_string(),
    );
    let mut workers = Vec::new();
    for _ in 0..processes {
        workers.push(worker::start(&["storm", &through, &name, &each, &ms])?);
    }
    let counting = servers.speaking_mysql(engine);
    let before = counting.map(|server| (server, updates(server)));
    if let Some(tap) = &tap {
        tap.reset();
    }
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
    let counts = tap.map(|tap| tap.counts());
    let grants = waits.len() as f64;
    say(&format!(
        "storm: {}, {processes}: {grants} hand-overs, {:?}",
        engine.name,
        counts.as_ref().map(|counts| &counts.kinds)
    ));
    let tries = counts.as_ref().map(|counts| match before {
        // Each grant is one and each release another.
        Some((server, before)) => (updates(server) - before) as f64 - grants,
        None => counts.kinds.get("acquire").copied().unwrap_or(0) as f64,
    });
    waits.extend(unserved);
    Some(Crowd {
        grants,
        rate: grants / length.as_secs_f64(),
        statements: counts.map(|counts| counts.statements as f64 / grants),
        wasted: tries.map(|tries| (tries - grants).max(0.0) / grants),
        waits,
        shares,
        never,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::{MariaDb, MySql};

    #[test]
    fn updates_are_counted_on_mariadb_and_mysql_prepared_or_not() {
        for server in [MariaDb::shared(), MySql::shared()].into_iter().flatten() {
            let database = server.fresh_database();
            let before = updates(server);
            let sql = "CREATE TABLE one (id int); PREPARE it FROM 'UPDATE one SET id = 1'; \
                EXECUTE it; EXECUTE it; UPDATE one SET id = 2; \
                UPDATE one JOIN (SELECT 3 AS id) two SET one.id = two.id";
            server.query(&database, sql).expect("updates");
            assert_eq!(updates(server) - before, 4, "{:?}", server.flavor());
        }
    }
}
