//! Signals: they are forwarded to the command, and the lock is released after it has ended.

use crate::support::{DBLOCK, Sandbox, TIMEOUT, is_running, wait_until_gone};
use rustix::process::Signal;
use testkit::time;

/// Runs until there is a file `go`.
const UNTIL_GO: &str = "while [ ! -e go ]; do sleep 0.02; done";

#[test]
fn signals_are_forwarded_and_the_exit_code_of_the_command_counts() {
    let sandbox = Sandbox::new();
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::ALARM, "ALRM"),
        (Signal::WINCH, "WINCH"),
    ] {
        let _ = std::fs::remove_file(sandbox.path("go"));
        let script = format!("trap 'echo got {name}; touch go' {name}; BEGUN; {UNTIL_GO}; exit 5");
        let running = sandbox.start_run(&[], "job", &script);
        running.signal(signal);
        let done = running.end();
        assert_eq!(
            (done.code(), &*done.out),
            (5, &*format!("got {name}\n")),
            "{done:?}"
        );
    }
}

#[test]
fn a_forwarded_signal_that_ends_the_command_gives_128_plus_n() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(&[], "job", "BEGUN; exec sleep 1000");
    running.signal(Signal::TERM);
    let done = running.end();
    assert_eq!((done.code(), &*done.err), (143, ""));
    assert!(!sandbox.is_held("job"));
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let sandbox = Sandbox::new();
    let script = "sleep 1000 & echo $! > grandchild; BEGUN; wait";
    let running = sandbox.start_run(&[], "job", script);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), 143);
    wait_until_gone(&sandbox.read("grandchild"));
}

#[test]
fn the_lock_is_released_only_after_the_command_has_ended() {
    let sandbox = Sandbox::new();
    let script = format!("trap 'touch termed' TERM; BEGUN; {UNTIL_GO}; exit 5");
    let mut running = sandbox.start_run(&[], "job", &script);
    running.signal(Signal::TERM);
    sandbox.wait_for("termed");
    assert_eq!(sandbox.run(["run", "-n", "job", "--", "true"]).code(), 75);
    assert!(!running.has_ended());
    sandbox.touch("go");
    assert_eq!(running.end().code(), 5);
    assert_eq!(sandbox.run(["run", "-n", "job", "--", "true"]).code(), 0);
    testkit::promise("P7", "sqlite");
}

#[test]
fn a_signal_ends_a_wait_and_the_command_is_not_run() {
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&[], "job", &format!("BEGUN; {UNTIL_GO}"));
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let waiter = sandbox.start(&mut sandbox.dblock(["run", "job", "--", "touch", "ran"]));
        sandbox.wait_until_opened_by(&waiter);
        waiter.signal(signal);
        let done = waiter.end();
        assert_eq!((done.code(), &*done.err), (code, ""));
    }
    sandbox.touch("go");
    assert_eq!(holder.end().code(), 0);
    assert!(
        !sandbox.is_held("job"),
        "the waiters that gave up hold no lock"
    );
    assert!(!sandbox.path("ran").exists());
}

/// As in `nohup dblock run …`: both while it waits and in the command.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&[], "job", &format!("BEGUN; {UNTIL_GO}"));
    let inner = "kill -HUP $$; touch begun; while [ ! -e end ]; do sleep 0.02; done; echo survived";
    let outer = r#"trap "" HUP; exec "$0" run job -- sh -c "$1""#;
    let mut command = sandbox.command("sh");
    let running = sandbox.start(command.args(["-c", outer, DBLOCK, inner]));
    sandbox.wait_until_opened_by(&running);
    running.signal(Signal::HUP);
    sandbox.touch("go");
    assert_eq!(holder.end().code(), 0);
    sandbox.wait_for("begun");
    running.signal(Signal::HUP);
    sandbox.touch("end");
    let done = running.end();
    assert_eq!((done.code(), &*done.out), (0, "survived\n"), "{done:?}");
}

#[test]
fn a_killed_dblock_takes_the_command_along_and_the_lock_is_free_when_the_ttl_ends() {
    let sandbox = Sandbox::new();
    let options = ["--ttl", "8s", "--grace", "500ms"];
    let mut running = sandbox.start_run(&options, "job", "echo $$ > pid; BEGUN; exec sleep 1000");
    let pid = sandbox.read("pid");
    assert!(is_running(&pid));
    running.signal(Signal::KILL);
    assert!(time::wait_until(TIMEOUT, || running.has_ended()));
    wait_until_gone(&pid);
    assert_eq!(
        sandbox.run(["run", "-w", "1m", "job", "--", "true"]).code(),
        0
    );
    testkit::promise("P7", "sqlite");
}

/// As with a debugger: the command alone is stopped, and dblock goes on renewing.
#[test]
fn a_command_that_is_stopped_for_a_while_keeps_the_lock() {
    let sandbox = Sandbox::new();
    let options = ["--ttl", "8s", "--grace", "500ms"];
    let script = format!("echo $$ > pid; BEGUN; {UNTIL_GO}; exit 5");
    let running = sandbox.start_run(&options, "job", &script);
    let pid = sandbox.read("pid").trim().parse().expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, Signal::STOP).expect("stops");
    // Longer than the ttl.
    let second = sandbox.run(["run", "-w", "10s", "job", "--", "true"]);
    assert_eq!(second.code(), 75, "{second:?}");
    sandbox.touch("go");
    rustix::process::kill_process(pid, Signal::CONT).expect("goes on");
    assert_eq!(running.end().code(), 5);
}
