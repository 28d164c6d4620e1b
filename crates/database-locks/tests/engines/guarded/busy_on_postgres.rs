//! Guarding a table on PostgreSQL while other transactions use it.

use std::time::Duration;

use testkit::time::now;
use testkit::{SqlSession, TestDb, db_tests, promise};

use super::{TIMEOUT, WRITES, Writer};

const ANSWER: Duration = Duration::from_secs(30);

fn script(table: &str) -> String {
    database_locks::__python::guard_script(table, "ledger")
}

/// Waits until this number of sessions wait for a lock on a table.
async fn wait_for_waiting(db: &TestDb, number: &str) {
    let begun = now();
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while db.sql(waiting) != number {
        assert!(begun.elapsed() < ANSWER, "none waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Begins a script while a transaction with this statement is open, which commits then.
async fn run_beside(db: &TestDb, statement: &str, script: &str) -> Result<(), String> {
    let open = db.begin_with(statement);
    let mut session: SqlSession = db.sql_session();
    session.send(script);
    wait_for_waiting(db, "1").await;
    open.commit();
    let done = session.answer(ANSWER).expect("it ends");
    done.map(drop).map_err(|error| error.to_string())
}

/// The transaction that adds it is open when the guard begins.
async fn a_part_that_is_being_added_is_guarded(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE a (id int); \
         CREATE TABLE events (id int, part int) PARTITION BY LIST (part); \
         CREATE TABLE events_1 (id int, part int)",
    );
    run_beside(db, "CREATE TABLE b () INHERITS (a)", &script("a"))
        .await
        .unwrap();
    run_beside(
        db,
        "ALTER TABLE events ATTACH PARTITION events_1 FOR VALUES IN (1)",
        &script("events"),
    )
    .await
    .unwrap();
    let mut writer = Writer::new(db);
    for write in [
        "INSERT INTO b VALUES (1)",
        "TRUNCATE b",
        "INSERT INTO events_1 VALUES (1, 1)",
        "TRUNCATE events_1",
    ] {
        writer.is_refused(write);
    }
    for guard in locks.guarded_tables().await.unwrap() {
        assert_eq!(guard.gaps, [""; 0], "{guard:?}");
    }
    promise("P16", db.engine);
}

/// Of a part: the grandchild that is being added too. With the right TRIGGER alone a role may not
/// lock a table.
async fn a_role_that_may_not_lock_guards_what_is_being_added(db: &TestDb) {
    let locks = db.locks().await;
    let clerk = format!("locker_{}", db.url.rsplit('/').next().unwrap());
    db.sql(&format!(
        "CREATE TABLE other (id int); CREATE TABLE a (id int); CREATE TABLE b () INHERITS (a); \
         CREATE ROLE {clerk} LOGIN; GRANT TRIGGER ON a, b TO {clerk}; \
         ALTER DEFAULT PRIVILEGES GRANT TRIGGER ON TABLES TO {clerk}"
    ));
    locks.guard_table("other", "ledger").await.unwrap();
    let script = format!("SET SESSION AUTHORIZATION {clerk}; {}", script("a"));
    run_beside(db, "CREATE TABLE c () INHERITS (b)", &script)
        .await
        .unwrap();
    Writer::new(db).is_refused("INSERT INTO c VALUES (1)");
    promise("P16", db.engine);
    db.sql(&format!("DROP OWNED BY {clerk}; DROP ROLE {clerk}"));
}

/// It does not become the guard of nothing.
async fn a_table_that_is_being_dropped_is_not_guarded(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE a (id int); CREATE TABLE b () INHERITS (a)");
    let error = run_beside(db, "DROP TABLE b", &script("a"))
        .await
        .unwrap_err();
    assert!(error.contains("keep it busy"), "{error}");
    // The client tries again.
    db.sql("CREATE TABLE b () INHERITS (a)");
    let open = db.begin_with("DROP TABLE b");
    let guarding = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.guard_table("a", "ledger").await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    open.commit();
    guarding.await.unwrap().unwrap();
    assert!(locks.unguard_table("a").await.unwrap());
    let open = db.begin_with("DROP TABLE a");
    let guarding = tokio::spawn(async move { locks.guard_table("a", "ledger").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    open.commit();
    let error = guarding.await.unwrap().unwrap_err().chain();
    assert!(error.contains("there is no table a"), "{error}");
}

/// Each of several parts is busy for less than the limit, and all of them together for longer.
async fn the_limit_of_the_script_is_for_all_parts_together(db: &TestDb) {
    let _locks = db.locks().await;
    db.sql("CREATE TABLE a (id int)");
    for part in 0..4 {
        db.sql(&format!("CREATE TABLE a_{part} () INHERITS (a)"));
    }
    let open: Vec<_> = (0..4)
        .map(|part| db.begin_with(&format!("INSERT INTO a_{part} VALUES (1)")))
        .collect();
    let mut session = db.sql_session();
    session.run("SET lock_timeout = '2s'").unwrap();
    session.send(&script("a"));
    for open in open {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        open.commit();
    }
    let error = session.answer(ANSWER).expect("it ends").unwrap_err();
    assert!(error.to_string().contains("keep it busy"), "{error}");
    // What takes long without waiting is no reason to fail.
    db.sql(
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS \
            'BEGIN PERFORM pg_sleep(0.6); END'; \
         CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') \
            EXECUTE FUNCTION slow()",
    );
    session.run(&script("a")).unwrap();
    Writer::new(db).is_refused("INSERT INTO a_3 VALUES (1)");
}

/// A guard that is there already needs no lock.
async fn a_second_guard_waits_for_no_writer(db: &TestDb) {
    let locks = super::guarded(db).await;
    let guard = super::ledger(&locks).await;
    let mut writer = Writer::new(db);
    writer.begin();
    writer.show(guard.grant_id());
    writer.run(WRITES[1]);
    let mut session = db.sql_session();
    session.run("SET lock_timeout = '1ms'").unwrap();
    session.run(&script("invoices")).unwrap();
    writer.run("COMMIT");
}

/// Statements that create a trigger and take long, here those of an event trigger.
async fn locks_are_acquired_and_renewed_while_a_table_is_guarded(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL); \
         CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS \
            'BEGIN PERFORM pg_sleep(6); END'; \
         CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') \
            EXECUTE FUNCTION slow()",
    );
    let lock = locks.lock("job").ttl(Duration::from_secs(3));
    let held = lock.wait(TIMEOUT).acquire().await.unwrap();
    let guarding = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.guard_table("invoices", "ledger").await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = now();
    locks.show("job").await.unwrap();
    held.check().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert!(!guarding.is_finished());
    guarding.await.unwrap().unwrap();
    assert!(held.is_held());
    held.release().await.unwrap();
    Writer::new(db).is_refused(WRITES[0]);
}

/// Whatever the role's own default is.
async fn a_guard_sees_new_parts_in_each_isolation_level(db: &TestDb) {
    let locks = db.locks().await;
    let clerk = format!("isolated_{}", db.url.rsplit('/').next().unwrap());
    db.sql(&format!(
        "CREATE ROLE {clerk} LOGIN SUPERUSER; \
         ALTER ROLE {clerk} SET default_transaction_isolation = 'serializable'; \
         CREATE TABLE a (id int)"
    ));
    let url = db.url.replace("postgres@", &format!("{clerk}@"));
    let of_clerk = database_locks::Locks::connect(&url).await.unwrap();
    for part in ["b", "c", "d", "e"] {
        let open = db.begin_with(&format!("CREATE TABLE {part} () INHERITS (a)"));
        let guarding = {
            let of_clerk = of_clerk.clone();
            tokio::spawn(async move { of_clerk.guard_table("a", "ledger").await })
        };
        wait_for_waiting(db, "1").await;
        open.commit();
        guarding.await.unwrap().unwrap();
        Writer::new(db).is_refused(&format!("INSERT INTO {part} VALUES (1)"));
        assert!(locks.unguard_table("a").await.unwrap());
    }
    drop(of_clerk);
    db.sql(&format!("DROP OWNED BY {clerk}; DROP ROLE {clerk}"));
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        a_part_that_is_being_added_is_guarded,
        a_role_that_may_not_lock_guards_what_is_being_added,
        a_table_that_is_being_dropped_is_not_guarded,
        the_limit_of_the_script_is_for_all_parts_together,
        a_second_guard_waits_for_no_writer,
        locks_are_acquired_and_renewed_while_a_table_is_guarded,
        a_guard_sees_new_parts_in_each_isolation_level,
    ); )* };
}
on!(
    postgres,
    #[ignore = "make prove"]
    postgres12,
    #[ignore = "make prove"]
    postgres18
);
