//! A child neither uses nor closes its parent's direct connection to an SQLite file.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use database_locks::seam::{DirectConnection, Outcome, Reply, StoreError, Table, open};
use rustix::process::{Pid, WaitOptions, waitpid};
use testkit::contract::acquire_command;
use testkit::promise;

/// The answer of a direct connection that blocks: its first poll ends a call.
fn at_once<T>(mut reply: Reply<'_, T>) -> Result<T, StoreError> {
    match reply.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("not at once"),
    }
}

fn is_granted(direct: &dyn DirectConnection, lock: &str) -> bool {
    let commands = [acquire_command(lock, "me", Duration::from_secs(20))];
    let made = at_once(direct.acquire(&commands)).unwrap();
    matches!(made[..], [Outcome::Granted { .. }])
}

/// Alone in its process, which is forked.
#[test]
fn a_forked_child_is_refused_and_its_parent_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locks.sqlite3");
    let store = open(&format!("sqlite:{}", path.display()), &Table::default()).unwrap();
    let direct = store.direct().unwrap();
    assert!(is_granted(&*direct, "before"));
    let child = split();
    if child == 0 {
        let refused = at_once(direct.connect());
        let refused = matches!(refused, Err(StoreError::Rejected { .. }));
        drop((direct, store));
        leave(i32::from(!refused));
    }
    let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(status.exit_status(), Some(0), "the child was not refused");
    let journal = path.with_file_name("locks.sqlite3-wal");
    assert!(Path::exists(&journal), "the child closed the connection");
    assert!(!is_granted(&*direct, "before"));
    assert!(is_granted(&*direct, "after"));
    promise("P13", "sqlite");
}

/// Fork: 0 in the child.
#[allow(
    unsafe_code,
    reason = "a child that goes on without exec is what is tested"
)]
fn split() -> i32 {
    // SAFETY: no other thread of this process is at work; libtest waits for this one.
    unsafe { libc::fork() }
}

#[allow(
    unsafe_code,
    reason = "the handlers of the parent's exit are not the child's"
)]
fn leave(code: i32) -> ! {
    // SAFETY: it has no preconditions.
    unsafe { libc::_exit(code) }
}
