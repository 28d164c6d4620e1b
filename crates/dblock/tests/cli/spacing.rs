//! `dblock run --once-per` and `--at-least`, for jobs that several machines start.

use std::time::Duration;

use rustix::process::Signal;
use testkit::{TestDb, time};

use crate::support::{Sandbox, TIMEOUT};

/// Long enough that it does not pass during a test.
const LONG: &str = "10m";

/// How often CMD has run.
fn runs(sandbox: &Sandbox) -> usize {
    sandbox.read("runs").lines().count()
}

/// On a server, or on the SQLite file of the sandbox.
fn three_runs_in_each_of_two_periods(server: Option<&TestDb>) {
    let sandbox = Sandbox::new();
    let dblock = |args: &[&str]| {
        let mut command = sandbox.dblock(args);
        if let Some(server) = server {
            command.env("DATABASE_LOCKS_URL", &server.url);
        }
        sandbox.start(&mut command)
    };
    if server.is_some() {
        assert_eq!(dblock(&["init"]).end().code(), 0);
    }
    let script = "echo run >> runs; sleep 0.2";
    // Contention of more than a second is reported as a notice.
    let args = [
        "run",
        "-q",
        "--once-per",
        "10s",
        "job",
        "--",
        "sh",
        "-c",
        script,
    ];
    for period in 1..=2 {
        let started: Vec<_> = (0..3)
            .map(|_| {
                time::sleep(time::ms(100));
                dblock(&args)
            })
            .collect();
        assert!(time::wait_until(TIMEOUT, || runs(&sandbox) >= period));
        let ran = time::now();
        for run in started {
            let done = run.end();
            assert_eq!((done.code(), &*done.err), (0, ""));
        }
        assert_eq!(runs(&sandbox), period);
        // The next period, a little early, as the clocks of two machines differ. It is counted from
        // the grant, which was before the command ran.
        if period == 1 {
            time::sleep(Duration::from_millis(9_900).saturating_sub(ran.elapsed()));
        }
    }
}

#[test]
fn of_three_runs_that_start_within_a_period_one_runs_the_command_and_all_succeed() {
    three_runs_in_each_of_two_periods(None);
}

#[test]
fn of_three_runs_on_a_server_one_runs_the_command_in_each_period() {
    let servers = [TestDb::postgres(), TestDb::mariadb(), TestDb::mysql()];
    std::thread::scope(|scope| {
        // The test kit has reported those that are skipped.
        for server in servers.iter().flatten() {
            scope.spawn(|| three_runs_in_each_of_two_periods(Some(server)));
        }
    });
}

#[test]
fn only_a_verbose_run_says_that_it_was_skipped() {
    let sandbox = Sandbox::new();
    let skipped = |options: &[&str]| {
        let all = [options, &["run", "--once-per", LONG, "job", "--", "false"]].concat();
        sandbox.run(all)
    };
    assert_eq!(skipped(&["--quiet"]).code(), 1, "the first one runs");
    let done = skipped(&["-v"]);
    let line = done.only_line(0);
    assert!(
        line.contains("lock `job` not acquired: it was granted to "),
        "{line}"
    );
    assert!(
        line.trim_end()
            .ends_with("ago, and is granted once per 10m 0s"),
        "{line}"
    );
    for options in [&[][..], &["-q"]] {
        let done = skipped(options);
        assert_eq!((done.code(), &*done.err), (0, ""));
    }
    // It does not wait for a holder that began in this period.
    let holder = sandbox.start_run(&[], "held", "BEGUN; sleep 60");
    let done = sandbox.run(["run", "--once-per", LONG, "-w", "5m", "held", "--", "false"]);
    assert_eq!(done.code(), 0);
    drop(holder);
}

#[test]
fn a_lock_rests_after_a_short_command() {
    let sandbox = Sandbox::new();
    let args = ["run", "--at-least", LONG, "job", "--", "true"];
    assert_eq!(sandbox.run(args).code(), 0);
    let busy = sandbox.run(["run", "-n", "job", "--", "false"]);
    let line = busy.only_line(75);
    assert!(line.contains("lock `job` rests for another 9m "), "{line}");
    assert!(
        line.trim_end().ends_with("; wait for it with `-w 5m`"),
        "{line}"
    );
    let skipped = sandbox.run(["run", "-n", "-E", "0", "job", "--", "false"]);
    assert_eq!((skipped.code(), &*skipped.err), (0, ""));
    let waited = sandbox.run(["run", "-w", "2s", "job", "--", "false"]);
    let line = waited.only_line(75);
    assert!(
        line.contains("gave up after 2s: lock `job` rests for another 9m "),
        "{line}"
    );

    let listed = sandbox.run(["list"]);
    let row = listed.out.lines().nth(1).expect("a row");
    assert!(row.starts_with("job   resting  "), "{row}");
    let shown = sandbox.run(["show", "job"]).out;
    for label in [
        "state          resting",
        "last holder ",
        "rests until ",
        "free in        9m ",
    ] {
        assert!(shown.contains(label), "{label}: {shown}");
    }
    let json = sandbox.run(["show", "job", "--json"]).out;
    assert!(
        json.contains(r#""state":"resting""#) && json.contains(r#""grant":null"#),
        "{json}"
    );

    let forced = sandbox.run(["release", "job", "--force"]);
    let line = forced.only_line(0);
    assert!(
        line.starts_with("dblock: lock `job` is free: its rest after "),
        "{line}"
    );
    assert_eq!(sandbox.run(["run", "-n", "job", "--", "true"]).code(), 0);
}

#[test]
fn a_run_waits_for_the_end_of_a_rest() {
    let sandbox = Sandbox::new();
    let began = time::now();
    let args = ["run", "--at-least", "2s", "job", "--", "true"];
    for _ in 0..2 {
        assert_eq!(sandbox.run(args).code(), 0);
    }
    assert!(began.elapsed() >= Duration::from_millis(1_900));
}

#[test]
fn a_command_that_takes_longer_frees_the_lock_at_once() {
    let sandbox = Sandbox::new();
    let args = ["run", "--at-least", "100ms", "job", "--", "sleep", "0.3"];
    assert_eq!(sandbox.run(args).code(), 0);
    assert_eq!(sandbox.run(["run", "-n", "job", "--", "true"]).code(), 0);
}

/// The lease of a holder that was killed simply expires.
#[test]
fn a_lock_does_not_rest_after_a_holder_that_was_killed() {
    let sandbox = Sandbox::new();
    let options = ["--at-least", LONG, "--ttl", "6s"];
    let holder = sandbox.start_run(&options, "job", "BEGUN; sleep 60");
    holder.signal(Signal::KILL);
    let next = sandbox.run(["run", "-w", "1m", "job", "--", "true"]);
    assert_eq!((next.code(), &*next.err), (0, ""));
}

/// A signal ends CMD, and the lock rests as after any other end of it.
#[test]
fn a_lock_rests_after_a_command_that_a_signal_ended() {
    let sandbox = Sandbox::new();
    let holder = sandbox.start_run(&["--at-least", LONG], "job", "BEGUN; sleep 60");
    holder.signal(Signal::TERM);
    assert_eq!(holder.end().code(), 143);
    let state = || sandbox.run(["show", "job", "--json"]).out;
    let rests = time::wait_until(TIMEOUT, || state().contains(r#""state":"resting""#));
    assert!(rests, "{}", state());
}

#[test]
fn options_out_of_range_or_for_a_ticket_are_refused() {
    let sandbox = Sandbox::new();
    let refused = |options: &[&str]| {
        let done = sandbox.run([&["run"], options, &["job", "--", "true"]].concat());
        done.only_line(2).to_owned()
    };
    let message = refused(&["--once-per", "0"]);
    assert!(message.contains("must be 100ms to 10 years"), "{message}");
    let message = refused(&["--at-least", "4000d"]);
    assert!(message.contains("must be at most 10 years"), "{message}");
    for option in ["--once-per", "--at-least"] {
        let message = refused(&[option, "1m", "--ticket", "-"]);
        assert!(message.contains("--ticket"), "{message}");
    }
    assert!(!sandbox.database().exists());
}
