//! Acquire and release of an uncontended lock; each case beside its baseline.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cases::{self, Case};
use crate::child::{Child, Times};
use crate::console::progress;
use crate::report::{Section, digits, median_with_range};
use crate::results::{Measured, Results};
use crate::servers::Servers;
use crate::stats::{median, ratio};

/// The rounds of a run; a part that has less time has fewer.
const ROUNDS: usize = 20;
const TIME_FOR_ALL: Duration = Duration::from_secs(60);

pub(crate) fn run(servers: &Servers, length: Duration, results: &mut Results) -> Section {
    let mut groups: BTreeMap<String, Vec<(Case, Child)>> = BTreeMap::new();
    let mut order = Vec::new();
    for case in cases::all(servers) {
        let Some(mut child) = case.start(&case.key) else {
            continue;
        };
        // Fills connections, caches and plans; a virtual machine compiles its hot code.
        let warm_up = if case.server == "zookeeper" {
            2_000
        } else {
            100
        };
        child.cycles(Duration::from_millis(warm_up));
        order.push(case.key.clone());
        groups
            .entry(case.group().to_owned())
            .or_default()
            .push((case, child));
    }
    let rounds = if length < TIME_FOR_ALL { 5 } else { ROUNDS };
    let slice = length.div_f64((rounds * order.len()) as f64);
    progress(&format!(
        "cycle: {} cases, {rounds} rounds of {} ms each",
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
            // There and back: a drift of the machine meets all cases of a group alike.
            for at in (0..group.len()).chain((0..group.len()).rev()) {
                times[at].extend(group[at].1.cycles(slice / 2));
            }
            for ((case, child), times) in group.iter().zip(times) {
                let entry = measured.entry(case.key.clone()).or_default();
                entry.name.clone_from(&case.name);
                entry.description.clone_from(&child.description);
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
        "Times are in milliseconds: the median and, in brackets, the 10th and 90th percentile of all cycles of \
         {rounds} rounds. In each round every row was measured twice for {} ms: rows that are compared with each \
         other in random order, then in reverse. The ratios are medians over the rounds: an acquire compared \
         with one bare commit, a cycle compared with two.",
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

/// The baseline of a case of this library.
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

fn shown(row: &Measured, baseline: Option<&Measured>) -> Vec<String> {
    let beside = |of: fn(&Measured) -> &Vec<f64>| {
        baseline
            .and_then(|baseline| ratio(of(row), of(baseline)))
            .map_or(String::new(), digits)
    };
    vec![
        row.name.clone(),
        median_with_range(&row.all.acquire),
        median_with_range(&row.all.release),
        median_with_range(&row.all.cycles()),
        beside(|row| &row.acquire),
        beside(|row| &row.cycle),
    ]
}

/// Adds a goal that is met if all values are at most `most`.
fn at_most(section: &mut Section, what: &str, most: f64, unit: &str, reached: Option<Vec<f64>>) {
    let met = reached.iter().flatten().all(|reached| *reached <= most);
    let shown = reached.map(|each| each.into_iter().map(digits).collect::<Vec<_>>().join(", "));
    section.goal(what, &format!("at most {most} {unit}"), shown, met);
}

fn goals(section: &mut Section, measured: &BTreeMap<String, Measured>) {
    let of = |key: &str| measured.get(key);
    let acquire = |one: &str, other: &str| ratio(&of(one)?.acquire, &of(other)?.acquire);
    let cycle = |one: &str, other: &str| ratio(&of(one)?.cycle, &of(other)?.cycle);
    let runtimes = ["current", "multi", "blocking"];
    let to_baseline = |engine: &str, compare: &dyn Fn(&str, &str) -> Option<f64>| {
        let each = runtimes.map(|runtime| {
            let key = format!("{engine}/{runtime}");
            compare(&key, &format!("{key}/baseline"))
        });
        each.into_iter().collect::<Option<Vec<f64>>>()
    };
    let each = "(`current_thread`, `multi_thread`, blocking)";
    let engines = [
        ("PostgreSQL", "postgres"),
        ("MariaDB", "mariadb"),
        ("MySQL", "mysql"),
    ];
    // A server that is not on this machine has no goal.
    let engines = engines
        .into_iter()
        .filter(|(_, key)| of(&format!("{key}/multi/baseline")).is_some());
    let one = "× one bare `UPDATE` commit";
    for (name, key) in engines.clone() {
        let what = format!("uncontended acquire, {name} {each}");
        at_most(section, &what, 1.3, one, to_baseline(key, &acquire));
    }
    let two = "× two bare `UPDATE` commits";
    let what = format!("acquire + release, PostgreSQL {each}");
    at_most(section, &what, 1.0, two, to_baseline("postgres", &cycle));
    let sqlite = cycle("sqlite/blocking", "sqlite/blocking/baseline");
    let sqlite = sqlite.map(|ratio| vec![ratio]);
    at_most(
        section,
        "acquire + release, SQLite, blocking",
        1.15,
        two,
        sqlite,
    );
    let redis = cycle("postgres/python", "redis-always/python");
    let redis = redis.map(|ratio| vec![ratio]);
    let unit = "× redis-py on `appendfsync always`";
    at_most(
        section,
        "acquire + release, PostgreSQL, from Python",
        1.0,
        unit,
        redis,
    );
    for (name, key) in engines {
        let more = cycle(&format!("{key}/multi"), &format!("{key}/multi/off"));
        let more = more.map(|ratio| vec![(ratio - 1.0) * 100.0]);
        let what = format!("auto-renew on, compared with off, {name}");
        at_most(section, &what, 5.0, "% more", more);
    }
    peer_goals(section, cycle);
}

fn peer_goals(section: &mut Section, cycle: impl Fn(&str, &str) -> Option<f64>) {
    for (key, name, least) in [
        ("etcd", "etcd with a lease of its own", 8.0),
        ("zookeeper", "ZooKeeper", 5.0),
        (
            "redis-always",
            "Redis with `appendfsync always`, rslock",
            1.2,
        ),
    ] {
        // A server that is not on this machine has no goal.
        let Some(reached) = cycle(key, "postgres/multi") else {
            continue;
        };
        section.goal(
            &format!("acquire + release, PostgreSQL, compared with {name}"),
            &format!("at least {least} × faster"),
            Some(format!("{} ×", digits(reached))),
            reached >= least,
        );
    }
}
