//! A command that releases its lock before it ends, by its ticket: that is no loss.

use crate::support::{DBLOCK, Sandbox};

/// Renewed every 4 s, so that a renewal finds the release before the command has ended.
const RENEWED: [&str; 4] = ["--ttl", "12s", "--grace", "200ms"];
/// Longer than the time between two renewals.
const LONGER: &str = "sleep 5";

/// As a command does that needs the lock only for its beginning.
#[test]
fn a_command_that_released_its_lock_runs_on() {
    let sandbox = Sandbox::new();
    let script = format!(
        r#""$DBLOCK" -q release "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" || exit 9
        {LONGER}; echo went on"#
    );
    let args = [&["run"], &RENEWED[..], &["job", "--", "sh", "-c", &script]].concat();
    let mut command = sandbox.dblock(args);
    let done = sandbox.start(command.env("DBLOCK", DBLOCK)).end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(done.out.ends_with("went on\n"), "{done:?}");
}

/// The row then shows a later grant, as after a preemption.
#[test]
fn a_command_that_released_its_lock_runs_on_even_if_another_client_has_it() {
    let sandbox = Sandbox::new();
    let script = format!(
        r#""$DBLOCK" -q release "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" || exit 9
        touch released; while [ ! -e go ]; do sleep 0.02; done; {LONGER}; echo went on"#
    );
    let args = [&["run"], &RENEWED[..], &["job", "--", "sh", "-c", &script]].concat();
    let mut first = sandbox.dblock(args);
    let first = sandbox.start(first.env("DBLOCK", DBLOCK));
    sandbox.wait_for("released");
    let script = "BEGUN; touch go; while [ ! -e over ]; do sleep 0.02; done; exit 4";
    let next = sandbox.start_run(&["-n"], "job", script);
    let done = first.end();
    sandbox.touch("over");
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(done.out.ends_with("went on\n"), "{done:?}");
    assert_eq!(next.end().code(), 4, "the other run is not affected");
}

#[test]
fn a_command_whose_lock_an_inner_run_resumed_runs_on() {
    let sandbox = Sandbox::new();
    let script = format!(
        r#""$DBLOCK" run "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" -- sh -c '{LONGER}; exit 3'
        echo inner=$?; sleep 1; echo went on"#
    );
    let args = [&["run"], &RENEWED[..], &["job", "--", "sh", "-c", &script]].concat();
    let mut outer = sandbox.dblock(args);
    let done = sandbox.start(outer.env("DBLOCK", DBLOCK)).end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert_eq!(done.out, "inner=3\nwent on\n");
}

/// A release that failed does not turn a later loss into a release.
#[test]
fn a_command_whose_release_failed_is_stopped_when_the_lock_is_lost() {
    let sandbox = Sandbox::new();
    let script = r#""$DBLOCK" --url sqlite:///no/such/folder/x release job --ticket "$DBLOCK_TICKET"
        touch tried; while :; do sleep 0.02; done"#;
    let args = [&["run"], &RENEWED[..], &["job", "--", "sh", "-c", script]].concat();
    let mut command = sandbox.dblock(args);
    let running = sandbox.start(command.env("DBLOCK", DBLOCK));
    sandbox.wait_for("tried");
    sandbox.run(["release", "job", "--force"]);
    let done = running.end();
    assert_eq!(done.status.code(), Some(76), "{done:?}");
    assert!(done.err.contains("lock `job` lost "), "{done:?}");
    assert!(done.err.contains(": released by force"), "{done:?}");
}
