//! Acquire and release of each kind by one task, beside a plain lock.

use std::time::Duration;

use database_locks::{AllLocks, Lock, Locks};
use testkit::time;

use crate::child::{Times, since};
use crate::console::progress;
use crate::drive::multi_thread;
use crate::report::{Section, digits, median_with_range};
use crate::servers::Engine;
use crate::stats::{median, ratio};
use crate::subject;

const ROUNDS: usize = 5;
/// A name that is used once a period is used again after that.
const PERIOD: Duration = Duration::from_millis(100);
/// Between two cycles of the rows with a pause.
const PAUSE: Duration = Duration::from_millis(10);
/// How many names these rows use in turn: more than fit in a period.
const NAMES: usize = 15;
/// How long a lock with a minimum hold rests: less than until its name is used again.
const AT_LEAST: Duration = Duration::from_millis(20);

/// A lock that is shared once, and then acquired exclusively.
const ONCE_SHARED: &str = "once shared";

/// What a row acquires and releases.
#[derive(Clone)]
enum Subject {
    /// One of these, in turn.
    InTurn(Vec<Lock>),
    /// All of these, one after another.
    Each(Vec<Lock>),
    /// All of these at once.
    AtOnce(Box<AllLocks>),
}

/// One row.
#[derive(Clone)]
pub(super) struct Row {
    what: &'static str,
    /// The row that it is compared with.
    beside: &'static str,
    subject: Subject,
    pause: Duration,
}

/// A row on one engine, and its times.
struct Measured {
    engine: &'static str,
    row: Row,
    all: Times,
    /// The median of each round.
    acquire: Vec<f64>,
    cycle: Vec<f64>,
}

/// The rows of one engine.
fn rows(locks: &Locks) -> Vec<Row> {
    let names = |what: &str, count: usize| -> Vec<String> {
        (0..count)
            .map(|number| format!("{what} {number}"))
            .collect()
    };
    let each = |what: &str, count| -> Vec<Lock> {
        names(what, count)
            .iter()
            .map(|name| locks.lock(name))
            .collect()
    };
    let at_once = |count| Subject::AtOnce(Box::new(locks.all(names("set", count))));
    let row = |what, beside, subject| Row {
        what,
        beside,
        subject,
        pause: Duration::ZERO,
    };
    let spaced = |what, beside, change: fn(Lock) -> Lock| Row {
        pause: PAUSE,
        ..row(
            what,
            beside,
            Subject::InTurn(each(what, NAMES).into_iter().map(change).collect()),
        )
    };
    let permit = Subject::InTurn(vec![locks.semaphore("permits", 10)]);
    let shared = Subject::InTurn(vec![locks.lock("shared").shared()]);
    let once_shared = Subject::InTurn(vec![locks.lock(ONCE_SHARED)]);
    vec![
        row("a lock", "", Subject::InTurn(each("lock", 1))),
        row("a permit of a semaphore of 10", "a lock", permit),
        row("a shared lock", "a lock", shared),
        row("a lock that was shared before", "a lock", once_shared),
        row(
            "two locks, one after another",
            "",
            Subject::Each(each("set", 2)),
        ),
        row(
            "two locks at once",
            "two locks, one after another",
            at_once(2),
        ),
        row(
            "ten locks, one after another",
            "",
            Subject::Each(each("set", 10)),
        ),
        row(
            "ten locks at once",
            "ten locks, one after another",
            at_once(10),
        ),
        spaced("a lock, cold", "", |lock| lock),
        spaced("`at_least`, cold", "a lock, cold", |lock| {
            lock.at_least(AT_LEAST)
        }),
        spaced("`once_per`, cold", "a lock, cold", |lock| {
            lock.once_per(PERIOD)
        }),
    ]
}

pub(super) fn run(engines: &[Engine], length: Duration, section: &mut Section) {
    let runtime = multi_thread();
    let mut measured = Vec::new();
    for engine in engines {
        let locks = subject::connected(&runtime, &engine.url);
        drop(runtime.block_on(locks.lock(ONCE_SHARED).shared().acquire()));
        runtime.block_on(locks.drain());
        measured.extend(rows(&locks).into_iter().map(|row| Measured {
            engine: engine.name,
            row,
            all: Times::default(),
            acquire: Vec::new(),
            cycle: Vec::new(),
        }));
    }
    let slice = length.div_f64((ROUNDS * measured.len()) as f64);
    progress(&format!(
        "kinds: {} rows, {ROUNDS} rounds of {} ms each",
        measured.len(),
        slice.as_millis()
    ));
    let once = |row: &Row, slice| {
        let cycles = cycles(row.clone(), slice);
        runtime.block_on(runtime.spawn(cycles)).expect("it ends")
    };
    // Makes the rows of the tables, and fills caches and plans.
    for one in &measured {
        once(&one.row, Duration::from_millis(50));
    }
    let mut order: Vec<usize> = (0..measured.len()).collect();
    for _ in 0..ROUNDS {
        fastrand::shuffle(&mut order);
        for &at in &order {
            let one = &mut measured[at];
            let times = once(&one.row, slice);
            one.acquire.push(median(&times.acquire).unwrap_or(f64::NAN));
            one.cycle.push(median(&times.cycles()).unwrap_or(f64::NAN));
            one.all.extend(times);
        }
    }
    section.paragraph(format!(
        "One task acquires and releases. Times are in milliseconds: the median and, in brackets, the 10th and 90th \
         percentile of {ROUNDS} rounds of {} ms. The ratios, medians over the rounds, compare with the row that the \
         last column names; a lock that was never shared is the row *a lock*. *Cold* rows pause for {} ms between cycles; a minimum hold is {} ms, a period {} ms.",
        slice.as_millis(),
        PAUSE.as_millis(),
        AT_LEAST.as_millis(),
        PERIOD.as_millis()
    ));
    let head = [
        "",
        "acquire",
        "release",
        "acquire, ×",
        "cycle, ×",
        "compared with",
    ];
    let rows: Vec<_> = measured.iter().map(|one| shown(one, &measured)).collect();
    section.table(&head, &rows);
}

fn shown(one: &Measured, all: &[Measured]) -> Vec<String> {
    let beside = all
        .iter()
        .find(|other| other.engine == one.engine && other.row.what == one.row.beside);
    let compared = |of: fn(&Measured) -> &Vec<f64>| {
        beside
            .and_then(|beside| ratio(of(one), of(beside)))
            .map_or(String::new(), digits)
    };
    vec![
        format!("{}, {}", one.engine, one.row.what),
        median_with_range(&one.all.acquire),
        median_with_range(&one.all.release),
        compared(|one| &one.acquire),
        compared(|one| &one.cycle),
        one.row.beside.to_owned(),
    ]
}

/// Cycles for so long, at least one for each name.
async fn cycles(row: Row, slice: Duration) -> Times {
    let (mut times, began) = (Times::default(), time::now());
    let least = match &row.subject {
        Subject::InTurn(locks) => locks.len().max(3),
        _ => 3,
    };
    while began.elapsed() < slice || times.acquire.len() < least {
        let (acquire, release) = cycle(&row.subject, times.acquire.len()).await;
        times.acquire.push(acquire);
        times.release.push(release);
        if !row.pause.is_zero() {
            tokio::time::sleep(row.pause).await;
        }
    }
    if let (false, Subject::InTurn(_)) = (row.pause.is_zero(), &row.subject) {
        // The next round begins with the first name.
        tokio::time::sleep(PERIOD).await;
    }
    times
}

/// One cycle: the milliseconds of the acquire and of the release.
async fn cycle(subject: &Subject, number: usize) -> (f64, f64) {
    let began = time::now();
    match subject {
        Subject::InTurn(locks) => {
            let guard = locks[number % locks.len()].acquire().await;
            let (acquire, between) = (since(began), time::now());
            guard.expect("acquires").release().await.expect("releases");
            (acquire, since(between))
        }
        Subject::Each(locks) => {
            let mut guards = Vec::new();
            for lock in locks {
                guards.push(lock.acquire().await.expect("acquires"));
            }
            let (acquire, between) = (since(began), time::now());
            for guard in guards {
                guard.release().await.expect("releases");
            }
            (acquire, since(between))
        }
        Subject::AtOnce(set) => {
            let guards = set.acquire().await.expect("acquires");
            let (acquire, between) = (since(began), time::now());
            guards.release().await.expect("releases");
            (acquire, since(between))
        }
    }
}
