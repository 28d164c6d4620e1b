//! Where the time of one cycle goes: the same work with one layer more each time.

use std::sync::Arc;
use std::time::Duration;

use database_locks::LockName;
use database_locks::seam::{Ask, GrantId, Outcome, Return, Store, Table, open};
use testkit::time;

use crate::contender::{Contender, Times, repeat, since};
use crate::cycle::{places, python};
use crate::report::{Section, ms};
use crate::servers::{Engine, Servers};
use crate::settings::Settings;
use crate::stats::median;
use crate::{floors, machine, ours, say};

const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(settings: &Settings, servers: &Servers, length: Duration) -> Section {
    let mut section = Section::default();
    section.paragraph(
        "The same work with one layer more in each row, in milliseconds; what a layer costs is what it adds to \
         the row above, the median over the rounds. `store` is the statement of this library through its own driver \
         and connection, on the thread that waits for it; `lock` is the whole library, from code that blocks; \
         Python's `lock` is that with Python around it, in a process of its own. The last two rows stand by \
         themselves: the whole library from async code, and without a database, which is what ways to the \
         background thread, guard and schedule cost. Naps: how often a thread of the process went to sleep in a \
         cycle.",
    );
    let places = places(servers);
    let engines = [
        (
            servers.postgres(),
            floors::postgres(servers),
            "ours-postgres",
        ),
        (servers.mariadb(), floors::mariadb(servers), "ours-mariadb"),
        (servers.mysql(), floors::mysql(servers), "ours-mysql"),
        (
            Some(servers.sqlite()),
            floors::sqlite(servers),
            "ours-sqlite",
        ),
    ];
    let count = engines
        .iter()
        .filter(|(engine, ..)| engine.is_some())
        .count();
    for (engine, floors, kind) in engines {
        let Some(engine) = engine else { continue };
        let mut layers: Vec<Contender> = Vec::new();
        for mut floor in floors {
            floor.name = match floor.key.split_once('-') {
                Some((_, "trip")) => "one round trip, `SELECT 1`".to_owned(),
                Some((_, "bare")) => "a bare prepared `UPDATE` commit".to_owned(),
                _ => continue,
            };
            layers.push(floor);
        }
        layers.push(store(&engine));
        layers.push(ours::blocking("lock", "`lock`, blocking", &engine.url));
        layers.extend(python(kind, &places, None).map(|mut taker| {
            let process = taker.pid();
            let run = move |slice| taker.cycles(slice);
            let python = Contender::new("python", "Python's `lock`, blocking", run);
            python.of_process(process)
        }));
        layers.push(ours::cycles(
            "lock async",
            "`lock`, async",
            &engine.url,
            true,
        ));
        layers.push(ours::blocking(
            "memory",
            "`memory`, blocking",
            "memory:spans",
        ));
        let rows = measured(settings, length.div_f64(count as f64), &mut layers);
        section.paragraph(format!("### {}", engine.name));
        section.table(
            &[
                "",
                "acquire",
                "more than the row above",
                "release",
                "more",
                "naps a cycle",
            ],
            &rows,
        );
    }
    section
}

fn measured(settings: &Settings, length: Duration, layers: &mut [Contender]) -> Vec<Vec<String>> {
    let rounds = settings.rounds.max(3);
    let slice = length.div_f64((rounds * layers.len()) as f64);
    say(&format!(
        "spans: {rounds} rounds of {} ms",
        slice.as_millis()
    ));
    let mut found: Vec<Found> = Vec::new();
    found.resize_with(layers.len(), Found::default);
    let mut order: Vec<usize> = (0..layers.len()).collect();
    for layer in layers.iter_mut() {
        (layer.run)(Duration::from_millis(30));
    }
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        for &at in &order {
            let process = layers[at].process;
            let before = machine::naps(process);
            let times = (layers[at].run)(slice);
            let found = &mut found[at];
            found.naps += machine::naps(process).saturating_sub(before);
            found
                .acquire
                .push(median(&times.acquire).unwrap_or(f64::NAN));
            // A round trip is one whichever way it is used.
            let release = match times.release.is_empty() {
                true => &times.acquire,
                false => &times.release,
            };
            found.release.push(median(release).unwrap_or(f64::NAN));
            found.all.extend(times);
        }
    }
    let mut rows = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let Found { all, naps, .. } = &found[at];
        let above = at.checked_sub(1).map(|above| &found[above]);
        let stacked = !matches!(layer.key.as_str(), "memory" | "lock async");
        let more = |of: fn(&Found) -> &Vec<f64>| {
            let above = above.filter(|_| stacked)?;
            let differences = of(&found[at]).iter().zip(of(above));
            let differences: Vec<f64> = differences.map(|(now, then)| now - then).collect();
            median(&differences).map(|more| format!("{more:+.3}"))
        };
        rows.push(vec![
            layer.name.clone(),
            median(&found[at].acquire).map_or(String::new(), ms),
            more(|found| &found.acquire).unwrap_or_default(),
            median(&found[at].release).map_or(String::new(), ms),
            more(|found| &found.release).unwrap_or_default(),
            format!("{:.1}", *naps as f64 / all.acquire.len().max(1) as f64),
        ]);
    }
    rows
}

/// Of one layer: all times, the medians of its rounds, and how often a thread went to sleep.
#[derive(Debug, Default)]
struct Found {
    all: Times,
    acquire: Vec<f64>,
    release: Vec<f64>,
    naps: u64,
}

/// The statements of the library without what is around them.
fn store(engine: &Engine) -> Contender {
    let runtime = floors::runtime();
    let store: Arc<dyn Store> = open(&engine.url, &Table::default()).expect("a good URL");
    runtime.block_on(async {
        store.connect(PATIENCE).await.expect("connects");
        store.install(PATIENCE).await.expect("makes the table");
    });
    let name = LockName::new("spans").expect("a good name");
    Contender::new(
        "store",
        "`store`: the statements of the library",
        move |slice| {
            repeat(slice, |times| {
                let mut ask = [Ask {
                    name: name.clone(),
                    grant: GrantId::random().expect("randomness"),
                    holder: "bench".into(),
                    length: Duration::from_secs(30),
                    metadata: "{}".into(),
                    lapsed: None,
                }];
                let t0 = time::now();
                let mut outcome = runtime
                    .block_on(store.acquire(&ask, PATIENCE))
                    .expect("answers");
                let mut t1 = time::now();
                // Its row is there from the second on.
                while !matches!(outcome[..], [Outcome::Granted { .. }]) {
                    ask[0].grant = GrantId::random().expect("randomness");
                    outcome = runtime
                        .block_on(store.acquire(&ask, PATIENCE))
                        .expect("answers");
                    t1 = time::now();
                }
                times.acquire.push((t1 - t0).as_secs_f64() * 1e3);
                let token = match outcome[..] {
                    [Outcome::Granted { token, .. }] => Some(token),
                    _ => None,
                };
                let back = [Return {
                    name: name.clone(),
                    token,
                    grant: ask[0].grant,
                    holder: "bench".into(),
                    durable: false,
                }];
                let t2 = time::now();
                runtime
                    .block_on(store.release(&back, PATIENCE))
                    .expect("answers");
                times.release.push(since(t2));
            })
        },
    )
}
