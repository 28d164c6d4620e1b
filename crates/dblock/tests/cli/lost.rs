//! A lock that is lost while the command runs: the command is stopped before the lease ends.

use std::time::Duration;

use crate::support::{Sandbox, TIMEOUT, wait_until_gone};
use rustix::process::Signal;
use testkit::time;

/// Renewed every 4 s, so that a release by force is noticed soon.
const SHORT: [&str; 4] = ["--ttl", "12s", "--grace", "3s"];
/// Prints `termed` when it gets TERM, and ends.
const STOPS_ON_TERM: &str = "trap 'echo termed; exit 0' TERM; BEGUN; while :; do sleep 0.02; done";

#[test]
fn a_release_by_force_stops_the_command() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(&SHORT, "job", STOPS_ON_TERM);
    let freed = sandbox.run(["release", "job", "--force"]);
    assert!(
        freed.err.contains("lock `job` released by force: "),
        "{freed:?}"
    );
    let done = running.end();
    assert_eq!(done.out, "termed\n");
    let message = done.dblock_line(76);
    assert!(
        message.contains("lock `job` lost ")
            && message.contains("after ")
            && message.contains(
                ": released by force; CMD was stopped, its process group got TERM, and ended within \
                 the grace of 3s; it is now free"
            ),
        "{message}"
    );
}

#[test]
fn a_loss_stops_the_processes_that_the_command_started_too() {
    let sandbox = Sandbox::new();
    // The leader ends at TERM, and so does one of its children; the other one ignores it.
    let script = "(trap '' TERM; while :; do sleep 0.02; done) & echo $! > deaf
        (exec sleep 1000) & echo $! > hears
        trap 'exit 0' TERM; BEGUN; while :; do sleep 0.02; done";
    let running = sandbox.start_run(&["--ttl", "12s", "--grace", "1s"], "job", script);
    sandbox.run(["release", "job", "--force"]);
    let done = running.end();
    assert!(
        done.dblock_line(76)
            .contains("got TERM, and KILL after the grace of 1s"),
        "{done:?}"
    );
    wait_until_gone(&sandbox.read("deaf"));
    wait_until_gone(&sandbox.read("hears"));
}

#[test]
fn on_lost_kill_kills_at_once() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(&["--ttl", "12s", "--on-lost", "kill"], "job", STOPS_ON_TERM);
    sandbox.run(["release", "job", "--force"]);
    let done = running.end();
    assert_eq!(done.out, "");
    assert!(
        done.dblock_line(76)
            .contains("CMD was stopped, its process group got KILL; it is now "),
        "{done:?}"
    );
}

#[test]
fn on_lost_ignore_lets_the_command_run_on() {
    let sandbox = Sandbox::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done; exit 7";
    let running = sandbox.start_run(&["--ttl", "12s", "--on-lost", "ignore"], "job", script);
    sandbox.run(["release", "job", "--force"]);
    // The loss is noticed before the command ends.
    running.wait_for_stderr("CMD runs on without it");
    sandbox.touch("go");
    let done = running.end();
    let message = done.dblock_line(7);
    assert!(
        message.contains("released by force; CMD runs on without it"),
        "{message}"
    );
}

/// The exit code of the command counts, and the message says that another holder may have run.
#[test]
fn a_loss_found_by_the_release_is_a_warning() {
    let sandbox = Sandbox::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done; exit 7";
    let running = sandbox.start_run(&["--ttl", "5m"], "job", script);
    sandbox.run(["release", "job", "--force"]);
    sandbox.touch("go");
    let done = running.end();
    let message = done.dblock_line(7);
    assert!(
        message.contains("lock `job` lost ")
            && message.contains(": released by force, just before CMD ended"),
        "{message}"
    );
}

/// The renewal that finds the loss reads the new holder, so the row is not read again.
#[test]
fn the_message_of_a_preemption_names_the_new_holder() {
    let sandbox = Sandbox::new();
    // The first renewal comes after 10 s. By then another client has the lock.
    let running = sandbox.start_run(&["--ttl", "30s", "--grace", "3s"], "job", STOPS_ON_TERM);
    sandbox.run(["release", "job", "--force"]);
    let taken = sandbox.run([
        "acquire",
        "job",
        "--holder",
        "the new holder",
        "--ttl",
        "1h",
    ]);
    assert_eq!(taken.code(), 0, "{taken:?}");
    let done = running.end();
    let message = done.dblock_line(76);
    assert!(
        message.contains(": preempted by another holder (now held by the new holder for ")
            && message.ends_with("got TERM, and ended within the grace of 3s"),
        "{message}"
    );
}

/// P4: the file is locked, so no renewal gets through. The waiter gets the lock only after the last
/// process of the command has ended, although the command ignores TERM.
#[test]
fn a_command_that_ignores_term_is_killed_before_another_client_can_have_the_lock() {
    let sandbox = Sandbox::new();
    let nanos = |name: &str| sandbox.read(name).trim().parse::<u128>().expect("a time");
    let script = "trap 'date +%s%N > termed' TERM; BEGUN
        while :; do date +%s%N > beat.new; mv beat.new beat; sleep 0.02; done";
    // KILL comes 2 s before the end of the lease.
    let running = sandbox.start_run(&["--ttl", "26s", "--grace", "3s"], "job", script);
    let next = [
        "run",
        "-w",
        "1m",
        "job",
        "--",
        "sh",
        "-c",
        "date +%s%N > next",
    ];
    let next = sandbox.start(&mut sandbox.dblock(next));

    let file = rusqlite::Connection::open(sandbox.database()).expect("opens");
    file.busy_timeout(TIMEOUT).expect("sets");
    file.execute_batch("BEGIN IMMEDIATE")
        .expect("has the write lock");
    let left = "SELECT unixepoch(expires_at, 'subsec') - unixepoch('now', 'subsec')
                  FROM database_locks_lock WHERE name = 'job'";
    let left: f64 = file.query_row(left, [], |row| row.get(0)).expect("a row");
    // Until just before the end of the lease, so that the waiter is not delayed.
    time::sleep(Duration::from_secs_f64((left - 0.05).max(0.0)));
    file.execute_batch("ROLLBACK").expect("gives it back");

    let done = running.end();
    assert_eq!(done.code(), 76, "{done:?}");
    // The failed renewals were reported before.
    let lost = done.err.lines().last().unwrap_or_default();
    assert!(
        lost.contains("got TERM, and KILL after the grace of 3s"),
        "{done:?}"
    );
    assert_eq!(next.end().code(), 0);
    let (termed, beat, next) = (nanos("termed"), nanos("beat"), nanos("next"));
    assert!(beat < next, "it ran on for {} ns", beat - next);
    assert!(beat > termed + 500_000_000, "it had its grace");
    testkit::promise("P4", "sqlite");
}

/// As after a suspend: when dblock runs on, another client has the lock.
#[test]
fn after_a_freeze_the_command_is_stopped_and_the_successor_is_untouched() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(&SHORT, "job", STOPS_ON_TERM);
    running.signal(Signal::STOP);
    let script = "touch next; while [ ! -e go ]; do sleep 0.02; done; exit 4";
    let next = [
        "run",
        "-w",
        "1m",
        "--holder",
        "the successor",
        "job",
        "--",
        "sh",
        "-c",
        script,
    ];
    let next = sandbox.start(&mut sandbox.dblock(next));
    sandbox.wait_for("next");
    running.signal(Signal::CONT);
    let done = running.end();
    assert_eq!(done.out, "termed\n");
    let message = done.dblock_line(76);
    assert!(message.contains("lock `job` lost "), "{message}");
    assert!(
        message.contains("; it is now held by the successor for "),
        "{message}"
    );

    let shown = sandbox.run(["show", "job", "--json"]).out;
    assert!(
        shown.contains(r#""state":"held","holder":"the successor""#),
        "{shown}"
    );
    sandbox.touch("go");
    let done = next.end();
    assert_eq!((done.code(), &*done.err), (4, ""));
    testkit::promise("P3", "sqlite");
}

/// Renewals fail until trust ends, and the row still names the lost grant.
#[test]
fn the_message_of_a_loss_never_names_its_own_holder_as_the_new_one() {
    let sandbox = Sandbox::new();
    let options = ["--holder", "me", "--ttl", "8s", "--grace", "200ms"];
    let running = sandbox.start_run(&options, "job", STOPS_ON_TERM);
    let file = rusqlite::Connection::open(sandbox.database()).expect("opens");
    file.busy_timeout(TIMEOUT).expect("sets");
    file.execute_batch("BEGIN IMMEDIATE")
        .expect("has the write lock");
    let done = running.end();
    file.execute_batch("ROLLBACK").expect("gives it back");
    assert_eq!(done.code(), 76, "{done:?}");
    let lost = done.err.lines().last().unwrap_or_default();
    assert!(lost.contains("lock `job` lost "), "{done:?}");
    assert!(!lost.contains("held by me"), "{done:?}");
    assert!(lost.ends_with("; no other holder has it yet"), "{done:?}");
}
