//! A long run on a hot table: whether it and its index stay as small as they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use database_locks::Locks;
use testkit::{MySqlServer, Postgres, time};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::report::{Section, digits, thousands};
use crate::servers::{Engine, Servers, database};
use crate::settings::Settings;
use crate::svg::{Axis, Line, Plot, draw};
use crate::{machine, ours, say};

/// Locks that are always busy.
const HOT: u64 = 100;
/// Rows that are only there.
const COLD: u64 = 10_000;
/// After so many cycles it has been long.
const ENOUGH: u64 = 1_000_000;
/// How many times the table is looked at.
const LOOKS: u32 = 12;

/// One look at the table.
#[derive(Debug, Default)]
struct Look {
    cycles: u64,
    table_kib: f64,
    index_kib: f64,
    /// Words for the last column.
    more: String,
}

pub(crate) fn run(_: &Settings, servers: &Servers, length: Duration) -> Section {
    let runtime = crate::tasks_runtime();
    let load = machine::load();
    let mut section = Section::default();
    section.paragraph(format!(
        "{HOT} tasks of one process acquire and release {HOT} locks as fast as they can, in a table of {} rows \
         that are otherwise left alone; the servers' autovacuum and purge at their defaults.",
        thousands((COLD + HOT) as i64)
    ));
    let mut lines = Vec::new();
    for (engine, share) in [(servers.postgres(), 0.6), (servers.mariadb(), 0.4)] {
        let Some(engine) = engine else { continue };
        let looks = hammer(&runtime, servers, &engine, length.mul_f64(share));
        section.paragraph(format!("### {}", engine.name));
        let rows: Vec<_> = looks
            .iter()
            .map(|look| {
                vec![
                    thousands(look.cycles as i64),
                    digits(look.table_kib),
                    digits(look.index_kib),
                    look.more.clone(),
                ]
            })
            .collect();
        let index = match engine.name {
            "PostgreSQL" => "indexes, KiB",
            _ => "index beside it, KiB",
        };
        section.table(&["cycles", "table, KiB", index, "since the start"], &rows);
        let points = |of: fn(&Look) -> f64| {
            looks
                .iter()
                .map(|look| (look.cycles as f64, of(look)))
                .collect()
        };
        lines.push(Line {
            name: format!("{}: table", engine.name),
            points: points(|look| look.table_kib),
            marked: true,
        });
        lines.push(Line {
            name: format!("{}: indexes", engine.name),
            points: points(|look| look.index_kib),
            marked: true,
        });
    }
    let plot = Plot {
        title: "Size of a hot table over the cycles",
        x: Axis {
            label: "cycles",
            log: false,
        },
        y: Axis {
            label: "KiB",
            log: false,
        },
        lines,
    };
    section.plot(
        "long.svg",
        "size of table and indexes over the cycles",
        draw(&plot),
    );
    section.paragraph(format!(
        "Load average when it began: {load}; when it ended: {}.",
        machine::load()
    ));
    section
}

fn hammer(runtime: &Runtime, servers: &Servers, engine: &Engine, length: Duration) -> Vec<Look> {
    let locks = ours::connected(runtime, &engine.url);
    runtime.block_on(make_rows(&locks));
    let look = |cycles: u64| match (engine.name, &servers.postgres, &servers.mariadb) {
        ("PostgreSQL", Some(server), _) => look_at_postgres(server, database(&engine.url), cycles),
        (_, _, Some(server)) => look_at_mariadb(server, database(&engine.url), cycles),
        _ => Look::default(),
    };
    let mut looks = vec![look(0)];
    let (done, mut set) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    let began = time::now();
    for number in 0..HOT {
        let (lock, done) = (locks.lock(format!("hot {number}")), Arc::clone(&done));
        set.spawn_on(
            async move {
                while done.fetch_add(1, Ordering::Relaxed) < ENOUGH {
                    let guard = lock.acquire().await.expect("acquires");
                    guard.release().await.expect("releases");
                }
            },
            runtime.handle(),
        );
    }
    for at in 1..=LOOKS {
        let (next, enough) = (length / LOOKS * at, || {
            done.load(Ordering::Relaxed) >= ENOUGH
        });
        time::wait_until(next.saturating_sub(began.elapsed()), enough);
        let cycles = done.load(Ordering::Relaxed).min(ENOUGH);
        looks.push(look(cycles));
        say(&format!("long: {}: {:?}", engine.name, looks.last()));
        if enough() {
            break;
        }
    }
    runtime.block_on(set.shutdown());
    runtime.block_on(locks.drain());
    // Statistics come with a delay, and so does the last vacuum.
    time::sleep(Duration::from_secs(3));
    let cycles = done.load(Ordering::Relaxed).min(ENOUGH);
    let mut last = look(cycles);
    let rate = digits(cycles as f64 / began.elapsed().as_secs_f64());
    last.more = format!("{}; {rate} cycles a second in all", last.more);
    looks.push(last);
    looks
}

async fn make_rows(locks: &Locks) {
    let numbers: Vec<u64> = (0..COLD).collect();
    for part in numbers.chunks(1000) {
        let mut set = JoinSet::new();
        for number in part {
            let lock = locks.lock(format!("cold {number}"));
            set.spawn(async move { lock.acquire().await.expect("acquires").release().await });
        }
        set.join_all().await;
    }
}

fn fields(answer: &str) -> Vec<f64> {
    let words = answer.split_whitespace();
    words.map(|word| word.parse().unwrap_or(f64::NAN)).collect()
}

fn look_at_postgres(server: &Postgres, database: &str, cycles: u64) -> Look {
    let sql = "SELECT pg_table_size(relid) / 1024, pg_indexes_size(relid) / 1024, n_tup_upd, n_tup_hot_upd, \
        autovacuum_count, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'database_locks_lock'";
    let found = fields(&server.query(database, sql).expect("the table is there"));
    let at = |place: usize| found.get(place).copied().unwrap_or(f64::NAN);
    Look {
        cycles,
        table_kib: at(0),
        index_kib: at(1),
        more: format!(
            "{} updates, {:.1} % of them HOT, {} autovacuums, {} dead rows",
            thousands(at(2) as i64),
            100.0 * at(3) / at(2).max(1.0),
            at(4),
            thousands(at(5) as i64)
        ),
    }
}

fn look_at_mariadb(server: &MySqlServer, database: &str, cycles: u64) -> Look {
    let sql = format!(
        "SELECT t.file_size / 1024, i.index_length / 1024, \
         (SELECT count FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len') \
         FROM information_schema.innodb_sys_tablespaces t JOIN information_schema.tables i \
         ON t.name = CONCAT(i.table_schema, '/', i.table_name) \
         WHERE i.table_schema = '{database}' AND i.table_name = 'database_locks_lock'"
    );
    let found = fields(&server.query("mysql", &sql).expect("answers"));
    let at = |place: usize| found.get(place).copied().unwrap_or(f64::NAN);
    Look {
        cycles,
        table_kib: at(0),
        index_kib: at(1),
        more: format!(
            "{} transactions whose old rows are not purged yet",
            digits(at(2))
        ),
    }
}
