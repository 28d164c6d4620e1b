//! `dblock run --shared`: many at once, and never beside one without it.

use std::time::Duration;

use rustix::process::Signal;
use testkit::{TestDb, promise, time};

use crate::support::{Finished, Running, Sandbox, TIMEOUT};

/// Ends when the file `go` exists.
const HOLD: &str = "echo $$ >> inside; while [ ! -e go ]; do sleep 0.02; done";

/// The commands of a test, on its SQLite file or on a server.
struct Commands<'a> {
    sandbox: &'a Sandbox,
    url: Option<&'a str>,
}

impl Commands<'_> {
    fn start(&self, args: &[&str]) -> Running {
        let mut command = self.sandbox.dblock(args);
        if let Some(url) = self.url {
            command.env("DATABASE_LOCKS_URL", url);
        }
        self.sandbox.start(&mut command)
    }

    fn run(&self, args: &[&str]) -> Finished {
        self.start(args).end()
    }

    fn holding(&self, options: &[&str], script: &str) -> Running {
        let args = [&["run"], options, &["list", "--", "sh", "-c", script]];
        self.start(&args.concat())
    }

    #[track_caller]
    fn wait_until_begun(&self, count: usize) {
        let begun = || self.sandbox.read("inside").lines().count();
        let there = time::wait_until(TIMEOUT, || begun() >= count);
        assert!(there, "{} of {count} have begun", begun());
    }
}

fn of_database(db: Option<TestDb>, test: impl FnOnce(&Commands<'_>)) {
    // The test kit has reported that this is skipped.
    let Some(db) = db else { return };
    let sandbox = Sandbox::new();
    let commands = Commands {
        sandbox: &sandbox,
        url: Some(&db.url),
    };
    assert_eq!(commands.run(&["init"]).code(), 0);
    test(&commands);
    promise("P1", db.engine);
}

/// Three readers and two writers, each three times: each CMD counts who is in.
fn readers_run_together_and_a_writer_alone(all: &Commands<'_>) {
    std::fs::create_dir(all.sandbox.path("in")).expect("a folder");
    let script = |kind: &str| {
        format!(
            "touch in/{kind}$$; echo {kind} $(ls in | grep -c r) $(ls in | grep -c w) >> counts; \
             sleep 0.1; echo {kind} $(ls in | grep -c r) $(ls in | grep -c w) >> counts; rm in/{kind}$$"
        )
    };
    let (reads, writes) = (script("r"), script("w"));
    for _ in 0..3 {
        // Contention of more than a second is reported as a notice.
        let readers = [(); 3].map(|()| all.holding(&["-q", "--shared"], &reads));
        let writers = [(); 2].map(|()| all.holding(&["-q"], &writes));
        for one in readers.into_iter().chain(writers) {
            let done = one.end();
            assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
        }
    }
    let counts = all.sandbox.read("counts");
    assert_eq!(counts.lines().count(), 30);
    for line in counts.lines() {
        let fits = match line.split(' ').collect::<Vec<_>>()[..] {
            ["w", readers, writers] => (readers, writers) == ("0", "1"),
            ["r", _, writers] => writers == "0",
            _ => false,
        };
        assert!(fits, "{counts}");
    }
}

/// A writer gets in when the leases of killed and frozen readers have ended, and the frozen one is
/// told so when it is thawed.
fn dead_readers_do_not_keep_a_writer_out(all: &Commands<'_>) {
    let short = ["--shared", "--ttl", "6s", "--grace", "500ms"];
    let killed = all.holding(&short, HOLD);
    let frozen = all.holding(&short, HOLD);
    all.wait_until_begun(2);
    killed.signal(Signal::KILL);
    drop(killed);
    frozen.signal(Signal::STOP);
    let began = time::now();
    let writer = all.holding(&["-w", "60s"], "touch wrote").end();
    assert_eq!(writer.code(), 0, "{writer:?}");
    assert!(all.sandbox.path("wrote").exists());
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{:?}",
        began.elapsed()
    );
    frozen.signal(Signal::CONT);
    let thawed = frozen.end();
    assert_eq!(thawed.code(), 76, "{thawed:?}");
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        mod $engine {
            use super::*;

            #[test]
            fn readers_run_together_and_a_writer_alone() {
                of_database(TestDb::$engine(), super::readers_run_together_and_a_writer_alone);
            }

            #[test]
            fn dead_readers_do_not_keep_a_writer_out() {
                of_database(TestDb::$engine(), super::dead_readers_do_not_keep_a_writer_out);
            }
        }
    )* };
}
on!(sqlite, postgres, mariadb, mysql);

#[test]
fn a_writer_is_told_who_shares_the_lock_and_readers_who_waits() {
    let sandbox = Sandbox::new();
    let all = Commands {
        sandbox: &sandbox,
        url: None,
    };
    let readers = [(); 2].map(|()| all.holding(&["--shared", "--holder", "web-1"], HOLD));
    all.wait_until_begun(2);
    let busy = all.holding(&["-n"], "touch ran").end();
    let line = busy.only_line(75);
    assert!(
        line.contains("is shared by 2 holders, one of them web-1 for"),
        "{line}"
    );
    let writer = all.holding(&["--holder", "db-1"], "touch wrote");
    let listed = || all.run(&["list"]).out;
    assert!(
        time::wait_until(TIMEOUT, || listed().contains("waiting for 2 readers")),
        "{}",
        listed()
    );
    let list = listed();
    assert_eq!(list.lines().count(), 4, "{list}");
    assert_eq!(list.matches("  shared ").count(), 2, "{list}");
    let late = all.holding(&["--shared", "-n"], "touch ran").end();
    assert!(late.only_line(75).contains("is held by db-1"), "{late:?}");
    let shown = all.run(&["show", "list"]).out;
    assert!(
        shown.contains("2 shared holders") && shown.contains("SHARED BY"),
        "{shown}"
    );
    let json = all.run(&["show", "--json", "list"]).out;
    assert!(
        json.contains(r#""waits_for":2"#) && json.contains(r#""shared_by":[{"#),
        "{json}"
    );
    sandbox.touch("go");
    for one in readers.into_iter().chain([writer]) {
        assert_eq!(one.end().code(), 0);
    }
    assert!(sandbox.path("wrote").exists() && !sandbox.path("ran").exists());
    assert_eq!(listed(), "");
}

#[test]
fn shared_holders_are_released_by_force_together() {
    let sandbox = Sandbox::new();
    let all = Commands {
        sandbox: &sandbox,
        url: None,
    };
    let short = ["--shared", "--ttl", "12s"];
    let readers = [(); 2].map(|()| all.holding(&short, HOLD));
    all.wait_until_begun(2);
    let which = all.run(&["release", "list", "--force"]);
    assert!(which.only_line(2).contains("--force --shared"), "{which:?}");
    let freed = all.run(&["release", "list", "--force", "--shared"]);
    assert!(
        freed.only_line(0).contains("2 holders had shared it"),
        "{freed:?}"
    );
    for one in readers {
        let lost = one.end();
        assert!(
            lost.dblock_line(76).contains("released by force"),
            "{lost:?}"
        );
    }
    let none = all.run(&["release", "list", "--force", "--shared"]);
    assert!(none.only_line(0).contains("no holder shares"), "{none:?}");
}

#[test]
fn a_shared_lock_is_held_across_the_steps_of_a_script() {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| sandbox.run(args);
    let ticket = run(&["acquire", "--shared", "--ttl", "30s", "list"]).out;
    let ticket = ticket.trim();
    let other = run(&["acquire", "--shared", "--ttl", "30s", "list"]).out;
    let busy = run(&["acquire", "-n", "list"]);
    assert_eq!(busy.code(), 75, "{busy:?}");
    let renewed = run(&["renew", "list", "--ticket", ticket, "--ttl", "60s"]);
    assert_eq!(renewed.code(), 0, "{renewed:?}");
    for one in [ticket, other.trim()] {
        let released = run(&["release", "list", "--ticket", one]);
        assert_eq!(released.code(), 0, "{released:?}");
    }
    let dead = run(&["release", "list", "--ticket", ticket]);
    assert_eq!(dead.code(), 76, "{dead:?}");
    assert_eq!(run(&["run", "-n", "list", "--", "true"]).code(), 0);
}

/// The outer one would wait for the inner one, and that for a writer which waits for the outer one.
#[test]
fn a_run_within_one_that_shares_the_lock_is_refused() {
    let sandbox = Sandbox::new();
    for inner in [&["--shared"][..], &[]] {
        let args = [
            &[
                "run",
                "--shared",
                "list",
                "--",
                crate::support::DBLOCK,
                "run",
            ],
            inner,
            &["list", "--", "true"],
        ];
        let refused = sandbox.run(args.concat());
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(
            refused.err.contains("that this one runs under"),
            "{refused:?}"
        );
    }
}

#[test]
fn options_that_do_not_go_with_sharing_are_refused_before_any_file_is_made() {
    let sandbox = Sandbox::new();
    for (options, word) in [
        (&["--limit", "3"][..], "--limit"),
        (&["--at-least", "1s"], "--at-least"),
        (&["--once-per", "1h"], "--once-per"),
    ] {
        let args = [&["run", "--shared"], options, &["list", "--", "true"]];
        let refused = sandbox.run(args.concat());
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(refused.err.contains(word), "{refused:?}");
    }
    let several = sandbox.run(["run", "--shared", "a", "b", "--", "true"]);
    assert_eq!(several.code(), 2, "{several:?}");
}
