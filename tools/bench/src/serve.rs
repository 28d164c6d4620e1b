//! How a row in Rust answers what it is told; `peers/rust` includes this file too. The lines are described in
//! `taker.rs`.

use std::future::Future;
use std::io::{BufRead, Write};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

/// Acquire and release of one lock, or of what it is compared with.
pub(crate) trait Cycle: Send + 'static {
    fn acquire(&mut self) -> impl Future<Output = ()> + Send;
    fn release(&mut self) -> impl Future<Output = ()> + Send;
}

/// The clock that all processes of the machine share.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[allow(clippy::print_stdout, reason = "printing is how it answers")]
pub(crate) fn answer(line: &str) {
    println!("{line}");
    // The one that asks may have ended.
    let _ = std::io::stdout().flush();
}

pub(crate) fn lines() -> impl Iterator<Item = String> {
    std::io::stdin().lock().lines().map_while(Result::ok)
}

/// Answer each line in a task of tokio's default runtime.
pub(crate) fn in_tasks<C: Cycle>(what: &str, made: impl Future<Output = C>) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let mut parts = Some(runtime.block_on(made));
    answer(what);
    for line in lines() {
        let mut cycle = parts.take().expect("the task before gave it back");
        let task = runtime.spawn(async move {
            let said = carry_out(&mut cycle, &line).await;
            (cycle, said)
        });
        let (cycle, said) = runtime.block_on(task).expect("the task ends");
        parts = Some(cycle);
        answer(&said);
    }
}

/// What one line asks for, and the answer to it.
pub(crate) async fn carry_out<C: Cycle>(cycle: &mut C, line: &str) -> String {
    let mark = std::os::unix::process::parent_id;
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match line.split_once(' ').unwrap_or((line, "")) {
        ("cycles", ms) => {
            let (mut acquire, mut release) = (Vec::new(), Vec::new());
            let end = now_ns() + number(ms) * 1_000_000;
            while now_ns() < end || acquire.len() < 3 {
                let before = now_ns();
                cycle.acquire().await;
                let between = now_ns();
                cycle.release().await;
                acquire.push(between - before);
                release.push(now_ns() - between);
            }
            format!("{{\"acquire\": {acquire:?}, \"release\": {release:?}}}")
        }
        ("count", cycles) => {
            for _ in 0..number(cycles) {
                let _ = mark();
                cycle.acquire().await;
                let _ = mark();
                cycle.release().await;
            }
            let _ = mark();
            "done".to_owned()
        }
        (call, _) => {
            let before = now_ns();
            match call {
                "acquire" => cycle.acquire().await,
                _ => cycle.release().await,
            }
            format!("{before} {}", now_ns())
        }
    }
}
