//! What only PostgreSQL has.

use super::*;
use std::path::Path;

/// Changes a setting for all later sessions of this database.
fn set(db: &TestDb, setting: &str) {
    db.sql(&format!(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {}', current_database()); END $$",
        setting.replace('\'', "''")
    ));
}

#[tokio::test]
async fn a_well_configured_server_has_no_findings() {
    let Some(server) = Postgres::options().fsync(true).start() else {
        return;
    };
    let url = server.fresh_database();
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    let report = examine(&url).await;
    assert!(report.findings.is_empty(), "{report:#?}");
    let message = &check(&report, "server").message;
    assert!(
        message.starts_with("PostgreSQL 1") && message.contains("no pooler, no TLS"),
        "{message}"
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
        "settings",
    ];
    assert_eq!(areas, all);
    let proxy = Proxy::to_url(&url);
    let report = examine(&proxy.url(&url)).await;
    assert!(report.findings.is_empty(), "{report:#?}");
    assert!(
        check(&report, "server")
            .message
            .contains("through a pooler"),
        "{report:#?}"
    );
}

fn version(db: &TestDb) -> u32 {
    db.sql("SHOW server_version_num").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn harmful_settings_are_found() {
    let Some(db) = TestDb::postgres() else { return };
    db.locks().await;
    if version(&db) >= 140_000 {
        set(&db, "idle_session_timeout = '20s'");
        only(
            &examine(&db.url).await,
            "idle-timeout",
            "idle_session_timeout is 20s",
        );
        set(&db, "idle_session_timeout = '60s'");
    }
    set(&db, "statement_timeout = '1s'");
    only(
        &examine(&db.url).await,
        "statement-timeout",
        "statement_timeout is 1s",
    );
    set(&db, "statement_timeout = 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_found() {
    let Some(db) = TestDb::postgres() else { return };
    db.locks().await;
    // In the place of the server's own.
    set(&db, "search_path = fake, pg_catalog, public");
    db.sql("CREATE SCHEMA fake; CREATE SEQUENCE fake.n");
    for (clock, id, message) in [
        (
            "now() + interval '310 seconds'",
            "clock-off",
            "the database's clock is 5m ",
        ),
        (
            "now() - interval '1 day 30 minutes'",
            "clock-off",
            "1d 0h behind",
        ),
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
        db.sql(&format!(
            "CREATE OR REPLACE FUNCTION fake.clock_timestamp() RETURNS timestamptz \
             LANGUAGE sql AS $$ SELECT {clock} $$"
        ));
        only(&examine(&db.url).await, id, message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privileges_are_found() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let run = |sql: &str| server.query(&url, sql).expect("runs");
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    let other = server.locker_url(&url);

    let report = examine(&other).await;
    let all = ["rights-missing", "no-delete", "permits-rights"];
    assert_eq!(ids(&report), all, "{report:#?}");
    let message = &the(&report, "rights-missing").message;
    assert!(
        message.contains("the role locker lacks SELECT, INSERT, UPDATE"),
        "{message}"
    );
    assert!(!check(&report, "locks").seen, "{report:#?}");

    run("GRANT SELECT, INSERT, UPDATE ON database_locks_permit TO locker");
    run("GRANT SELECT, INSERT, UPDATE ON database_locks_lock TO locker");
    let report = examine(&other).await;
    assert_eq!(ids(&report), ["no-delete", "no-delete"], "{report:#?}");
    for table in ["database_locks_lock", "database_locks_permit"] {
        let lacks = format!("the role locker lacks DELETE on {table}");
        let named = |found: &Finding| found.message.starts_with(&lacks);
        assert!(report.findings.iter().any(named), "{report:#?}");
    }
    run("GRANT DELETE ON database_locks_lock TO locker");
    run("GRANT DELETE ON database_locks_permit TO locker");
    assert!(ids(&examine(&other).await).is_empty());
    run("REVOKE UPDATE, DELETE ON database_locks_permit FROM locker");
    let report = examine(&other).await;
    only(
        &report,
        "permits-rights",
        "the role locker lacks UPDATE on database_locks_permit: locks work",
    );
    let fix = "GRANT SELECT, INSERT, UPDATE ON database_locks_permit";
    assert!(the(&report, "permits-rights").fix.contains(fix));

    run("CREATE SCHEMA app; ALTER TABLE database_locks_lock SET SCHEMA app");
    only(
        &examine(&other).await,
        "table-missing",
        "one of that name in schema app",
    );
    let named = Locks::builder(&other)
        .table("app.database_locks_lock")
        .connect()
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
async fn a_sequence_requires_a_privilege_of_its_own() {
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
    run("GRANT ALL ON database_locks_lock, database_locks_permit TO locker");
    let report = examine(&server.locker_url(&url)).await;
    only(
        &report,
        "rights-missing",
        "USAGE on the sequence database_locks_lock_id_seq",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_table_is_found() {
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
        "is not vacuumed by itself",
    );
    alter("RESET (autovacuum_enabled)");
    assert!(ids(&locks.doctor().await.unwrap()).is_empty());

    alter("ENABLE ROW LEVEL SECURITY");
    run("GRANT ALL ON database_locks_lock, database_locks_permit TO locker");
    let report = examine(&server.locker_url(&url)).await;
    only(&report, "row-security", "for the role locker");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_rows_that_vacuum_cannot_remove_are_found() {
    let Some(db) = TestDb::postgres() else { return };
    let locks = db.locks().await;
    db.sql("ALTER TABLE database_locks_lock SET (autovacuum_enabled = off)");
    db.sql("INSERT INTO database_locks_lock (name) SELECT i FROM generate_series(1, 600) i");
    // Nothing that died since is cleared away.
    let _old = db.begin_with("SELECT txid_current()");
    for _ in 0..20 {
        db.sql("UPDATE database_locks_lock SET token = token + 1");
    }
    let handle = tokio::runtime::Handle::current();
    let looked = || {
        let report = tokio::task::block_in_place(|| handle.block_on(locks.doctor()));
        ids(&report.expect("looks")).contains(&"dead-rows")
    };
    // The server counts them some time later.
    assert!(time::wait_until(TIMEOUT, looked));
}

/// `pg_receivewal`, which a primary treats as a standby.
fn start_pg_receivewal(server: &Postgres, wal: &Path) -> ChildProcess {
    let hba = server.server().dir().join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("local replication all trust\n{rules}")).unwrap();
    server.reload();
    ChildProcess::spawn_command(
        Command::new(server.bin().join("pg_receivewal"))
            .args(["--no-loop", "--synchronous", "-U", "postgres", "-D"])
            .arg(wal)
            .arg("-h")
            .arg(server.socket_dir())
            .args(["-p", &server.port().to_string()]),
    )
}

#[tokio::test]
async fn lagging_standbys_are_found() {
    let Some(server) = Postgres::options().set("full_page_writes=off").start() else {
        return;
    };
    let url = server.fresh_database();
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    let report = examine(&url).await;
    assert_eq!(ids(&report), ["torn-pages"]);
    assert!(
        the(&report, "torn-pages")
            .message
            .contains("full_page_writes is off")
    );
    assert_eq!(
        check(&report, "replicas").message,
        "no standby is connected"
    );

    let wal = tempfile::tempdir().unwrap();
    let _standby = start_pg_receivewal(&server, wal.path());
    let standbys = |state: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE sync_state = '{state}'");
        time::wait_until(TIMEOUT, || server.query(&url, &sql).unwrap() == "1")
    };
    assert!(standbys("async"));
    let report = examine(&url).await;
    assert_eq!(ids(&report), ["torn-pages", "standby-async"], "{report:#?}");
    // A user without pg_monitor sees this much.
    server
        .query(
            &url,
            "GRANT ALL ON database_locks_lock, database_locks_permit TO locker",
        )
        .unwrap();
    let report = examine(&server.locker_url(&url)).await;
    assert_eq!(ids(&report), ["torn-pages", "standby-async"], "{report:#?}");
    let message = &the(&report, "standby-async").message;
    assert!(
        message.starts_with("1 standby, or ")
            && message.contains("synchronous_standby_names is empty"),
        "{message}"
    );

    server
        .query(&url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        .unwrap();
    server.query(&url, "SELECT pg_reload_conf()").unwrap();
    assert!(standbys("sync"));
    let report = examine(&url).await;
    assert_eq!(ids(&report), ["torn-pages"]);
    assert_eq!(check(&report, "replicas").message, "1 synchronous standby");
    let report = examine(&server.locker_url(&url)).await;
    assert_eq!(ids(&report), ["torn-pages"], "{report:#?}");
    let replicas = check(&report, "replicas");
    assert!(
        !replicas.seen
            && replicas.message.contains("there is 1 standby, ")
            && replicas.message.contains("pg_monitor"),
        "{report:#?}"
    );
    server
        .query(
            "postgres",
            "ALTER ROLE locker SET synchronous_commit = local",
        )
        .unwrap();
    let report = examine(&server.locker_url(&url)).await;
    assert_eq!(ids(&report), ["torn-pages", "commits-local"], "{report:#?}");
    server
        .query("postgres", "GRANT pg_monitor TO locker")
        .unwrap();
    let report = examine(&server.locker_url(&url)).await;
    assert_eq!(ids(&report), ["torn-pages", "commits-local"], "{report:#?}");
    assert_eq!(the(&report, "not-flushed").severity, Severity::Error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polling_through_a_pooler_is_a_finding() {
    let Some(db) = TestDb::pgbouncer() else {
        return;
    };
    db.locks().await;
    let report = examine(&db.url).await;
    assert!(ids(&report).is_empty(), "{report:#?}");
    let message = &check(&report, "server").message;
    assert!(message.contains("and waiters poll"), "{report:#?}");
}

/// A table of an earlier version goes on with its integers; one that is made anew has room.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_run_out_are_found_and_the_error_names_the_fix() {
    let Some(db) = TestDb::postgres() else { return };
    db.sql(
        "CREATE TABLE database_locks_lock (id serial PRIMARY KEY, name varchar(255) NOT NULL UNIQUE,
                                           locked_by text, expires_at timestamptz)",
    );
    let locks = db.locks().await;
    let type_of = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                    WHERE attrelid = 'database_locks_lock'::regclass AND attname = 'id'";
    assert_eq!(db.sql(type_of), "integer");
    assert!(ids(&examine(&db.url).await).is_empty());
    let set = |to: i64| {
        db.sql(&format!(
            "SELECT setval('database_locks_lock_id_seq', {to})"
        ))
    };
    set(1_200_000_000);
    only(
        &examine(&db.url).await,
        "ids-run-out",
        "1200000000 of 2147483647 ids",
    );
    set(2_147_483_647);
    let exhausted = locks.lock("new").acquire().await.unwrap_err().chain();
    assert!(exhausted.contains("TYPE bigint"), "{exhausted}");
    db.sql(
        "ALTER TABLE database_locks_lock ALTER COLUMN id TYPE bigint;
         ALTER SEQUENCE database_locks_lock_id_seq AS bigint",
    );
    let guard = locks.lock("new").acquire().await.unwrap();
    guard.release().await.unwrap();
    assert!(ids(&examine(&db.url).await).is_empty());

    let Some(db) = TestDb::postgres() else { return };
    let locks = db.locks().await;
    assert_eq!(db.sql(type_of), "bigint");
    db.sql("SELECT setval('database_locks_lock_id_seq', 3000000000)");
    let guard = locks.lock("new").acquire().await.unwrap();
    guard.release().await.unwrap();
    assert!(ids(&examine(&db.url).await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_replicated_by_rows_is_found() {
    let Some(db) = TestDb::postgres() else { return };
    db.locks().await;
    db.sql("CREATE PUBLICATION locks FOR TABLE database_locks_lock");
    assert!(ids(&examine(&db.url).await).is_empty());
    if version(&db) < 130_000 {
        // There the catalog can be written to by a server that was started for it.
        return;
    }
    // As a subscription leaves it that has copied the table.
    db.sql(
        "CREATE SUBSCRIPTION locks CONNECTION 'host=nowhere' PUBLICATION locks
             WITH (connect = false, slot_name = NONE);
         SET allow_system_table_mods = on;
         INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)
              SELECT oid, 'database_locks_lock'::regclass, 'r' FROM pg_subscription",
    );
    only(
        &examine(&db.url).await,
        "written-elsewhere",
        "made elsewhere, and publishes it as well",
    );
    db.sql("DROP PUBLICATION locks");
    only(
        &examine(&db.url).await,
        "written-elsewhere",
        "made elsewhere",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoding_that_lacks_characters_is_found() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let database = format!("doctor_latin1_{}", std::process::id());
    let made = format!(
        "CREATE DATABASE {database} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    server.query("postgres", &made).unwrap();
    let url = server.url_of(&database);
    Locks::connect(&url).await.unwrap().migrate().await.unwrap();
    only(&examine(&url).await, "encoding", "is LATIN1");
}
