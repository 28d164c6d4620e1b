//! Guards on PostgreSQL in databases that were changed: no table of locks, a trigger made by
//! hand, a table that has become a part of another one. And what a refusal says of the lock.

use std::time::Duration;

use database_locks::{Locks, TableGuard};
use testkit::{TestDb, db_tests, promise};

use super::{TIMEOUT, WRITES, Writer, guarded, ledger};

async fn found(locks: &Locks) -> Vec<TableGuard> {
    locks.guarded_tables().await.unwrap()
}

async fn a_guard_is_removed_without_the_table_of_locks(db: &TestDb) {
    let locks = guarded(db).await;
    let others = Locks::builder(&db.url).table("app.jobs_lock");
    let others = others.connect().await.unwrap();
    db.sql("CREATE SCHEMA app; CREATE TABLE events (id int) PARTITION BY LIST (id)");
    db.sql("CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)");
    others.migrate().await.unwrap();
    others.guard_table("events", "ledger").await.unwrap();
    db.sql("DROP TABLE database_locks_lock, app.jobs_lock");
    let mut writer = Writer::new(db);
    assert!(writer.session.run(WRITES[0]).is_err());
    assert!(writer.session.run("INSERT INTO events VALUES (1)").is_err());
    // Each its own: those of the other table of locks stay.
    assert!(!locks.unguard_table("events").await.unwrap());
    assert!(writer.session.run("INSERT INTO events VALUES (1)").is_err());
    let later = Locks::connect(&db.url).await.unwrap();
    assert!(later.unguard_table("invoices").await.unwrap());
    assert!(!later.unguard_table("invoices").await.unwrap());
    assert!(others.unguard_table("events").await.unwrap());
    writer.run(WRITES[0]);
    writer.run("INSERT INTO events VALUES (1)");
    // In a migration.
    locks.migrate().await.unwrap();
    locks.guard_table("invoices", "ledger").await.unwrap();
    db.sql("DROP TABLE database_locks_lock");
    writer.run(&database_locks::__python::unguard_script("invoices"));
    writer.run(WRITES[1]);
}

/// Both are past the guard by the nature of the server: guarding the same table again is refused.
async fn what_passes_by_a_guard_is_advised_what_helps(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql(
        "CREATE TABLE root (id int NOT NULL, amount int NOT NULL) PARTITION BY LIST (id); \
         ALTER TABLE root ATTACH PARTITION invoices FOR VALUES IN (1, 2); \
         CREATE FOREIGN DATA WRAPPER none; CREATE SERVER far FOREIGN DATA WRAPPER none",
    );
    let passes = "a write to root, of which invoices is a part, passes";
    let guards = found(&locks).await;
    assert_eq!((guards.len(), &*guards[0].gaps), (1, &[] as &[String]));
    assert_eq!(guards[0].bypasses, [passes]);
    let report = locks.doctor().await.unwrap();
    let finding = report.findings.iter().find(|f| f.area == "guards").unwrap();
    assert_eq!(finding.id, "guard-bypassed");
    assert!(finding.message.contains(passes), "{finding:?}");
    assert!(
        finding
            .fix
            .contains("guard that other table by the same lock"),
        "{finding:?}"
    );
    // As it advises.
    Writer::new(db).run("UPDATE root SET amount = amount");
    locks.guard_table("root", "ledger").await.unwrap();
    Writer::new(db).is_refused("UPDATE root SET amount = amount");
    assert_eq!(found(&locks).await[0].bypasses, [""; 0]);

    db.sql("CREATE FOREIGN TABLE far_9 PARTITION OF root FOR VALUES IN (9) SERVER far");
    let guards = found(&locks).await;
    assert_eq!((guards.len(), &*guards[0].gaps), (1, &[] as &[String]));
    assert_eq!(
        guards[0].bypasses,
        ["a write to the foreign table far_9 at its own server passes"]
    );
    let report = locks.doctor().await.unwrap();
    let finding = report.findings.iter().find(|f| f.area == "guards").unwrap();
    assert_eq!(finding.id, "guard-bypassed");
    assert!(finding.fix.contains("a part: detach it"), "{finding:?}");
    assert!(locks.unguard_table("root").await.unwrap());
    assert_eq!(found(&locks).await.len(), 0);
    // A second parent of a part, by which it is written to without its triggers.
    db.sql("CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE TABLE c () INHERITS (a, b)");
    locks.guard_table("a", "ledger").await.unwrap();
    let guards = found(&locks).await;
    assert_eq!(
        (&*guards[0].table, &*guards[0].bypasses),
        (
            "a",
            &["a write to b, of which c is a part, passes".to_owned()] as &[_]
        )
    );
    promise("P16", db.engine);
}

/// A trigger that calls the function with other arguments than the name of a lock.
async fn an_odd_trigger_hides_no_guard(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql(
        "CREATE TABLE events (id int) PARTITION BY LIST (id); \
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)",
    );
    for (table, odd) in [
        (
            "invoices",
            "BEFORE INSERT ON invoices EXECUTE FUNCTION database_locks_guard()",
        ),
        (
            "invoices",
            "BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON invoices \
             EXECUTE FUNCTION database_locks_guard('ledger', 'x')",
        ),
        (
            "events",
            "AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION database_locks_guard()",
        ),
        (
            "events_1",
            "AFTER DELETE ON events_1 FOR EACH ROW EXECUTE FUNCTION database_locks_guard()",
        ),
    ] {
        db.sql(&format!("CREATE TRIGGER database_locks_guard_9 {odd}"));
        let guards = found(&locks).await;
        assert!(
            guards
                .iter()
                .all(|g| g.lock == "ledger" || g.table != "invoices")
        );
        let gap = format!(
            "the trigger database_locks_guard_9 of {table} names no lock, or more than one"
        );
        let has_it = guards.iter().any(|guard| guard.gaps.contains(&gap));
        assert!(has_it, "{odd}: {guards:?}");
        let report = locks.doctor().await.unwrap();
        assert!(report.findings.iter().any(|f| f.message.contains(&gap)));
        // It may be the only trigger of its table.
        if table == "events_1" {
            db.sql("DROP TRIGGER database_locks_guard_9 ON events_1");
            db.sql("CREATE TRIGGER odd BEFORE INSERT ON events EXECUTE FUNCTION database_locks_guard()");
        }
        let top = if table == "events_1" { "events" } else { table };
        locks.guard_table(top, "ledger").await.unwrap();
        let guards = found(&locks).await;
        assert!(
            guards.iter().all(|guard| guard.gaps.is_empty()),
            "{guards:?}"
        );
        assert!(
            guards.iter().all(|guard| guard.lock == "ledger"),
            "{guards:?}"
        );
        Writer::new(db).is_refused(WRITES[1]);
    }
    db.sql("CREATE TRIGGER odd BEFORE INSERT ON invoices EXECUTE FUNCTION database_locks_guard()");
    assert!(locks.unguard_table("invoices").await.unwrap());
    Writer::new(db).run(WRITES[0]);
    promise("P16", db.engine);
}

/// As `list` and `show` say it.
async fn a_refusal_says_how_the_lock_stands(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    let mut ends = |end: &str| {
        let message = writer.is_refused(WRITES[1]);
        let first = message.lines().next().unwrap();
        assert!(first.ends_with(end), "{end}: {message}");
        message
    };
    ends("\"ledger\", which is free");
    let guard = ledger(&locks).await;
    let holder = guard.holder().to_owned();
    ends(&format!("held by {holder}"));
    guard.release().await.unwrap();
    ends("\"ledger\", which is free");
    let resting = locks.lock("ledger").at_least(Duration::from_secs(3));
    resting
        .ttl(TIMEOUT)
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let message = ends("\"ledger\", which is resting");
    assert!(!message.contains(&holder), "{message}");
    let reader = locks.lock("ledger").shared().wait(TIMEOUT);
    let reader = reader.acquire().await.unwrap();
    ends("\"ledger\", which is free or shared");
    reader.release().await.unwrap();
    let guard = ledger(&locks).await;
    ends(&format!("held by {}", guard.holder()));
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        a_guard_is_removed_without_the_table_of_locks,
        what_passes_by_a_guard_is_advised_what_helps,
        an_odd_trigger_hides_no_guard,
        a_refusal_says_how_the_lock_stands,
    ); )* };
}
on!(
    postgres,
    #[ignore = "make prove"]
    postgres12,
    #[ignore = "make prove"]
    postgres18
);
