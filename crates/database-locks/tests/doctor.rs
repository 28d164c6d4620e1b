//! Everything that can be found is found where it is, with what to do, and not where it is not.

use std::process::Command;
use std::time::Duration;

use database_locks::Locks;
use database_locks::doctor::{Check, Finding, KINDS, Report, Severity};
use testkit::server::{find_binary, require};
use testkit::{Killable, Lab, MariaDb, Postgres, Proxy, Stranger, lab_tests, time};

const SOON: Duration = Duration::from_secs(30);

/// The servers of the labs do not wait for their disks, to be quick.
const OF_THE_LAB: &str = "not-flushed";

async fn examine(url: &str) -> Report {
    let locks = Locks::connect(url).await.expect("connects");
    locks.doctor().await.expect("looks")
}

fn ids(report: &Report) -> Vec<&'static str> {
    report
        .findings
        .iter()
        .map(|found| found.id)
        .filter(|id| *id != OF_THE_LAB)
        .collect()
}

#[track_caller]
fn the<'a>(report: &'a Report, id: &str) -> &'a Finding {
    let found = report.findings.iter().find(|found| found.id == id);
    found.unwrap_or_else(|| panic!("no {id}: {report:#?}"))
}

#[track_caller]
fn check<'a>(report: &'a Report, area: &str) -> &'a Check {
    let found = report.checks.iter().find(|check| check.area == area);
    found.unwrap_or_else(|| panic!("no {area}: {report:#?}"))
}

/// Exactly this is found, and it says this.
#[track_caller]
fn only(report: &Report, id: &str, said: &str) {
    assert_eq!(ids(report), [id], "{report:#?}");
    assert!(the(report, id).said.contains(said), "{report:#?}");
}

fn ours(lab: &Lab) -> bool {
    lab.engine == "mariadb"
}

#[test]
fn each_finding_has_a_test_that_makes_it_appear() {
    let tests = concat!(
        include_str!("doctor.rs"),
        include_str!("../src/store/sqlite/doctor.rs")
    );
    for kind in KINDS {
        assert!(tests.contains(&format!("\"{}\"", kind.id)), "{}", kind.id);
    }
}

async fn a_new_table_has_nothing_wrong_with_it(lab: &Lab) {
    let locks = lab.locks().await;
    let _held = locks.lock("job").acquire().await.expect("acquires");
    let report = locks.doctor().await.expect("looks");
    assert!(ids(&report).is_empty(), "{report:#?}");
    assert!(report.checks.iter().all(|check| check.seen), "{report:#?}");
    assert_eq!(
        check(&report, "locks").said,
        "1 in the table, 1 of them held"
    );
}

async fn what_is_wrong_is_told_with_what_to_do(lab: &Lab) {
    let locks = Locks::connect(&lab.url).await.expect("connects");
    lab.sql("DROP TABLE IF EXISTS database_locks_lock");
    let report = locks.doctor().await.expect("looks");
    only(
        &report,
        "table-missing",
        "there is no table database_locks_lock: no lock can be taken",
    );
    let found = the(&report, "table-missing");
    assert_eq!((found.area, found.severity), ("table", Severity::Problem));
    assert!(found.remedy.contains("`dblock init`"), "{report:#?}");
    locks.migrate().await.expect("makes it");
    assert!(ids(&locks.doctor().await.expect("looks")).is_empty());
}

async fn a_table_of_0_5_lacks_columns(lab: &Lab) {
    let locks = Locks::connect(&lab.url).await.expect("connects");
    lab.sql("DROP TABLE IF EXISTS database_locks_lock");
    lab.sql(match lab.engine {
        "sqlite" => {
            "CREATE TABLE database_locks_lock (id integer NOT NULL PRIMARY KEY AUTOINCREMENT, name \
             varchar(255) NOT NULL UNIQUE, locked_by text NULL, expires_at datetime NULL)"
        }
        "mariadb" => {
            "CREATE TABLE database_locks_lock (id integer AUTO_INCREMENT NOT NULL PRIMARY KEY, name \
             varchar(255) NOT NULL UNIQUE, locked_by longtext NULL, expires_at datetime(6) NULL)"
        }
        _ => {
            "CREATE TABLE database_locks_lock (id serial PRIMARY KEY, name varchar(255) NOT NULL \
             UNIQUE, locked_by text, expires_at timestamptz)"
        }
    });
    let report = locks.doctor().await.expect("looks");
    let said = &the(&report, "columns-missing").said;
    assert!(
        said.contains("lacks token, grant_id, granted_until"),
        "{report:#?}"
    );
    if ours(lab) {
        assert!(
            the(&report, "name-collation")
                .said
                .contains("utf8mb4_nopad_bin")
        );
        assert!(the(&report, "column-type").said.contains("must be"));
    }
    if lab.engine == "sqlite" {
        return;
    }
    locks.migrate().await.expect("adds them");
    let report = locks.doctor().await.expect("looks");
    assert!(ids(&report).is_empty(), "{report:#?}");
}

async fn columns_that_nobody_fills_are_found(lab: &Lab) {
    let locks = lab.locks().await;
    // SQLite adds none without a default.
    if lab.engine == "sqlite" {
        lab.sql("DROP TABLE database_locks_lock");
        let schema = include_str!("../schema/sqlite.sql").replace("{table}", "database_locks_lock");
        lab.sql(&schema.replace(
            "metadata      text         NULL",
            "metadata text, owner int NOT NULL",
        ));
    } else {
        lab.sql("ALTER TABLE database_locks_lock ADD COLUMN owner integer NOT NULL");
    }
    only(
        &locks.doctor().await.expect("looks"),
        "column-unfilled",
        "the column owner",
    );
}

async fn indexes_are_counted(lab: &Lab) {
    let locks = lab.locks().await;
    lab.sql("CREATE INDEX locks_expiry ON database_locks_lock (expires_at)");
    only(
        &locks.doctor().await.expect("looks"),
        "index-on-changing",
        "an index locks_expiry on expires_at",
    );
    lab.sql(match lab.engine {
        "mariadb" => "DROP INDEX locks_expiry ON database_locks_lock",
        _ => "DROP INDEX locks_expiry",
    });
    lab.sql(match lab.engine {
        "postgres" => "CREATE INDEX locks_like ON database_locks_lock (name varchar_pattern_ops)",
        _ => "CREATE INDEX locks_like ON database_locks_lock (name)",
    });
    only(
        &locks.doctor().await.expect("looks"),
        "index-unused",
        "an index locks_like",
    );
}

async fn names_that_nothing_keeps_apart_are_found(lab: &Lab) {
    let locks = lab.locks().await;
    match lab.engine {
        "mariadb" => {
            lab.sql("ALTER TABLE database_locks_lock RENAME INDEX name TO other");
            let report = locks.doctor().await.expect("looks");
            only(
                &report,
                "index-renamed",
                "the unique index on name is called other",
            );
            // One that is cut off is none.
            lab.sql("ALTER TABLE database_locks_lock DROP INDEX other, ADD UNIQUE name (name(20))");
        }
        "sqlite" => {
            let schema = include_str!("../schema/sqlite.sql");
            let schema = schema.replace("{table}", "database_locks_lock");
            lab.sql("DROP TABLE database_locks_lock");
            lab.sql(&schema.replace("NOT NULL UNIQUE", "NOT NULL COLLATE NOCASE UNIQUE"));
            let report = locks.doctor().await.expect("looks");
            only(
                &report,
                "name-collation",
                "the collation of the column name is NOCASE",
            );
            lab.sql("DROP TABLE database_locks_lock");
            lab.sql(&schema.replace("NOT NULL UNIQUE", "NOT NULL"));
        }
        _ => {
            lab.sql(
                "ALTER TABLE database_locks_lock DROP CONSTRAINT database_locks_lock_name_key; \
                 CREATE UNIQUE INDEX ON database_locks_lock (name) WHERE token > 0",
            );
        }
    }
    let report = locks.doctor().await.expect("looks");
    let said = &the(&report, "name-not-unique").said;
    assert!(
        said.contains("no unique index keeps the names"),
        "{report:#?}"
    );
}

async fn locks_that_are_left_behind_are_counted(lab: &Lab) {
    let locks = lab.locks().await;
    let (hour_ago, in_an_hour, days_ago) = match lab.engine {
        "sqlite" => (
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 hour')",
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 hour')",
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-2 days')",
        ),
        "mariadb" => (
            "UTC_TIMESTAMP(6) - INTERVAL 1 HOUR",
            "UTC_TIMESTAMP(6) + INTERVAL 1 HOUR",
            "UTC_TIMESTAMP(6) - INTERVAL 2 DAY",
        ),
        _ => (
            "now() - interval '1 hour'",
            "now() + interval '1 hour'",
            "now() - interval '2 days'",
        ),
    };
    let end = match lab.engine {
        "postgres" => "'9999-12-31 00:00:00+00'",
        _ => "'9999-12-31 00:00:00.000000'",
    };
    for (name, expires, granted, acquired) in [
        ("crashed", hour_ago, hour_ago, days_ago),
        ("endless", end, end, days_ago),
        ("fresh endless", end, end, hour_ago),
        ("held", in_an_hour, in_an_hour, hour_ago),
        ("of 0.5", in_an_hour, "NULL", "NULL"),
    ] {
        lab.sql(&format!(
            "INSERT INTO database_locks_lock (name, token, expires_at, granted_until, acquired_at) \
             VALUES ('{name}', 7, {expires}, {granted}, {acquired})"
        ));
    }
    let report = locks.doctor().await.expect("looks");
    assert_eq!(
        ids(&report),
        ["leases-expired", "held-without-end", "old-writers"],
        "{report:#?}"
    );
    for (id, said) in [
        ("leases-expired", "1 lock (such as `crashed`)"),
        ("held-without-end", "1 lock (such as `endless`)"),
        ("old-writers", "1 lock (such as `of 0.5`)"),
    ] {
        assert!(the(&report, id).said.contains(said), "{report:#?}");
    }
    assert_eq!(
        check(&report, "locks").said,
        "5 in the table, 4 of them held"
    );
}

async fn many_rows_are_too_many(lab: &Lab) {
    let locks = lab.locks().await;
    lab.sql(match lab.engine {
        "sqlite" => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100001) \
             INSERT INTO database_locks_lock (name) SELECT 'n' || i FROM n"
        }
        "mariadb" => "INSERT INTO database_locks_lock (name) SELECT CONCAT('n', seq) FROM seq_1_to_100001",
        _ => "INSERT INTO database_locks_lock (name) SELECT 'n' || i FROM generate_series(1, 100001) i",
    });
    let report = locks.doctor().await.expect("looks");
    only(&report, "many-rows", "has 100001 rows");
    assert!(the(&report, "many-rows").remedy.contains("dblock prune"));
}

lab_tests!(memory: a_new_table_has_nothing_wrong_with_it);
lab_tests!(sqlite:
    a_new_table_has_nothing_wrong_with_it, what_is_wrong_is_told_with_what_to_do,
    a_table_of_0_5_lacks_columns, columns_that_nobody_fills_are_found, indexes_are_counted,
    names_that_nothing_keeps_apart_are_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many);
lab_tests!(postgres:
    a_new_table_has_nothing_wrong_with_it, what_is_wrong_is_told_with_what_to_do,
    a_table_of_0_5_lacks_columns, columns_that_nobody_fills_are_found, indexes_are_counted,
    names_that_nothing_keeps_apart_are_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many);
lab_tests!(postgres18: a_new_table_has_nothing_wrong_with_it, a_table_of_0_5_lacks_columns);
lab_tests!(mariadb:
    a_new_table_has_nothing_wrong_with_it, what_is_wrong_is_told_with_what_to_do,
    a_table_of_0_5_lacks_columns, columns_that_nobody_fills_are_found, indexes_are_counted,
    names_that_nothing_keeps_apart_are_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many);

mod sqlite_files {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_file_that_everybody_may_write_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("locks.sqlite3");
        let url = format!("sqlite://{}", file.display());
        let locks = Locks::connect(&url).await.unwrap();
        assert!(ids(&locks.doctor().await.unwrap()).is_empty());
        set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        only(
            &locks.doctor().await.unwrap(),
            "file-open",
            "locks.sqlite3 may be written",
        );
        set_permissions(&file, Permissions::from_mode(0o660)).unwrap();
        set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        only(&locks.doctor().await.unwrap(), "file-open", "the folder");
        // As that of /tmp.
        set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(ids(&locks.doctor().await.unwrap()).is_empty());
    }
}

mod on_postgres {
    use super::*;

    /// Set something for all who connect to this database from now on.
    fn set(lab: &Lab, setting: &str) {
        lab.sql(&format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {}', current_database()); END $$",
            setting.replace('\'', "''")
        ));
    }

    #[tokio::test]
    async fn a_server_that_is_set_up_well_has_nothing_wrong_with_it() {
        let Some(server) = Postgres::options().fsync(true).start() else {
            return;
        };
        let url = server.fresh_database();
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        let report = examine(&url).await;
        assert!(report.findings.is_empty(), "{report:#?}");
        let said = &check(&report, "server").said;
        assert!(
            said.starts_with("PostgreSQL 1") && said.contains("direct connection, no TLS"),
            "{said}"
        );
        let areas: Vec<_> = report.checks.iter().map(|check| check.area).collect();
        let all = [
            "server",
            "clock",
            "rights",
            "table",
            "durability",
            "replicas",
            "timeouts",
            "settings",
            "locks",
        ];
        assert_eq!(areas, all);
        let proxy = Proxy::to_url(&url);
        let report = examine(&proxy.url(&url)).await;
        assert!(report.findings.is_empty(), "{report:#?}");
        assert!(
            check(&report, "server").said.contains("through a pooler"),
            "{report:#?}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn settings_that_do_harm_are_found() {
        let Some(lab) = Lab::postgres() else { return };
        lab.locks().await;
        set(&lab, "synchronous_commit = off");
        only(
            &examine(&lab.url).await,
            "commits-async",
            "is off (as set by: database)",
        );
        set(&lab, "synchronous_commit = on");
        set(&lab, "idle_session_timeout = '20s'");
        only(
            &examine(&lab.url).await,
            "idle-timeout",
            "idle_session_timeout is 20s",
        );
        set(&lab, "idle_session_timeout = '60s'");
        set(&lab, "statement_timeout = '1s'");
        only(
            &examine(&lab.url).await,
            "statement-timeout",
            "statement_timeout is 1s",
        );
        set(&lab, "statement_timeout = 0");
        set(&lab, "default_transaction_isolation = serializable");
        only(&examine(&lab.url).await, "isolation", "serializable");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_that_is_not_right_is_found() {
        let Some(lab) = Lab::postgres() else { return };
        lab.locks().await;
        // In the place of the server's own.
        set(&lab, "search_path = fake, pg_catalog, public");
        lab.sql("CREATE SCHEMA fake; CREATE SEQUENCE fake.n");
        for (clock, id, said) in [
            (
                "now() + interval '310 seconds'",
                "clock-off",
                "the database's clock is 5m ",
            ),
            ("now() - interval '1 day'", "clock-off", "1d 0h behind"),
            (
                "now() - nextval('fake.n') * interval '10 s'",
                "clock-not-steady",
                "went back by",
            ),
            (
                "timestamptz '2020-01-01'",
                "clock-not-steady",
                "stood still",
            ),
        ] {
            lab.sql(&format!(
                "CREATE OR REPLACE FUNCTION fake.clock_timestamp() RETURNS timestamptz \
                 LANGUAGE sql AS $$ SELECT {clock} $$"
            ));
            only(&examine(&lab.url).await, id, said);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rights_that_are_missing_are_found() {
        let Some(server) = Postgres::shared() else {
            return;
        };
        let url = server.fresh_database();
        let run = |sql: &str| server.query(&url, sql).expect("runs");
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        let other = server.locker_url(&url);

        let report = examine(&other).await;
        assert_eq!(ids(&report), ["rights-missing", "no-delete"], "{report:#?}");
        let said = &the(&report, "rights-missing").said;
        assert!(
            said.contains("the role locker lacks SELECT, INSERT, UPDATE"),
            "{said}"
        );
        assert!(!check(&report, "locks").seen, "{report:#?}");

        run("GRANT SELECT, INSERT, UPDATE ON database_locks_lock TO locker");
        only(
            &examine(&other).await,
            "no-delete",
            "the role locker lacks DELETE",
        );
        run("GRANT DELETE ON database_locks_lock TO locker");
        assert!(ids(&examine(&other).await).is_empty());

        run("CREATE SCHEMA app; ALTER TABLE database_locks_lock SET SCHEMA app");
        only(
            &examine(&other).await,
            "table-missing",
            "one of that name in schema app",
        );
        let named = Locks::connect_to(&other, Some("app.database_locks_lock"))
            .await
            .unwrap();
        only(
            &named.doctor().await.unwrap(),
            "rights-missing",
            "permission denied for schema",
        );
    }

    /// As Django up to 4.0 makes it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_sequence_wants_a_right_of_its_own() {
        let Some(server) = Postgres::shared() else {
            return;
        };
        let url = server.fresh_database();
        let run = |sql: &str| server.query(&url, sql).expect("runs");
        run(
            "CREATE TABLE database_locks_lock (id serial PRIMARY KEY, name varchar(255) NOT NULL \
             UNIQUE, locked_by text, expires_at timestamptz)",
        );
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        run("GRANT ALL ON database_locks_lock TO locker");
        let report = examine(&server.locker_url(&url)).await;
        only(
            &report,
            "rights-missing",
            "USAGE on the sequence database_locks_lock_id_seq",
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_was_altered_is_found() {
        let Some(server) = Postgres::shared() else {
            return;
        };
        let url = server.fresh_database();
        let run = |sql: &str| server.query(&url, sql).expect("runs");
        let locks = Locks::connect(&url).await.unwrap();
        locks.migrate().await.unwrap();
        let alter = |what: &str| run(&format!("ALTER TABLE database_locks_lock {what}"));

        alter("SET UNLOGGED");
        only(
            &locks.doctor().await.unwrap(),
            "table-forgets",
            "is unlogged",
        );
        alter("SET LOGGED");
        alter("ALTER expires_at TYPE timestamp(0)");
        only(
            &locks.doctor().await.unwrap(),
            "column-type",
            "must be timestamp with time zone",
        );
        alter("ALTER expires_at TYPE timestamptz");
        alter("ALTER name TYPE varchar(100)");
        only(
            &locks.doctor().await.unwrap(),
            "column-type",
            "must be character varying(255)",
        );
        run(
            "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        );
        alter("ALTER name TYPE varchar(255) COLLATE blind");
        only(
            &locks.doctor().await.unwrap(),
            "name-collation",
            "nondeterministic",
        );
        alter("ALTER name TYPE varchar(255) COLLATE \"C\"");
        alter("SET (autovacuum_enabled = off)");
        only(
            &locks.doctor().await.unwrap(),
            "autovacuum-off",
            "nobody vacuums",
        );
        alter("RESET (autovacuum_enabled)");
        assert!(ids(&locks.doctor().await.unwrap()).is_empty());

        alter("ENABLE ROW LEVEL SECURITY");
        run("GRANT ALL ON database_locks_lock TO locker");
        let report = examine(&server.locker_url(&url)).await;
        only(&report, "row-security", "for the role locker");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dead_rows_that_are_kept_are_found() {
        let Some(lab) = Lab::postgres() else { return };
        let locks = lab.locks().await;
        lab.sql("ALTER TABLE database_locks_lock SET (autovacuum_enabled = off)");
        lab.sql("INSERT INTO database_locks_lock (name) SELECT i FROM generate_series(1, 600) i");
        // Nothing that died since is cleared away.
        let _old = lab.hold("SELECT txid_current()");
        for _ in 0..20 {
            lab.sql("UPDATE database_locks_lock SET token = token + 1");
        }
        let handle = tokio::runtime::Handle::current();
        let looked = || {
            let report = tokio::task::block_in_place(|| handle.block_on(locks.doctor()));
            ids(&report.expect("looks")).contains(&"dead-rows")
        };
        // The server counts them some time later.
        assert!(time::wait_until(SOON, looked));
    }

    #[tokio::test]
    async fn standbys_that_lag_behind_are_found() {
        let Some(server) = Postgres::options().set("full_page_writes=off").start() else {
            return;
        };
        let url = server.fresh_database();
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        let report = examine(&url).await;
        assert_eq!(ids(&report), ["torn-pages"]);
        assert!(
            the(&report, "torn-pages")
                .said
                .contains("full_page_writes is off")
        );
        assert_eq!(check(&report, "replicas").said, "no standby is connected");

        let hba = server.server().dir().join("data/pg_hba.conf");
        let rules = std::fs::read_to_string(&hba).unwrap();
        std::fs::write(&hba, format!("local replication all trust\n{rules}")).unwrap();
        server.query(&url, "SELECT pg_reload_conf()").unwrap();
        let wal = tempfile::tempdir().unwrap();
        // What it does is what a standby does.
        let _standby = Killable::spawn_command(
            Command::new(server.bin().join("pg_receivewal"))
                .args(["--no-loop", "--synchronous", "-U", "postgres", "-D"])
                .arg(wal.path())
                .arg("-h")
                .arg(server.socket_dir())
                .args(["-p", &server.port().to_string()]),
        );
        let standbys = |state: &str| {
            let sql =
                format!("SELECT count(*) FROM pg_stat_replication WHERE sync_state = '{state}'");
            time::wait_until(SOON, || server.query(&url, &sql).unwrap() == "1")
        };
        assert!(standbys("async"));
        let report = examine(&url).await;
        assert_eq!(ids(&report), ["torn-pages", "standby-async"], "{report:#?}");
        // Who may not see it is told so.
        server
            .query(&url, "GRANT ALL ON database_locks_lock TO locker")
            .unwrap();
        let report = examine(&server.locker_url(&url)).await;
        assert_eq!(ids(&report), ["torn-pages"], "{report:#?}");
        let replicas = check(&report, "replicas");
        assert!(
            !replicas.seen && replicas.said.contains("pg_monitor"),
            "{report:#?}"
        );

        server
            .query(&url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            .unwrap();
        server.query(&url, "SELECT pg_reload_conf()").unwrap();
        assert!(standbys("sync"));
        assert_eq!(ids(&examine(&url).await), ["torn-pages"]);
        server
            .query(
                "postgres",
                "ALTER ROLE locker SET synchronous_commit = local",
            )
            .unwrap();
        let report = examine(&server.locker_url(&url)).await;
        assert!(
            !ids(&report).contains(&"commits-local"),
            "not seen: {report:#?}"
        );
        server
            .query("postgres", "GRANT pg_monitor TO locker")
            .unwrap();
        let report = examine(&server.locker_url(&url)).await;
        assert_eq!(ids(&report), ["torn-pages", "commits-local"], "{report:#?}");
        assert_eq!(the(&report, "not-flushed").severity, Severity::Problem);
    }
}

mod on_mariadb {
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_set_up_well_has_nothing_wrong_with_it() {
        let Some(server) = MariaDb::options().fsync(true).start() else {
            return;
        };
        let url = server.fresh_database();
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        for url in [&server.locker_url(&url), &url] {
            let report = examine(url).await;
            assert!(report.findings.is_empty(), "{report:#?}");
            assert!(
                check(&report, "server").said.starts_with("MariaDB 1"),
                "{report:#?}"
            );
            let areas: Vec<_> = report.checks.iter().map(|check| check.area).collect();
            let all = [
                "server",
                "clock",
                "rights",
                "table",
                "durability",
                "replicas",
                "timeouts",
                "locks",
            ];
            assert_eq!(areas, all);
        }
    }

    #[tokio::test]
    async fn settings_that_do_harm_are_found() {
        let binlog = require(
            "mariadb",
            "mariadb-binlog",
            find_binary("mariadb-binlog", &[]),
        );
        let server = MariaDb::options()
            .set("log-bin=binlog")
            .set("server-id=1")
            .set("binlog-format=STATEMENT")
            .set("skip-innodb-doublewrite")
            .set("wait-timeout=20")
            .set("max-statement-time=2")
            .set("init-connect=SET timestamp = UNIX_TIMESTAMP() - 300")
            .start();
        let (Some(binlog), Some(server)) = (binlog, server) else {
            return;
        };
        let url = server.fresh_database();
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        let report = examine(&url).await;
        for (id, said) in [
            ("not-flushed", "innodb_flush_log_at_trx_commit is 2"),
            ("binlog-not-flushed", "sync_binlog is 0"),
            ("binlog-statement", "binlog_format is STATEMENT"),
            ("torn-pages", "innodb_doublewrite is OFF"),
            ("idle-timeout", "wait_timeout is 20s"),
            ("statement-timeout", "max_statement_time is 2s"),
        ] {
            assert!(the(&report, id).said.contains(said), "{report:#?}");
        }
        assert_eq!(report.findings.len(), 6, "{report:#?}");
        assert_eq!(check(&report, "replicas").said, "0 are connected");

        // Not for root, who is told the time.
        let report = examine(&server.locker_url(&url)).await;
        assert!(
            the(&report, "clock-not-steady")
                .said
                .contains("stood still"),
            "{report:#?}"
        );
        assert!(!check(&report, "replicas").seen, "{report:#?}");

        let folder = tempfile::tempdir().unwrap();
        // What it does is what a replica does.
        let _replica = Killable::spawn_command(
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
        assert!(time::wait_until(SOON, || server
            .query(&url, readers)
            .unwrap()
            == "1"));
        let said = examine(&url).await;
        assert!(
            the(&said, "standby-async").said.contains("replicas (1)"),
            "{said:#?}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rights_that_are_missing_are_found() {
        let Some(server) = MariaDb::shared() else {
            return;
        };
        let url = server.fresh_database();
        Locks::connect(&url).await.unwrap().migrate().await.unwrap();
        let mut root = server.stranger(&url);
        let run = |root: &mut Stranger, sql: &str| drop(root.run(sql).expect("runs"));
        run(&mut root, "CREATE USER poor@'127.0.0.1'");
        run(
            &mut root,
            "GRANT SELECT ON database_locks_lock TO poor@'127.0.0.1'",
        );
        let poor = url.replace("root@", "poor@");
        let report = examine(&poor).await;
        assert_eq!(ids(&report), ["rights-missing", "no-delete"], "{report:#?}");
        assert!(
            the(&report, "rights-missing")
                .said
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
            the(&report, "rights-missing").said.contains("lacks SELECT"),
            "{report:#?}"
        );
        run(&mut root, "DROP USER poor@'127.0.0.1'");
    }

    async fn a_table_that_was_altered_is_found(lab: &Lab) {
        let locks = lab.locks().await;
        let alter = |what: &str| lab.sql(&format!("ALTER TABLE database_locks_lock {what}"));
        alter("ENGINE = Aria");
        only(&locks.doctor().await.unwrap(), "not-innodb", "is Aria");
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

    lab_tests!(mariadb: a_table_that_was_altered_is_found);
}
