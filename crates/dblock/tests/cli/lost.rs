//! A lock that is lost while the command runs: that is stopped, within the lease.

use std::time::Duration;

use crate::support::{Lab, SOON, wait_until_gone};
use rustix::process::Signal;
use testkit::time;

/// Renewed each 600 ms: a release by force is noticed soon.
const SHORT: [&str; 4] = ["--ttl", "2s", "--grace", "500ms"];
/// Says that it was asked to stop, and stops.
const OBEDIENT: &str = "trap 'echo termed; exit 0' TERM; BEGUN; while :; do sleep 0.02; done";

#[test]
fn a_release_by_force_stops_the_command() {
    let lab = Lab::new();
    let running = lab.start_run(&SHORT, "job", OBEDIENT);
    let freed = lab.run(["release", "job", "--force"]);
    assert!(
        freed.err.contains("lock `job` released by force: "),
        "{freed:?}"
    );
    let done = running.end();
    assert_eq!(done.out, "termed\n");
    let said = done.ended(76);
    assert!(
        said.contains("lock `job` lost ")
            && said.contains("after ")
            && said.contains(
                ": released by force; CMD was stopped, its process group got TERM, and ended within \
                 the grace of 500ms; it is now free"
            ),
        "{said}"
    );
}

#[test]
fn what_the_command_started_is_stopped_too() {
    let lab = Lab::new();
    // The leader ends at once; one of the others knows TERM, one does not.
    let script = "(trap '' TERM; while :; do sleep 0.02; done) & echo $! > deaf
        (exec sleep 1000) & echo $! > hears
        trap 'exit 0' TERM; BEGUN; while :; do sleep 0.02; done";
    let running = lab.start_run(&["--ttl", "4s", "--grace", "1s"], "job", script);
    lab.run(["release", "job", "--force"]);
    let done = running.end();
    assert!(
        done.ended(76)
            .contains("got TERM, and KILL after the grace of 1s"),
        "{done:?}"
    );
    wait_until_gone(&lab.read("deaf"));
    wait_until_gone(&lab.read("hears"));
}

#[test]
fn on_lost_kill_leaves_no_time() {
    let lab = Lab::new();
    let running = lab.start_run(&["--ttl", "2s", "--on-lost", "kill"], "job", OBEDIENT);
    lab.run(["release", "job", "--force"]);
    let done = running.end();
    assert_eq!(done.out, "");
    assert!(
        done.ended(76)
            .contains("CMD was stopped, its process group got KILL; it is now "),
        "{done:?}"
    );
}

#[test]
fn on_lost_ignore_lets_the_command_go_on() {
    let lab = Lab::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done; exit 7";
    let running = lab.start_run(&["--ttl", "1s", "--on-lost", "ignore"], "job", script);
    lab.run(["release", "job", "--force"]);
    // So that the loss is told before the command ends.
    time::sleep(Duration::from_secs(2));
    lab.touch("go");
    let done = running.end();
    let said = done.ended(7);
    assert!(
        said.contains("released by force; CMD goes on without it"),
        "{said}"
    );
}

/// It ended as it wanted, and its code counts; but somebody must know that it was not alone.
#[test]
fn a_release_that_fails_after_the_command_is_a_warning() {
    let lab = Lab::new();
    let script = "BEGUN; while [ ! -e go ]; do sleep 0.02; done; exit 7";
    let running = lab.start_run(&["--ttl", "5m"], "job", script);
    lab.run(["release", "job", "--force"]);
    lab.touch("go");
    let done = running.end();
    let said = done.ended(7);
    assert!(
        said.contains("lock `job` lost ")
            && said.contains(": released by force, just before CMD ended"),
        "{said}"
    );
}

/// The renewal that finds it gone has read who has it: that is told, and nobody is asked again.
#[test]
fn a_lock_that_somebody_else_was_given_names_him() {
    let lab = Lab::new();
    // The first renewal comes a while later: by then somebody else has it.
    let running = lab.start_run(&["--ttl", "24s", "--grace", "500ms"], "job", OBEDIENT);
    lab.run(["release", "job", "--force"]);
    let taken = lab.run(["acquire", "job", "--holder", "the thief", "--ttl", "1h"]);
    assert_eq!(taken.code(), 0, "{taken:?}");
    let done = running.end();
    let said = done.ended(76);
    assert!(
        said.contains(": preempted by another holder (now held by the thief for ")
            && said.ends_with("got TERM, and ended within the grace of 500ms"),
        "{said}"
    );
}

/// P4: nobody can write that file, so no renewal gets through; and whoever comes next gets the lock
/// only when the last of the command is gone, although that does not listen to TERM.
#[test]
fn a_command_that_ignores_term_is_killed_before_somebody_else_can_have_the_lock() {
    let lab = Lab::new();
    let nanos = |name: &str| lab.read(name).trim().parse::<u128>().expect("a time");
    let script = "trap 'date +%s%N > termed' TERM; BEGUN
        while :; do date +%s%N > beat.new; mv beat.new beat; sleep 0.02; done";
    let running = lab.start_run(&["--ttl", "12s", "--grace", "1s"], "job", script);
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
    let next = lab.start(&mut lab.dblock(next));

    let file = rusqlite::Connection::open(lab.database()).expect("opens");
    file.busy_timeout(SOON).expect("sets");
    file.execute_batch("BEGIN IMMEDIATE")
        .expect("has the write lock");
    let left = "SELECT unixepoch(expires_at, 'subsec') - unixepoch('now', 'subsec')
                  FROM database_locks_lock WHERE name = 'job'";
    let left: f64 = file.query_row(left, [], |row| row.get(0)).expect("a row");
    // Until just before its end, so that the next one is not held up.
    time::sleep(Duration::from_secs_f64((left - 0.05).max(0.0)));
    file.execute_batch("ROLLBACK").expect("gives it back");

    let done = running.end();
    assert_eq!(done.code(), 76, "{done:?}");
    // That renewals fail was reported before.
    let lost = done.err.lines().last().unwrap_or_default();
    assert!(
        lost.contains("got TERM, and KILL after the grace of 1s"),
        "{done:?}"
    );
    assert_eq!(next.end().code(), 0);
    let (termed, beat, next) = (nanos("termed"), nanos("beat"), nanos("next"));
    assert!(beat < next, "it ran on for {} ns", beat - next);
    assert!(beat > termed + 500_000_000, "it had its grace");
    testkit::promise("P4", "sqlite");
}

/// The laptop was closed, and somebody else has the lock by now.
#[test]
fn after_a_freeze_the_command_is_stopped_and_the_successor_untouched() {
    let lab = Lab::new();
    let running = lab.start_run(&SHORT, "job", OBEDIENT);
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
    let next = lab.start(&mut lab.dblock(next));
    lab.wait_for("next");
    running.signal(Signal::CONT);
    let done = running.end();
    assert_eq!(done.out, "termed\n");
    let said = done.ended(76);
    assert!(said.contains("lock `job` lost "), "{said}");
    assert!(
        said.contains("; it is now held by the successor for "),
        "{said}"
    );

    let shown = lab.run(["show", "job", "--json"]).out;
    assert!(
        shown.contains(r#""state":"held","holder":"the successor""#),
        "{shown}"
    );
    lab.touch("go");
    let done = next.end();
    assert_eq!((done.code(), &*done.err), (4, ""));
    testkit::promise("P3", "sqlite");
}

/// Renewals fail until trust ends: the row still names the lost grant, which is no new holder.
#[test]
fn a_loss_never_names_its_own_holder_as_the_new_one() {
    let lab = Lab::new();
    let options = ["--holder", "me", "--ttl", "4s", "--grace", "200ms"];
    let running = lab.start_run(&options, "job", OBEDIENT);
    let file = rusqlite::Connection::open(lab.database()).expect("opens");
    file.busy_timeout(SOON).expect("sets");
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
