//! How long it takes from one's release until another, who waits, has the lock.

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::time;
use tokio::sync::mpsc;

use crate::contender::Taker;
use crate::cycle::{places, python};
use crate::report::{Section, ms};
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stats::spread;
use crate::svg::{Axis, Line, Plot, draw};
use crate::worker::now_ns;
use crate::{ours, say, worker};

/// How long the lock is held by one while the other waits. Never the same: a poll would come to be in
/// step with it.
fn meanwhile() -> Duration {
    Duration::from_millis(fastrand::u64(20..=250))
}

/// Two who take turns; answers milliseconds.
type Turn = Box<dyn FnMut() -> f64>;

pub(crate) fn run(_: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut pairs: Vec<(&'static str, String, Turn)> = Vec::new();
    for engine in servers.engines() {
        let runtime = ours::connected(&crate::floors::runtime(), &engine.url);
        drop(runtime);
        let start = || worker::start(&["wait", &engine.url, "hand over"]);
        if let (Some(one), Some(other)) = (start(), start()) {
            pairs.push((
                engine.key,
                format!("**{}**, two processes", engine.name),
                two(one, other),
            ));
        }
        if engine.name == "PostgreSQL" {
            pairs.push((
                "within",
                format!("{}, within one process", engine.name),
                within(&engine.url),
            ));
        }
    }
    let places = places(servers);
    let peers = [
        (
            "old",
            "old-postgres-unrenewed",
            "0.5 on PostgreSQL, two processes",
        ),
        ("pglock", "pglock", "django-pglock, two processes"),
        ("getlock", "getlock", "`GET_LOCK` on MariaDB, two processes"),
        ("redis", "redis", "redis-py's `Lock`, two processes"),
    ];
    for (key, kind, name) in peers {
        let start = || python(kind, &places, Some("hand over"));
        if let (Some(one), Some(other)) = (start(), start()) {
            pairs.push((key, name.to_owned(), two(one, other)));
        }
    }
    let mut found: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    let (began, budget) = (time::now(), length);
    let mut rounds = 0;
    while began.elapsed() < budget || rounds < 5 {
        rounds += 1;
        fastrand::shuffle(&mut order);
        for &at in &order {
            let (key, _, turn) = &mut pairs[at];
            let took = turn();
            // The first of each connects and makes the row.
            if rounds > 1 {
                found.entry(key).or_default().push(took);
            }
        }
    }
    say(&format!("hand-over: {rounds} rounds"));

    let mut section = Section::default();
    section.paragraph(format!(
        "Milliseconds from before the call that releases until after the one that acquires, {} of each, in \
         rounds; the other had been waiting for 20 to 250 ms. Peers at their defaults: redis-py polls each \
         100 ms, 0.5 each 500 ms.",
        rounds - 1
    ));
    let rows: Vec<_> = pairs
        .iter()
        .filter_map(|(key, name, _)| {
            let of = spread(found.get(key)?)?;
            Some(vec![
                name.clone(),
                ms(of.p10),
                ms(of.p50),
                ms(of.p90),
                ms(of.p99),
                ms(of.max),
            ])
        })
        .collect();
    section.table(&["", "p10", "p50", "p90", "p99", "longest"], &rows);
    let lines = pairs.iter().filter_map(|(key, name, _)| {
        let mut values = found.get(key)?.clone();
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let points = values
            .iter()
            .zip(1..)
            .map(|(value, at)| (*value, f64::from(at) / count));
        Some(Line {
            name: name.replace(['*', '`'], "").replace(", two processes", ""),
            points: points.collect(),
            marked: false,
        })
    });
    let plot = Plot {
        title: "Hand-over: share of them that took no longer",
        x: Axis {
            label: "milliseconds",
            log: true,
        },
        y: Axis {
            label: "share of the hand-overs",
            log: false,
        },
        lines: lines.collect(),
    };
    section.plot(
        "handover.svg",
        "distribution of the time that a hand-over takes",
        draw(&plot),
    );
    for (key, what, most) in [
        (
            "postgres",
            "handing over between two processes, PostgreSQL, p50",
            2.0,
        ),
        (
            "mariadb",
            "handing over between two processes, MariaDB, p50",
            25.0,
        ),
        (
            "mysql",
            "handing over between two processes, MySQL, p50",
            25.0,
        ),
        (
            "sqlite",
            "handing over between two processes, SQLite, p50",
            25.0,
        ),
        ("within", "handing over within one process, p50", 1.0),
    ] {
        // A machine without MySQL misses no goal by that.
        if key == "mysql" && servers.mysql.is_none() {
            continue;
        }
        let reached = found
            .get(key)
            .and_then(|values| spread(values))
            .map(|of| of.p50);
        section.goal(
            what,
            &format!("{most} ms"),
            reached.map(|reached| format!("{} ms", ms(reached))),
            reached.is_some_and(|reached| reached <= most),
        );
    }
    section
}

/// Each time the one that has it gives it to the other.
pub(crate) fn two(mut holder: Taker, mut waiter: Taker) -> Turn {
    let mut held = false;
    Box::new(move || {
        if !held {
            holder.ask("acquire");
            held = true;
        }
        waiter.tell("acquire");
        time::sleep(meanwhile());
        let released: u64 = holder.ask("release").parse().expect("a time");
        let acquired: u64 = waiter.hear(Duration::ZERO).parse().expect("a time");
        std::mem::swap(&mut holder, &mut waiter);
        acquired.saturating_sub(released) as f64 / 1e6
    })
}

fn within(url: &str) -> Turn {
    let runtime = crate::tasks_runtime();
    let lock = ours::connected(&runtime, url).lock("within");
    Box::new(move || {
        runtime.block_on(async {
            let guard = lock.acquire().await.expect("acquires");
            let (tell, mut hear) = mpsc::channel(1);
            let other = lock.clone();
            tokio::spawn(async move {
                let guard = other.acquire().await.expect("acquires");
                let _ = tell.send(now_ns()).await;
                guard.release().await.expect("releases");
            });
            tokio::time::sleep(meanwhile()).await;
            let released = now_ns();
            guard.release().await.expect("releases");
            let acquired = hear.recv().await.expect("the other acquires");
            acquired.saturating_sub(released) as f64 / 1e6
        })
    })
}
