//! How long it takes from the call that releases until a waiter has the lock.

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::time;
use tokio::sync::mpsc;

use crate::report::{Section, digits};
use crate::rows;
use crate::serve::now_ns;
use crate::servers::Servers;
use crate::stats::{median, spread};
use crate::svg::{Axis, Line, Plot, draw};
use crate::taker::Taker;
use crate::worker::multi_thread;
use crate::{Results, say, subject};

/// For how long the holder has the lock while the other waits, in milliseconds; each is varied by a quarter, so
/// that no poll comes to be in step with it.
const HOLDS: [f64; 6] = [1.0, 4.0, 15.0, 50.0, 100.0, 200.0];
/// Those from which everything sleeps in the meantime: the table's.
const ASLEEP: f64 = 30.0;

/// What is handed over, by the keys of rows. A lock of polls is no curve.
const PAIRS: [(&str, bool); 14] = [
    ("postgres/multi", true),
    ("mariadb/multi", true),
    ("mysql/multi", true),
    ("sqlite/blocking", true),
    ("postgres/python", false),
    ("advisory", true),
    ("pglock", true),
    ("getlock", false),
    ("etcd-shared", true),
    ("zookeeper", true),
    ("redis-always", false),
    ("redis-always/python", true),
    ("redis", false),
    ("old/off", false),
];

/// One hand-over, or one cold commit, after a sleep of that length; answers milliseconds.
type Turn = Box<dyn FnMut(Duration) -> f64>;

pub(crate) fn run(servers: &Servers, length: Duration, results: &mut Results) -> Section {
    let mut turns: Vec<(&str, String, Turn)> = Vec::new();
    let rows = rows::all(servers);
    for (key, _) in PAIRS {
        let Some(row) = rows.iter().find(|row| row.key == key) else {
            continue;
        };
        // Rows of one server share its locks.
        let lock = format!("hand over {key}");
        if let (Some(one), Some(other)) = (row.start(&lock), row.start(&lock)) {
            turns.push((key, row.name.clone(), two(one, other)));
        }
    }
    if let Some(engine) = servers.postgres() {
        turns.push((
            "within",
            "**PostgreSQL**, within one process".to_owned(),
            within(&engine.url),
        ));
        let commit = rows.iter().find(|row| row.key == "postgres/multi/baseline");
        if let Some(taker) = commit.and_then(|row| row.start("cold commit")) {
            turns.push((
                "commit",
                "no lock: one bare commit on PostgreSQL after that sleep".to_owned(),
                cold(taker),
            ));
        }
    }
    // By key and length of the hold.
    let mut found: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    let (began, mut rounds) = (time::now(), 0);
    for turn in &mut turns {
        turn.2(Duration::from_millis(5));
    }
    while began.elapsed() < length || rounds < 2 * HOLDS.len() {
        let hold = rounds % HOLDS.len();
        rounds += 1;
        let sleep = Duration::from_secs_f64(HOLDS[hold] / 1e3 * (0.75 + 0.5 * fastrand::f64()));
        fastrand::shuffle(&mut turns);
        for (key, _, turn) in &mut turns {
            found.entry((*key, hold)).or_default().push(turn(sleep));
        }
    }
    say(&format!("handover: {rounds} rounds"));
    let asleep = |key: &str| -> Vec<f64> {
        let these = found
            .iter()
            .filter(|((of, hold), _)| *of == key && HOLDS[*hold] >= ASLEEP);
        these
            .flat_map(|(_, values)| values.iter().copied())
            .collect()
    };
    let mut section = Section::default();
    section.paragraph(format!(
        "Milliseconds from before the call that releases until after the one that acquires, between two processes \
         (Rust on `multi_thread`), after the waiter had waited for {:.0} to {:.0} ms; the same sleep for all rows \
         of a round.",
        HOLDS.into_iter().find(|hold| *hold >= ASLEEP).unwrap_or_default() * 0.75,
        HOLDS[HOLDS.len() - 1] * 1.25
    ));
    turns.sort_by_key(|(key, ..)| {
        PAIRS
            .iter()
            .position(|(of, _)| of == key)
            .unwrap_or(PAIRS.len())
    });
    let mut table = Vec::new();
    for (key, name, _) in &turns {
        let Some(of) = spread(&asleep(key)) else {
            continue;
        };
        results.handovers.insert((*key).to_owned(), of.p50);
        let values = [of.p10, of.p50, of.p90, of.max].map(digits);
        table.push(
            [name.clone(), of.count.to_string()]
                .into_iter()
                .chain(values)
                .collect(),
        );
    }
    section.table(&["", "hand-overs", "p10", "p50", "p90", "longest"], &table);
    let lines = turns
        .iter()
        .filter(|(key, ..)| PAIRS.contains(&(key, true)) || *key == "within");
    let lines = lines.map(|(key, name, _)| Line {
        name: short(name),
        points: (0..HOLDS.len())
            .filter_map(|hold| Some((HOLDS[hold], median(found.get(&(*key, hold))?)?)))
            .collect(),
    });
    let plot = Plot {
        title: "Hand-over between two processes, over how long the waiter waited",
        x: Axis {
            label: "milliseconds waited",
            log: true,
        },
        y: Axis {
            label: "milliseconds to hand over, p50",
            log: true,
        },
        lines: lines.collect(),
    };
    section.plot("handover.svg", draw(&plot));
    goals(&mut section, results);
    section
}

/// A row's name for a legend.
fn short(name: &str) -> String {
    name.replace(['*', '`'], "")
        .replace(", async, multi_thread", "")
}

fn goals(section: &mut Section, results: &Results) {
    let of = |key: &str| results.handovers.get(key).copied();
    let beside = |key: &str, other: Option<f64>| Some(of(key)? / other?);
    let both = of("advisory")
        .zip(of("commit"))
        .map(|(lock, commit)| lock + commit);
    for (what, most, reached, unit) in [
        (
            "handing over between two processes, PostgreSQL, p50",
            1.5,
            beside("postgres/multi", of("pglock")),
            "× django-pglock's",
        ),
        (
            "the same",
            1.1,
            beside("postgres/multi", both),
            "× (an advisory lock's + one cold bare commit)",
        ),
        (
            "handing over within one process, PostgreSQL, p50",
            1.2,
            beside("within", of("commit")),
            "× one cold bare commit",
        ),
        (
            "handing over between two processes, MariaDB, p50",
            25.0,
            of("mariadb/multi"),
            "ms",
        ),
        ("the same, MySQL", 25.0, of("mysql/multi"), "ms"),
        ("the same, SQLite", 25.0, of("sqlite/blocking"), "ms"),
    ] {
        // What a machine does not have is no goal there.
        if reached.is_none() && unit == "ms" {
            continue;
        }
        section.goal(
            what,
            &format!("at most {most} {unit}"),
            reached.map(|reached| format!("{} {unit}", digits(reached))),
            reached.is_some_and(|reached| reached <= most),
        );
    }
}

/// Each time the one that has it gives it to the other.
fn two(mut holder: Taker, mut waiter: Taker) -> Turn {
    let mut held = false;
    Box::new(move |sleep| {
        if !held {
            holder.ask("acquire");
            held = true;
        }
        waiter.tell("acquire");
        time::sleep(sleep);
        holder.tell("release");
        let (released, _) = holder.span();
        let (_, acquired) = waiter.span();
        std::mem::swap(&mut holder, &mut waiter);
        acquired.saturating_sub(released) as f64 / 1e6
    })
}

/// One commit after a sleep.
fn cold(mut taker: Taker) -> Turn {
    Box::new(move |sleep| {
        time::sleep(sleep);
        taker.tell("acquire");
        let (before, after) = taker.span();
        taker.ask("release");
        after.saturating_sub(before) as f64 / 1e6
    })
}

fn within(url: &str) -> Turn {
    let runtime = multi_thread();
    let lock = subject::connected(&runtime, url).lock("within");
    Box::new(move |sleep| {
        let holder = lock.clone();
        let task = runtime.spawn(async move {
            let guard = holder.acquire().await.expect("acquires");
            let (tell, mut hear) = mpsc::channel(1);
            let waiter = holder.clone();
            tokio::spawn(async move {
                let guard = waiter.acquire().await.expect("acquires");
                let _ = tell.send(now_ns()).await;
                guard.release().await.expect("releases");
            });
            tokio::time::sleep(sleep).await;
            let released = now_ns();
            guard.release().await.expect("releases");
            let acquired = hear.recv().await.expect("the other acquires");
            acquired.saturating_sub(released) as f64 / 1e6
        });
        runtime.block_on(task).expect("the task ends")
    })
}
