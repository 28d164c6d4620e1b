//! `dblock lead`: one of many runs its command, and another one when the leader is killed, frozen,
//! loses the lock or is stopped.

use std::time::Duration;

use crate::support::{DBLOCK, Running, Sandbox, TIMEOUT, is_running, wait_until_gone};
use rustix::process::Signal;
use testkit::{TestDb, promise, time};

/// Notes each term and its pid in the file `terms`, and in `violations` that the process of the
/// term before is still running. Runs until TERM.
const LEADER: &str = "last=$(tail -n 1 terms 2>/dev/null | cut -d ' ' -f 3)
    grep -qs '^State:.[^ZX]' /proc/${last:-none}/status && echo $last beside $$ >> violations
    echo $DBLOCK_HOLDER $DBLOCK_TOKEN $$ >> terms
    trap 'exit 0' TERM; while :; do sleep 0.02; done";

/// Renewed every 2 s, so that a loss is noticed soon.
const SHORT: [&str; 4] = ["--ttl", "6s", "--grace", "500ms"];

/// The candidates of a test, on its SQLite file or on a server.
struct Candidates<'a> {
    sandbox: &'a Sandbox,
    url: Option<&'a str>,
}

#[derive(Debug)]
struct Term {
    holder: String,
    token: i64,
    pid: String,
}

impl Candidates<'_> {
    fn dblock(&self, args: &[&str]) -> Running {
        let mut command = self.sandbox.command(DBLOCK);
        if let Some(url) = self.url {
            command.env("DATABASE_LOCKS_URL", url);
        }
        self.sandbox.start(command.args(args))
    }

    fn start(&self, holder: &str) -> Running {
        let options = [&["lead", "--holder", holder], &SHORT[..]].concat();
        self.dblock(&[&options, &["job", "--", "sh", "-c", LEADER][..]].concat())
    }

    fn terms(&self) -> Vec<Term> {
        let text = self.sandbox.read("terms");
        let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let whole = words.filter(|words| words.len() == 3);
        whole
            .map(|words| Term {
                holder: words[0].into(),
                token: words[1].parse().expect("a token"),
                pid: words[2].into(),
            })
            .collect()
    }

    /// Waits for so many terms, and asserts that they came one after another. Returns the last.
    #[track_caller]
    fn nth_term(&self, count: usize) -> Term {
        let there = time::wait_until(TIMEOUT, || self.terms().len() >= count);
        let mut terms = self.terms();
        assert!(there && terms.len() == count, "{terms:?}");
        let grows = terms.windows(2).all(|pair| pair[0].token < pair[1].token);
        assert!(grows, "{terms:?}");
        assert_eq!(self.sandbox.read("violations"), "", "{terms:?}");
        terms.pop().expect("a term")
    }
}

/// A leader that is killed, frozen, robbed and stopped: each time another one leads, and never two.
fn one_leads_at_a_time(db: Option<TestDb>) {
    // The test kit has reported that this is skipped.
    let Some(db) = db else { return };
    let sandbox = Sandbox::new();
    let all = Candidates {
        sandbox: &sandbox,
        url: Some(&db.url),
    };
    assert_eq!(all.dblock(&["init"]).end().code(), 0);
    let a = all.start("a");
    assert_eq!(all.nth_term(1).holder, "a");
    let b = all.start("b");

    // Killed: its command dies with it, and its lease ends.
    a.signal(Signal::KILL);
    let term = all.nth_term(2);
    assert_eq!(term.holder, "b");

    // Frozen together with its command, as a virtual machine is.
    let a = all.start("a");
    let group = pid(&term.pid);
    b.signal(Signal::STOP);
    rustix::process::kill_process_group(group, Signal::STOP).expect("it runs");
    let there = time::wait_until(TIMEOUT, || all.terms().len() == 3);
    assert!(there && all.terms()[2].holder == "a", "{:?}", all.terms());
    // Thawed, the former leader stops its command and is a candidate again.
    std::fs::remove_file(sandbox.path("violations")).expect("both existed, one of them frozen");
    rustix::process::kill_process_group(group, Signal::CONT).expect("it is there");
    b.signal(Signal::CONT);
    wait_until_gone(&term.pid);
    let term = all.nth_term(3);
    assert!(is_running(&term.pid), "the leader goes on");

    // Robbed: it stops its command, and campaigns again.
    let freed = all.dblock(&["release", "job", "--force"]).end();
    assert_eq!(freed.code(), 0, "{freed:?}");
    wait_until_gone(&term.pid);
    let there = time::wait_until(TIMEOUT, || all.terms().len() >= 4);
    assert!(there);
    // The one that was robbed learns of it up to 2 s later.
    let _ = std::fs::remove_file(sandbox.path("violations"));
    let term = all.nth_term(4);

    // Stopped: the next one leads at once, and not when a lease ends.
    let (leader, other) = if term.holder == "a" { (a, b) } else { (b, a) };
    leader.signal(Signal::TERM);
    let ended = leader.end();
    assert_eq!(ended.code(), 143, "{ended:?}");
    assert!(!is_running(&term.pid));
    let last = all.nth_term(5);
    assert_ne!(last.holder, term.holder);
    assert!(is_running(&last.pid));
    other.signal(Signal::TERM);
    assert_eq!(other.end().code(), 143);
    promise("P1", db.engine);
    promise("P2", db.engine);
}

fn pid(text: &str) -> rustix::process::Pid {
    let number = text.parse().expect("a number");
    rustix::process::Pid::from_raw(number).expect("a pid")
}

#[test]
fn one_leads_at_a_time_on_sqlite() {
    one_leads_at_a_time(TestDb::sqlite());
}

#[test]
fn one_leads_at_a_time_on_postgres() {
    one_leads_at_a_time(TestDb::postgres());
}

#[test]
fn one_leads_at_a_time_on_mariadb() {
    one_leads_at_a_time(TestDb::mariadb());
}

#[test]
fn one_leads_at_a_time_on_mysql() {
    one_leads_at_a_time(TestDb::mysql());
}

fn lead(sandbox: &Sandbox, options: &[&str], script: &str) -> Running {
    let args = [&["lead"], options, &["job", "--", "sh", "-c", script]].concat();
    sandbox.start(&mut sandbox.dblock(args))
}

#[test]
fn the_command_is_started_again_after_a_pause_in_which_the_lock_is_free() {
    let sandbox = Sandbox::new();
    let leader = lead(&sandbox, &[], "echo $DBLOCK_TOKEN; exit 3");
    // A pause that is long enough for another command to start.
    leader.wait_for_stderr("campaigning again in 8s");
    let other = sandbox.run(["run", "-n", "job", "--", "true"]);
    assert_eq!(other.code(), 0, "{other:?}");
    leader.signal(Signal::TERM);
    let done = leader.end();
    assert_eq!(done.code(), 143);
    let terms: Vec<i64> = done.out.lines().map(|line| line.parse().unwrap()).collect();
    let grow = terms.windows(2).all(|pair| pair[0] < pair[1]);
    assert!(terms.len() >= 4 && grow, "{done:?}");
    assert!(
        done.err
            .contains(&format!("dblock: leading `job`, term {}", terms[0]))
            && done.err.contains("CMD ended with 3 after ")
            && done
                .err
                .contains("`job` is free for other candidates, campaigning again in 1s")
            && done.err.contains("campaigning again in 2s"),
        "{done:?}"
    );
}

#[test]
fn a_candidate_that_waits_is_ended_by_a_signal() {
    let sandbox = Sandbox::new();
    let leader = lead(&sandbox, &[], "touch begun; exec sleep 1000");
    sandbox.wait_for("begun");
    let waits = lead(&sandbox, &["-v"], "touch second");
    let there = time::wait_until(TIMEOUT, || waits.stderr().contains("waiting"));
    assert!(there, "{}", waits.stderr());
    waits.signal(Signal::INT);
    assert_eq!(waits.end().code(), 130);
    assert!(!sandbox.path("second").exists());
    drop(leader);
}

#[test]
fn hup_reaches_a_server_that_goes_on_and_ends_one_that_it_ends() {
    let sandbox = Sandbox::new();
    let script = "trap 'echo again; touch hup' HUP; touch begun; while :; do sleep 0.02; done";
    let leader = lead(&sandbox, &[], script);
    sandbox.wait_for("begun");
    leader.signal(Signal::HUP);
    sandbox.wait_for("hup");
    assert!(sandbox.is_held("job"));
    leader.signal(Signal::TERM);
    let done = leader.end();
    assert_eq!((done.code(), &*done.out), (143, "again\n"));

    let leader = lead(&sandbox, &[], "touch second; exec sleep 1000");
    sandbox.wait_for("second");
    leader.signal(Signal::HUP);
    assert_eq!(leader.end().code(), 129);
    assert!(!sandbox.is_held("job"));
}

/// After a first term there are handlers for signals that end nothing by default.
#[test]
fn a_candidate_ignores_what_ends_no_process_by_default() {
    let sandbox = Sandbox::new();
    let leader = lead(&sandbox, &[], "echo >> runs");
    let line = "campaigning again in 2s";
    assert!(time::wait_until(TIMEOUT, || leader.stderr().contains(line)));
    leader.signal(Signal::WINCH);
    leader.signal(Signal::CONT);
    let again = time::wait_until(TIMEOUT, || sandbox.read("runs").lines().count() >= 3);
    assert!(again, "{}", leader.stderr());
    leader.signal(Signal::QUIT);
    assert_eq!(leader.end().code(), 131);
}

/// Another candidate may lead, so the command must not run on as that of `dblock run` does.
#[test]
fn a_release_by_ticket_is_a_loss() {
    let sandbox = Sandbox::new();
    let script = r#"echo $$ >> pids; touch begun
        [ -e released ] || { touch released; env -u DBLOCK_GRANTS "$DBLOCK" release job --ticket "$DBLOCK_TICKET"; }
        exec sleep 1000"#;
    let mut command =
        sandbox.dblock([&["lead"], &SHORT[..], &["job", "--", "sh", "-c", script]].concat());
    let leader = sandbox.start(command.env("DBLOCK", DBLOCK));
    let again = time::wait_until(TIMEOUT, || sandbox.read("pids").lines().count() == 2);
    assert!(again, "{}", leader.stderr());
    wait_until_gone(sandbox.read("pids").lines().next().unwrap_or_default());
    assert!(
        leader.stderr().contains("CMD was stopped"),
        "{}",
        leader.stderr()
    );
    leader.signal(Signal::TERM);
    assert_eq!(leader.end().code(), 143);
}

#[test]
fn bad_usage_and_a_missing_command_end_it() {
    let sandbox = Sandbox::new();
    let line = |args: &[&str], code: i32| {
        sandbox
            .run([&["lead"], args].concat())
            .only_line(code)
            .to_owned()
    };
    assert!(line(&["--", "true"], 2).contains("the form is `dblock lead NAME -- CMD`"));
    let ignore = line(&["--on-lost", "ignore", "job", "--", "true"], 2);
    assert!(ignore.contains("must be one of term, kill"), "{ignore}");
    let grace = line(&["--ttl", "5s", "--grace", "3s", "job", "--", "true"], 2);
    assert!(grace.contains("more than twice the --grace"), "{grace}");
    let done = sandbox.run(["lead", "-q", "job", "--", "no-such-program"]);
    assert!(
        done.only_line(127)
            .contains("`no-such-program` was not found")
    );
    assert!(!sandbox.is_held("job"));
}

/// While the database is away a leader stops its command in time, and leads again afterwards.
#[test]
fn a_leader_outlives_an_outage() {
    let Some(db) = TestDb::postgres() else { return };
    let sandbox = Sandbox::new();
    let proxy = testkit::Proxy::to_url(&db.url);
    let url = proxy.url(&db.url);
    let all = Candidates {
        sandbox: &sandbox,
        url: Some(&url),
    };
    assert_eq!(all.dblock(&["init"]).end().code(), 0);
    let leader = all.start("a");
    let first = all.nth_term(1);
    proxy.refuse(true);
    proxy.cut();
    wait_until_gone(&first.pid);
    time::sleep(Duration::from_secs(1));
    proxy.refuse(false);
    all.nth_term(2);
    assert!(
        leader.stderr().contains("CMD was stopped"),
        "{}",
        leader.stderr()
    );
    leader.signal(Signal::TERM);
    assert_eq!(leader.end().code(), 143);
}
