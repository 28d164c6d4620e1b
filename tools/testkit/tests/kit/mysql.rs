//! The servers of MySQL and MariaDB do what the tests that stand on them assume.

use std::time::Duration;

use testkit::mysql::{Flavor, Options};
use testkit::{MariaDb, MySql, MySqlServer, time};

/// Long enough for anything a living server does, on a machine that is busy.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Long enough to be sure that no answer comes.
const A_WHILE: Duration = Duration::from_millis(500);

fn login(server: &MySqlServer, over: &[String], password: &str) -> (bool, String) {
    let url = server.fresh_database();
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
    let message = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&message).trim().to_owned(),
    )
}

fn the_locker_needs_its_password(server: &MySqlServer) {
    let port = server.port();
    let tcp = [
        "--protocol=tcp".into(),
        "--host=127.0.0.1".into(),
        format!("--port={port}"),
    ];
    let socket = [format!("--socket={}", server.socket().display())];
    let right = testkit::sql::LOCKER_PASSWORD;

    // MySQL's own client would ask it for a key first; MariaDB's does not over a line without TLS.
    if server.flavor() == Flavor::MariaDb {
        assert_eq!(
            login(server, &tcp, right),
            (true, "locker@127.0.0.1".into())
        );
    }
    assert_eq!(
        login(server, &socket, right),
        (true, "locker@localhost".into())
    );
    let (ok, message) = login(server, &socket, "wrong");
    assert!(!ok && message.contains("Access denied"), "{message}");
    assert_eq!(
        server.locker_url("t_1"),
        format!("mysql://locker:p%40ss%3Aw%2Frd%3F%23%25%20%26%3D%27%C3%A9@127.0.0.1:{port}/t_1")
    );
}

fn rows_are_lines_and_columns_are_apart_by_tabs(server: &MySqlServer) {
    let url = server.fresh_database();
    let sql =
        "CREATE TABLE t(a int, b text); INSERT INTO t VALUES (1, 'é'), (2, NULL); SELECT * FROM t";
    assert_eq!(server.query(&url, sql), Ok("1\té\n2\tNULL".into()));
}

fn an_error_is_an_error_and_the_session_goes_on(server: &MySqlServer) {
    let mut session = server.sql_session(&server.fresh_database());
    let error = session
        .run("SELECT * FROM nothing_there")
        .expect_err("there is no such table");
    assert!(error.to_string().contains("1146"), "{error}");
    assert_eq!(
        session.run("SELECT 1; SELECT 2"),
        Ok(vec!["1".into(), "2".into()])
    );
}

fn a_session_locks_a_row_until_it_commits(server: &MySqlServer) {
    let url = server.fresh_database();
    server
        .query(&url, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)")
        .expect("it is empty");

    let mut holder = server.sql_session(&url);
    holder
        .run("BEGIN")
        .expect("a new session is in no transaction");
    assert_eq!(
        holder.run("SELECT a FROM t FOR UPDATE"),
        Ok(vec!["1".into()])
    );

    let mut waiter = server.sql_session(&url);
    waiter.send("UPDATE t SET a = 2; SELECT a FROM t");
    assert_eq!(waiter.answer(A_WHILE), None);
    holder.run("COMMIT").expect("nothing is wrong with it");
    assert_eq!(waiter.answer(TIMEOUT), Some(Ok(vec!["2".into()])));
}

fn a_stopped_server_keeps_its_data_and_port(options: Options) {
    let Some(mut server) = options.time_zone("+05:45").start() else {
        return;
    };
    let url = server.fresh_database();
    let keep = |server: &MySqlServer| server.query(&url, "SELECT count(*) FROM t");
    server
        .query(&url, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)")
        .expect("it is empty");
    assert_eq!(
        server.query(&url, "SELECT @@time_zone"),
        Ok("+05:45".into())
    );

    server.stop();
    assert!(keep(&server).is_err(), "a stopped server answers");
    server.restart();
    assert_eq!(keep(&server), Ok("1".into()));

    let mut session = server.sql_session(&url);
    session.run("SELECT 1").expect("the server runs");
    server.kill();
    assert!(session.run("SELECT 1").is_err(), "a killed server answers");
    server.restart();
    assert_eq!(keep(&server), Ok("1".into()));
}

fn a_frozen_server_answers_when_it_is_thawed(options: Options) {
    let Some(mut server) = options.start() else {
        return;
    };
    let mut session = server.sql_session("mysql");
    session.run("SELECT 1").expect("the server runs");

    server.freeze();
    session.send("SELECT 2");
    assert_eq!(session.answer(A_WHILE), None);
    server.thaw();
    assert_eq!(session.answer(TIMEOUT), Some(Ok(vec!["2".into()])));

    server.freeze();
    let start = time::now();
    drop(server);
    assert!(start.elapsed() < TIMEOUT);
}

#[test]
fn each_server_has_a_uuid_of_its_own() {
    let (Some(one), Some(other)) = (MySql::start(), MySql::shared()) else {
        return;
    };
    let uuid = |server: &MySqlServer| server.query("mysql", "SELECT @@server_uuid");
    assert_ne!(uuid(&one), uuid(other));
}

macro_rules! on {
    ($module:ident, $kind:ident, shared: $($shared:ident),*; own: $($own:ident),*) => {
        mod $module {
            use super::$kind;
            $(
                #[test]
                fn $shared() {
                    if let Some(server) = $kind::shared() {
                        super::$shared(server);
                    }
                }
            )*
            $(
                #[test]
                fn $own() {
                    super::$own($kind::options());
                }
            )*
        }
    };
    ($($module:ident: $kind:ident),*) => { $(
        on!($module, $kind,
            shared:
            the_locker_needs_its_password,
            rows_are_lines_and_columns_are_apart_by_tabs,
            an_error_is_an_error_and_the_session_goes_on,
            a_session_locks_a_row_until_it_commits;
            own:
            a_stopped_server_keeps_its_data_and_port,
            a_frozen_server_answers_when_it_is_thawed
        );
    )* };
}
on!(mariadb: MariaDb, mysql: MySql);
