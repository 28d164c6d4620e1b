//! The runtimes on which a case runs, and blocking code as a case.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Builder, Runtime};

use crate::serve::{Cycle, execute, reply, requests, serve_in_tasks};

/// [`Cycle`] for blocking code.
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

/// An async driver as blocking code: each call is a `block_on`.
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

pub(crate) fn current_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made")
}

/// What `#[tokio::main]` makes.
pub(crate) fn multi_thread() -> Runtime {
    Runtime::new().expect("a runtime can be made")
}

/// Answers requests on a runtime of that kind.
pub(crate) fn serve<C: Cycle>(runtime: &str, made: impl Future<Output = C>) {
    match runtime {
        "blocking" => {
            let runtime = current_thread();
            let cycle = runtime.block_on(made);
            serve_ready(BlockOn { runtime, cycle });
        }
        "current" => {
            let runtime = current_thread();
            let mut cycle = runtime.block_on(made);
            reply("Rust, current_thread");
            for line in requests() {
                reply(&runtime.block_on(execute(&mut cycle, &line)));
            }
        }
        _ => serve_in_tasks("Rust, multi_thread", made),
    }
}

pub(crate) fn serve_ready(cycle: impl BlockingCycle) {
    let mut cycle = Ready(cycle);
    reply("Rust, blocking");
    for line in requests() {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(execute(&mut cycle, &line)).poll(&mut context) {
            Poll::Ready(message) => reply(&message),
            Poll::Pending => unreachable!("blocking code leaves nothing pending"),
        }
    }
}
