//! The cost of a guard: statements that write to a guarded table, beside the same ones on a table
//! without a guard.

use std::time::Duration;

use database_locks::LockGuard;
use testkit::time;

use crate::console::progress;
use crate::drive::current_thread;
use crate::report::{Section, digits};
use crate::results::Results;
use crate::servers::{Engine, Servers};
use crate::stats::{median, ratio, spread};
use crate::subject;

mod cases;
mod writer;

use cases::{Case, NAMES};
use writer::{Prepared, Times, Writer};

const ROUNDS: usize = 5;
/// The least number of transactions on each table in a round.
const LEAST: usize = 3;
/// The lock of the guards.
const LOCK: &str = "ledger";

/// An engine, with a connection that writes while the lock is held.
struct Bench {
    engine: Engine,
    writer: Writer,
    guard: LockGuard,
}

/// One row of the table.
struct Row {
    /// Its place in the list of engines.
    bench: usize,
    case: Case,
    /// Without a guard, and with one.
    statements: [Prepared; 2],
    /// The medians of each round, in microseconds.
    rounds: [Medians; 2],
}

/// The medians of each round, in microseconds.
#[derive(Default)]
struct Medians {
    first: Vec<f64>,
    again: Vec<f64>,
    whole: Vec<f64>,
}

impl Medians {
    fn push(&mut self, times: &[Times]) {
        let of = |time: fn(&Times) -> f64| {
            let values: Vec<f64> = times.iter().map(time).collect();
            median(&values).unwrap_or(f64::NAN)
        };
        self.first.push(of(|times| times.first));
        self.again.push(of(|times| times.again));
        self.whole.push(of(|times| times.whole));
    }
}

pub(crate) fn run(servers: &Servers, length: Duration, _: &mut Results) -> Section {
    let runtime = current_thread();
    let engines = servers.engines().into_iter();
    let (mut benches, mut rows) = (Vec::new(), Vec::new());
    for engine in engines.filter(|engine| engine.key != "sqlite") {
        let mut bench = runtime.block_on(Bench::new(engine));
        for case in cases::of(&bench.engine) {
            let row = Row::new(&mut bench, benches.len(), case);
            rows.push(runtime.block_on(row));
        }
        benches.push(bench);
    }
    let slice = length.div_f64((ROUNDS * rows.len().max(1)) as f64);
    progress(&format!(
        "guards: {} rows, {ROUNDS} rounds of {} ms each",
        rows.len(),
        slice.as_millis()
    ));
    // Fills caches and plans.
    for row in &mut rows {
        runtime.block_on(row.measure(&mut benches, slice / 10));
        row.rounds = Default::default();
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    for _ in 0..ROUNDS {
        fastrand::shuffle(&mut order);
        for &at in &order {
            runtime.block_on(rows[at].measure(&mut benches, slice));
        }
    }
    let section = section(&rows, &benches, slice);
    for bench in benches {
        runtime.block_on(bench.guard.release()).expect("releases");
    }
    section
}

impl Bench {
    /// Makes the tables, guards half of them, and acquires the lock.
    async fn new(engine: Engine) -> Self {
        let locks = subject::connect(&engine.url).await;
        let mut writer = Writer::connect(&engine).await;
        let [tables, fill] = cases::setup(&engine);
        for sql in tables {
            writer.run(&sql).await;
        }
        for table in cases::guarded(&engine) {
            locks.guard_table(table, LOCK).await.expect("guards it");
        }
        let guard = locks.lock(LOCK).acquire().await.expect("acquires");
        writer.run_with(guard.grant_id(), &fill).await;
        Self {
            engine,
            writer,
            guard,
        }
    }
}

impl Row {
    async fn new(bench: &mut Bench, at: usize, case: Case) -> Self {
        let [plain, guarded] =
            NAMES.map(|kind| case.sql.replace("{t}", &format!("{kind}_{}", case.table)));
        Self {
            bench: at,
            case,
            statements: [
                bench.writer.prepare(&plain).await,
                bench.writer.prepare(&guarded).await,
            ],
            rounds: Default::default(),
        }
    }

    /// One round: a transaction on each of the two tables in turn.
    async fn measure(&mut self, benches: &mut [Bench], slice: Duration) {
        let Bench { writer, guard, .. } = &mut benches[self.bench];
        let (grant, case) = (guard.grant_id(), &self.case);
        let (mut times, began) = ([Vec::new(), Vec::new()], time::now());
        let mut next = 1;
        while began.elapsed() < slice || times[0].len() < LEAST {
            let rows = case.rows as i32;
            let ids = match (case.inserts, rows) {
                (true, _) => [next, next + rows],
                (false, 1) => [1, 2],
                (false, _) => [1, 1],
            };
            next += 2 * rows;
            let first = fastrand::usize(..2);
            for at in [first, 1 - first] {
                let statement = &self.statements[at];
                let took = writer.transaction(grant, statement, ids, case.rows);
                times[at].push(took.await);
            }
        }
        for (rounds, times) in self.rounds.iter_mut().zip(&times) {
            rounds.push(times);
        }
        if case.inserts {
            let empty = NAMES.map(|kind| format!("TRUNCATE TABLE {kind}_{}", case.table));
            writer.run_with(grant, &empty).await;
        }
    }

    /// What the guard adds in each round, in microseconds.
    fn more(&self, of: fn(&Medians) -> &Vec<f64>) -> Vec<f64> {
        let [plain, guarded] = &self.rounds;
        let pairs = of(guarded).iter().zip(of(plain));
        pairs.map(|(guarded, plain)| guarded - plain).collect()
    }

    fn shown(&self, engine: &str) -> Vec<String> {
        let [plain, guarded] = &self.rounds;
        let middle = |values: &[f64]| median(values).map_or(String::new(), digits);
        let first = self.more(|rounds| &rounds.first);
        let each = |more: &f64| more / f64::from(self.case.rows);
        vec![
            format!("{engine}, {}", self.case.what),
            middle(&plain.first),
            middle(&guarded.first),
            with_extremes(&first),
            with_extremes(&self.more(|rounds| &rounds.again)),
            match self.case.rows {
                1 => String::new(),
                _ => middle(&first.iter().map(each).collect::<Vec<_>>()),
            },
            ratio(&guarded.whole, &plain.whole).map_or(String::new(), digits),
        ]
    }
}

/// The median, and in brackets the least and the most.
fn with_extremes(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    spread(values).map_or(String::new(), |of| {
        format!("{} ({}–{})", digits(of.p50), digits(least), digits(of.max))
    })
}

fn section(rows: &[Row], benches: &[Bench], slice: Duration) -> Section {
    let mut section = Section::default();
    section.paragraph(format!(
        "A statement on a guarded table, and on one without a guard, in microseconds as the client sees them. Each \
         transaction shows the grant, and runs the statement twice. Medians of {ROUNDS} rounds of {} ms, in which \
         transactions on the two tables follow each other in turn. *More* is what the guard adds, the median over \
         the rounds and in brackets the least and the most: to the first statement of a transaction, which locks \
         the row of the lock, and to the second. *Each row* is the first of them divided by the rows. The last \
         column compares whole transactions, from BEGIN to COMMIT.",
        slice.as_millis()
    ));
    let head = [
        "",
        "without",
        "guarded",
        "more, first",
        "more, second",
        "each row",
        "transaction, ×",
    ];
    let shown = |row: &Row| row.shown(benches[row.bench].engine.name);
    section.table(&head, &rows.iter().map(shown).collect::<Vec<_>>());
    section
}
