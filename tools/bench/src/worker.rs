//! The worker processes of the benchmark: this program, started as `bench worker …`.
//!
//! - `case KIND RUNTIME URL NAME`: one case of the tables, see [`crate::child`]. `KIND` is
//!   `subject` (this library), `subject-off` (without auto-renew), `baseline` or `advisory`;
//!   `RUNTIME` is `current` (tokio's current-thread runtime, which runs the loop), `multi` (a task
//!   of its default runtime) or `blocking`
//! - `hold URL LOCKS TTL_MS`: acquires so many locks and answers how many milliseconds that took;
//!   answers `stat` with its memory, its processor time and its lost locks
//! - `idle URL NAME WAITERS`: so many tasks wait for one lock
//! - `lead URL NAME TTL_MS`: campaigns, and answers `leads NS` by the monotonic clock each time that it
//!   leads; `resign` ends its term, and is answered by `resigns NS`
//! - `contend URL NAME TASKS HOLD_US MS`: so many tasks contend for one lock, from the next request
//!   on

use std::process::Command;
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use serde_json::json;
use testkit::time;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::child::{Child, since};
use crate::drive::{multi_thread, serve, serve_ready};
use crate::proc::{cpu_seconds, memory_kib};
use crate::serve::{now_ns, reply, requests};
use crate::{baseline, subject};

/// Starts a worker and waits until it is ready.
pub(crate) fn start(args: &[&str]) -> Option<Child> {
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.arg("worker").args(args);
    Child::start(&args.join(" "), &command)
}

pub(crate) fn run(args: &[&str]) {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let millis = |text: &str| Duration::from_millis(number(text));
    match *args {
        ["case", kind, runtime, url, name] => case(kind, runtime, url, name),
        ["hold", url, locks, ttl] => hold(url, number(locks), millis(ttl)),
        ["idle", url, name, waiters] => idle(url, name, number(waiters)),
        ["lead", url, name, ttl] => lead(url, name, millis(ttl)),
        ["contend", url, name, tasks, hold, ms] => {
            let hold = Duration::from_micros(number(hold));
            contend(url, name, number(tasks), hold, millis(ms));
        }
        _ => panic!("bad arguments: {args:?}"),
    }
}

fn case(kind: &str, runtime: &str, url: &str, name: &str) {
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
        _ => panic!("no case {kind}"),
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
    reply(&format!("{:.1}", since(began)));
    for _ in requests() {
        let stat = json!({
            "memory_kib": memory_kib(std::process::id()),
            "cpu_s": cpu_seconds(std::process::id()),
            "lost": guards.iter().filter(|guard| !guard.is_held()).count(),
        });
        reply(&stat.to_string());
    }
    // The servers end with the benchmark: nothing is left to release.
    std::process::exit(0);
}

fn idle(url: &str, name: &str, waiters: u64) {
    let (runtime, locks) = connect(url);
    for _ in 0..waiters {
        let lock = locks.lock(name);
        runtime.spawn(async move { drop(lock.acquire().await) });
    }
    reply("ready");
    requests().for_each(drop);
    std::process::exit(0);
}

fn lead(url: &str, name: &str, ttl: Duration) {
    let (runtime, locks) = connect(url);
    let (sender, receiver) = tokio::sync::watch::channel(0_u64);
    std::thread::spawn(move || {
        requests().for_each(|_| sender.send_modify(|resigned| *resigned += 1));
        std::process::exit(0);
    });
    reply("ready");
    let led = locks.leader(name).ttl(ttl).run(|term| {
        let mut resigns = receiver.clone();
        async move {
            resigns.mark_unchanged();
            reply(&format!("leads {}", now_ns()));
            if resigns.changed().await.is_ok() {
                reply(&format!("resigns {}", now_ns()));
                term.resign();
            }
            std::future::pending::<()>().await;
        }
    });
    runtime.block_on(led).expect("campaigns");
}

/// Answers the milliseconds that each grant was waited for, and how many tasks had none.
fn contend(url: &str, name: &str, tasks: u64, hold: Duration, length: Duration) {
    let (runtime, locks) = connect(url);
    reply("ready");
    if requests().next().is_none() {
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
    reply(&json!({"waits": waits, "never": never}).to_string());
    requests().for_each(drop);
    runtime.block_on(locks.drain());
}
