//! An uncontended lock: acquire, release, both; each row beside what it is compared with.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::report::{Section, digits};
use crate::rows::{self, Row};
use crate::servers::Servers;
use crate::stats::{median, ratio, spread};
use crate::taker::{Taker, Times};
use crate::{Results, say};

/// How often each row comes; less often where there is less time than this.
const ROUNDS: usize = 20;
const TIME_FOR_ALL: Duration = Duration::from_secs(60);

/// What was measured of one row: all rounds together, and the median of each.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) all: Times,
    acquire: Vec<f64>,
    cycle: Vec<f64>,
}

pub(crate) fn run(servers: &Servers, length: Duration, results: &mut Results) -> Section {
    let mut groups: BTreeMap<String, Vec<(Row, Taker)>> = BTreeMap::new();
    let mut order = Vec::new();
    for row in rows::all(servers) {
        let Some(mut taker) = row.start(&row.key) else {
            continue;
        };
        // Connections, caches, plans; a virtual machine compiles what it does often.
        let warm_up = if row.server == "zookeeper" {
            2_000
        } else {
            100
        };
        taker.cycles(Duration::from_millis(warm_up));
        order.push(row.key.clone());
        groups
            .entry(row.group().to_owned())
            .or_default()
            .push((row, taker));
    }
    let rounds = if length < TIME_FOR_ALL { 5 } else { ROUNDS };
    let slice = length.div_f64((rounds * order.len()) as f64);
    say(&format!(
        "cycle: {} rows, {rounds} rounds of {} ms each",
        order.len(),
        slice.as_millis()
    ));
    let mut groups: Vec<_> = groups.into_values().collect();
    let measured = &mut results.cycles;
    for _ in 0..rounds {
        fastrand::shuffle(&mut groups);
        for group in &mut groups {
            fastrand::shuffle(group);
            let mut times = vec![Times::default(); group.len()];
            // There and back: what changes meanwhile changes for all of a group.
            for at in (0..group.len()).chain((0..group.len()).rev()) {
                times[at].extend(group[at].1.cycles(slice / 2));
            }
            for ((row, taker), times) in group.iter().zip(times) {
                let entry = measured.entry(row.key.clone()).or_default();
                entry.name.clone_from(&row.name);
                entry.what.clone_from(&taker.what);
                entry
                    .acquire
                    .push(median(&times.acquire).unwrap_or(f64::NAN));
                entry
                    .cycle
                    .push(median(&times.cycles()).unwrap_or(f64::NAN));
                entry.all.extend(times);
            }
        }
    }
    let mut section = Section::default();
    section.paragraph(format!(
        "Milliseconds: the median, and in brackets the 10th and 90th percentile, of all cycles of {rounds} \
         rounds; in each round every row came twice for {} ms, in random order, before and after its two bare \
         commits. The ratios are medians over the rounds: an acquire beside one bare commit, a cycle \
         beside two.",
        (slice / 2).as_millis()
    ));
    let rows: Vec<_> = order
        .iter()
        .filter_map(|key| Some(shown(measured.get(key)?, baseline(measured, key))))
        .collect();
    let head = [
        "",
        "acquire",
        "release",
        "cycle",
        "acquire, × one commit",
        "cycle, × two",
    ];
    section.table(&head, &rows);
    goals(&mut section, measured);
    section
}

/// What a row of this library is compared with.
fn baseline<'a>(measured: &'a BTreeMap<String, Measured>, key: &str) -> Option<&'a Measured> {
    let mut parts = key.split('/');
    let (engine, runtime) = (parts.next()?, parts.next()?);
    let runtime = if engine == "sqlite" && runtime != "python" {
        "blocking"
    } else {
        runtime
    };
    measured.get(&format!("{engine}/{runtime}/baseline"))
}

/// The median, with the percentiles around it.
pub(crate) fn around(values: &[f64]) -> String {
    spread(values).map_or(String::new(), |of| {
        format!("{} ({}–{})", digits(of.p50), digits(of.p10), digits(of.p90))
    })
}

fn shown(row: &Measured, baseline: Option<&Measured>) -> Vec<String> {
    let beside = |of: fn(&Measured) -> &Vec<f64>| {
        baseline
            .and_then(|baseline| ratio(of(row), of(baseline)))
            .map_or(String::new(), digits)
    };
    vec![
        row.name.clone(),
        around(&row.all.acquire),
        around(&row.all.release),
        around(&row.all.cycles()),
        beside(|row| &row.acquire),
        beside(|row| &row.cycle),
    ]
}

fn goals(section: &mut Section, measured: &BTreeMap<String, Measured>) {
    let of = |key: &str| measured.get(key);
    let acquire = |one: &str, other: &str| ratio(&of(one)?.acquire, &of(other)?.acquire);
    let cycle = |one: &str, other: &str| ratio(&of(one)?.cycle, &of(other)?.cycle);
    let runtimes = ["current", "multi", "blocking"];
    let beside = |engine: &str, compare: &dyn Fn(&str, &str) -> Option<f64>| {
        let each = runtimes.map(|runtime| {
            let key = format!("{engine}/{runtime}");
            compare(&key, &format!("{key}/baseline"))
        });
        each.into_iter().collect::<Option<Vec<f64>>>()
    };
    let mut at_most = |what: &str, most: f64, unit: &str, reached: Option<Vec<f64>>| {
        let met = reached.iter().flatten().all(|reached| *reached <= most);
        let shown = reached.map(|each| each.into_iter().map(digits).collect::<Vec<_>>().join(", "));
        section.goal(what, &format!("at most {most} {unit}"), shown, met);
    };
    let each = "(`current_thread`, `multi_thread`, blocking)";
    let engines = [
        ("PostgreSQL", "postgres"),
        ("MariaDB", "mariadb"),
        ("MySQL", "mysql"),
    ];
    // What a machine does not have is no goal there.
    let engines = engines
        .into_iter()
        .filter(|(_, key)| of(&format!("{key}/multi/baseline")).is_some());
    for (name, key) in engines.clone() {
        let what = format!("uncontended acquire, {name} {each}");
        at_most(
            &what,
            1.3,
            "× one bare `UPDATE` commit",
            beside(key, &acquire),
        );
    }
    let two = "× two bare `UPDATE` commits";
    at_most(
        &format!("acquire + release, PostgreSQL {each}"),
        1.0,
        two,
        beside("postgres", &cycle),
    );
    let sqlite = cycle("sqlite/blocking", "sqlite/blocking/baseline");
    at_most(
        "acquire + release, SQLite, blocking",
        1.15,
        two,
        sqlite.map(|ratio| vec![ratio]),
    );
    let redis = cycle("postgres/python", "redis-always/python");
    let unit = "× redis-py on `appendfsync always`";
    at_most(
        "acquire + release, PostgreSQL, from Python",
        1.0,
        unit,
        redis.map(|ratio| vec![ratio]),
    );
    for (name, key) in engines {
        let more = cycle(&format!("{key}/multi"), &format!("{key}/multi/off"));
        let more = more.map(|ratio| vec![(ratio - 1.0) * 100.0]);
        at_most(
            &format!("auto-renew on rather than off, {name}"),
            5.0,
            "% more",
            more,
        );
    }
    for (key, name, least) in [
        ("etcd", "etcd with a lease of its own", 8.0),
        ("zookeeper", "ZooKeeper", 5.0),
        (
            "redis-always",
            "Redis with `appendfsync always`, rslock",
            1.2,
        ),
    ] {
        if of(key).is_none() {
            continue;
        }
        let reached = cycle(key, "postgres/multi");
        section.goal(
            &format!("acquire + release, PostgreSQL, beside {name}"),
            &format!("at least {least} × faster"),
            reached.map(|reached| format!("{} ×", digits(reached))),
            reached.is_some_and(|reached| reached >= least),
        );
    }
}
