//! What only MySQL and MariaDB have.

use testkit::mysql::{Flavor, Options};

use super::*;

#[tokio::test]
async fn a_well_configured_mariadb_has_no_findings() {
    assert_no_findings(MariaDb::options(), "MariaDB 1").await;
}

#[tokio::test]
async fn a_well_configured_mysql_has_no_findings() {
    assert_no_findings(MySql::options(), "MySQL 9").await;
}

async fn assert_no_findings(options: Options, version: &str) {
    let Some(server) = options.fsync(true).start() else {
        return;
    };
    let url = server.fresh_database();
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    for url in [&server.locker_url(&url), &url] {
        let report = examine(url).await;
        assert!(report.findings.is_empty(), "{report:#?}");
        assert!(
            check(&report, "server").message.starts_with(version),
            "{report:#?}"
        );
        let areas: Vec<_> = report.checks.iter().map(|check| check.area).collect();
        let all = [
            "server",
            "clock",
            "rights",
            "table",
            "locks",
            "rights",
            "table",
            "permits",
            "durability",
            "replicas",
            "timeouts",
        ];
        assert_eq!(areas, all);
    }
}

#[tokio::test]
async fn harmful_settings_of_mariadb_are_found() {
    let binlog = find_binary("mariadb-binlog", &[]);
    let binlog = require("mariadb", "mariadb-binlog", binlog);
    let longest = ["max-statement-time=2", "max_statement_time is 2s"];
    harmful_settings(MariaDb::options(), binlog, longest).await;
}

#[tokio::test]
async fn harmful_settings_of_mysql_are_found() {
    let binlog = Flavor::MySql.program();
    let binlog = binlog.map(|program| program.with_file_name("mysqlbinlog"));
    let longest = ["max-execution-time=2000", "max_execution_time is 2s"];
    let options = MySql::options().set("sync-binlog=0");
    harmful_settings(options, binlog, longest).await;
}

async fn harmful_settings(
    options: Options,
    binlog: Option<PathBuf>,
    [longest, found_longest]: [&str; 2],
) {
    let server = options
        .set("log-bin=binlog")
        .set("server-id=1")
        .set("binlog-format=STATEMENT")
        .set("skip-innodb-doublewrite")
        .set("wait-timeout=20")
        .set(longest)
        .set("init-connect=SET timestamp = UNIX_TIMESTAMP() - 300")
        .start();
    let (Some(binlog), Some(server)) = (binlog, server) else {
        return;
    };
    let url = server.fresh_database();
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    let report = examine(&url).await;
    for (id, message) in [
        ("not-flushed", "innodb_flush_log_at_trx_commit is 2"),
        ("binlog-not-flushed", "sync_binlog is 0"),
        ("binlog-statement", "binlog_format is STATEMENT"),
        ("torn-pages", "innodb_doublewrite is OFF"),
        ("idle-timeout", "wait_timeout is 20s"),
        ("statement-timeout", found_longest),
    ] {
        assert!(the(&report, id).message.contains(message), "{report:#?}");
    }
    assert_eq!(report.findings.len(), 6, "{report:#?}");
    assert!(report.checks.iter().all(|check| check.seen), "{report:#?}");
    assert_eq!(check(&report, "replicas").message, "0 are connected");

    // Not for root, for which the server reports the time.
    let report = examine(&server.locker_url(&url)).await;
    assert!(
        the(&report, "clock-not-steady")
            .message
            .contains("stood still"),
        "{report:#?}"
    );
    assert!(!check(&report, "replicas").seen, "{report:#?}");

    let folder = tempfile::tempdir().unwrap();
    // What it does is what a replica does.
    let _replica = ChildProcess::spawn_command(
        Command::new(binlog)
            .args([
                "--no-defaults",
                "--read-from-remote-server",
                "--raw",
                "--stop-never",
            ])
            .args(["--user=root", "--socket"])
            .arg(server.socket())
            .arg(format!("--result-file={}/", folder.path().display()))
            .arg("binlog.000001"),
    );
    let readers = "SELECT COUNT(*) FROM information_schema.processlist \
                   WHERE command LIKE 'Binlog Dump%'";
    assert!(time::wait_until(TIMEOUT, || server
        .query(&url, readers)
        .unwrap()
        == "1"));
    let message = examine(&url).await;
    assert!(
        the(&message, "standby-async")
            .message
            .contains("replicas (1)"),
        "{message:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_found() {
    let servers = [MariaDb::shared(), MySql::shared()];
    for server in servers.into_iter().flatten() {
        missing_privileges(server).await;
    }
}

async fn missing_privileges(server: &MySqlServer) {
    let url = server.fresh_database();
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    let mut root = server.sql_session(&url);
    let run = |root: &mut SqlSession, sql: &str| drop(root.run(sql).expect("runs"));
    run(&mut root, "CREATE USER poor@'127.0.0.1'");
    run(
        &mut root,
        "GRANT SELECT ON database_locks_lock TO poor@'127.0.0.1'",
    );
    let poor = url.replace("root@", "poor@");
    let report = examine(&poor).await;
    let all = ["rights-missing", "no-delete", "permits-rights"];
    assert_eq!(ids(&report), all, "{report:#?}");
    assert!(
        the(&report, "permits-rights")
            .message
            .contains("lacks SELECT, INSERT, UPDATE on database_locks_permit"),
        "{report:#?}"
    );
    run(
        &mut root,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON database_locks_permit TO poor@'127.0.0.1'",
    );
    assert!(
        the(&report, "rights-missing")
            .message
            .contains("lacks INSERT, UPDATE"),
        "{report:#?}"
    );
    run(
        &mut root,
        "GRANT INSERT, UPDATE ON database_locks_lock TO poor@'127.0.0.1'",
    );
    only(&examine(&poor).await, "no-delete", "lacks DELETE");
    run(
        &mut root,
        "REVOKE SELECT ON database_locks_lock FROM poor@'127.0.0.1'",
    );
    let report = examine(&poor).await;
    assert!(
        the(&report, "rights-missing")
            .message
            .contains("lacks SELECT"),
        "{report:#?}"
    );
    run(&mut root, "DROP USER poor@'127.0.0.1'");
}

async fn an_altered_table_is_found(db: &TestDb) {
    let locks = db.locks().await;
    let alter = |what: &str| db.sql(&format!("ALTER TABLE database_locks_lock {what}"));
    let (another, narrower) = match db.engine {
        // Its keys have 1000 bytes there.
        "mysql" => ("MyISAM", ", MODIFY name varchar(240) NOT NULL"),
        _ => ("Aria", ""),
    };
    alter(&format!("ENGINE = {another}{narrower}"));
    let report = locks.doctor().await.unwrap();
    let found = the(&report, "not-innodb");
    assert!(
        found.message.contains(&format!("is {another}")),
        "{report:#?}"
    );
    if narrower.is_empty() {
        assert_eq!(ids(&report), ["not-innodb"], "{report:#?}");
    }
    alter("ENGINE = InnoDB");
    alter("MODIFY name varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL");
    only(
        &locks.doctor().await.unwrap(),
        "name-collation",
        "is utf8mb4_general_ci",
    );
    locks.migrate().await.unwrap();
    alter("MODIFY expires_at datetime NULL");
    only(
        &locks.doctor().await.unwrap(),
        "column-type",
        "is datetime, must be datetime(6)",
    );
}

db_tests!(mariadb: an_altered_table_is_found);
db_tests!(mysql: an_altered_table_is_found);
