//! Child processes are read, frozen and killed, and do not outlive the tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::cleanup::ScratchDir;
use testkit::{ChildProcess, time};

/// Long enough for anything that happens at all, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Long enough to believe that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
fn lines_of_a_process_are_read_as_they_come() {
    let mut cat = ChildProcess::spawn("cat", [""; 0]);
    cat.send_line("hello").unwrap();
    assert_eq!(cat.expect_line(TIMEOUT), "hello");
    assert_eq!(cat.line(A_WHILE), None);
    cat.close_input();
    assert!(cat.wait(TIMEOUT).expect("it ends with its input").success());
}

#[test]
fn a_frozen_process_does_nothing_until_it_is_thawed() {
    let mut cat = ChildProcess::spawn("cat", [""; 0]);
    cat.freeze();
    cat.send_line("hello").unwrap();
    assert_eq!(cat.line(A_WHILE), None);
    cat.thaw();
    assert_eq!(cat.expect_line(TIMEOUT), "hello");
}

#[test]
fn a_killed_process_dies_of_a_signal() {
    let mut cat = ChildProcess::spawn("cat", [""; 0]);
    cat.freeze();
    assert_eq!(cat.kill9().signal(), Some(9));
    assert_eq!(cat.line(TIMEOUT), None);
}

#[test]
fn a_process_inherits_the_environment() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $WHO; pwd"])
        .env("WHO", "me")
        .current_dir("/");
    let child = ChildProcess::spawn_command(&command);
    assert_eq!(
        (child.expect_line(TIMEOUT), child.expect_line(TIMEOUT)),
        ("me".into(), "/".into())
    );
}

/// Set for the process that the test below kills.
const OWNER: &str = "DBLOCK_TEST_OWNER";

/// Run by the test below in a process of its own, which waits to be killed.
#[test]
fn process_to_be_killed() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let dir = ScratchDir::new("owner");
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo up; exec sleep 1000"])
        .current_dir(dir.path());
    let running = ChildProcess::spawn_command(&command);
    let mut frozen = ChildProcess::spawn_command(&command);
    assert_eq!(
        (running.expect_line(TIMEOUT), frozen.expect_line(TIMEOUT)),
        ("up".into(), "up".into())
    );
    frozen.freeze();
    println!(
        "\n{} {} {}",
        dir.path().display(),
        running.pid(),
        frozen.pid()
    );
    time::sleep(Duration::from_secs(1000));
}

#[test]
fn nothing_outlives_a_killed_test_process() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["process::process_to_be_killed", "--exact", "--nocapture"])
        .env(OWNER, "1");
    let mut owner = ChildProcess::spawn_command(&command);
    let message = std::iter::from_fn(|| Some(owner.expect_line(TIMEOUT)))
        .find(|line| line.starts_with('/'))
        .unwrap();
    let [dir, running, frozen] = message.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{message}");
    };
    let alive = |pid: &str| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie waits for the init of this machine, which may take its time.
        !state.is_empty() && !state.contains(") Z ")
    };
    assert!(Path::new(dir).exists() && alive(running) && alive(frozen));

    owner.kill9();
    assert!(time::wait_until(TIMEOUT, || !alive(running) && !alive(frozen)));
    assert!(time::wait_until(TIMEOUT, || !Path::new(dir).exists()));
}
