//! `dblock run --limit N`, `dblock limit` and what shows and releases the permits.

use std::time::Duration;

use rustix::process::Signal;
use testkit::{TestDb, promise, time};

use crate::support::{DBLOCK, Finished, Running, Sandbox, TIMEOUT};

/// Ends when the file `go` exists.
const HOLD: &str = "echo $$ >> inside; while [ ! -e go ]; do sleep 0.02; done";

/// The commands of a test, on its SQLite file or on a server.
struct Commands<'a> {
    sandbox: &'a Sandbox,
    url: Option<&'a str>,
}

impl Commands<'_> {
    fn start(&self, args: &[&str]) -> Running {
        let mut command = self.sandbox.command(DBLOCK);
        if let Some(url) = self.url {
            command.env("DATABASE_LOCKS_URL", url);
        }
        self.sandbox.start(command.args(args))
    }

    fn run(&self, args: &[&str]) -> Finished {
        self.start(args).end()
    }

    /// Starts `dblock run --limit LIMIT api` with a script as CMD.
    fn limited(&self, limit: &str, options: &[&str], script: &str) -> Running {
        let args = [
            &["run", "--limit", limit],
            options,
            &["api", "--", "sh", "-c", script],
        ];
        self.start(&args.concat())
    }

    /// The number of lines in `inside`, one for each CMD that has begun.
    fn begun(&self) -> usize {
        self.sandbox.read("inside").lines().count()
    }

    #[track_caller]
    fn wait_until_begun(&self, count: usize) {
        let there = time::wait_until(TIMEOUT, || self.begun() >= count);
        assert!(
            there,
            "{} of {count} have begun; stderr: {:?}",
            self.begun(),
            self.sandbox.all_stderr()
        );
    }

    fn held(&self) -> usize {
        self.run(&["list", "--json"])
            .out
            .matches(r#""slot":"#)
            .count()
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

/// Four processes, each three times: each CMD makes a file of its own, and counts those of the
/// others. Two are in at the same time, and never three.
fn no_more_than_the_limit_run_at_the_same_time(all: &Commands<'_>) {
    std::fs::create_dir(all.sandbox.path("in")).expect("a folder");
    let script =
        "touch in/$$; ls in | wc -l >> counts; sleep 0.5; ls in | wc -l >> counts; rm in/$$";
    for _ in 0..3 {
        // Contention of more than a second is reported as a notice.
        let running = [(); 4].map(|()| all.limited("2", &["-q"], script));
        for one in running {
            let done = one.end();
            assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
        }
    }
    let counts = all.sandbox.read("counts");
    let counts: Vec<&str> = counts.split_whitespace().collect();
    assert_eq!(counts.len(), 24);
    assert!(
        counts.iter().all(|count| ["1", "2"].contains(count)),
        "{counts:?}"
    );
    assert!(counts.contains(&"2"), "{counts:?}");
    assert_eq!(all.held(), 0);
}

/// Each CMD gets the number of its permit; SIGKILL of a holder frees its permit when the lease
/// ends.
fn a_killed_holder_frees_its_permit_when_the_lease_ends(all: &Commands<'_>) {
    let killed = all.limited("2", &["--ttl", "8s", "--grace", "500ms"], HOLD);
    all.wait_until_begun(1);
    let other = all.limited("2", &[], HOLD);
    all.wait_until_begun(2);
    let busy = all.limited("2", &["-n"], "touch ran").end();
    assert!(busy.only_line(75).contains("2 permits"), "{busy:?}");
    let began = time::now();
    killed.signal(Signal::KILL);
    drop(killed);
    let next = all.limited("2", &["-w", "60s"], HOLD);
    all.wait_until_begun(3);
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    all.sandbox.touch("go");
    assert_eq!((other.end().code(), next.end().code()), (0, 0));
    assert!(!all.sandbox.path("ran").exists());
}

/// `limit NAME 0` pauses, and a raised limit wakes those that wait.
fn a_limit_of_zero_pauses_and_a_raised_one_wakes(all: &Commands<'_>) {
    let paused = all.run(&["limit", "api", "0"]);
    assert!(
        paused
            .only_line(0)
            .contains("semaphore `api` is paused, a new setting")
    );
    let busy = all.limited("3", &["-n"], "touch ran").end();
    assert!(busy.only_line(75).contains("paused"), "{busy:?}");
    let waiting = [(); 3].map(|()| all.limited("3", &["-w", "60s"], HOLD));
    time::sleep(Duration::from_millis(500));
    assert_eq!(all.begun(), 0);
    assert_eq!(all.run(&["limit", "api", "2"]).code(), 0);
    all.wait_until_begun(2);
    time::sleep(Duration::from_millis(500));
    assert_eq!(
        all.begun(),
        2,
        "the operator's limit, not that of the callers"
    );
    let shown = all.run(&["show", "api"]);
    assert!(
        shown.out.contains("2 of 2 held (limit of an operator)"),
        "{shown:?}"
    );
    assert_eq!(all.run(&["limit", "api", "none"]).code(), 0);
    all.wait_until_begun(3);
    let shown = all.run(&["show", "api"]);
    assert!(shown.out.contains("3 of 3 held"), "{shown:?}");
    all.sandbox.touch("go");
    for one in waiting {
        assert_eq!(one.end().code(), 0);
    }
    assert!(!all.sandbox.path("ran").exists());
}

macro_rules! on_each_engine {
    ($($test:ident: $sqlite:ident $postgres:ident $mariadb:ident $mysql:ident;)*) => { $(
        #[test]
        fn $sqlite() {
            of_database(TestDb::sqlite(), $test);
        }
        #[test]
        fn $postgres() {
            of_database(TestDb::postgres(), $test);
        }
        #[test]
        fn $mariadb() {
            of_database(TestDb::mariadb(), $test);
        }
        #[test]
        fn $mysql() {
            of_database(TestDb::mysql(), $test);
        }
    )* };
}
on_each_engine! {
    no_more_than_the_limit_run_at_the_same_time:
        no_more_than_the_limit_on_sqlite no_more_than_the_limit_on_postgres
        no_more_than_the_limit_on_mariadb no_more_than_the_limit_on_mysql;
    a_killed_holder_frees_its_permit_when_the_lease_ends:
        a_killed_holder_on_sqlite a_killed_holder_on_postgres
        a_killed_holder_on_mariadb a_killed_holder_on_mysql;
    a_limit_of_zero_pauses_and_a_raised_one_wakes:
        a_limit_of_zero_on_sqlite a_limit_of_zero_on_postgres
        a_limit_of_zero_on_mariadb a_limit_of_zero_on_mysql;
}

#[test]
fn a_permit_is_released_by_force_by_its_number() {
    let sandbox = Sandbox::new();
    let all = Commands {
        sandbox: &sandbox,
        url: None,
    };
    let options = ["--ttl", "12s", "--grace", "500ms", "--holder", "web-1"];
    let robbed = all.limited(
        "1",
        &options,
        "echo $DBLOCK_TICKET > ticket; touch inside; sleep 60",
    );
    sandbox.wait_for("inside");
    let ticket = sandbox.read("ticket");
    assert!(
        ticket
            .split('.')
            .next()
            .is_some_and(|token| token.ends_with("-0")),
        "{ticket}"
    );
    let which = all.run(&["release", "api", "--force"]);
    assert!(
        which
            .only_line(2)
            .contains("is a semaphore, of which 1 permit is held"),
        "{which:?}"
    );
    let none = all.run(&["release", "api", "--force", "--slot", "7"]);
    assert!(
        none.only_line(0)
            .contains("there is no permit 7 of `api`; `dblock list --all` has all names"),
        "{none:?}"
    );
    let freed = all.run(&["release", "api", "--force", "--slot", "0"]);
    let line = freed.only_line(0);
    assert!(
        line.contains("permit 0 of `api` released by force: web-1 had held it"),
        "{line}"
    );
    let again = all.run(&["release", "api", "--force", "--slot", "0"]);
    let line = again.only_line(0);
    assert!(
        line.contains("permit 0 of `api` was free already"),
        "{line}"
    );
    let lost = robbed.end();
    assert!(
        lost.dblock_line(76)
            .starts_with("dblock: permit 0 of `api` lost ")
            && lost.err.contains("released by force"),
        "{lost:?}"
    );
    let shown = all.run(&["show", "api"]);
    assert!(shown.out.contains("0 of 1 held"), "{shown:?}");
}

#[test]
fn a_list_shows_how_many_permits_are_held_and_a_lock_of_the_name_is_another() {
    let sandbox = Sandbox::new();
    let all = Commands {
        sandbox: &sandbox,
        url: None,
    };
    let holders = [(); 2].map(|()| all.limited("3", &[], HOLD));
    all.wait_until_begun(2);
    let lock = all.run(&["run", "-n", "api", "--", DBLOCK, "list"]);
    assert_eq!(lock.code(), 0, "{lock:?}");
    let lines: Vec<Vec<&str>> = lock
        .out
        .lines()
        .map(|it| it.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..3], ["NAME", "STATE", "PERMIT"], "{lock:?}");
    assert_eq!(lines.len(), 4, "{lock:?}");
    assert_eq!(lock.out.matches("(2 of 3)").count(), 2, "{lock:?}");
    sandbox.touch("go");
    for one in holders {
        assert_eq!(one.end().code(), 0);
    }
}

/// The lock of the same name was acquired without end, which says nothing about the permit.
#[test]
fn a_permit_is_renewed_to_its_own_ttl_by_its_ticket() {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| sandbox.run(args);
    assert_eq!(run(&["acquire", "--ttl", "inf", "api"]).code(), 0);
    let ticket = run(&["acquire", "--limit", "2", "--ttl", "1h", "api"]).out;
    let renewed = run(&["renew", "api", "--ticket", ticket.trim()]);
    let line = renewed.only_line(0);
    assert!(line.contains("(1h)") || line.contains("(59m "), "{line}");
}

#[test]
fn messages_about_a_ticket_name_its_permit() {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| sandbox.run(args);
    let acquired = run(&["acquire", "--limit", "1", "--ttl", "20s", "api"]);
    let permit = "dblock: permit 0 of `api` ";
    assert!(
        acquired
            .only_line(0)
            .starts_with(&format!("{permit}is held ")),
        "{acquired:?}"
    );
    let ticket = acquired.out.trim();
    let renewed = run(&["renew", "api", "--ticket", ticket]);
    assert!(
        renewed
            .only_line(0)
            .starts_with(&format!("{permit}is renewed")),
        "{renewed:?}"
    );
    let released = run(&["release", "api", "--ticket", ticket]);
    assert!(
        released
            .only_line(0)
            .starts_with(&format!("{permit}is released")),
        "{released:?}"
    );
    // A lock of the name is another.
    assert_eq!(
        run(&["acquire", "--ttl", "20s", "--holder", "web-1", "api"]).code(),
        0
    );
    let dead = run(&["renew", "api", "--ticket", ticket]);
    let line = dead.only_line(76);
    assert!(
        line.contains("the ticket for permit 0 of `api` is dead") && !line.contains("web-1"),
        "{line}"
    );
    let other = run(&["renew", "other", "--ticket", ticket]);
    assert!(
        other
            .only_line(2)
            .contains("is for permit 0 of `api`, not for `other`"),
        "{other:?}"
    );
    let busy = run(&["acquire", "--limit", "1", "--ttl", "20s", "-v", "api"]);
    assert!(busy.err.contains("permit acquired"), "{busy:?}");
    assert!(!busy.err.contains("lock `api`"), "{busy:?}");
}

/// Perhaps it is misspelt.
#[test]
fn a_name_that_is_not_in_the_table_is_called_so() {
    let sandbox = Sandbox::new();
    let line = |args: &[&str]| sandbox.run(args).only_line(0).to_owned();
    assert_eq!(
        line(&["limit", "appi", "3"]),
        "dblock: semaphore `appi` has the limit 3, a new setting: no permit of that name was acquired \
         so far\n"
    );
    assert_eq!(
        line(&["limit", "appi", "0"]),
        "dblock: semaphore `appi` is paused; 0 permits are held\n"
    );
    assert!(line(&["limit", "appi", "none"]).contains("each caller's counts"));
    let nothing = "dblock: there is no semaphore `other`, so nothing was changed\n";
    assert_eq!(line(&["limit", "other", "none"]), nothing);
    assert_eq!(
        line(&["release", "jobb", "--force"]),
        "dblock: there is no lock `jobb`; `dblock list --all` has all names\n"
    );
    assert_eq!(sandbox.run(["run", "job", "--", "true"]).code(), 0);
    let free = "dblock: lock `job` was free already\n";
    assert_eq!(line(&["release", "job", "--force"]), free);
}

#[test]
fn a_paused_semaphore_says_how_the_pause_ends() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(["limit", "partner api", "0"]).code(), 0);
    let args = ["run", "-n", "--limit", "2", "partner api", "--", "true"];
    let done = sandbox.run(args);
    assert_eq!(
        done.dblock_line(75),
        "dblock: semaphore `partner api` is paused by an operator; `dblock limit 'partner api' none` ends \
         the pause"
    );
}

/// Also if none of its permits is held.
#[test]
fn a_list_shows_the_limits_of_operators() {
    let sandbox = Sandbox::new();
    let all = Commands {
        sandbox: &sandbox,
        url: None,
    };
    let line = |args: &[&str], name: &str| {
        let listed = all.run(args);
        assert_eq!(listed.code(), 0, "{listed:?}");
        let cells = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut lines = listed.out.lines().map(cells);
        lines.find(|line| line.starts_with(&format!("{name} ")))
    };
    for (name, limit) in [
        ("paused", "0"),
        ("five", "5"),
        ("none", "3"),
        ("none", "none"),
    ] {
        assert_eq!(all.run(&["limit", name, limit]).code(), 0);
    }
    let paused = line(&["list"], "paused").expect("listed");
    assert!(
        paused.starts_with("paused paused - (0 held, paused) - "),
        "{paused}"
    );
    assert_eq!(line(&["list"], "five"), None, "none of its permits is held");
    let five = line(&["list", "--all"], "five").expect("listed");
    assert!(five.starts_with("five free - (0 of limit 5) - "), "{five}");
    assert_eq!(line(&["list", "--all"], "none"), None);
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&all.run(args).out).expect("JSON")
    };
    let listed = json(&["list", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(
        (&listed[0]["state"], &listed[0]["limit"]),
        (&"paused".into(), &0.into())
    );

    let run = ["run", "--limit", "9", "five", "--", "sh", "-c", HOLD];
    let holder = all.start(&run);
    sandbox.wait_for("inside");
    let held = line(&["list"], "five").expect("listed");
    assert!(held.contains(" (1 of limit 5) "), "{held}");
    assert_eq!(all.run(&["limit", "five", "0"]).code(), 0);
    let held = line(&["list"], "five").expect("listed");
    assert!(
        held.starts_with("five held ") && held.contains(" (1 held, paused) "),
        "{held}"
    );
    let listed = json(&["list", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    assert_eq!(listed[0]["limit"], 0, "{listed}");
    assert_eq!(
        (&listed[1]["name"], &listed[1]["state"]),
        (&"five".into(), &"paused".into())
    );
    sandbox.touch("go");
    assert_eq!(holder.end().code(), 0);
}

#[test]
fn bad_limits_and_numbers_are_usage_errors() {
    let sandbox = Sandbox::new();
    let cases: [(&[&str], &str); 7] = [
        (
            &["run", "--limit", "0", "api", "--", "true"],
            "must be a number from 1 to 65536",
        ),
        (
            &["run", "--limit", "65537", "api", "--", "true"],
            "must be a number from 1 to 65536",
        ),
        (
            &["run", "--limit", "2", "a", "b", "--", "true"],
            "--limit is for one lock",
        ),
        (
            &["limit", "api", "-1"],
            "must be a number from 0 to 65536, or none",
        ),
        (&["limit", "api"], "N"),
        (
            &["release", "api", "--force", "--slot", "-1"],
            "must be a number from 0 to 65535",
        ),
        (&["release", "api", "--slot", "1"], "--force"),
    ];
    for (args, said) in cases {
        let done = sandbox.run(args);
        assert_eq!(done.code(), 2, "{args:?}: {done:?}");
        assert!(done.err.contains(said), "{args:?}: {done:?}");
    }
    assert!(!sandbox.database().exists(), "refused before any I/O");
}
