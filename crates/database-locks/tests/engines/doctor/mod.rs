//! Everything that can be found is found where it is, with what to do, and not where it is not.

mod on_mysql;
mod on_postgres;
mod sqlite_files;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use database_locks::Locks;
use database_locks::doctor::{Check, Finding, KINDS, Report, Severity};
use testkit::programs::{find_binary, require};
use testkit::{
    ChildProcess, MariaDb, MySql, MySqlServer, Postgres, Proxy, SqlSession, TestDb, db_tests, time,
};

const TIMEOUT: Duration = Duration::from_secs(30);

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

/// Asserts that this is the only finding, and its message.
#[track_caller]
fn only(report: &Report, id: &str, message: &str) {
    assert_eq!(ids(report), [id], "{report:#?}");
    assert!(the(report, id).message.contains(message), "{report:#?}");
}

#[test]
fn each_finding_has_a_test_that_makes_it_appear() {
    let tests = concat!(
        include_str!("mod.rs"),
        include_str!("on_mysql.rs"),
        include_str!("on_postgres.rs"),
        include_str!("sqlite_files.rs"),
        include_str!("../guarded/setup.rs"),
        include_str!("../../clusters/galera/node.rs"),
        include_str!("../../clusters/group/members.rs"),
        include_str!("../../../src/store/mysql/doctor/cluster.rs"),
        include_str!("../../../src/store/sqlite/doctor/mod.rs")
    );
    for kind in KINDS {
        assert!(tests.contains(&format!("\"{}\"", kind.id)), "{}", kind.id);
    }
}

async fn a_new_table_has_no_findings(db: &TestDb) {
    let locks = db.locks().await;
    let _held = locks.lock("job").acquire().await.expect("acquires");
    let report = locks.doctor().await.expect("looks");
    assert!(ids(&report).is_empty(), "{report:#?}");
    assert!(report.checks.iter().all(|check| check.seen), "{report:#?}");
    assert_eq!(
        check(&report, "locks").message,
        "1 in the table, 1 of them held"
    );
}

async fn each_finding_names_its_fix(db: &TestDb) {
    let locks = Locks::connect(&db.url).await.expect("connects");
    db.sql("DROP TABLE IF EXISTS database_locks_lock");
    let report = locks.doctor().await.expect("looks");
    only(
        &report,
        "table-missing",
        "there is no table database_locks_lock: no lock can be acquired",
    );
    let found = the(&report, "table-missing");
    assert_eq!((found.area, found.severity), ("table", Severity::Error));
    assert!(found.fix.contains("`dblock init`"), "{report:#?}");
    locks.migrate().await.expect("makes it");
    assert!(ids(&locks.doctor().await.expect("looks")).is_empty());
}

async fn a_legacy_table_lacks_columns(db: &TestDb) {
    let locks = Locks::connect(&db.url).await.expect("connects");
    db.sql("DROP TABLE IF EXISTS database_locks_lock");
    db.sql(match db.engine {
        "sqlite" => {
            "CREATE TABLE database_locks_lock (id integer NOT NULL PRIMARY KEY AUTOINCREMENT, name \
             varchar(255) NOT NULL UNIQUE, locked_by text NULL, expires_at datetime NULL)"
        }
        "mariadb" | "mysql" => {
            "CREATE TABLE database_locks_lock (id integer AUTO_INCREMENT NOT NULL PRIMARY KEY, name \
             varchar(255) NOT NULL UNIQUE, locked_by longtext NULL, expires_at datetime(6) NULL) \
             CHARACTER SET latin1"
        }
        _ => {
            "CREATE TABLE database_locks_lock (id serial PRIMARY KEY, name varchar(255) NOT NULL \
             UNIQUE, locked_by text, expires_at timestamptz)"
        }
    });
    let report = locks.doctor().await.expect("looks");
    let message = &the(&report, "columns-missing").message;
    assert!(
        message.contains("lacks token, grant_id, granted_until"),
        "{report:#?}"
    );
    if db.is_mysql_like() {
        assert!(
            the(&report, "name-collation")
                .message
                .contains(match db.engine {
                    "mysql" => "utf8mb4_0900_bin",
                    _ => "utf8mb4_nopad_bin",
                })
        );
        assert!(the(&report, "column-type").message.contains("must be"));
    }
    if db.engine == "sqlite" {
        return;
    }
    locks.migrate().await.expect("adds them");
    let report = locks.doctor().await.expect("looks");
    assert!(ids(&report).is_empty(), "{report:#?}");
}

async fn columns_without_a_default_are_found(db: &TestDb) {
    let locks = db.locks().await;
    // SQLite adds none without a default.
    if db.engine == "sqlite" {
        db.sql("DROP TABLE database_locks_lock");
        let schema =
            include_str!("../../../schema/sqlite.sql").replace("{table}", "database_locks_lock");
        db.sql(&schema.replace(
            "metadata      text         NULL",
            "metadata text, owner int NOT NULL",
        ));
    } else {
        db.sql("ALTER TABLE database_locks_lock ADD COLUMN owner integer NOT NULL");
    }
    only(
        &locks.doctor().await.expect("looks"),
        "column-unfilled",
        "the column owner",
    );
}

async fn indexes_are_counted(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE INDEX locks_expiry ON database_locks_lock (expires_at)");
    only(
        &locks.doctor().await.expect("looks"),
        "index-on-changing",
        "an index locks_expiry on expires_at",
    );
    db.sql(match db.engine {
        "mariadb" | "mysql" => "DROP INDEX locks_expiry ON database_locks_lock",
        _ => "DROP INDEX locks_expiry",
    });
    db.sql(match db.engine {
        "postgres" => "CREATE INDEX locks_like ON database_locks_lock (name varchar_pattern_ops)",
        _ => "CREATE INDEX locks_like ON database_locks_lock (name)",
    });
    only(
        &locks.doctor().await.expect("looks"),
        "index-unused",
        "an index locks_like",
    );
}

async fn a_missing_unique_index_is_found(db: &TestDb) {
    let locks = db.locks().await;
    match db.engine {
        "mariadb" | "mysql" => {
            db.sql("ALTER TABLE database_locks_lock RENAME INDEX name TO other");
            let report = locks.doctor().await.expect("looks");
            only(
                &report,
                "index-renamed",
                "the unique index on name is called other",
            );
            // One that is cut off is none.
            db.sql("ALTER TABLE database_locks_lock DROP INDEX other, ADD UNIQUE name (name(20))");
        }
        "sqlite" => {
            let schema = include_str!("../../../schema/sqlite.sql");
            let schema = schema.replace("{table}", "database_locks_lock");
            db.sql("DROP TABLE database_locks_lock");
            db.sql(&schema.replace("NOT NULL UNIQUE", "NOT NULL COLLATE NOCASE UNIQUE"));
            let report = locks.doctor().await.expect("looks");
            only(
                &report,
                "name-collation",
                "the collation of the column name is NOCASE",
            );
            db.sql("DROP TABLE database_locks_lock");
            db.sql(&schema.replace("NOT NULL UNIQUE", "NOT NULL"));
        }
        _ => {
            db.sql(
                "ALTER TABLE database_locks_lock DROP CONSTRAINT database_locks_lock_name_key; \
                 CREATE UNIQUE INDEX ON database_locks_lock (name) WHERE token > 0",
            );
        }
    }
    let report = locks.doctor().await.expect("looks");
    let message = &the(&report, "name-not-unique").message;
    assert!(
        message.contains("no unique index keeps the names"),
        "{report:#?}"
    );
}

async fn locks_that_are_left_behind_are_counted(db: &TestDb) {
    let locks = db.locks().await;
    let (hour_ago, in_an_hour, days_ago) = match db.engine {
        "sqlite" => (
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 hour')",
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 hour')",
            "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-2 days')",
        ),
        "mariadb" | "mysql" => (
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
    let end = match db.engine {
        "postgres" => "'9999-12-31 00:00:00+00'",
        _ => "'9999-12-31 00:00:00.000000'",
    };
    let grant = "'0123456789abcdef0123456789abcdef'";
    for (name, grant, expires, granted, acquired) in [
        ("crashed", grant, hour_ago, hour_ago, days_ago),
        ("endless", grant, end, end, days_ago),
        ("fresh endless", grant, end, end, hour_ago),
        ("held", grant, in_an_hour, in_an_hour, hour_ago),
        ("of 0.5", "NULL", in_an_hour, "NULL", "NULL"),
        // Neither held nor left behind.
        ("rests", "NULL", in_an_hour, in_an_hour, hour_ago),
        ("rested", "NULL", hour_ago, hour_ago, days_ago),
    ] {
        db.sql(&format!(
            "INSERT INTO database_locks_lock \
             (name, token, grant_id, expires_at, granted_until, acquired_at) \
             VALUES ('{name}', 7, {grant}, {expires}, {granted}, {acquired})"
        ));
    }
    let report = locks.doctor().await.expect("looks");
    assert_eq!(
        ids(&report),
        ["leases-expired", "held-without-end", "old-writers"],
        "{report:#?}"
    );
    for (id, message) in [
        ("leases-expired", "1 lock (such as `crashed`)"),
        ("held-without-end", "1 lock (such as `endless`)"),
        ("old-writers", "1 lock (such as `of 0.5`)"),
    ] {
        assert!(the(&report, id).message.contains(message), "{report:#?}");
    }
    assert_eq!(
        check(&report, "locks").message,
        "7 in the table, 4 of them held"
    );
}

async fn the_table_of_permits_is_examined_too(db: &TestDb) {
    let locks = db.locks().await;
    let semaphore = locks.semaphore("api", 2);
    let held = semaphore.acquire().await.expect("acquires");
    locks.set_limit("api", Some(7)).await.expect("sets it");
    let report = locks.doctor().await.expect("looks");
    assert!(ids(&report).is_empty(), "{report:#?}");
    assert_eq!(
        check(&report, "permits").message,
        "1 in the table, 1 of them held"
    );
    held.release().await.expect("releases");

    db.sql("DROP TABLE database_locks_permit");
    let report = locks.doctor().await.expect("looks");
    only(
        &report,
        "permits-missing",
        "there is no table database_locks_permit: locks work, but no permit",
    );
    let found = the(&report, "permits-missing");
    assert_eq!((found.area, found.severity), ("table", Severity::Warning));
    assert!(found.fix.contains("`dblock init`"), "{report:#?}");
    locks.migrate().await.expect("makes it");
    assert!(ids(&locks.doctor().await.expect("looks")).is_empty());

    for (change, message) in unfit_tables_of_permits(db.engine) {
        db.sql(&change);
        let report = locks.doctor().await.expect("looks");
        only(&report, "permits-unfit", message);
        let fix = &the(&report, "permits-unfit").fix;
        assert!(fix.contains("DROP TABLE database_locks_permit"), "{fix}");
        db.sql("DROP TABLE database_locks_permit");
        locks.migrate().await.expect("makes it");
        let report = locks.doctor().await.expect("looks");
        assert!(ids(&report).is_empty(), "{report:#?}");
    }
}

/// What an administrator may have done to the table, and what doctor says of it.
fn unfit_tables_of_permits(engine: &str) -> Vec<(String, &'static str)> {
    let alter = |what: &str| format!("ALTER TABLE database_locks_permit {what}");
    let mut changes = vec![(
        alter("DROP COLUMN metadata"),
        "the table database_locks_permit lacks metadata",
    )];
    let not_unique = "no unique index keeps the permits of database_locks_permit apart";
    match engine {
        "mariadb" | "mysql" => {
            let name = "MODIFY name varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL";
            let no_key = "DROP INDEX name";
            changes.extend([
                (
                    alter(name),
                    "the collation of the column name is utf8mb4_general_ci",
                ),
                (alter(no_key), not_unique),
                (
                    alter("RENAME INDEX name TO other"),
                    "the unique index on name,slot is called other",
                ),
                (alter("DROP COLUMN permits"), "lacks permits"),
            ]);
            if engine == "mariadb" {
                let other = "the engine of database_locks_permit is Aria";
                changes.push((alter("ENGINE = Aria"), other));
            }
        }
        "sqlite" => {
            let schema = include_str!("../../../schema/sqlite_permit.sql");
            let schema = schema.replace("{permits}", "database_locks_permit");
            let anew = |from: &str, to: &str| {
                assert!(schema.contains(from), "{from}");
                format!(
                    "DROP TABLE database_locks_permit; {}",
                    schema.replace(from, to)
                )
            };
            changes.extend([
                (
                    anew(
                        "varchar(255) NOT NULL",
                        "varchar(255) NOT NULL COLLATE NOCASE",
                    ),
                    "the collation of the column name is NOCASE",
                ),
                (anew("UNIQUE (name, slot)", "CHECK (1)"), not_unique),
            ]);
        }
        _ => changes.extend([
            (
                alter("DROP CONSTRAINT database_locks_permit_name_slot_key"),
                not_unique,
            ),
            (
                alter("ALTER expires_at TYPE timestamp"),
                "the column expires_at is timestamp",
            ),
        ]),
    }
    changes
}

async fn many_rows_are_too_many(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(match db.engine {
        "sqlite" => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100001) \
             INSERT INTO database_locks_lock (name) SELECT 'n' || i FROM n"
        }
        "mariadb" => "INSERT INTO database_locks_lock (name) SELECT CONCAT('n', seq) FROM seq_1_to_100001",
        "mysql" => {
            "SET SESSION cte_max_recursion_depth = 200000; INSERT INTO database_locks_lock (name) \
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100001) \
             SELECT CONCAT('n', i) FROM n"
        }
        _ => "INSERT INTO database_locks_lock (name) SELECT 'n' || i FROM generate_series(1, 100001) i",
    });
    let report = locks.doctor().await.expect("looks");
    only(&report, "many-rows", "has 100001 rows");
    assert!(the(&report, "many-rows").fix.contains("dblock prune"));
}

db_tests!(memory: a_new_table_has_no_findings);
db_tests!(sqlite:
    a_new_table_has_no_findings, each_finding_names_its_fix,
    a_legacy_table_lacks_columns, columns_without_a_default_are_found, indexes_are_counted,
    a_missing_unique_index_is_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many, the_table_of_permits_is_examined_too);
db_tests!(postgres:
    a_new_table_has_no_findings, each_finding_names_its_fix,
    a_legacy_table_lacks_columns, columns_without_a_default_are_found, indexes_are_counted,
    a_missing_unique_index_is_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many, the_table_of_permits_is_examined_too);
db_tests!(postgres18: a_new_table_has_no_findings, a_legacy_table_lacks_columns);
db_tests!(#[ignore = "make prove"] postgres12: a_new_table_has_no_findings, a_legacy_table_lacks_columns);
db_tests!(mariadb:
    a_new_table_has_no_findings, each_finding_names_its_fix,
    a_legacy_table_lacks_columns, columns_without_a_default_are_found, indexes_are_counted,
    a_missing_unique_index_is_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many, the_table_of_permits_is_examined_too);
db_tests!(mysql:
    a_new_table_has_no_findings, each_finding_names_its_fix,
    a_legacy_table_lacks_columns, columns_without_a_default_are_found, indexes_are_counted,
    a_missing_unique_index_is_found, locks_that_are_left_behind_are_counted,
    many_rows_are_too_many, the_table_of_permits_is_examined_too);
