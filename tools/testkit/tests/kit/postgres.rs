//! The PostgreSQL servers do what the tests that stand on them assume.

use std::time::Duration;

use testkit::{Postgres, Proxy, SqlError, time};

/// Long enough for anything a living server does, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Long enough to be sure that no answer comes.
const A_WHILE: Duration = Duration::from_millis(500);

fn psql(postgres: &Postgres, url: &str) -> (bool, String) {
    let output = std::process::Command::new(postgres.bin().join("psql"))
        .args([
            "-XAtc",
            "SELECT current_user || '@' || current_database()",
            url,
        ])
        .env("PGCONNECT_TIMEOUT", "10")
        .output()
        .expect("psql is beside the server");
    let message = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&message).trim().to_owned(),
    )
}

#[test]
fn every_url_leads_to_its_database() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let url = postgres.fresh_database();
    let name = url.rsplit_once('/').expect("the URL has a path").1;

    assert_eq!(psql(postgres, &url), (true, format!("postgres@{name}")));
    assert_eq!(
        psql(postgres, &postgres.socket_url(&url)),
        (true, format!("postgres@{name}"))
    );
    assert_eq!(
        psql(postgres, &postgres.locker_url(&url)),
        (true, format!("locker@{name}"))
    );
    let (ok, message) = psql(postgres, &postgres.locker_url_with(&url, "wrong"));
    assert!(
        !ok && message.contains("password authentication failed"),
        "{message}"
    );
}

#[test]
fn the_locker_may_create_tables_in_a_fresh_database() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let url = postgres.fresh_database();
    let sql = "SET ROLE locker; CREATE TABLE t(a int, b text);
        INSERT INTO t VALUES (1, 'x'), (2, NULL); SELECT * FROM t";
    assert_eq!(postgres.query(&url, sql), Ok("1\tx\n2\t".into()));
}

#[test]
fn an_error_is_an_error_and_the_session_goes_on() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let mut session = postgres.sql_session(&postgres.fresh_database());
    let error = session
        .run("SELECT * FROM nothing_there")
        .expect_err("there is no such table");
    assert!(error.to_string().contains("nothing_there"), "{error}");
    assert_eq!(
        session.run("SELECT 1; SELECT 2"),
        Ok(vec!["1".into(), "2".into()])
    );
}

#[test]
fn a_session_locks_a_row_until_it_commits() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let url = postgres.fresh_database();
    postgres
        .query(&url, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)")
        .expect("it is empty");

    let mut holder = postgres.sql_session(&url);
    holder
        .run("BEGIN")
        .expect("a new session is in no transaction");
    assert_eq!(
        holder.run("SELECT a FROM t FOR UPDATE"),
        Ok(vec!["1".into()])
    );

    let mut waiter = postgres.sql_session(&url);
    waiter.send("UPDATE t SET a = 2 RETURNING a");
    assert_eq!(waiter.answer(A_WHILE), None);
    holder.run("COMMIT").expect("nothing is wrong with it");
    assert_eq!(waiter.answer(TIMEOUT), Some(Ok(vec!["2".into()])));
}

#[test]
fn a_closed_session_rolls_back() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let url = postgres.fresh_database();
    postgres
        .query(&url, "CREATE TABLE t(a int primary key)")
        .expect("it is empty");
    let mut session = postgres.sql_session(&url);
    session
        .run("BEGIN")
        .expect("a new session is in no transaction");
    session
        .run("INSERT INTO t VALUES (1)")
        .expect("the table is empty");
    drop(session);

    // Waits for the other insert to be decided.
    postgres
        .query(&url, "INSERT INTO t VALUES (1)")
        .expect("the other insert was rolled back");
}

#[test]
fn a_stopped_server_keeps_its_data_and_port() {
    let Some(mut postgres) = Postgres::options().time_zone("Asia/Kathmandu").start() else {
        return;
    };
    let url = postgres.fresh_database();
    let keep = |postgres: &Postgres| postgres.query(&url, "SELECT count(*) FROM t");
    postgres
        .query(&url, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)")
        .expect("it is empty");
    assert_eq!(
        postgres.query(&url, "SHOW timezone"),
        Ok("Asia/Kathmandu".into())
    );

    postgres.stop();
    assert!(keep(&postgres).is_err(), "a stopped server answers");
    postgres.restart();
    assert!(psql(&postgres, &url).0);
    assert_eq!(keep(&postgres), Ok("1".into()));

    let mut session = postgres.sql_session(&url);
    session.run("SELECT 1").expect("the server runs");
    postgres.kill();
    assert!(session.run("SELECT 1").is_err(), "a killed server answers");
    postgres.restart();
    assert_eq!(keep(&postgres), Ok("1".into()));
}

#[test]
fn a_frozen_server_answers_when_it_is_thawed() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let mut session = postgres.sql_session("postgres");
    session.run("SELECT 1").expect("the server runs");

    postgres.freeze();
    session.send("SELECT 2");
    assert_eq!(session.answer(A_WHILE), None);
    let mut late = postgres.sql_session("postgres");
    late.send("SELECT 3");
    assert_eq!(late.answer(A_WHILE), None);

    postgres.thaw();
    assert_eq!(session.answer(TIMEOUT), Some(Ok(vec!["2".into()])));
    assert_eq!(late.answer(TIMEOUT), Some(Ok(vec!["3".into()])));
}

#[test]
fn a_frozen_server_can_be_dropped() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let (pid, dir) = (
        postgres.server().pid().expect("it runs"),
        postgres.socket_dir().to_owned(),
    );
    postgres.freeze();
    let start = time::now();
    drop(postgres);
    assert!(start.elapsed() < TIMEOUT);
    assert!(!dir.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let start = || Postgres::options().set("no_such_setting=1").start();
    match std::panic::catch_unwind(start) {
        Ok(None) => {}
        Ok(Some(_)) => panic!("it starts with a setting that does not exist"),
        Err(why) => {
            let why = why
                .downcast_ref::<String>()
                .expect("a panic with a formatted message");
            assert!(why.contains("no_such_setting"), "{why}");
        }
    }
}

#[test]
fn a_statement_whose_reply_is_lost_was_executed() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let url = postgres.fresh_database();
    postgres
        .query(&url, "CREATE TABLE t(a int)")
        .expect("it is empty");
    let proxy = Proxy::to_url(&url);
    let insert = |value: &str| {
        let output = std::process::Command::new(postgres.bin().join("psql"))
            .args([
                "-XAtc",
                &format!("INSERT INTO t VALUES ({value})"),
                &proxy.url(&url),
            ])
            .output()
            .expect("psql is beside the server");
        output.status.success()
    };
    let rows = || {
        postgres
            .query(&url, "SELECT a FROM t ORDER BY a")
            .expect("the server runs")
    };

    proxy.lose_next_reply("VALUES (1)");
    assert!(!insert("1"));
    assert_eq!((proxy.faults_hit(), rows().as_str()), (1, "1"));

    proxy.lose_next_request("VALUES (2)");
    assert!(!insert("2"));
    assert_eq!((proxy.faults_hit(), rows().as_str()), (2, "1"));

    assert!(insert("3"));
    assert_eq!(rows(), "1\n3");
}

#[test]
#[ignore = "make prove"]
fn version_12_is_version_12() {
    let Some(postgres) = Postgres::shared_12() else {
        return;
    };
    let version = postgres.query("postgres", "SHOW server_version").unwrap();
    assert!(version.starts_with("12"), "{version}");
}

#[test]
fn version_18_is_version_18() {
    let Some(postgres) = Postgres::start_version(18) else {
        return;
    };
    let version = postgres
        .query("postgres", "SHOW server_version")
        .expect("it runs");
    assert!(version.starts_with("18"), "{version}");
    let shared = Postgres::shared_18().expect("it is there");
    let ran: Result<String, SqlError> = shared.query(&shared.fresh_database(), "SELECT 1");
    assert_eq!(ran, Ok("1".into()));
}
