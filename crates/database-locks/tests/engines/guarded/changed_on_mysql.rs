//! Guards on MySQL and MariaDB of which a part is missing, is there twice, or is of another lock;
//! and tables that were changed since.

use std::time::Duration;

use database_locks::{Error, Locks};
use testkit::{MariaDb, MySql, MySqlServer, TestDb, db_tests, promise};

use super::{WRITES, Writer, guarded, ledger, total};

async fn gaps(locks: &Locks) -> String {
    let found = locks.guarded_tables().await.unwrap();
    let of = |guard: database_locks::TableGuard| guard.gaps;
    found
        .into_iter()
        .flat_map(of)
        .collect::<Vec<_>>()
        .join("; ")
}

async fn bypasses(locks: &Locks) -> Vec<String> {
    let found = locks.guarded_tables().await.unwrap();
    found.into_iter().flat_map(|one| one.bypasses).collect()
}

async fn refusal(locks: &Locks, table: &str, lock: &str) -> String {
    let refused = locks.guard_table(table, lock).await.unwrap_err();
    assert!(matches!(refused, Error::Rejected { .. }), "{refused:?}");
    refused.chain()
}

/// The statements that create the triggers of a guard of the table of invoices by a lock, under
/// these names.
fn triggers(db: &TestDb, lock: &str, name: &str) -> Vec<String> {
    let mariadb = db.engine == "mariadb";
    let triggers = database_locks::__python::guard_triggers("invoices", lock, mariadb, false);
    let named = triggers
        .iter()
        .map(|one| one.replace("invoices_guard", name));
    named.collect()
}

fn create(writer: &mut Writer, trigger: &str) {
    writer.run(&format!("DELIMITER $$\n{trigger}$$\nDELIMITER ;\nSELECT 1"));
}

fn triggers_of(db: &TestDb, table: &str) -> String {
    db.sql(&format!(
        "SELECT COUNT(*) FROM information_schema.triggers \
         WHERE event_object_schema = DATABASE() AND event_object_table = '{table}'"
    ))
}

/// The other caller is refused, and leaves no trigger.
async fn of_two_locks_at_the_same_time_one_guards_a_table(db: &TestDb) {
    let locks = db.locks().await;
    for round in 0..25 {
        let table = format!("invoices_{round}");
        db.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY)"));
        let callers = ["ledger", "bank"].map(|lock| {
            let (locks, table) = (locks.clone(), table.clone());
            tokio::spawn(async move { (lock, locks.guard_table(table, lock).await) })
        });
        let mut winners = Vec::new();
        for caller in callers {
            match caller.await.unwrap() {
                (lock, Ok(())) => winners.push(lock),
                (_, Err(refused)) => {
                    assert!(matches!(refused, Error::Rejected { .. }), "{refused:?}");
                    let said = refused.chain();
                    assert!(said.contains("is guarded by the lock \""), "{said}");
                }
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(triggers_of(db, &table), "3");
        let guard = locks.lock(winners[0]).acquire().await.unwrap();
        let mut writer = Writer::new(db);
        let insert = format!("INSERT INTO {table} VALUES (1)");
        writer.run_with(guard.grant_id(), &insert).unwrap();
    }
    assert_eq!(gaps(&locks).await, "");
    promise("P16", db.engine);
}

async fn a_second_lock_and_a_second_copy_are_gaps(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    for copy in triggers(db, "ledger", "copy") {
        create(&mut writer, &copy);
    }
    let said = gaps(&locks).await;
    assert!(said.contains("INSERT is checked by 2 triggers"), "{said}");
    assert!(
        said.contains("copy_insert, invoices_guard_insert"),
        "{said}"
    );
    // Guarded again, it has one guard.
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    assert_eq!(triggers_of(db, "invoices"), "3");

    for other in triggers(db, "bank", "other") {
        create(&mut writer, &other);
    }
    let found = locks.guarded_tables().await.unwrap();
    let of: Vec<&str> = found.iter().map(|one| one.lock.as_str()).collect();
    assert_eq!(of, ["bank", "ledger"]);
    for (guard, other) in found.iter().zip(["ledger", "bank"]) {
        let [gap] = &*guard.gaps else {
            panic!("{found:?}");
        };
        let second = format!("the lock \"{other}\" guards the table too");
        assert!(gap.contains(&second), "{gap}");
        assert!(gap.contains("`dblock unguard`"), "{gap}");
    }
    for lock in ["ledger", "bank"] {
        let said = refusal(&locks, "invoices", lock).await;
        assert!(said.contains("already"), "{said}");
    }
    assert!(locks.unguard_table("invoices").await.unwrap());
    assert_eq!(triggers_of(db, "invoices"), "0");
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(gaps(&locks).await, "");
    promise("P16", db.engine);
}

/// What a cascade empties fires no trigger, so its own cascades pass too.
async fn cascades_are_followed_through_guarded_parents(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE grandparents (id int PRIMARY KEY, child int)");
    for (table, parent) in [("parents", "grandparents"), ("children", "parents")] {
        db.sql(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, parent int, CONSTRAINT fk_{table} \
             FOREIGN KEY (parent) REFERENCES {parent} (id) ON DELETE CASCADE)"
        ));
        db.sql(&format!("INSERT INTO {parent} VALUES (1, NULL)"));
    }
    db.sql("UPDATE parents SET parent = 1");
    db.sql("INSERT INTO children VALUES (1, 1)");
    let allowing = locks.guard_table_allowing_cascades("parents", "ledger");
    allowing.await.unwrap();
    let said = refusal(&locks, "children", "ledger").await;
    assert!(
        said.contains("the foreign key fk_parents of parents cascades: a write to grandparents"),
        "{said}"
    );
    assert!(said.contains("rows of children"), "{said}");
    assert!(
        said.contains("guard grandparents by the same lock first"),
        "{said}"
    );
    let allowing = locks.guard_table_allowing_cascades("children", "ledger");
    allowing.await.unwrap();
    let bypass = "a write to grandparents passes by the cascade of fk_parents";
    assert_eq!(bypasses(&locks).await, [bypass, bypass]);
    // With all of them under the lock no write passes.
    assert!(locks.unguard_table("children").await.unwrap());
    locks.guard_table("grandparents", "ledger").await.unwrap();
    locks.guard_table("children", "ledger").await.unwrap();
    assert_eq!(bypasses(&locks).await, [""; 0]);
    Writer::new(db).is_refused("DELETE FROM grandparents");
    // A circle ends.
    db.sql(
        "ALTER TABLE grandparents ADD CONSTRAINT fk_grandparents \
         FOREIGN KEY (child) REFERENCES children (id) ON DELETE CASCADE",
    );
    assert_eq!(bypasses(&locks).await, [""; 0]);
    locks.guard_table("children", "ledger").await.unwrap();
    promise("P16", db.engine);
}

/// The first of its triggers is gone when another session ends the attempt.
async fn a_guard_that_is_half_removed_is_called_so(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("DROP TRIGGER invoices_guard_delete");
    let open = db.begin_with("SELECT * FROM invoices");
    let removing = tokio::spawn({
        let locks = locks.clone();
        async move { locks.unguard_table("invoices").await }
    });
    let waiting = format!(
        "SELECT id FROM information_schema.processlist WHERE info LIKE 'DROP TRIGGER%' \
         AND info LIKE '%{}%' AND state LIKE 'Waiting for table metadata lock%'",
        db.url.rsplit('/').next().unwrap()
    );
    let failed = loop {
        let id = db.sql(&waiting);
        if !id.is_empty() {
            // It may have ended meanwhile.
            let _ = Writer::new(db).session.run(&format!("KILL {id}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if removing.is_finished() {
            break removing.await.unwrap().unwrap_err();
        }
    };
    let said = failed.chain();
    assert!(
        said.contains("the guard of invoices is incomplete: guard it again"),
        "{said}"
    );
    assert!(said.contains("or unguard it"), "{said}");
    open.rollback();
    assert!(locks.unguard_table("invoices").await.unwrap());
    Writer::new(db).run(WRITES[0]);
    promise("P16", db.engine);
}

/// Its triggers stay, and its writes are in no transaction any more.
async fn a_table_that_has_another_engine_now_has_a_gap(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("ALTER TABLE invoices ENGINE = MyISAM");
    let said = gaps(&locks).await;
    assert!(said.contains("the table is of the engine MyISAM"), "{said}");
    assert!(said.contains("ALTER TABLE … ENGINE = InnoDB"), "{said}");
    let report = locks.doctor().await.unwrap();
    let found = report.findings.iter();
    let found = found.filter(|found| found.id == "guard-incomplete");
    assert_eq!(found.count(), 1, "{report:?}");
    let said = refusal(&locks, "invoices", "ledger").await;
    assert!(said.contains("is of the engine MyISAM"), "{said}");
    assert!(locks.unguard_table("invoices").await.unwrap());
    assert_eq!(triggers_of(db, "invoices"), "0");
    Writer::new(db).run(WRITES[1]);
    assert_eq!(total(db), "32");
    promise("P16", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        of_two_locks_at_the_same_time_one_guards_a_table,
        a_second_lock_and_a_second_copy_are_gaps,
        cascades_are_followed_through_guarded_parents,
        a_guard_that_is_half_removed_is_called_so,
        a_table_that_has_another_engine_now_has_a_gap,
    ); )* };
}
on!(mariadb, mysql);

/// The server's clock was set back since, or its time zone repeats an hour.
async fn a_session_whose_transaction_seems_to_begin_later_is_named(server: MySqlServer) {
    let url = server.fresh_database();
    let locks = Locks::connect(&url).await.unwrap();
    locks.migrate().await.unwrap();
    let _guard = ledger(&locks).await;
    let mut session = server.sql_session(&url);
    let id = session.run("SELECT CONNECTION_ID()").unwrap().remove(0);
    session.run("BEGIN").unwrap();
    session
        .run("SELECT id FROM database_locks_lock WHERE name = 'ledger' FOR UPDATE")
        .unwrap();
    let sql = |text: &str| server.query(&url, text).unwrap();
    sql("CREATE USER app@'127.0.0.1'");
    sql("GRANT SELECT, INSERT, UPDATE, DELETE, PROCESS ON *.* TO app@'127.0.0.1'");
    // Not run for a user with the right SUPER.
    sql("SET GLOBAL init_connect = 'SET timestamp = 1700000000'");
    let app = Locks::connect(url.replace("root@", "app@")).await.unwrap();
    let refused = app.force_release("ledger").await.unwrap_err().chain();
    assert!(refused.contains(&format!("id {id} (")), "{refused}");
    assert!(refused.contains("in a transaction for 0"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_transaction_seems_to_begin_later_is_named_on_mariadb() {
    if let Some(server) = MariaDb::options().start() {
        a_session_whose_transaction_seems_to_begin_later_is_named(server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_transaction_seems_to_begin_later_is_named_on_mysql() {
    if let Some(server) = MySql::options().start() {
        a_session_whose_transaction_seems_to_begin_later_is_named(server).await;
    }
}
