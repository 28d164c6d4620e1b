//! Serves the requests of a case in Rust; `child.rs` describes them. `peers/rust` includes this
//! file too.

use std::future::Future;
use std::io::{BufRead, Write};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

/// Acquire and release of one lock, or of its baseline.
pub(crate) trait Cycle: Send + 'static {
    fn acquire(&mut self) -> impl Future<Output = ()> + Send;
    fn release(&mut self) -> impl Future<Output = ()> + Send;
}

/// The monotonic clock, which is the same for all processes of the machine.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[allow(clippy::print_stdout, reason = "the answers go to standard output")]
pub(crate) fn reply(line: &str) {
    println!("{line}");
    // The benchmark may have ended.
    let _ = std::io::stdout().flush();
}

pub(crate) fn requests() -> impl Iterator<Item = String> {
    std::io::stdin().lock().lines().map_while(Result::ok)
}

/// Serves each request in a task of tokio's default runtime.
pub(crate) fn serve_in_tasks<C: Cycle>(description: &str, made: impl Future<Output = C>) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let mut parts = Some(runtime.block_on(made));
    reply(description);
    for line in requests() {
        let mut cycle = parts.take().expect("the task before gave it back");
        let task = runtime.spawn(async move {
            let done = execute(&mut cycle, &line).await;
            (cycle, done)
        });
        let (cycle, done) = runtime.block_on(task).expect("the task ends");
        parts = Some(cycle);
        reply(&done);
    }
}

/// Carries out one request; its answer.
pub(crate) async fn execute<C: Cycle>(cycle: &mut C, line: &str) -> String {
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
