//! A command that releases its lock before it ends, by its ticket: that is no loss.

use crate::support::{DBLOCK, Sandbox};

/// As a command does that needs the lock only for its beginning.
#[test]
fn a_command_that_released_its_lock_runs_on() {
    let sandbox = Sandbox::new();
    let script = r#""$DBLOCK" -q release "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" || exit 9
        BEGUN; sleep 2; echo went on"#;
    let run = |name: &str| {
        let mut command = sandbox.dblock(["run", "--ttl", "1s", "--grace", "200ms", name, "--"]);
        let script = script.replace("BEGUN", "touch begun");
        command.args(["sh", "-c", &script]).env("DBLOCK", DBLOCK);
        sandbox.start(&mut command)
    };
    let done = run("job").end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(done.out.ends_with("went on\n"), "{done:?}");
}

/// The row then shows a later grant, as after a preemption.
#[test]
fn a_command_that_released_its_lock_runs_on_even_if_another_client_has_it() {
    let sandbox = Sandbox::new();
    let script = r#""$DBLOCK" -q release "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" || exit 9
        touch released; while [ ! -e go ]; do sleep 0.02; done; sleep 1; echo went on"#;
    let mut first = sandbox.dblock([
        "run", "--ttl", "1s", "--grace", "200ms", "job", "--", "sh", "-c", script,
    ]);
    let first = sandbox.start(first.env("DBLOCK", DBLOCK));
    sandbox.wait_for("released");
    let next = sandbox.start_run(&["-n"], "job", "BEGUN; touch go; sleep 2; exit 4");
    let done = first.end();
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    assert!(done.out.ends_with("went on\n"), "{done:?}");
    assert_eq!(next.end().code(), 4, "the other run is not affected");
}

#[test]
fn a_command_whose_lock_an_inner_run_resumed_runs_on() {
    let sandbox = Sandbox::new();
    let script = r#""$DBLOCK" run "$DBLOCK_NAME" --ticket "$DBLOCK_TICKET" -- sh -c 'sleep 1; exit 3'
        echo inner=$?; sleep 1; echo went on"#;
    let mut outer = sandbox.dblock([
        "run", "--ttl", "1s", "--grace", "200ms", "job", "--", "sh", "-c", script,
    ]);
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
    let mut command = sandbox.dblock([
        "run", "--ttl", "2s", "--grace", "500ms", "job", "--", "sh", "-c", script,
    ]);
    let running = sandbox.start(command.env("DBLOCK", DBLOCK));
    sandbox.wait_for("tried");
    sandbox.run(["release", "job", "--force"]);
    let done = running.end();
    assert_eq!(done.status.code(), Some(76), "{done:?}");
    assert!(done.err.contains("lock `job` lost "), "{done:?}");
    assert!(done.err.contains(": released by force"), "{done:?}");
}
