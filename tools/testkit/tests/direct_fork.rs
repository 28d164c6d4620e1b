//! A child that drops what it inherited of a direct connection takes nothing from its parent.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::time::Duration;

use database_locks::seam::{Outcome, Table};
use rustix::process::{Pid, WaitOptions, waitpid};
use testkit::contract::acquire_command;
use testkit::{Postgres, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Alone in its process, which is forked.
#[test]
fn a_forked_child_drops_the_runtime_and_its_parent_goes_on() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let store = database_locks::seam::open(&url, &Table::default()).unwrap();
    let direct = store.direct().unwrap();
    let acquire = |lock| {
        runtime.block_on(async {
            let commands = [acquire_command(lock, "me", TIMEOUT)];
            let made = tokio::time::timeout(TIMEOUT, direct.acquire(&commands)).await;
            let made = made.expect("in time").unwrap();
            assert!(matches!(made[0], Outcome::Granted { .. }), "{made:?}");
        });
    };
    runtime.block_on(store.install(TIMEOUT)).unwrap();
    acquire("before");
    let child = split();
    if child == 0 {
        drop((direct, store, runtime));
        leave();
    }
    waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap();
    acquire("after");
    promise("P13", "postgres");
}

/// Fork: 0 in the child.
#[allow(
    unsafe_code,
    reason = "a child that goes on without exec is what is tested"
)]
fn split() -> i32 {
    // SAFETY: the child frees memory and leaves, which glibc allows after a fork.
    unsafe { libc::fork() }
}

#[allow(
    unsafe_code,
    reason = "the handlers of the parent's exit are not the child's"
)]
fn leave() -> ! {
    // SAFETY: it has no preconditions.
    unsafe { libc::_exit(0) }
}
