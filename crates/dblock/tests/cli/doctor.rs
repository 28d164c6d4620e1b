//! `doctor`: what it prints, and what it ends with.

use std::os::unix::fs::PermissionsExt;

use crate::support::Lab;
use serde_json::Value;
use testkit::server::{find_binary, require};
use testkit::{MariaDb, MySql, MySqlServer, Postgres};

#[test]
fn a_file_with_nothing_wrong_is_told_line_by_line() {
    let lab = Lab::new();
    lab.run(["init"]);
    let done = lab.run(["doctor"]);
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
fn what_is_found_comes_last_with_what_to_do_and_exit_code_1() {
    let lab = Lab::new();
    lab.run(["init"]);
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(lab.database(), open).unwrap();
    let done = lab.run(["doctor"]);
    assert_eq!((done.code(), &*done.err), (1, ""), "{done:?}");
    let lines: Vec<&str> = done.out.lines().collect();
    let [.., found, fix] = lines[..] else {
        panic!("{done:?}")
    };
    assert!(found.starts_with("error  file-open   /"), "{done:?}");
    assert!(fix.starts_with("fix    file-open   chmod o-w"), "{done:?}");
}

#[test]
fn for_programs_it_is_one_object() {
    let lab = Lab::new();
    let read = |code| {
        let done = lab.run(["doctor", "--json"]);
        assert_eq!(done.code(), code, "{done:?}");
        serde_json::from_str::<Value>(&done.out).expect("JSON")
    };
    lab.run(["init"]);
    let well = read(0);
    assert_eq!(well["findings"], Value::Array(vec![]));
    assert_eq!(well["checks"][0]["area"], "server");
    assert_eq!(well["checks"][0]["seen"], true);
    let file = rusqlite::Connection::open(lab.database()).unwrap();
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
fn a_server_that_is_not_there_or_refuses_is_69() {
    let lab = Lab::new();
    let url = format!("postgres://u@127.0.0.1:{}/d", testkit::server::free_port());
    let done = lab.run(["doctor", "--url", &url]);
    assert!(done.refused(69).contains("cannot be reached"), "{done:?}");
    assert_eq!(done.out, "");
    assert_eq!(lab.run(["doctor", "--url", "nonsense"]).code(), 2);
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let read_only = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET \
                     default_transaction_read_only = on', current_database()); END $$";
    server.query(&url, read_only).expect("runs");
    let done = lab.run(["doctor", "--url", &url]);
    assert!(done.refused(69).contains("read-only"), "{done:?}");
}

#[test]
fn a_table_is_missing_until_it_is_made() {
    let lab = Lab::new();
    let servers = [
        Postgres::shared().map(Postgres::fresh_database),
        MariaDb::shared().map(MySqlServer::fresh_database),
        MySql::shared().map(MySqlServer::fresh_database),
    ];
    for url in servers.into_iter().flatten() {
        let done = lab.run(["doctor", "--url", &url]);
        assert_eq!(done.code(), 1, "{done:?}");
        assert!(
            done.out
                .contains("\nerror  table-missing  there is no table"),
            "{done:?}"
        );
        assert_eq!(lab.run(["init", "--url", &url]).code(), 0);
        let done = lab.run(["doctor", "--url", &url]);
        assert!(!done.out.contains("table-missing"), "{done:?}");
        assert!(done.out.contains("has its columns"), "{done:?}");
    }
}

/// A file with the warning `index-unused`, and nothing else.
fn with_a_warning() -> Lab {
    let lab = Lab::new();
    lab.run(["init"]);
    let file = rusqlite::Connection::open(lab.database()).expect("opens");
    let index = "CREATE INDEX extra ON database_locks_lock (id)";
    file.execute_batch(index).expect("made");
    lab
}

#[test]
fn warnings_alone_end_with_0_and_with_1_where_they_count() {
    let lab = with_a_warning();
    let code = |options: &[&str], said: &str| {
        let done = lab.run([&["doctor"], options].concat());
        assert!(done.out.contains(said), "{options:?}: {done:?}");
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
    // An error counts as before, and can be left out as well.
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(lab.database(), open).unwrap();
    assert_eq!(code(&[], "\nerror    file-open  "), 1);
    assert_eq!(
        code(&["--ignore", "file-open"], "\nignored  file-open  "),
        0
    );
}

#[test]
fn an_unknown_finding_cannot_be_ignored() {
    let lab = Lab::new();
    let done = lab.run(["doctor", "--ignore", "no-such"]);
    let said = done.refused(2);
    assert!(
        said.contains("'no-such' for '--ignore <ID>': must be one of ")
            && said.contains("no-delete, ")
            && said.contains("standby-async, "),
        "{said}"
    );
    assert!(!lab.path("state").exists());
}

/// The tests' servers do not flush: that is left out.
fn is_green_for_the_least_rights(server: Option<testkit::Lab>) {
    let Some(server) = server else { return };
    let lab = Lab::new();
    let doctor = ["doctor", "--url", &server.url, "--ignore", "not-flushed"];
    let flushed = ["--ignore", "binlog-not-flushed", "--ignore", "torn-pages"];
    let usual = [&doctor[..], &flushed].concat();
    let done = lab.run(&usual);
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(done.out.contains("\nwarning  no-delete  "), "{done:?}");
    let strict = [&usual[..], &["--strict"]].concat();
    assert_eq!(lab.run(&strict).code(), 1);
    let done = lab.run([&strict[..], &["--ignore", "no-delete"]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
}

#[tokio::test]
async fn the_user_that_the_security_page_recommends_is_green() {
    is_green_for_the_least_rights(testkit::Lab::postgres_least().await);
    is_green_for_the_least_rights(testkit::Lab::mariadb_least().await);
    is_green_for_the_least_rights(testkit::Lab::mysql_least().await);
}

/// The servers and all others on this machine go by the true time.
#[test]
fn a_machine_whose_clock_is_off_is_told_so() {
    let lab = Lab::new();
    let faketime = require("faketime", "faketime", find_binary("faketime", &[]));
    let (Some(faketime), Some(server)) = (faketime, Postgres::shared()) else {
        return;
    };
    let url = server.fresh_database();
    lab.run(["init", "--url", &url]);
    let mut command = lab.command(faketime);
    command.args([
        "-f",
        "+310s",
        crate::support::DBLOCK,
        "doctor",
        "--url",
        &url,
    ]);
    command.args(["--ignore", "not-flushed"]);
    let done = lab.start(&mut command).end();
    assert_eq!(done.code(), 0, "a warning: {done:?}");
    let said = "clock-off    the database's clock is 5m ";
    assert!(
        done.out.contains(said) && done.out.contains(" behind this machine's"),
        "{done:?}"
    );
}

#[test]
fn the_help_says_what_the_exit_codes_mean() {
    let lab = Lab::new();
    let help = lab.run(["doctor", "--help"]).out;
    for word in [
        "--json",
        "unseen",
        "Exit codes:\n  0   no error was found; with --strict, no warning either\n  1   an error was found",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(lab.run(["--help"]).out.contains("doctor"));
}
