//! An uncontended lock: acquire, release, both; beside the floors and the peers.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::contender::{Contender, Taker, Times};
use crate::report::{Section, digits, ms};
use crate::servers::{Servers, database};
use crate::settings::Settings;
use crate::stats::{median, ratio, spread};
use crate::{floors, ours, say};

/// What stands together in one table, the first of each being what the others are compared with.
type Group = (&'static str, Vec<Contender>);

/// What was measured of one contender: all rounds together, and the median of each.
#[derive(Debug, Default)]
struct Measured {
    all: Times,
    acquire: Vec<f64>,
    cycle: Vec<f64>,
}

pub(crate) fn run(settings: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut groups = groups(servers);
    let how_many: usize = groups.iter().map(|(_, group)| group.len()).sum();
    let rounds = settings.rounds.max(2);
    let slice = length.div_f64((rounds * how_many) as f64);
    say(&format!(
        "cycle: {how_many} contenders, {rounds} rounds of {} ms each",
        slice.as_millis()
    ));
    let mut order: Vec<(usize, usize)> = groups
        .iter()
        .enumerate()
        .flat_map(|(group, (_, of))| (0..of.len()).map(move |at| (group, at)))
        .collect();
    // The first is to warm up: connections, caches, plans.
    for &(group, at) in &order {
        (groups[group].1[at].run)(Duration::from_millis(30));
    }
    let mut measured: BTreeMap<String, Measured> = BTreeMap::new();
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        for &(group, at) in &order {
            let contender = &mut groups[group].1[at];
            let times = (contender.run)(slice);
            let entry = measured.entry(contender.key.clone()).or_default();
            entry
                .acquire
                .push(median(&times.acquire).unwrap_or(f64::NAN));
            entry
                .cycle
                .push(median(&times.cycles()).unwrap_or(f64::NAN));
            entry.all.extend(times);
        }
    }

    let mut section = Section::default();
    section.paragraph(format!(
        "Milliseconds: the median, and in brackets the 10th and 90th percentile, of all cycles of {rounds} \
         rounds; in each round every contender came once, in random order, for {} ms. A cycle is an acquire \
         and a release. `× floor` is the cycle beside the two bare commits of the same round, the median over \
         the rounds. Async rows run on tokio's current-thread runtime, which the calls block on; those in a task \
         of `#[tokio::main]` on its default runtime, with a thread for each core.",
        slice.as_millis()
    ));
    for (title, group) in &groups {
        if group.is_empty() {
            continue;
        }
        section.paragraph(format!("### {title}"));
        let floor = group.iter().find(|one| one.key.ends_with("-bare"));
        let floor = floor.and_then(|one| measured.get(&one.key));
        let rows: Vec<_> = group
            .iter()
            .filter_map(|one| Some(row(one, measured.get(&one.key)?, floor)))
            .collect();
        section.table(&["", "acquire", "release", "cycle", "× floor"], &rows);
    }
    goals(&mut section, &measured);
    section
}

fn row(contender: &Contender, measured: &Measured, floor: Option<&Measured>) -> Vec<String> {
    let shown = |values: &[f64]| {
        spread(values).map_or(String::new(), |of| {
            format!("{} ({}–{})", ms(of.p50), ms(of.p10), ms(of.p90))
        })
    };
    let cycle = match measured.all.release.is_empty() {
        true => String::new(),
        false => shown(&measured.all.cycles()),
    };
    let beside = floor.and_then(|floor| ratio(&measured.cycle, &floor.cycle));
    vec![
        contender.name.clone(),
        shown(&measured.all.acquire),
        shown(&measured.all.release),
        cycle,
        beside.map_or(String::new(), digits),
    ]
}

fn goals(section: &mut Section, measured: &BTreeMap<String, Measured>) {
    let of = |key: &str| measured.get(key);
    let acquire = |one: &str, other: &str| ratio(&of(one)?.acquire, &of(other)?.acquire);
    let cycle = |one: &str, other: &str| ratio(&of(one)?.cycle, &of(other)?.cycle);
    let bare = " × one bare prepared `UPDATE` commit";
    let mut engines = vec![("PostgreSQL", "postgres"), ("MariaDB", "mariadb")];
    // A machine without MySQL misses no goal by that.
    engines.extend(of("mysql").map(|_| ("MySQL", "mysql")));
    let mut at_most = |what: &str, most: f64, reached: Option<f64>, unit: &str| {
        section.goal(
            what,
            &format!("at most {most}{unit}"),
            reached.map(|reached| format!("{}{unit}", digits(reached))),
            reached.is_some_and(|reached| reached <= most),
        );
    };
    for (engine, key) in &engines {
        let reached = acquire(key, &format!("{key}-bare"));
        at_most(
            &format!("uncontended acquire, {engine}"),
            1.2,
            reached,
            bare,
        );
    }
    let two = " × two bare `UPDATE` commits";
    at_most(
        "acquire + release, PostgreSQL",
        1.0,
        cycle("postgres", "postgres-bare"),
        two,
    );
    let redis = " × redis-py's `Lock`";
    at_most(
        "acquire + release from Python, PostgreSQL",
        1.0,
        cycle("py-postgres", "redis"),
        redis,
    );
    let percent = |one: &str, other: &str| Some((cycle(one, other)? - 1.0) * 100.0);
    for (engine, key) in &engines {
        let what = format!("auto-renew on rather than off, {engine}");
        let reached = percent(key, &format!("{key}-off"));
        at_most(&what, 5.0, reached, " % more");
    }
    for (from, key, times) in [("Rust", "postgres", 8.0), ("Python", "py-postgres", 7.0)] {
        for (renewing, old, ours) in [
            (
                "auto-renew on, as both do by default",
                "old",
                key.to_owned(),
            ),
            ("auto-renew off", "old-off", format!("{key}-off")),
        ] {
            let reached = cycle(old, &ours);
            section.goal(
                &format!("acquire + release, PostgreSQL, from {from}, {renewing}"),
                &format!("{times} × faster than 0.5"),
                reached.map(|reached| format!("{} ×", digits(reached))),
                reached.is_some_and(|reached| reached >= times),
            );
        }
    }
}

/// Where `peers.py` finds everything; the databases are made here.
pub(crate) fn places(servers: &Servers) -> serde_json::Value {
    let mut places = json!({});
    let (acquire, release) = floors::postgres_texts();
    places["acquire_sql"] = acquire.into();
    places["release_sql"] = release.into();
    // Of the same name on both servers, and made once.
    places["old_db"] = "bench_old".into();
    if let Some(server) = &servers.postgres {
        let peers = server.fresh_database();
        server
            .query(&peers, &floors::postgres_setup())
            .expect("makes the table");
        let known = server.query("postgres", "SELECT datname FROM pg_database");
        if !known.expect("answers").contains("bench_old") {
            let made = server.query("postgres", "CREATE DATABASE bench_old");
            made.expect("makes the database");
        }
        places["postgres_dir"] = server.socket_dir().display().to_string().into();
        places["postgres_port"] = server.port().into();
        places["postgres_db"] = database(&peers).into();
    }
    if let Some(server) = &servers.mariadb {
        places["mariadb_socket"] = server.socket().display().to_string().into();
        places["mariadb_db"] = database(&server.fresh_database()).into();
        let made = server.query("mysql", "CREATE DATABASE IF NOT EXISTS bench_old");
        made.expect("makes the database");
    }
    if let Some(redis) = &servers.redis {
        places["redis_socket"] = redis.socket().display().to_string().into();
        places["redis_port"] = redis.port.into();
    }
    for engine in servers.engines() {
        let locks = floors::runtime();
        // The table.
        drop(ours::connected(&locks, &engine.url));
        places[engine.key] = engine.url.clone().into();
    }
    places
}

/// A process of the Python environment; `None` where that is not there.
pub(crate) fn python(kind: &str, places: &serde_json::Value, name: Option<&str>) -> Option<Taker> {
    let environment = if kind.starts_with("old") {
        "bench-old"
    } else {
        "bench"
    };
    let root = crate::root();
    let program = root.join(format!("target/python/{environment}/bin/python"));
    if !program.exists() {
        say(&format!("not measured: {kind}, no {}", program.display()));
        return None;
    }
    let mut command = Command::new(program);
    command
        .arg(root.join("crates/bench/peers/peers.py"))
        .args([kind, &places.to_string()])
        .args(name);
    Taker::start(&command)
}

fn groups(servers: &Servers) -> Vec<Group> {
    let places = places(servers);
    let py = |key: &'static str, kind: &str, name: &str| {
        let mut taker = python(kind, &places, None)?;
        let name = format!("{name} ({})", taker.what);
        Some(Contender::new(key, name, move |slice| taker.cycles(slice)))
    };
    let rust = |key: &'static str, backend: &str, url: String, name: &str| {
        let program = crate::root().join("target/peers/release/bench-peer-rust");
        if !program.exists() {
            say(&format!("not measured: {name}, no {}", program.display()));
            return None;
        }
        let mut command = Command::new(program);
        command.args([backend, &url]);
        let mut taker = Taker::start(&command)?;
        let name = format!("{name} ({})", taker.what);
        Some(Contender::new(key, name, move |slice| taker.cycles(slice)))
    };

    let mut postgres = floors::postgres(servers);
    if let Some(engine) = servers.postgres() {
        postgres.extend(ours::of(&engine));
        let url = engine.url.replace("postgres:///", "postgres://localhost/");
        postgres.extend(
            [
                py("py-postgres", "ours-postgres", "**Python**"),
                py(
                    "py-postgres-off",
                    "ours-postgres-unrenewed",
                    "Python, auto-renew off",
                ),
                py("py-postgres-async", "ours-postgres-async", "Python"),
                py("py-trip", "trip", "from Python: one round trip, twice"),
                py(
                    "py-bare",
                    "floor",
                    "from Python: two bare prepared `UPDATE` commits",
                ),
                py("old", "old-postgres", "0.5"),
                py("old-off", "old-postgres-unrenewed", "0.5, auto-renew off"),
                py("pglock", "pglock", "advisory lock from Python"),
                rust(
                    "rust-peer",
                    "postgres",
                    url,
                    "advisory lock from Rust, Unix socket",
                ),
            ]
            .into_iter()
            .flatten(),
        );
    }
    let mut mariadb = floors::mariadb(servers);
    if let Some(engine) = servers.mariadb() {
        mariadb.extend(ours::of(&engine));
        mariadb.extend(
            [
                py("py-mariadb", "ours-mariadb", "**Python**"),
                py("old-mariadb", "old-mariadb", "0.5"),
                py("getlock", "getlock", "`GET_LOCK` from Python"),
            ]
            .into_iter()
            .flatten(),
        );
    }
    let mut mysql = floors::mysql(servers);
    if let Some(engine) = servers.mysql() {
        mysql.extend(ours::of(&engine));
        mysql.extend(py("py-mysql", "ours-mysql", "**Python**"));
    }
    let mut sqlite = floors::sqlite(servers);
    sqlite.extend(ours::of(&servers.sqlite()));
    sqlite.extend(py("py-sqlite", "ours-sqlite", "**Python**"));
    let memory = vec![
        ours::cycles("mem", "Rust, async", "memory:bench", true),
        ours::blocking("mem-blocking", "Rust, blocking", "memory:bench"),
    ];
    let mut redis: Vec<_> = [
        py("redis", "redis", "redis-py's `Lock`"),
        py("redis-plain", "redis-plain", "redis-py's `Lock`"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(server) = &servers.redis {
        let url = format!("redis://127.0.0.1:{}", server.port);
        redis.extend(rust(
            "rust-redis",
            "redis",
            url,
            "`distributed-lock` from Rust, TCP",
        ));
    }
    vec![
        ("PostgreSQL", postgres),
        ("MariaDB", mariadb),
        ("MySQL, which writes a binary log as well", mysql),
        ("SQLite", sqlite),
        ("This process alone (`memory:`)", memory),
        ("Redis, which writes nothing to the disk", redis),
    ]
}
