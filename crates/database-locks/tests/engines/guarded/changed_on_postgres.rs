//! Guards on PostgreSQL of which a part was changed, is missing, or was there before.

use std::time::Duration;

use database_locks::{Error, Locks};
use testkit::time::now;
use testkit::{TestDb, db_tests, promise};

use super::{WRITES, Writer, guarded, ledger};

async fn gaps(locks: &Locks) -> String {
    let of = |guard: database_locks::TableGuard| {
        guard
            .gaps
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let found = locks.guarded_tables().await.unwrap();
    found
        .into_iter()
        .flat_map(of)
        .collect::<Vec<_>>()
        .join("; ")
}

/// That of `guard_table`, at once.
async fn refusal(locks: &Locks, table: &str, lock: &str) -> String {
    let begun = now();
    let error = locks.guard_table(table, lock).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{error:?}");
    error.chain()
}

async fn partitioned(db: &TestDb) -> Locks {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE events (id int, part int) PARTITION BY LIST (part); \
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1); \
         CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2) PARTITION BY LIST (id); \
         CREATE TABLE events_2_1 PARTITION OF events_2 FOR VALUES IN (1)",
    );
    locks
}

const TO_EVENTS_9: &str = "INSERT INTO events_9 VALUES (9, 9)";

async fn a_part_under_another_lock_keeps_no_guard_of_its_parent_away(db: &TestDb) {
    let locks = partitioned(db).await;
    db.sql("CREATE TABLE events_9 (id int, part int)");
    locks.guard_table("events_9", "nine").await.unwrap();
    let nine = locks.lock("nine").acquire().await.unwrap();
    let mut writer = Writer::new(db);
    let attach = "ALTER TABLE events ATTACH PARTITION events_9 FOR VALUES IN (9)";
    // Attached before the parent is guarded.
    db.sql(attach);
    let said = refusal(&locks, "events", "ledger").await;
    assert!(
        said.contains("events_9 is guarded by the lock \"nine\" already"),
        "{said}"
    );
    assert!(said.contains("first `dblock unguard events_9`"), "{said}");
    assert!(locks.unguard_table("events_9").await.unwrap());
    locks.guard_table("events", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    assert!(writer.run_with(nine.grant_id(), TO_EVENTS_9).is_err());
    assert!(locks.unguard_table("events").await.unwrap());

    // Attached afterwards: the triggers of both locks are there.
    db.sql("ALTER TABLE events DETACH PARTITION events_9");
    locks.guard_table("events_9", "nine").await.unwrap();
    locks.guard_table("events", "ledger").await.unwrap();
    db.sql(attach);
    let said = refusal(&locks, "events", "ledger").await;
    assert!(said.contains("first `dblock unguard events_9`"), "{said}");
    assert!(writer.run_with(nine.grant_id(), TO_EVENTS_9).is_err());
    assert!(locks.unguard_table("events_9").await.unwrap());
    assert!(
        locks.unguard_table("events_9").await.is_err(),
        "what is left is its parent's"
    );
    writer.is_refused(TO_EVENTS_9);
    locks.guard_table("events", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    let guard = ledger(&locks).await;
    writer.run_with(guard.grant_id(), TO_EVENTS_9).unwrap();
    promise("P16", db.engine);
}

/// The hint names it, and none of its parts.
async fn a_partitioned_part_under_another_lock_is_named(db: &TestDb) {
    let locks = partitioned(db).await;
    db.sql("ALTER TABLE events DETACH PARTITION events_2");
    locks.guard_table("events_2", "two").await.unwrap();
    db.sql("ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES IN (2)");
    let said = refusal(&locks, "events", "ledger").await;
    assert!(said.ends_with("first `dblock unguard events_2`"), "{said}");
    assert!(locks.unguard_table("events_2").await.unwrap());
    locks.guard_table("events", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
}

/// Later partitions get their trigger from the root, and from the partition that they are in.
async fn a_changed_trigger_of_a_partitioned_table_is_found_and_repaired(db: &TestDb) {
    let locks = partitioned(db).await;
    let row = "the row trigger of events is missing";
    let part_of_part = "the row trigger of events_2 is missing";
    let whole = "the trigger of events is missing";
    for (change, found) in [
        (
            "ALTER TABLE events DISABLE TRIGGER database_locks_guard_row",
            row,
        ),
        (
            "ALTER TABLE ONLY events DISABLE TRIGGER database_locks_guard_row",
            row,
        ),
        (
            "ALTER TABLE ONLY events_2 DISABLE TRIGGER database_locks_guard_row",
            part_of_part,
        ),
        ("DROP TRIGGER database_locks_guard_row ON events", row),
        ("DROP TRIGGER database_locks_guard ON events", whole),
        (
            "ALTER TABLE ONLY events DISABLE TRIGGER database_locks_guard",
            whole,
        ),
        (
            "DROP TRIGGER database_locks_guard_row ON events; \
             CREATE TRIGGER database_locks_guard_row AFTER INSERT ON events FOR EACH ROW \
             WHEN (NEW.id < 0) EXECUTE FUNCTION database_locks_guard('ledger')",
            row,
        ),
    ] {
        locks.guard_table("events", "ledger").await.unwrap();
        assert_eq!(gaps(&locks).await, "");
        db.sql(change);
        let gap = gaps(&locks).await;
        assert!(gap.contains(found), "{change}: {gap}");
        locks.guard_table("events", "ledger").await.unwrap();
        assert_eq!(gaps(&locks).await, "", "{change}");
        db.sql(
            "CREATE TABLE events_9 PARTITION OF events FOR VALUES IN (9); \
             CREATE TABLE events_2_9 PARTITION OF events_2 FOR VALUES IN (9)",
        );
        let mut writer = Writer::new(db);
        writer.is_refused(TO_EVENTS_9);
        writer.is_refused("INSERT INTO events_2_9 VALUES (9, 2)");
        writer.is_refused("DELETE FROM events");
        db.sql("DROP TABLE events_9, events_2_9");
    }
    promise("P16", db.engine);
}

/// A condition, or a choice of columns.
async fn a_trigger_that_passes_some_writes_is_found_and_replaced(db: &TestDb) {
    let locks = guarded(db).await;
    let (before, of) = ("BEFORE INSERT OR DELETE OR TRUNCATE OR", "UPDATE OF id");
    for changed in [
        format!("{before} UPDATE ON invoices FOR EACH STATEMENT WHEN (current_user = 'nobody')"),
        format!("{before} {of} ON invoices FOR EACH STATEMENT"),
        "BEFORE INSERT OR UPDATE OR DELETE ON invoices FOR EACH STATEMENT".into(),
        "AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON invoices FOR EACH STATEMENT".into(),
    ] {
        db.sql("DROP TRIGGER database_locks_guard ON invoices");
        db.sql(&format!(
            "CREATE TRIGGER database_locks_guard {changed} EXECUTE FUNCTION database_locks_guard('ledger')"
        ));
        let gap = gaps(&locks).await;
        assert_eq!(
            gap, "the trigger of invoices is missing, disabled or was changed",
            "{changed}"
        );
        locks.guard_table("invoices", "ledger").await.unwrap();
        assert_eq!(gaps(&locks).await, "", "{changed}");
        Writer::new(db).is_refused(WRITES[1]);
    }
    // Under another name, and disabled.
    db.sql(
        "ALTER TRIGGER database_locks_guard ON invoices RENAME TO mine; \
         ALTER TABLE invoices DISABLE TRIGGER mine",
    );
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    Writer::new(db).is_refused(WRITES[1]);
    assert!(locks.unguard_table("invoices").await.unwrap());
    Writer::new(db).run(WRITES[1]);
    promise("P16", db.engine);
}

/// With the right TRIGGER, a role can add triggers, and drop none.
async fn a_changed_trigger_is_replaced_by_the_owner_alone(db: &TestDb) {
    let locks = guarded(db).await;
    let clerk = format!("clerk_{}", db.url.rsplit('/').next().unwrap());
    db.sql(&format!(
        "CREATE ROLE {clerk} LOGIN; GRANT TRIGGER ON invoices TO {clerk}"
    ));
    let url = db.url.replace("postgres@", &format!("{clerk}@"));
    let of_clerk = Locks::connect(&url).await.unwrap();
    of_clerk.guard_table("invoices", "ledger").await.unwrap();
    db.sql("ALTER TABLE invoices DISABLE TRIGGER database_locks_guard");
    let said = refusal(&of_clerk, "invoices", "ledger").await;
    assert!(
        said.contains(&format!("disabled or was changed, and the role {clerk}")),
        "{said}"
    );
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    db.sql(&format!("DROP OWNED BY {clerk}; DROP ROLE {clerk}"));
}

/// A trigger of the user's, or of another table of locks.
async fn a_name_that_is_taken_is_no_conflict(db: &TestDb) {
    let locks = partitioned(db).await;
    db.sql(
        "CREATE SCHEMA s1; CREATE SCHEMA s2; \
         CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER database_locks_guard AFTER INSERT ON events_1 EXECUTE FUNCTION mine(); \
         CREATE TRIGGER database_locks_guard_row AFTER INSERT ON events_2_1 FOR EACH ROW \
            EXECUTE FUNCTION mine()",
    );
    let begun = now();
    locks.guard_table("events", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    Writer::new(db).is_refused("INSERT INTO events_1 VALUES (1, 1)");
    for schema in ["s1", "s2"] {
        let others = Locks::builder(&db.url).table(format!("{schema}.jobs_lock"));
        let others = others.connect().await.unwrap();
        others.migrate().await.unwrap();
        others.guard_table("events", schema).await.unwrap();
        assert_eq!(gaps(&others).await, "");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    // All nine.
    db.sql("CREATE TABLE full_of_triggers (id int)");
    for suffix in ["", "_2", "_3", "_4", "_5", "_6", "_7", "_8", "_9"] {
        db.sql(&format!(
            "CREATE TRIGGER database_locks_guard{suffix} AFTER INSERT ON full_of_triggers \
             EXECUTE FUNCTION mine()"
        ));
    }
    let said = refusal(&locks, "full_of_triggers", "ledger").await;
    assert!(
        said.contains(
            "full_of_triggers or its parts have other triggers named database_locks_guard,"
        ),
        "{said}"
    );
    promise("P16", db.engine);
}

async fn a_foreign_table_as_a_part_is_refused_with_the_reason(db: &TestDb) {
    let locks = partitioned(db).await;
    db.sql("CREATE FOREIGN DATA WRAPPER none; CREATE SERVER far FOREIGN DATA WRAPPER none");
    locks.guard_table("events", "ledger").await.unwrap();
    db.sql("CREATE FOREIGN TABLE events_9 PARTITION OF events FOR VALUES IN (9) SERVER far");
    let said = refusal(&locks, "events", "ledger").await;
    assert!(
        said.contains("events_9, a part of events, is a foreign table"),
        "{said}"
    );
}

/// What a partition that was added later has is its parent's.
async fn a_later_partition_is_guarded_after_its_detachment_once_it_is_covered(db: &TestDb) {
    let locks = partitioned(db).await;
    locks.guard_table("events", "ledger").await.unwrap();
    db.sql("CREATE TABLE events_9 PARTITION OF events FOR VALUES IN (9)");
    locks.guard_table("events", "ledger").await.unwrap();
    db.sql("ALTER TABLE events DETACH PARTITION events_9");
    Writer::new(db).is_refused(TO_EVENTS_9);
    let found = locks.guarded_tables().await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(gaps(&locks).await, "");
}

/// As a migration runs it: in a transaction, in which nothing can be tried again.
async fn the_script_alone_waits_for_a_busy_table_for_some_seconds(db: &TestDb) {
    let _locks = db.locks().await;
    db.sql("CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)");
    let guard = database_locks::__python::guard_script("invoices", "ledger");
    let unguard = database_locks::__python::unguard_script("invoices");
    let mut migration = Writer::new(db);
    migration.begin();
    migration.run(&guard);
    assert_eq!(migration.run("SHOW lock_timeout"), ["0"]);
    migration.run("COMMIT");
    migration.run(&unguard);
    assert_eq!(migration.run("SHOW lock_timeout"), ["0"]);

    let open = db.begin_with(WRITES[0]);
    let begun = now();
    let error = migration.session.run(&guard).unwrap_err().to_string();
    assert!(
        error.contains("transactions that use the table invoices, or a part of it, keep it busy"),
        "{error}"
    );
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(4) && took < Duration::from_secs(30),
        "{took:?}"
    );
    // A limit of the user's is kept.
    migration.run("SET lock_timeout = '100ms'");
    let begun = now();
    assert!(migration.session.run(&guard).is_err());
    assert!(begun.elapsed() < Duration::from_secs(4));
    open.commit();
    migration.run(&guard);
    assert_eq!(migration.run("SHOW lock_timeout"), ["100ms"]);
}

async fn the_script_counts_tables_and_not_triggers(db: &TestDb) {
    let locks = partitioned(db).await;
    locks.guard_table("events", "ledger").await.unwrap();
    let mut writer = Writer::new(db);
    writer.begin();
    writer.run(&database_locks::__python::unguard_script("events"));
    let number = writer.run("SELECT current_setting('database_locks.guard_result')");
    assert_eq!(number, ["4"]);
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        a_part_under_another_lock_keeps_no_guard_of_its_parent_away,
        a_partitioned_part_under_another_lock_is_named,
        a_changed_trigger_of_a_partitioned_table_is_found_and_repaired,
        a_trigger_that_passes_some_writes_is_found_and_replaced,
        a_changed_trigger_is_replaced_by_the_owner_alone,
        a_name_that_is_taken_is_no_conflict,
        a_foreign_table_as_a_part_is_refused_with_the_reason,
        a_later_partition_is_guarded_after_its_detachment_once_it_is_covered,
        the_script_alone_waits_for_a_busy_table_for_some_seconds,
        the_script_counts_tables_and_not_triggers,
    ); )* };
}
on!(
    postgres,
    #[ignore = "make prove"]
    postgres12,
    #[ignore = "make prove"]
    postgres18
);
