//! Signals: they go on to the command, and the lock is freed after it has ended.

use crate::support::{DBLOCK, Lab, Running, SOON, is_running, wait_until_gone};
use rustix::process::Signal;
use testkit::time;

/// Ends when there is a file `go`.
const UNTIL_GO: &str = "while [ ! -e go ]; do sleep 0.02; done";

/// Its connection to the file tells that it has come so far.
#[track_caller]
fn wait_until_it_waits(lab: &Lab, waiter: &Running) {
    let waits = time::wait_until(SOON, || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", waiter.pid())).expect("its files");
        files
            .flatten()
            .any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == lab.database()))
    });
    assert!(waits, "it never opened the database");
}

#[test]
fn signals_go_on_to_the_command_and_its_exit_code_counts() {
    let lab = Lab::new();
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
        let _ = std::fs::remove_file(lab.path("go"));
        let script = format!("trap 'echo got {name}; touch go' {name}; BEGUN; {UNTIL_GO}; exit 5");
        let running = lab.start_run(&[], "job", &script);
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
fn a_command_that_a_passed_on_signal_ends_is_128_more() {
    let lab = Lab::new();
    let running = lab.start_run(&[], "job", "BEGUN; exec sleep 1000");
    running.signal(Signal::TERM);
    let done = running.end();
    assert_eq!((done.code(), &*done.err), (143, ""));
    assert!(!lab.is_held("job"));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let lab = Lab::new();
    let script = "sleep 1000 & echo $! > grandchild; BEGUN; wait";
    let running = lab.start_run(&[], "job", script);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), 143);
    wait_until_gone(&lab.read("grandchild"));
}

#[test]
fn the_lock_is_freed_only_after_the_command_has_ended() {
    let lab = Lab::new();
    let script = format!("trap 'touch termed' TERM; BEGUN; {UNTIL_GO}; exit 5");
    let mut running = lab.start_run(&[], "job", &script);
    running.signal(Signal::TERM);
    lab.wait_for("termed");
    assert_eq!(lab.run(["run", "-n", "job", "--", "true"]).code(), 75);
    assert!(!running.has_ended());
    lab.touch("go");
    assert_eq!(running.end().code(), 5);
    assert_eq!(lab.run(["run", "-n", "job", "--", "true"]).code(), 0);
    testkit::promise("P7", "sqlite");
}

#[test]
fn a_signal_while_it_waits_ends_it_and_nothing_is_run() {
    let lab = Lab::new();
    let holder = lab.start_run(&[], "job", &format!("BEGUN; {UNTIL_GO}"));
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let waiter = lab.start(&mut lab.dblock(["run", "job", "--", "touch", "ran"]));
        wait_until_it_waits(&lab, &waiter);
        waiter.signal(signal);
        let done = waiter.end();
        assert_eq!((done.code(), &*done.err), (code, ""));
    }
    lab.touch("go");
    assert_eq!(holder.end().code(), 0);
    assert!(!lab.is_held("job"), "those who gave up hold nothing");
    assert!(!lab.path("ran").exists());
}

/// `nohup dblock run …`: what was ignored stays so, while it waits and in the command too.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let lab = Lab::new();
    let holder = lab.start_run(&[], "job", &format!("BEGUN; {UNTIL_GO}"));
    let inner = "kill -HUP $$; touch begun; while [ ! -e end ]; do sleep 0.02; done; echo survived";
    let outer = r#"trap "" HUP; exec "$0" run job -- sh -c "$1""#;
    let mut command = lab.command("sh");
    let running = lab.start(command.args(["-c", outer, DBLOCK, inner]));
    wait_until_it_waits(&lab, &running);
    running.signal(Signal::HUP);
    lab.touch("go");
    assert_eq!(holder.end().code(), 0);
    lab.wait_for("begun");
    running.signal(Signal::HUP);
    lab.touch("end");
    let done = running.end();
    assert_eq!((done.code(), &*done.out), (0, "survived\n"), "{done:?}");
}

#[test]
fn killed_it_takes_the_command_along_and_the_lock_is_free_when_the_ttl_ends() {
    let lab = Lab::new();
    let options = ["--ttl", "3s", "--grace", "500ms"];
    let mut running = lab.start_run(&options, "job", "echo $$ > pid; BEGUN; exec sleep 1000");
    let pid = lab.read("pid");
    assert!(is_running(&pid));
    running.signal(Signal::KILL);
    assert!(time::wait_until(SOON, || running.has_ended()));
    wait_until_gone(&pid);
    assert_eq!(lab.run(["run", "-w", "1m", "job", "--", "true"]).code(), 0);
    testkit::promise("P7", "sqlite");
}

/// Somebody stops the command alone, to look at it: the lock is kept, and it goes on.
#[test]
fn a_command_that_is_stopped_for_a_while_keeps_the_lock() {
    let lab = Lab::new();
    let options = ["--ttl", "2s", "--grace", "500ms"];
    let script = format!("echo $$ > pid; BEGUN; {UNTIL_GO}; exit 5");
    let running = lab.start_run(&options, "job", &script);
    let pid = lab.read("pid").trim().parse().expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, Signal::STOP).expect("stops");
    // Longer than the ttl.
    let second = lab.run(["run", "-w", "3s", "job", "--", "true"]);
    assert_eq!(second.code(), 75, "{second:?}");
    lab.touch("go");
    rustix::process::kill_process(pid, Signal::CONT).expect("goes on");
    assert_eq!(running.end().code(), 5);
}
