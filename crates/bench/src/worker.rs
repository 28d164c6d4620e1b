//! Other processes of the benchmark: this program, started again as `bench worker …`.
//!
//! - `wait URL NAME`: `acquire` and `release` as the lines come, answered with the monotonic clock: when
//!   it was acquired, and before it was released
//! - `hold URL LOCKS TTL_MS`: says how many milliseconds it took until it held so many locks; `stat` is
//!   answered with what they cost
//! - `idle URL NAME WAITERS`: so many tasks that wait for one lock
//! - `cycles URL MS`: acquires and releases so long, from code that blocks
//! - `storm URL NAME TASKS MS`: so many tasks that take turns on one lock, from the next line on

use std::io::{BufRead, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::{LockGuard, Locks};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use testkit::time;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::contender::{Taker, since};
use crate::machine::{cpu_seconds, memory_kib};
use crate::ours::{self, SHORT};

/// A worker, as soon as it is ready.
pub(crate) fn start(args: &[&str]) -> Option<Taker> {
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.arg("worker").args(args);
    Taker::start(&command)
}

/// The clock that all processes of the machine share.
pub(crate) fn now_ns() -> u128 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u128 * 1_000_000_000 + now.tv_nsec as u128
}

#[allow(clippy::print_stdout, reason = "printing is how it answers")]
fn answer(line: &str) {
    println!("{line}");
    // The one that asks may have ended.
    let _ = std::io::stdout().flush();
}

pub(crate) fn run(args: &[&str]) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match *args {
        ["wait", url, name] => wait(&runtime, url, name),
        ["hold", url, locks, ttl] => {
            hold(
                &runtime,
                url,
                number(locks),
                Duration::from_millis(number(ttl)),
            );
        }
        ["idle", url, name, waiters] => idle(&runtime, url, name, number(waiters)),
        ["storm", url, name, tasks, ms] => {
            storm(
                &runtime,
                url,
                name,
                number(tasks),
                Duration::from_millis(number(ms)),
            );
        }
        ["cycles", url, ms] => {
            let mut lock = ours::blocking("cycles", "", url);
            (lock.run)(Duration::from_millis(number(ms)));
        }
        _ => panic!("bad arguments: {args:?}"),
    }
}

fn lines() -> impl Iterator<Item = String> {
    std::io::stdin().lock().lines().map_while(Result::ok)
}

fn connect(runtime: &Runtime, url: &str) -> Locks {
    runtime.block_on(Locks::connect(url)).expect("connects")
}

fn wait(runtime: &Runtime, url: &str, name: &str) {
    let lock = connect(runtime, url).lock(name);
    let mut guard = None;
    answer("ready");
    for line in lines() {
        match line.as_str() {
            "acquire" => {
                guard = Some(runtime.block_on(lock.acquire()).expect("acquires"));
                answer(&now_ns().to_string());
            }
            "release" => {
                let at = now_ns();
                if let Some(guard) = guard.take() {
                    runtime.block_on(guard.release()).expect("releases");
                }
                answer(&at.to_string());
            }
            other => panic!("not understood: {other}"),
        }
    }
}

fn hold(runtime: &Runtime, url: &str, locks: u64, ttl: Duration) {
    let ours = connect(runtime, url);
    let began = time::now();
    let guards: Vec<LockGuard> = runtime.block_on(async {
        let mut guards = Vec::new();
        let numbers: Vec<u64> = (0..locks).collect();
        for part in numbers.chunks(2000) {
            let mut set = JoinSet::new();
            for number in part {
                let lock = ours.lock(format!("{number} of {locks}")).ttl(ttl);
                set.spawn(async move { lock.acquire().await.expect("acquires") });
            }
            while let Some(guard) = set.join_next().await {
                guards.push(guard.expect("the task ends"));
            }
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

fn idle(runtime: &Runtime, url: &str, name: &str, waiters: u64) {
    let locks = connect(runtime, url);
    for _ in 0..waiters {
        let lock = locks.lock(name);
        runtime.spawn(async move { drop(lock.acquire().await) });
    }
    answer("ready");
    lines().for_each(drop);
    std::process::exit(0);
}

fn storm(runtime: &Runtime, url: &str, name: &str, tasks: u64, length: Duration) {
    let locks = connect(runtime, url);
    answer("ready");
    if lines().next().is_none() {
        return;
    }
    let waits = Arc::new(Mutex::new(Vec::new()));
    let began = time::now();
    let starved = runtime.block_on(async {
        let mut set = JoinSet::new();
        for _ in 0..tasks {
            let (lock, waits) = (locks.lock(name), Arc::clone(&waits));
            set.spawn(async move {
                let mut turns = 0u64;
                while began.elapsed() < length {
                    let asked = time::now();
                    // Who waits at the end is counted with what it has waited until then.
                    let left = length.saturating_sub(began.elapsed());
                    let Ok(got) = tokio::time::timeout(left, lock.acquire()).await else {
                        waits.lock().expect("no panic").push((since(asked), false));
                        break;
                    };
                    waits.lock().expect("no panic").push((since(asked), true));
                    turns += 1;
                    tokio::time::sleep(SHORT).await;
                    got.expect("acquires").release().await.expect("releases");
                }
                turns
            });
        }
        let mut never = 0;
        while let Some(turns) = set.join_next().await {
            never += u64::from(turns.is_ok_and(|turns| turns == 0));
        }
        never
    });
    let waits = waits.lock().expect("no panic");
    let served = waits.iter().filter(|(_, got)| *got);
    let served: Vec<String> = served.map(|(wait, _)| format!("{wait:.3}")).collect();
    let text = served.join(",");
    let unserved: Vec<f64> = waits
        .iter()
        .filter(|(_, got)| !got)
        .map(|(wait, _)| *wait)
        .collect();
    answer(&format!(
        "{{\"waits\":[{text}],\"unserved\":{unserved:?},\"never\":{starved}}}"
    ));
    lines().for_each(drop);
    runtime.block_on(locks.drain());
}
