//! `dblock doctor`: its output and exit codes.

use std::os::unix::fs::PermissionsExt;

use crate::support::Sandbox;
use serde_json::Value;
use testkit::programs::{find_binary, require};
use testkit::{MariaDb, MySql, MySqlServer, Postgres};

#[test]
fn a_healthy_file_is_reported_line_by_line() {
    let sandbox = Sandbox::new();
    sandbox.run(["init"]);
    let done = sandbox.run(["doctor"]);
    assert_eq!((done.code(), &*done.err), (0, ""), "{done:?}");
    for line in done.out.lines() {
        assert!(line.starts_with("ok  "), "{line}");
    }
    assert!(done.out.contains("ok  server      SQLite 3."), "{done:?}");
    assert!(
        done.out
            .contains("\nok  locks       0 in the table, 0 of them held\n"),
        "{done:?}"
    );
}

#[test]
fn an_error_comes_last_with_its_fix_and_the_exit_code_is_1() {
    let sandbox = Sandbox::new();
    sandbox.run(["init"]);
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(sandbox.database(), open).unwrap();
    let done = sandbox.run(["doctor"]);
    assert_eq!((done.code(), &*done.err), (1, ""), "{done:?}");
    let lines: Vec<&str> = done.out.lines().collect();
    let [.., found, fix] = lines[..] else {
        panic!("{done:?}")
    };
    assert!(found.starts_with("error  file-open   /"), "{done:?}");
    assert!(fix.starts_with("fix    file-open   chmod o-w"), "{done:?}");
}

#[test]
fn doctor_json_is_one_object() {
    let sandbox = Sandbox::new();
    let read = |code| {
        let done = sandbox.run(["doctor", "--json"]);
        assert_eq!(done.code(), code, "{done:?}");
        serde_json::from_str::<Value>(&done.out).expect("JSON")
    };
    sandbox.run(["init"]);
    let well = read(0);
    assert_eq!(well["findings"], Value::Array(vec![]));
    assert_eq!(well["checks"][0]["area"], "server");
    assert_eq!(well["checks"][0]["seen"], true);
    let file = rusqlite::Connection::open(sandbox.database()).unwrap();
    file.execute_batch("DROP TABLE database_locks_lock; CREATE TABLE other (x)")
        .unwrap();
    let ill = read(1);
    let found = &ill["findings"][0];
    assert_eq!(
        (&found["id"], &found["severity"]),
        (&"table-missing".into(), &"error".into())
    );
    assert_eq!(found["area"], "table");
    assert!(
        found["message"]
            .as_str()
            .unwrap()
            .starts_with("there is no table"),
        "{ill}"
    );
    assert!(
        found["fix"].as_str().unwrap().contains("dblock init"),
        "{ill}"
    );
}

#[test]
fn doctor_ends_with_69_for_a_server_that_is_away_or_refuses() {
    let sandbox = Sandbox::new();
    // No server listens on this port.
    let url = "postgres://u@127.0.0.1:1/d";
    let done = sandbox.run(["doctor", "--url", url]);
    assert!(done.only_line(69).contains("cannot be reached"), "{done:?}");
    assert_eq!(done.out, "");
    assert_eq!(sandbox.run(["doctor", "--url", "nonsense"]).code(), 2);
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET \
                     default_transaction_read_only = on', current_database()); END $$";
    server.query(&url, read_only).expect("runs");
    let done = sandbox.run(["doctor", "--url", &url]);
    assert!(done.only_line(69).contains("read-only"), "{done:?}");
}

#[test]
fn doctor_reports_a_missing_table_until_init_has_run() {
    let sandbox = Sandbox::new();
    let servers = [
        Postgres::shared().map(Postgres::fresh_database),
        MariaDb::shared().map(MySqlServer::fresh_database),
        MySql::shared().map(MySqlServer::fresh_database),
    ];
    for url in servers.into_iter().flatten() {
        let done = sandbox.run(["doctor", "--url", &url]);
        assert_eq!(done.code(), 1, "{done:?}");
        assert!(
            done.out
                .contains("\nerror  table-missing  there is no table"),
            "{done:?}"
        );
        assert_eq!(sandbox.run(["init", "--url", &url]).code(), 0);
        let done = sandbox.run(["doctor", "--url", &url]);
        assert!(!done.out.contains("table-missing"), "{done:?}");
        assert!(done.out.contains("has its columns"), "{done:?}");
    }
}

/// A file with one finding, the warning `index-unused`.
fn with_a_warning() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.run(["init"]);
    let file = rusqlite::Connection::open(sandbox.database()).expect("opens");
    let index = "CREATE INDEX extra ON database_locks_lock (id)";
    file.execute_batch(index).expect("made");
    sandbox
}

#[test]
fn warnings_end_with_0_and_with_strict_with_1() {
    let sandbox = with_a_warning();
    let code = |options: &[&str], message: &str| {
        let done = sandbox.run([&["doctor"], options].concat());
        assert!(done.out.contains(message), "{options:?}: {done:?}");
        done.code()
    };
    assert_eq!(code(&[], "\nwarning  index-unused  "), 0);
    assert_eq!(code(&["--strict"], "\nwarning  index-unused  "), 1);
    assert_eq!(code(&["--strict", "--json"], "\"id\":\"index-unused\""), 1);
    let ignored = [
        "--strict",
        "--ignore",
        "no-delete",
        "--ignore",
        "index-unused",
    ];
    assert_eq!(code(&ignored, "\nignored  index-unused  "), 0);
    let for_programs = [&ignored[..], &["--json"]].concat();
    assert_eq!(code(&for_programs, "\"findings\":[]"), 0);
    // An error counts without --strict, and can be ignored as well.
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(sandbox.database(), open).unwrap();
    assert_eq!(code(&[], "\nerror    file-open  "), 1);
    assert_eq!(
        code(&["--ignore", "file-open"], "\nignored  file-open  "),
        0
    );
}

#[test]
fn an_unknown_finding_cannot_be_ignored() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(["doctor", "--ignore", "no-such"]);
    let message = done.only_line(2);
    assert!(
        message.contains("'no-such' for '--ignore <ID>': must be one of ")
            && message.contains("no-delete, ")
            && message.contains("standby-async, "),
        "{message}"
    );
    assert!(!sandbox.path("state").exists());
}

/// The servers of the tests do not flush, so those findings are ignored.
fn assert_no_findings_but_no_delete(server: Option<testkit::TestDb>) {
    let Some(server) = server else { return };
    let sandbox = Sandbox::new();
    let doctor = ["doctor", "--url", &server.url, "--ignore", "not-flushed"];
    let flushed = ["--ignore", "binlog-not-flushed", "--ignore", "torn-pages"];
    let usual = [&doctor[..], &flushed].concat();
    let done = sandbox.run(&usual);
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(done.out.contains("\nwarning  no-delete  "), "{done:?}");
    let strict = [&usual[..], &["--strict"]].concat();
    assert_eq!(sandbox.run(&strict).code(), 1);
    let done = sandbox.run([&strict[..], &["--ignore", "no-delete"]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
}

#[tokio::test]
async fn the_user_that_the_security_page_recommends_has_no_findings_but_no_delete() {
    assert_no_findings_but_no_delete(testkit::TestDb::postgres_least().await);
    assert_no_findings_but_no_delete(testkit::TestDb::mariadb_least().await);
    assert_no_findings_but_no_delete(testkit::TestDb::mysql_least().await);
}

/// Only `dblock` runs under faketime.
#[test]
fn a_clock_that_differs_from_the_databases_is_a_warning() {
    let sandbox = Sandbox::new();
    let faketime = require("faketime", "faketime", find_binary("faketime", &[]));
    let (Some(faketime), Some(server)) = (faketime, Postgres::shared()) else {
        return;
    };
    testkit::faketime::remove_leftovers();
    let url = server.fresh_database();
    sandbox.run(["init", "--url", &url]);
    let mut command = sandbox.command(faketime);
    command.args([
        "-f",
        "+310s",
        crate::support::DBLOCK,
        "doctor",
        "--url",
        &url,
    ]);
    command.args(["--ignore", "not-flushed"]);
    let done = sandbox.start(&mut command).end();
    assert_eq!(done.code(), 0, "a warning: {done:?}");
    let message = "clock-off    the database's clock is 5m ";
    assert!(
        done.out.contains(message) && done.out.contains(" behind this machine's"),
        "{done:?}"
    );
}

#[test]
fn the_help_of_doctor_explains_its_exit_codes() {
    let sandbox = Sandbox::new();
    let help = sandbox.run(["doctor", "--help"]).out;
    for word in [
        "--json",
        "unseen",
        "Exit codes:\n  0   no error was found; with --strict, no warning either\n  1   an error was found",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(sandbox.run(["--help"]).out.contains("doctor"));
}
