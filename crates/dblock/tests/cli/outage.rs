//! A database that is away: while it is waited for, and while a command runs.

use std::time::Duration;

use crate::support::{DBLOCK, Done, Lab, Running, SOON};
use rustix::process::Signal;
use testkit::time;
use testkit::{MariaDb, Postgres, Proxy};

/// Long enough for a command to have started and tried.
const A_WHILE: Duration = Duration::from_millis(1500);

fn start(lab: &Lab, url: &str, args: &[&str]) -> Running {
    let mut command = lab.command(DBLOCK);
    lab.start(command.args(args).env("DATABASE_LOCKS_URL", url))
}

fn run(lab: &Lab, url: &str, args: &[&str]) -> Done {
    start(lab, url, args).end()
}

/// A table on the shared PostgreSQL, behind a proxy.
fn behind_a_proxy(lab: &Lab) -> Option<(Proxy, String)> {
    let server = Postgres::shared()?;
    let direct = server.fresh_database();
    assert_eq!(run(lab, &direct, &["init"]).code(), 0);
    let proxy = Proxy::to_url(&direct);
    let url = proxy.url(&direct);
    Some((proxy, url))
}

/// The wait was told: once that the database is away, once that it answers again.
#[track_caller]
fn told_both(done: &Done) {
    let lines: Vec<&str> = done.err.lines().collect();
    let [away, back] = &*lines else {
        panic!("not two lines: {done:?}");
    };
    assert!(away.contains("lock `job`"), "{done:?}");
    assert!(
        back.contains("lock `job`: the database answers again, after "),
        "{done:?}"
    );
}

fn outlasts_a_restart(url: &str, mut stop: impl FnMut(), mut restart: impl FnMut()) {
    let lab = Lab::new();
    assert_eq!(run(&lab, url, &["init"]).code(), 0);
    stop();
    let commands = [
        &["run", "-w", "2m", "job", "--", "echo", "got it"][..],
        &["run", "another", "--", "echo", "got it"],
        &["acquire", "-w", "2m", "a third"],
    ];
    let mut waiting = commands.map(|args| start(&lab, url, args));
    time::sleep(A_WHILE);
    for one in &mut waiting {
        assert!(!one.has_ended(), "it waits");
    }
    restart();
    let [first, second, third] = waiting.map(Running::end);
    assert_eq!((first.code(), &*first.out), (0, "got it\n"), "{first:?}");
    told_both(&first);
    assert_eq!((second.code(), &*second.out), (0, "got it\n"), "{second:?}");
    assert_eq!(
        (third.code(), third.out.lines().count()),
        (0, 1),
        "{third:?}"
    );
}

#[test]
fn a_wait_covers_the_first_connection_to_postgres() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let url = server.url();
    let server = std::cell::RefCell::new(server);
    outlasts_a_restart(
        &url,
        || server.borrow_mut().stop(),
        || server.borrow_mut().restart(),
    );
    testkit::promise("P12", "postgres");
}

#[test]
fn a_wait_covers_the_first_connection_to_mariadb() {
    let Some(server) = MariaDb::start() else {
        return;
    };
    let url = server.url();
    let server = std::cell::RefCell::new(server);
    outlasts_a_restart(
        &url,
        || server.borrow_mut().stop(),
        || server.borrow_mut().restart(),
    );
    testkit::promise("P12", "mariadb");
}

#[test]
fn a_wait_covers_a_server_without_a_connection_to_spare() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let (lab, admin) = (Lab::new(), server.fresh_database());
    let url = server.locker_url(&admin);
    let database = admin.rsplit('/').next().expect("its name");
    assert_eq!(run(&lab, &url, &["init"]).code(), 0);
    let limit = |n: i32| {
        let sql = format!("ALTER DATABASE \"{database}\" CONNECTION LIMIT {n}");
        server.query("postgres", &sql).expect("altered");
    };
    limit(0);
    let refused = run(&lab, &url, &["run", "-n", "job", "--", "true"]);
    assert!(
        refused.refused(69).contains("too many connections"),
        "{refused:?}"
    );
    let mut waiting = start(
        &lab,
        &url,
        &["run", "-w", "2m", "job", "--", "echo", "got it"],
    );
    time::sleep(A_WHILE);
    assert!(!waiting.has_ended());
    limit(-1);
    let done = waiting.end();
    assert_eq!((done.code(), &*done.out), (0, "got it\n"), "{done:?}");
    told_both(&done);
}

#[test]
fn without_a_wait_a_database_that_is_away_is_69_at_once() {
    let lab = Lab::new();
    let Some((proxy, url)) = behind_a_proxy(&lab) else {
        return;
    };
    proxy.refuse(true);
    let mut fastest = SOON;
    for args in [
        &["run", "-n", "job", "--", "touch", "ran"][..],
        &["run", "-n", "-E", "0", "job", "--", "touch", "ran"],
        &["run", "-w", "0", "job", "--", "touch", "ran"],
        &["acquire", "-n", "job"],
    ] {
        let began = time::now();
        let done = run(&lab, &url, args);
        fastest = fastest.min(began.elapsed());
        assert!(done.refused(69).contains("cannot be reached"), "{done:?}");
    }
    // Nothing was sent, so there is nothing to be cancelled first: that would take 2 s at least.
    assert!(fastest < Duration::from_millis(1800), "{fastest:?}");
    assert!(!lab.path("ran").exists());
}

#[test]
fn a_wait_that_ends_while_the_database_is_away_is_69_and_names_the_cause() {
    let lab = Lab::new();
    let Some((proxy, url)) = behind_a_proxy(&lab) else {
        return;
    };
    proxy.refuse(true);
    let args = ["run", "-w", "1s", "-E", "0", "job", "--", "touch", "ran"];
    let done = run(&lab, &url, &args);
    assert_eq!(done.code(), 69, "{done:?}");
    let lines: Vec<&str> = done.err.lines().collect();
    assert_eq!(lines.len(), 2, "{done:?}");
    assert!(
        lines[1].starts_with("dblock: gave up after 1s: "),
        "{done:?}"
    );
    assert!(lines[1].contains("cannot be reached: "), "{done:?}");
    let quiet = run(&lab, &url, &[&["-q"], &args[..]].concat());
    assert!(quiet.refused(69).contains("gave up after 1s"), "{quiet:?}");
    assert!(!lab.path("ran").exists());
}

#[test]
fn a_refusal_ends_a_wait_at_once() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let (lab, began) = (Lab::new(), time::now());
    let empty = server.fresh_database();
    let said = |url: &str| {
        let done = run(&lab, url, &["run", "job", "--", "touch", "ran"]);
        done.refused(69).to_owned()
    };
    let table = said(&empty);
    assert!(
        table.contains("refused: ") && table.ends_with("`locks.migrate()`\n"),
        "{table}"
    );
    let database = said(&server.url_of("no_such_database"));
    assert!(database.contains("no_such_database"), "{database}");
    let cause = database.find("3D000").expect("the cause");
    assert!(
        cause < database.find("check the name").expect("the hint"),
        "{database}"
    );
    assert!(began.elapsed() < SOON);
    assert!(!lab.path("ran").exists());
}

#[test]
fn a_role_that_may_not_connect_is_told_of_connect_and_not_of_the_table() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let (lab, admin) = (Lab::new(), server.fresh_database());
    let url = server.locker_url(&admin);
    let database = admin.rsplit('/').next().expect("its name");
    let revoke = format!("REVOKE CONNECT ON DATABASE \"{database}\" FROM PUBLIC, locker");
    server.query("postgres", &revoke).expect("revoked");
    let done = run(&lab, &url, &["list"]);
    let said = done.refused(69);
    let (cause, hint) = (said.find("42501"), said.find("GRANT CONNECT ON DATABASE"));
    assert!(cause.is_some() && cause < hint, "{said}");
    assert!(!said.contains("UPDATE on the table"), "{said}");
}

#[test]
fn an_unlogged_table_is_listed_and_holds_no_lock() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let (lab, url) = (Lab::new(), server.fresh_database());
    assert_eq!(run(&lab, &url, &["init"]).code(), 0);
    assert_eq!(run(&lab, &url, &["run", "job", "--", "true"]).code(), 0);
    let alter = "ALTER TABLE database_locks_lock SET UNLOGGED";
    server.query(&url, alter).expect("altered");
    assert!(run(&lab, &url, &["list", "--all"]).out.contains("\njob "));
    assert_eq!(run(&lab, &url, &["show", "job"]).code(), 0);
    let refused = run(&lab, &url, &["run", "job", "--", "touch", "ran"]);
    assert!(refused.refused(69).contains("UNLOGGED"), "{refused:?}");
    assert!(!lab.path("ran").exists());
}

/// The right to write goes away under CMD: with `-v` too the release is reported once, by the command.
#[test]
fn a_release_that_is_refused_is_not_said_to_be_tried_on() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let (lab, admin) = (Lab::new(), server.fresh_database());
    let url = server.locker_url(&admin);
    let query = |sql: &str| server.query(&admin, sql).expect("runs");
    assert_eq!(run(&lab, &admin, &["init"]).code(), 0);
    query("GRANT SELECT, INSERT, UPDATE ON database_locks_lock TO locker");
    let script = "touch begun; while [ ! -e go ]; do sleep 0.02; done; exit 3";
    let running = start(&lab, &url, &["run", "-v", "job", "--", "sh", "-c", script]);
    lab.wait_for("begun");
    query("REVOKE UPDATE ON database_locks_lock FROM locker");
    lab.touch("go");
    let done = running.end();
    assert_eq!(done.code(), 3, "{done:?}");
    assert!(!done.err.contains("background"), "{done:?}");
    let lines = done.err.lines().filter(|line| line.contains("release"));
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines.len(), 1, "{done:?}");
    assert!(lines[0].contains("permission denied"), "{done:?}");
}

#[test]
fn a_signal_ends_a_wait_for_a_database_that_is_away() {
    let lab = Lab::new();
    let Some((proxy, url)) = behind_a_proxy(&lab) else {
        return;
    };
    proxy.refuse(true);
    let running = start(&lab, &url, &["run", "job", "--", "touch", "ran"]);
    time::sleep(A_WHILE);
    running.signal(Signal::TERM);
    let done = running.end();
    assert_eq!(done.code(), 143, "{done:?}");
    assert!(!lab.path("ran").exists());
}

#[test]
fn an_outage_under_a_command_is_told_when_it_begins_and_when_it_ends() {
    let lab = Lab::new();
    let Some((proxy, url)) = behind_a_proxy(&lab) else {
        return;
    };
    let script = "touch begun; while [ ! -e go ]; do sleep 0.02; done";
    let options = [
        "run", "--ttl", "18s", "--grace", "0", "job", "--", "sh", "-c", script,
    ];
    let running = start(&lab, &url, &options);
    lab.wait_for("begun");
    proxy.refuse(true);
    proxy.cut();
    let told = |what: &str| time::wait_until(SOON, || running.said().contains(what));
    assert!(told("renewals fail"), "{}", running.said());
    proxy.refuse(false);
    assert!(
        told("renewals get through again, after "),
        "{}",
        running.said()
    );
    lab.touch("go");
    let done = running.end();
    assert_eq!((done.code(), done.err.lines().count()), (0, 2), "{done:?}");
}

#[test]
fn after_a_loss_no_line_says_that_renewals_are_tried_again() {
    let lab = Lab::new();
    let Some((proxy, url)) = behind_a_proxy(&lab) else {
        return;
    };
    let options = [
        "run",
        "--ttl",
        "2s",
        "job",
        "--",
        "sh",
        "-c",
        "touch begun; exec sleep 1000",
    ];
    let running = start(&lab, &url, &options);
    lab.wait_for("begun");
    proxy.refuse(true);
    proxy.cut();
    let done = running.end();
    assert_eq!(done.code(), 76, "{done:?}");
    let lines: Vec<&str> = done.err.lines().collect();
    let lost = lines
        .iter()
        .position(|line| line.contains("lock `job` lost "))
        .expect("told");
    assert_eq!(lost + 1, lines.len(), "nothing after it: {done:?}");
    assert!(lines.len() <= 2, "the outage once, and the loss: {done:?}");
}

/// P15: blocked is not held.
#[track_caller]
fn blocked(lab: &Lab, url: &str) {
    let began = time::now();
    let tries = [
        &["run", "-n", "never had", "--", "touch", "ran"][..],
        &["run", "-n", "-E", "0", "never had", "--", "touch", "ran"],
        &["acquire", "-n", "never had"],
    ];
    for one in tries.map(|args| start(lab, url, args)) {
        let done = one.end();
        let said = done.refused(69);
        assert!(!said.contains("is held"), "{said}");
        assert!(said.contains("never had"), "{said}");
    }
    // The guide says 7 s.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!lab.path("ran").exists());
}

#[test]
fn a_table_that_is_blocked_is_not_called_held_on_postgres() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let (lab, url) = (Lab::new(), server.fresh_database());
    assert_eq!(
        run(&lab, &url, &["run", "-n", "x", "--", "true"]).code(),
        69
    );
    assert_eq!(run(&lab, &url, &["init"]).code(), 0);
    let free = |name| run(&lab, &url, &["run", "-n", name, "--", "true"]);
    assert_eq!(free("had before").code(), 0);
    let mut backup = server.stranger(&url);
    backup.run("BEGIN").expect("begins");
    let lock = "LOCK TABLE database_locks_lock IN EXCLUSIVE MODE";
    backup.run(lock).expect("locked");
    blocked(&lab, &url);
    // What waits in the server is cancelled: it would take the lock for a process that has ended.
    assert_eq!(free("had before").code(), 69);
    backup.run("ROLLBACK").expect("unlocked");
    for name in ["never had", "had before"] {
        assert_eq!(free(name).code(), 0, "{name}");
    }
    testkit::promise("P15", "postgres");
}

#[test]
fn a_table_that_is_blocked_is_not_called_held_on_mariadb() {
    // A server of its own: all that is written there stands still.
    let Some(server) = MariaDb::start() else {
        return;
    };
    let (lab, url) = (Lab::new(), server.fresh_database());
    assert_eq!(run(&lab, &url, &["init"]).code(), 0);
    let mut backup = server.stranger(&url);
    backup.run("FLUSH TABLES WITH READ LOCK").expect("locked");
    blocked(&lab, &url);
    let waiting = start(
        &lab,
        &url,
        &["run", "-w", "1m", "never had", "--", "echo", "got it"],
    );
    time::sleep(A_WHILE);
    backup.run("UNLOCK TABLES").expect("unlocked");
    let done = waiting.end();
    assert_eq!((done.code(), &*done.out), (0, "got it\n"), "{done:?}");
    testkit::promise("P15", "mariadb");
}

#[test]
fn a_file_that_is_blocked_is_not_called_held() {
    let lab = Lab::new();
    let url = format!("sqlite://{}", lab.database().display());
    assert_eq!(lab.run(["init"]).code(), 0);
    let file = rusqlite::Connection::open(lab.database()).expect("opens");
    file.execute_batch("BEGIN IMMEDIATE")
        .expect("has the write lock");
    blocked(&lab, &url);
    file.execute_batch("ROLLBACK").expect("gives it back");
    assert_eq!(lab.run(["run", "-n", "never had", "--", "true"]).code(), 0);
    testkit::promise("P15", "sqlite");
}
