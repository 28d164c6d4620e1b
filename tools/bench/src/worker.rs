//! Other processes of the benchmark: this program, started again as `bench worker …`.
//!
//! - `row KIND RUNTIME URL NAME`: one row of the tables, see [`crate::taker`]. `KIND` is `subject` (this
//!   library), `subject-off` (without auto-renew), `baseline` or `advisory`; `RUNTIME` is `current` (tokio's
//!   current-thread runtime, which runs the loop), `multi` (a task of its default runtime) or `blocking`
//! - `hold URL LOCKS TTL_MS`: says how many milliseconds it took until it held so many locks; `stat` is
//!   answered with what they cost
//! - `idle URL NAME WAITERS`: so many tasks that wait for one lock
//! - `contend URL NAME TASKS HOLD_US MS`: so many tasks that take turns on one lock, from the next line on
//! - `profile URL MS`: cycles for `make profile`, from code that blocks

use std::future::Future;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use serde_json::json;
use testkit::time;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::machine::{cpu_seconds, memory_kib};
use crate::serve::{Cycle, answer, carry_out, in_tasks, lines};
use crate::taker::{Taker, since};
use crate::{baseline, subject};

/// The same from code that blocks.
pub(crate) trait BlockingCycle: Send + 'static {
    fn acquire(&mut self);
    fn release(&mut self);
}

/// Blocking code as futures that are ready when they are first polled.
struct Ready<C>(C);

impl<C: BlockingCycle> Cycle for Ready<C> {
    async fn acquire(&mut self) {
        self.0.acquire();
    }

    async fn release(&mut self) {
        self.0.release();
    }
}

/// An async driver under a `block_on` a call.
struct BlockOn<C> {
    runtime: Runtime,
    cycle: C,
}

impl<C: Cycle> BlockingCycle for BlockOn<C> {
    fn acquire(&mut self) {
        self.runtime.block_on(self.cycle.acquire());
    }

    fn release(&mut self) {
        self.runtime.block_on(self.cycle.release());
    }
}

/// A worker, as soon as it is ready.
pub(crate) fn start(args: &[&str]) -> Option<Taker> {
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.arg("worker").args(args);
    Taker::start(&args.join(" "), &command)
}

pub(crate) fn current_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made")
}

/// What `#[tokio::main]` makes.
pub(crate) fn multi_thread() -> Runtime {
    Runtime::new().expect("a runtime can be made")
}

pub(crate) fn run(args: &[&str]) {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let millis = |text: &str| Duration::from_millis(number(text));
    match *args {
        ["row", kind, runtime, url, name] => row(kind, runtime, url, name),
        ["hold", url, locks, ttl] => hold(url, number(locks), millis(ttl)),
        ["idle", url, name, waiters] => idle(url, name, number(waiters)),
        ["contend", url, name, tasks, hold, ms] => {
            let hold = Duration::from_micros(number(hold));
            contend(url, name, number(tasks), hold, millis(ms));
        }
        ["profile", url, ms] => {
            let mut lock = subject::Blocking::new(url, "profile", true);
            let (began, length) = (time::now(), millis(ms));
            while began.elapsed() < length {
                lock.acquire();
                lock.release();
            }
        }
        _ => panic!("bad arguments: {args:?}"),
    }
}

fn row(kind: &str, runtime: &str, url: &str, name: &str) {
    let engine = url.split(':').next().unwrap_or_default();
    match (kind, engine) {
        ("subject" | "subject-off", _) if runtime == "blocking" => {
            serve_ready(subject::Blocking::new(url, name, kind == "subject"));
        }
        ("subject" | "subject-off", _) => {
            serve(runtime, subject::Async::new(url, name, kind == "subject"));
        }
        ("baseline", "postgres") => serve(runtime, baseline::Postgres::connect(url, name)),
        ("baseline", "mysql") => serve(runtime, baseline::MySql::connect(url, name)),
        ("baseline", _) => serve_ready(baseline::Sqlite::open(url, name)),
        ("advisory", _) => serve(runtime, baseline::Advisory::connect(url)),
        _ => panic!("no row {kind}"),
    }
}

/// Answer what is asked, on a runtime of that kind.
fn serve<C: Cycle>(runtime: &str, made: impl Future<Output = C>) {
    match runtime {
        "blocking" => {
            let runtime = current_thread();
            let cycle = runtime.block_on(made);
            serve_ready(BlockOn { runtime, cycle });
        }
        "current" => {
            let runtime = current_thread();
            let mut cycle = runtime.block_on(made);
            answer("Rust, current_thread");
            for line in lines() {
                answer(&runtime.block_on(carry_out(&mut cycle, &line)));
            }
        }
        _ => in_tasks("Rust, multi_thread", made),
    }
}

fn serve_ready(cycle: impl BlockingCycle) {
    let mut cycle = Ready(cycle);
    answer("Rust, blocking");
    for line in lines() {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(carry_out(&mut cycle, &line)).poll(&mut context) {
            Poll::Ready(said) => answer(&said),
            Poll::Pending => unreachable!("blocking code leaves nothing pending"),
        }
    }
}

fn connect(url: &str) -> (Runtime, Locks) {
    let runtime = multi_thread();
    let locks = runtime.block_on(Locks::connect(url)).expect("connects");
    (runtime, locks)
}

fn hold(url: &str, locks: u64, ttl: Duration) {
    let (runtime, subject) = connect(url);
    let began = time::now();
    let guards: Vec<LockGuard> = runtime.block_on(async {
        let mut guards = Vec::new();
        let numbers: Vec<u64> = (0..locks).collect();
        for part in numbers.chunks(2000) {
            let mut set = JoinSet::new();
            for number in part {
                let lock = subject.lock(format!("{number} of {locks}")).ttl(ttl);
                set.spawn(async move { lock.acquire().await.expect("acquires") });
            }
            guards.extend(set.join_all().await);
        }
        guards
    });
    answer(&format!("{:.1}", since(began)));
    for _ in lines() {
        let stat = json!({
            "memory_kib": memory_kib(std::process::id()),
            "cpu_s": cpu_seconds(std::process::id()),
            "lost": guards.iter().filter(|guard| !guard.is_held()).count(),
        });
        answer(&stat.to_string());
    }
    // What a crash leaves is over when the servers end.
    std::process::exit(0);
}

fn idle(url: &str, name: &str, waiters: u64) {
    let (runtime, locks) = connect(url);
    for _ in 0..waiters {
        let lock = locks.lock(name);
        runtime.spawn(async move { drop(lock.acquire().await) });
    }
    answer("ready");
    lines().for_each(drop);
    std::process::exit(0);
}

/// Answers how long each grant was waited for, in milliseconds, and how many tasks had none.
fn contend(url: &str, name: &str, tasks: u64, hold: Duration, length: Duration) {
    let (runtime, locks) = connect(url);
    answer("ready");
    if lines().next().is_none() {
        return;
    }
    let began = time::now();
    let served = runtime.block_on(async {
        let mut set = JoinSet::new();
        for _ in 0..tasks {
            let lock = locks.lock(name);
            set.spawn(async move {
                let mut waits = Vec::new();
                loop {
                    let asked = time::now();
                    let left = length.saturating_sub(began.elapsed());
                    let Ok(got) = tokio::time::timeout(left, lock.acquire()).await else {
                        return waits;
                    };
                    waits.push(since(asked));
                    if !hold.is_zero() {
                        tokio::time::sleep(hold).await;
                    }
                    got.expect("acquires").release().await.expect("releases");
                }
            });
        }
        set.join_all().await
    });
    let never = served.iter().filter(|waits| waits.is_empty()).count();
    let waits: Vec<f64> = served.into_iter().flatten().collect();
    answer(&json!({"waits": waits, "never": never}).to_string());
    lines().for_each(drop);
    runtime.block_on(locks.drain());
}
