//! Programs that end right after their lock: it is free when they have ended.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use database_locks::{LockState, Locks};
use testkit::time::now;
use testkit::{ChildProcess, TestDb, db_tests, promise};

const EXITING_HOLDER: &str = env!("CARGO_BIN_EXE_exiting-holder");
/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// As often as the main way is tried on each engine: a program that does not wait is seen by then.
const OFTEN: usize = 20;
const OTHER_WAYS: [&str; 16] = [
    "current-thread",
    "exit",
    "panic",
    "task",
    "shutdown",
    "detached",
    "exit-holding",
    "leaked",
    "thread",
    "thread-local",
    "elsewhere",
    "elsewhere-dropped",
    "exit-elsewhere",
    "exit-beside",
    "dropped-acquire",
    "fork",
];

/// Runs it to its end; whether it succeeded, and its output.
fn ended(url: &str, how: &str) -> (Option<i32>, String) {
    let mut command = Command::new(Path::new(EXITING_HOLDER));
    let out = command.args([url, "job", how]).output().expect("runs");
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    (out.status.code(), message)
}

async fn is_free(locks: &Locks) -> bool {
    let row = locks.show("job").await.expect("answers");
    row.is_none_or(|row| row.state == LockState::Free)
}

async fn free_after(db: &TestDb, locks: &Locks, how: &str) {
    let (code, message) = ended(&db.url, how);
    let expected = match how {
        "question-mark" | "current-thread" => Some(1),
        "exit" | "exit-holding" | "exit-elsewhere" | "exit-beside" => Some(3),
        "panic" => Some(101),
        _ => Some(0),
    };
    assert_eq!(code, expected, "{how}: {message}");
    assert!(is_free(locks).await, "{how}: it is still held. {message}");
}

async fn a_guard_that_the_end_of_main_drops_is_free_when_the_program_has_ended(db: &TestDb) {
    let locks = db.locks().await;
    for _ in 0..OFTEN {
        free_after(db, &locks, "question-mark").await;
    }
    promise("P7", db.engine);
}

async fn every_end_of_a_program_frees_its_dropped_guards(db: &TestDb) {
    let locks = db.locks().await;
    for how in OTHER_WAYS {
        for _ in 0..3 {
            free_after(db, &locks, how).await;
        }
    }
    promise("P7", db.engine);
}

/// Whether the guard was dropped, leaked or held by another thread.
async fn a_lock_with_a_minimum_hold_rests_after_the_end_of_its_program(db: &TestDb) {
    let locks = db.locks().await;
    for how in ["question-mark", "exit-holding", "leaked", "elsewhere"] {
        let mut command = Command::new(Path::new(EXITING_HOLDER));
        command.args([&*db.url, how, how]).env("AT_LEAST", "600");
        let out = command.output().expect("runs");
        let row = locks.show(how).await.expect("answers").expect("a row");
        let LockState::Resting { free_in } = row.state else {
            panic!("{how}: {row:?} {out:?}")
        };
        assert!(free_in > TIMEOUT && free_in < 10 * TIMEOUT, "{free_in:?}");
    }
}

/// A release that cannot be carried out keeps no program from ending.
async fn a_release_that_is_not_answered_holds_up_the_end_for_some_two_seconds(db: &TestDb) {
    let locks = db.locks().await;
    let mut process = ChildProcess::spawn(EXITING_HOLDER, [&db.url, "job", "on-input"]);
    assert_eq!(process.expect_line(TIMEOUT), "held");
    let blocked = db.lock_row("job");
    let began = now();
    process.send_line("end").expect("it listens");
    let ended = process.wait(TIMEOUT).expect("it ends");
    let took = began.elapsed();
    assert!(ended.success(), "{ended}");
    assert!(
        took > Duration::from_millis(1500),
        "given up after {took:?}"
    );
    assert!(took < Duration::from_secs(15), "it took {took:?}");
    blocked.rollback();
    assert!(!is_free(&locks).await);
}

async fn a_child_that_drops_an_inherited_direct_connection_holds_up_none_of_its_parents_calls(
    db: &TestDb,
) {
    let locks = db.locks().await;
    free_after(db, &locks, "fork-direct").await;
    promise("P13", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_guard_that_the_end_of_main_drops_is_free_when_the_program_has_ended,
            every_end_of_a_program_frees_its_dropped_guards,
            a_lock_with_a_minimum_hold_rests_after_the_end_of_its_program,
        );
    )* };
}
on!(sqlite, postgres, mariadb, mysql);

mod with_a_direct_connection {
    //! Where calls on it do not block.
    use super::*;
    db_tests!(mariadb: a_child_that_drops_an_inherited_direct_connection_holds_up_none_of_its_parents_calls);
    db_tests!(mysql: a_child_that_drops_an_inherited_direct_connection_holds_up_none_of_its_parents_calls);
}

mod blocked {
    //! Where a test can keep a release from being carried out.
    use super::*;
    db_tests!(sqlite: a_release_that_is_not_answered_holds_up_the_end_for_some_two_seconds);
}
