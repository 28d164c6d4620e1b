//! The MariaDB servers do what the tests that stand on them assume.

use std::time::Duration;

use testkit::{MariaDb, time};

/// Long enough for anything a living server does, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// Long enough to believe that nobody answers.
const A_WHILE: Duration = Duration::from_millis(500);

fn login(mariadb: &MariaDb, over: &[String], password: &str) -> (bool, String) {
    let url = mariadb.fresh_database();
    let name = url.rsplit_once('/').expect("the URL has a path").1;
    let output = std::process::Command::new("mariadb")
        .args([
            "--no-defaults",
            "-ulocker",
            "-BNe",
            "CREATE TABLE t(a int); SELECT CURRENT_USER()",
        ])
        .args(over)
        .arg(format!("--password={password}"))
        .arg(name)
        .output()
        .expect("the client is there");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).trim().to_owned(),
    )
}

#[test]
fn the_locker_comes_in_by_password_only() {
    let Some(mariadb) = MariaDb::shared() else {
        return;
    };
    let port = mariadb.port();
    let tcp = [
        "--protocol=tcp".into(),
        "--host=127.0.0.1".into(),
        format!("--port={port}"),
    ];
    let socket = [format!("--socket={}", mariadb.socket().display())];
    let right = testkit::sql::LOCKER_PASSWORD;

    assert_eq!(
        login(mariadb, &tcp, right),
        (true, "locker@127.0.0.1".into())
    );
    assert_eq!(
        login(mariadb, &socket, right),
        (true, "locker@localhost".into())
    );
    let (ok, said) = login(mariadb, &tcp, "wrong");
    assert!(!ok && said.contains("Access denied"), "{said}");
    assert_eq!(
        mariadb.locker_url("t_1"),
        format!("mysql://locker:p%40ss%3Aw%2Frd%3F%23%25%20%26%3D%27%C3%A9@127.0.0.1:{port}/t_1")
    );
}

#[test]
fn rows_are_lines_and_columns_are_apart_by_tabs() {
    let Some(mariadb) = MariaDb::shared() else {
        return;
    };
    let url = mariadb.fresh_database();
    let sql =
        "CREATE TABLE t(a int, b text); INSERT INTO t VALUES (1, 'é'), (2, NULL); SELECT * FROM t";
    assert_eq!(mariadb.query(&url, sql), Ok("1\té\n2\tNULL".into()));
}

#[test]
fn an_error_is_an_error_and_the_session_goes_on() {
    let Some(mariadb) = MariaDb::shared() else {
        return;
    };
    let mut stranger = mariadb.stranger(&mariadb.fresh_database());
    let error = stranger
        .run("SELECT * FROM nothing_there")
        .expect_err("there is no such table");
    assert!(error.to_string().contains("1146"), "{error}");
    assert_eq!(
        stranger.run("SELECT 1; SELECT 2"),
        Ok(vec!["1".into(), "2".into()])
    );
}

#[test]
fn a_stranger_holds_a_row_until_it_commits() {
    let Some(mariadb) = MariaDb::shared() else {
        return;
    };
    let url = mariadb.fresh_database();
    mariadb
        .query(&url, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)")
        .expect("it is empty");

    let mut holder = mariadb.stranger(&url);
    holder
        .run("BEGIN")
        .expect("a new session is in no transaction");
    assert_eq!(
        holder.run("SELECT a FROM t FOR UPDATE"),
        Ok(vec!["1".into()])
    );

    let mut waiter = mariadb.stranger(&url);
    waiter.send("UPDATE t SET a = 2; SELECT a FROM t");
    assert_eq!(waiter.answer(A_WHILE), None);
    holder.run("COMMIT").expect("nothing is wrong with it");
    assert_eq!(waiter.answer(SOON), Some(Ok(vec!["2".into()])));
}

#[test]
fn a_stopped_server_keeps_its_data_and_port() {
    let Some(mut mariadb) = MariaDb::options().time_zone("+05:45").start() else {
        return;
    };
    let url = mariadb.fresh_database();
    let keep = |mariadb: &MariaDb| mariadb.query(&url, "SELECT count(*) FROM t");
    mariadb
        .query(&url, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)")
        .expect("it is empty");
    assert_eq!(
        mariadb.query(&url, "SELECT @@time_zone"),
        Ok("+05:45".into())
    );

    mariadb.stop();
    assert!(keep(&mariadb).is_err(), "a stopped server answers");
    mariadb.restart();
    assert_eq!(keep(&mariadb), Ok("1".into()));

    let mut session = mariadb.stranger(&url);
    session.run("SELECT 1").expect("the server runs");
    mariadb.kill();
    assert!(session.run("SELECT 1").is_err(), "a killed server answers");
    mariadb.restart();
    assert_eq!(keep(&mariadb), Ok("1".into()));
}

#[test]
fn a_frozen_server_answers_when_it_is_thawed() {
    let Some(mut mariadb) = MariaDb::start() else {
        return;
    };
    let mut session = mariadb.stranger("mysql");
    session.run("SELECT 1").expect("the server runs");

    mariadb.freeze();
    session.send("SELECT 2");
    assert_eq!(session.answer(A_WHILE), None);
    mariadb.thaw();
    assert_eq!(session.answer(SOON), Some(Ok(vec!["2".into()])));

    mariadb.freeze();
    let start = time::now();
    drop(mariadb);
    assert!(start.elapsed() < SOON);
}
