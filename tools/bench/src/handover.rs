//! How long it takes from the call that releases until a waiter has the lock.

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::time;
use tokio::sync::mpsc;

use crate::cases;
use crate::child::Child;
use crate::console::progress;
use crate::drive::multi_thread;
use crate::report::{Section, digits};
use crate::results::Results;
use crate::serve::now_ns;
use crate::servers::Servers;
use crate::stats::{median, spread};
use crate::subject;
use crate::svg::{Axis, Line, Plot, draw};

/// How long the holder has the lock while the waiter waits, in milliseconds. Each is varied by a
/// quarter, so that it never falls into step with a poll interval.
const HOLDS: [f64; 6] = [1.0, 4.0, 15.0, 50.0, 100.0, 200.0];
/// From this hold on all threads sleep in the meantime; the table has these holds.
const ASLEEP: f64 = 30.0;

/// The cases by key, and whether each is a curve of the plot.
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

/// Makes one hand-over, or one cold commit, after a sleep of that length; answers milliseconds.
type Handover = Box<dyn FnMut(Duration) -> f64>;

/// A row of the table: its key, its name and how it is measured.
struct Contender {
    key: &'static str,
    name: String,
    hand_over: Handover,
}

/// Milliseconds by key and by the place of the hold in [`HOLDS`].
type Found = BTreeMap<(&'static str, usize), Vec<f64>>;

pub(crate) fn run(servers: &Servers, length: Duration, results: &mut Results) -> Section {
    let mut contenders = contenders(servers);
    let found = measure(&mut contenders, length);
    contenders.sort_by_key(|contender| {
        let place = PAIRS.iter().position(|(key, _)| *key == contender.key);
        place.unwrap_or(PAIRS.len())
    });
    let mut section = Section::default();
    section.paragraph(format!(
        "Milliseconds from the call that releases the lock until the waiter's acquire returns: in another process, \
         if the row does not say otherwise (Rust: on `multi_thread`). The holder releases after the waiter has \
         waited for {:.0} to {:.0} ms, the same time for all rows of a round.",
        HOLDS.into_iter().find(|hold| *hold >= ASLEEP).unwrap_or_default() * 0.75,
        HOLDS[HOLDS.len() - 1] * 1.25
    ));
    let mut table = Vec::new();
    for contender in &contenders {
        let Some(of) = spread(&asleep(&found, contender.key)) else {
            continue;
        };
        results.handovers.insert(contender.key.to_owned(), of.p50);
        let mut row = vec![contender.name.clone(), of.count.to_string()];
        row.extend([of.p10, of.p50, of.p90, of.max].map(digits));
        table.push(row);
    }
    section.table(&["", "hand-overs", "p10", "p50", "p90", "longest"], &table);
    section.plot("handover.svg", curves(&contenders, &found));
    goals(&mut section, results);
    section
}

fn contenders(servers: &Servers) -> Vec<Contender> {
    let mut contenders = Vec::new();
    let cases = cases::all(servers);
    for (key, _) in PAIRS {
        let Some(case) = cases.iter().find(|case| case.key == key) else {
            continue;
        };
        // Cases of one server share its locks.
        let lock = format!("hand over {key}");
        if let (Some(one), Some(other)) = (case.start(&lock), case.start(&lock)) {
            contenders.push(Contender {
                key,
                name: case.name.clone(),
                hand_over: between_processes(one, other),
            });
        }
    }
    if let Some(engine) = servers.postgres() {
        contenders.push(Contender {
            key: "within",
            name: "**PostgreSQL**, within one process".to_owned(),
            hand_over: within_process(&engine.url),
        });
        let baseline = cases
            .iter()
            .find(|case| case.key == "postgres/multi/baseline");
        if let Some(child) = baseline.and_then(|case| case.start("cold commit")) {
            contenders.push(Contender {
                key: "commit",
                name: "one bare commit on PostgreSQL after the same time, no lock".to_owned(),
                hand_over: cold_commit(child),
            });
        }
    }
    contenders
}

fn measure(contenders: &mut [Contender], length: Duration) -> Found {
    let mut found = Found::new();
    let (began, mut rounds) = (time::now(), 0);
    for contender in &mut *contenders {
        (contender.hand_over)(Duration::from_millis(5));
    }
    while began.elapsed() < length || rounds < 2 * HOLDS.len() {
        let hold = rounds % HOLDS.len();
        rounds += 1;
        let sleep = Duration::from_secs_f64(HOLDS[hold] / 1e3 * (0.75 + 0.5 * fastrand::f64()));
        fastrand::shuffle(contenders);
        for contender in &mut *contenders {
            let took = (contender.hand_over)(sleep);
            found.entry((contender.key, hold)).or_default().push(took);
        }
    }
    progress(&format!("handover: {rounds} rounds"));
    found
}

/// The values of the holds that are long enough for everything to sleep.
fn asleep(found: &Found, key: &str) -> Vec<f64> {
    let these = found
        .iter()
        .filter(|((of, hold), _)| *of == key && HOLDS[*hold] >= ASLEEP);
    these
        .flat_map(|(_, values)| values.iter().copied())
        .collect()
}

fn curves(contenders: &[Contender], found: &Found) -> String {
    let shown = contenders
        .iter()
        .filter(|one| PAIRS.contains(&(one.key, true)) || one.key == "within");
    let lines = shown.map(|one| Line {
        name: short(&one.name),
        points: (0..HOLDS.len())
            .filter_map(|hold| Some((HOLDS[hold], median(found.get(&(one.key, hold))?)?)))
            .collect(),
    });
    draw(&Plot {
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
    })
}

/// A case's name for a legend.
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
            "handing over between two processes, PostgreSQL, p50",
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
        (
            "handing over between two processes, MySQL, p50",
            25.0,
            of("mysql/multi"),
            "ms",
        ),
        (
            "handing over between two processes, SQLite, p50",
            25.0,
            of("sqlite/blocking"),
            "ms",
        ),
    ] {
        // A server that is not on this machine has no goal.
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

/// The holder releases and the waiter acquires; then they change places.
fn between_processes(mut holder: Child, mut waiter: Child) -> Handover {
    let mut held = false;
    Box::new(move |sleep| {
        if !held {
            holder.request("acquire");
            held = true;
        }
        waiter.send("acquire");
        time::sleep(sleep);
        holder.send("release");
        let (released, _) = holder.timestamps();
        let (_, acquired) = waiter.timestamps();
        std::mem::swap(&mut holder, &mut waiter);
        acquired.saturating_sub(released) as f64 / 1e6
    })
}

/// One commit after a sleep.
fn cold_commit(mut child: Child) -> Handover {
    Box::new(move |sleep| {
        time::sleep(sleep);
        child.send("acquire");
        let (before, after) = child.timestamps();
        child.request("release");
        after.saturating_sub(before) as f64 / 1e6
    })
}

fn within_process(url: &str) -> Handover {
    let runtime = multi_thread();
    let lock = subject::connected(&runtime, url).lock("within");
    Box::new(move |sleep| {
        let holder = lock.clone();
        let task = runtime.spawn(async move {
            let guard = holder.acquire().await.expect("acquires");
            let (sender, mut receiver) = mpsc::channel(1);
            let waiter = holder.clone();
            tokio::spawn(async move {
                let guard = waiter.acquire().await.expect("acquires");
                let _ = sender.send(now_ns()).await;
                guard.release().await.expect("releases");
            });
            tokio::time::sleep(sleep).await;
            let released = now_ns();
            guard.release().await.expect("releases");
            let acquired = receiver.recv().await.expect("the other acquires");
            acquired.saturating_sub(released) as f64 / 1e6
        });
        runtime.block_on(task).expect("the task ends")
    })
}
