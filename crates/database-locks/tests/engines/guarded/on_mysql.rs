//! What MySQL and MariaDB have besides INSERT, UPDATE and DELETE, and what passes by a trigger.

use std::process::Command;
use std::time::Duration;

use database_locks::{Locks, Ttl};
use testkit::cleanup::ScratchDir;
use testkit::{MariaDb, MySql, MySqlServer, TestDb, db_tests, promise};

use super::{TIMEOUT, WRITES, Writer, guarded, ledger, total};

fn server(db: &TestDb) -> &'static MySqlServer {
    let shared = match db.engine {
        "mysql" => MySql::shared(),
        _ => MariaDb::shared(),
    };
    shared.expect("the database is on it")
}

fn database(db: &TestDb) -> &str {
    db.url.rsplit('/').next().unwrap_or_default()
}

async fn every_statement_that_writes_rows_is_refused(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE source (id int PRIMARY KEY, amount int)");
    db.sql("INSERT INTO source VALUES (1, 1), (9, 9)");
    db.sql("CREATE PROCEDURE write_it() SQL SECURITY DEFINER UPDATE invoices SET amount = 5");
    db.sql("CREATE VIEW seen AS SELECT * FROM invoices");
    let statements = [
        "INSERT INTO invoices SELECT * FROM source WHERE id = 9",
        "INSERT IGNORE INTO invoices SELECT * FROM source",
        "INSERT INTO invoices VALUES (1, 1) ON DUPLICATE KEY UPDATE amount = 5",
        "REPLACE INTO invoices VALUES (1, 5)",
        "UPDATE invoices i JOIN source s ON s.id = i.id SET i.amount = s.amount",
        "DELETE i FROM invoices i JOIN source s ON s.id = i.id",
        "UPDATE seen SET amount = 5",
        "CALL write_it()",
        "INSERT INTO invoices SELECT id + 100, 1 FROM database_locks_lock LIMIT 1",
    ];
    let guard = ledger(&locks).await;
    let mut writer = Writer::new(db);
    for statement in statements {
        writer.is_refused(statement);
    }
    assert_eq!(total(db), "30");
    for statement in statements {
        writer.begin();
        writer.show(&guard.ticket().to_string());
        writer.run(statement);
        writer.run("ROLLBACK");
    }
    // As documented: no trigger sees these.
    writer.run("SET @database_locks_ticket = NULL");
    writer.run("UPDATE invoices SET amount = 1 WHERE false");
    writer.run("TRUNCATE TABLE invoices");
    promise("P16", db.engine);
}

/// Cascades of foreign keys fire no trigger of the child.
async fn a_table_with_cascades_into_it_is_refused(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE customers (id int PRIMARY KEY)");
    for (table, rule) in [
        ("deleted", "ON DELETE CASCADE"),
        ("updated", "ON UPDATE CASCADE"),
        ("emptied", "ON DELETE SET NULL"),
    ] {
        db.sql(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, customer int, \
             CONSTRAINT fk_{table} FOREIGN KEY (customer) REFERENCES customers (id) {rule})"
        ));
        let refused = locks
            .guard_table(table, "ledger")
            .await
            .unwrap_err()
            .chain();
        assert!(
            refused.contains(&format!("the foreign key fk_{table} of {table} cascades")),
            "{refused}"
        );
        assert!(
            refused.contains("guard customers by the same lock first"),
            "{refused}"
        );
        locks
            .guard_table_allowing_cascades(table, "ledger")
            .await
            .unwrap();
        let found = locks.guarded_tables().await.unwrap();
        let bypass = format!("a write to customers passes by the cascade of fk_{table}");
        assert_eq!(found[0].bypasses, [bypass]);
        assert!(locks.unguard_table(table).await.unwrap());
    }
    // With the parent under the same lock no write passes.
    locks.guard_table("customers", "ledger").await.unwrap();
    locks.guard_table("deleted", "ledger").await.unwrap();
    let refused = locks
        .guard_table("updated", "bank")
        .await
        .unwrap_err()
        .chain();
    assert!(refused.contains("cascades"), "{refused}");
    let found = locks.guarded_tables().await.unwrap();
    assert_eq!(
        found.iter().flat_map(|one| &one.bypasses).count(),
        0,
        "{found:?}"
    );
    // A table that refers to itself, or by RESTRICT, is no case of it.
    db.sql(
        "CREATE TABLE tree (id int PRIMARY KEY, parent int, \
         FOREIGN KEY (parent) REFERENCES tree (id) ON DELETE CASCADE)",
    );
    locks.guard_table("tree", "ledger").await.unwrap();
    db.sql(
        "CREATE TABLE strict (id int PRIMARY KEY, customer int, \
         FOREIGN KEY (customer) REFERENCES customers (id))",
    );
    locks.guard_table("strict", "ledger").await.unwrap();
}

async fn other_engines_and_sequences_are_refused(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE old (id int) ENGINE = MyISAM");
    let refused = locks
        .guard_table("old", "ledger")
        .await
        .unwrap_err()
        .chain();
    assert!(refused.contains("is of the engine MyISAM"), "{refused}");
    if db.engine == "mariadb" {
        db.sql("CREATE SEQUENCE numbers");
        let refused = locks
            .guard_table("numbers", "ledger")
            .await
            .unwrap_err()
            .chain();
        assert!(
            refused.contains("is no table that can be guarded"),
            "{refused}"
        );
    }
}

/// The variable outlives the transaction: in a pool the next one shows a ticket that opens nothing
/// once the lock is released.
async fn the_ticket_of_a_session_outlives_its_transaction_and_not_its_grant(db: &TestDb) {
    let locks = guarded(db).await;
    let guard = ledger(&locks).await;
    let mut writer = Writer::new(db);
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    writer.run("COMMIT");
    // As documented: by the same holder, and not fenced by what went before.
    writer.run(WRITES[1]);
    guard.release().await.unwrap();
    writer.is_refused(WRITES[1]);
    let _next = ledger(&locks).await;
    writer.is_refused(WRITES[1]);
    assert_eq!(total(db), "34");
    promise("P16", db.engine);
}

/// The trigger's row lock keeps renewals waiting. They are tried again, and the lock is not lost if
/// the transaction ends in time.
async fn a_renewal_that_meets_a_guarded_transaction_is_tried_again(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    let lock = locks
        .lock("ledger")
        .ttl(Duration::from_secs(9))
        .wait(TIMEOUT);
    let guard = lock.acquire().await.unwrap();
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    // Renewals are due each 3 s.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(guard.is_held(), "{:?}", guard.loss());
    writer.run("COMMIT");
    tokio::time::sleep(Duration::from_millis(6000)).await;
    assert!(guard.is_held(), "{:?}", guard.loss());
    guard.check().await.unwrap();
    // A ticket that is out of date locks no row either, also while its transaction stays open.
    for level in ["READ COMMITTED", "REPEATABLE READ"] {
        let unlocked =
            "SELECT COUNT(*) FROM (SELECT id FROM database_locks_lock FOR UPDATE SKIP LOCKED) l";
        writer.begin_at(level);
        writer.show(&format!("1.{}.ledger", "0".repeat(32)));
        writer.is_refused(WRITES[1]);
        assert_eq!(Writer::new(db).run(unlocked), ["1"], "{level}");
        writer.run("ROLLBACK");
    }
    // A writer that shows no ticket locks no row, also while its transaction stays open.
    writer.run("SET @database_locks_ticket = NULL");
    writer.begin();
    writer.is_refused(WRITES[1]);
    tokio::time::sleep(Duration::from_millis(10_000)).await;
    assert!(guard.is_held(), "{:?}", guard.loss());
    writer.run("ROLLBACK");
    promise("P16", db.engine);
}

/// As before the first use of a lock, and after `prune`: a ticket locks no gap between names, into
/// which other clients insert the rows of new locks.
async fn a_ticket_of_a_lock_without_a_row_keeps_no_other_lock_waiting(db: &TestDb) {
    let locks = guarded(db).await;
    let other = db.locks().await;
    let mut writer = Writer::new(db);
    for (number, level) in ["READ COMMITTED", "REPEATABLE READ"].iter().enumerate() {
        db.sql("DELETE FROM database_locks_lock");
        writer.begin_at(level);
        writer.show(&format!("1.{}.ledger", "0".repeat(32)));
        writer.is_refused(WRITES[1]);
        for name in [&format!("other {number}"), "ledger"] {
            let lock = other.lock(name).wait(Duration::from_secs(10));
            lock.acquire().await.expect(level).release().await.unwrap();
        }
        writer.is_refused(WRITES[1]);
        writer.run("ROLLBACK");
    }
    let guard = ledger(&locks).await;
    writer.run_with(guard.grant_id(), WRITES[1]).unwrap();
    assert_eq!(total(db), "32");
    promise("P16", db.engine);
}

/// In REPEATABLE READ, where what it has read may be from before another holder's writes.
async fn a_snapshot_that_is_older_than_the_grant_is_refused(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    let mut last = ledger(&locks).await;
    for _ in 0..2 {
        // A ticket that the session has shown with success.
        writer.begin_at("REPEATABLE READ");
        writer.show(last.grant_id());
        writer.run(WRITES[1]);
        writer.run("COMMIT");
        writer.begin_at("REPEATABLE READ");
        writer.run("SELECT count(*) FROM invoices");
        last.release().await.unwrap();
        last = ledger(&locks).await;
        writer.show(last.grant_id());
        writer.is_refused(WRITES[1]);
        writer.run("ROLLBACK");
    }
    assert_eq!(total(db), "34");
    promise("P16", db.engine);
}

/// What a session remembers of a look at one lock opens no table of another lock, nor can a client
/// forge it.
async fn what_a_session_remembers_lets_no_write_pass(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE payments (id int PRIMARY KEY, amount int)");
    locks.guard_table("payments", "bank").await.unwrap();
    let pay = "INSERT INTO payments VALUES (1, 1)";
    let guard = ledger(&locks).await;
    let ticket = guard.ticket().to_string();
    let mut writer = Writer::new(db);
    writer.show(&ticket);
    writer.run(WRITES[1]);
    writer.is_refused(pay);
    let seen = writer.run("SELECT HEX(@database_locks_seen)").remove(0);
    assert!(!seen.is_empty() && seen != "NULL", "{seen}");
    guard.release().await.unwrap();
    // It remembers the ticket, and the check refuses it.
    writer.is_refused(WRITES[1]);
    let mut forger = Writer::new(db);
    forger.show(&ticket);
    forger.run(&format!("SET @database_locks_seen = UNHEX('{seen}')"));
    for write in WRITES {
        forger.is_refused(write);
    }
    assert_eq!(total(db), "32");
    promise("P16", db.engine);
}

/// Guarding is a statement for each of three triggers.
async fn a_guard_that_is_half_made_is_called_so_and_made_whole_by_the_next_run(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE other (id int)");
    let names = ["", "_2", "_3", "_4", "_5", "_6", "_7", "_8", "_9"];
    let take_names = || {
        for end in names {
            db.sql(&format!(
                "CREATE TRIGGER invoices_guard_delete{end} AFTER INSERT ON other FOR EACH ROW SET @a = 1"
            ));
        }
    };
    let free_names = || {
        for end in names {
            db.sql(&format!("DROP TRIGGER invoices_guard_delete{end}"));
        }
    };
    db.sql("DROP TRIGGER invoices_guard_delete");
    take_names();
    let failed = locks.guard_table("invoices", "ledger").await.unwrap_err();
    let said = failed.chain();
    assert!(
        said.contains("the guard of invoices is incomplete: guard it again"),
        "{said}"
    );
    free_names();
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(locks.guarded_tables().await.unwrap()[0].gaps, [""; 0]);
    // One that begins with none leaves none.
    assert!(locks.unguard_table("invoices").await.unwrap());
    take_names();
    let failed = locks.guard_table("invoices", "ledger").await.unwrap_err();
    assert!(!failed.chain().contains("incomplete"), "{}", failed.chain());
    assert_eq!(locks.guarded_tables().await.unwrap(), []);
    free_names();
}

/// Tables of locks of one name in two schemas have the same label in their triggers.
async fn a_table_of_locks_of_the_same_name_elsewhere_has_its_own_guards(db: &TestDb) {
    let locks = guarded(db).await;
    let other = match db.engine {
        "mysql" => TestDb::mysql(),
        _ => TestDb::mariadb(),
    };
    let other = other.unwrap();
    let elsewhere = other.locks().await;
    let table = format!("{}.invoices", database(db));
    assert_eq!(elsewhere.guarded_tables().await.unwrap(), []);
    assert!(!elsewhere.unguard_table(&table).await.unwrap());
    elsewhere.guard_table(&table, "bank").await.unwrap();
    let found = locks.guarded_tables().await.unwrap();
    assert_eq!(
        (found.len(), found[0].lock.as_str(), found[0].gaps.len()),
        (1, "ledger", 0)
    );
    let found = elsewhere.guarded_tables().await.unwrap();
    assert_eq!(
        (found.len(), found[0].lock.as_str(), found[0].gaps.len()),
        (1, "bank", 0)
    );
    let (one, two) = (ledger(&locks).await, elsewhere.lock("bank"));
    let two = two.acquire().await.unwrap();
    let mut writer = Writer::new(db);
    assert!(writer.run_with(one.grant_id(), WRITES[1]).is_err());
    assert!(writer.run_with(two.grant_id(), WRITES[1]).is_err());
    let both = format!("{},{}", one.grant_id(), two.grant_id());
    writer.run_with(&both, WRITES[1]).unwrap();
    assert!(elsewhere.unguard_table(&table).await.unwrap());
    assert_eq!(locks.guarded_tables().await.unwrap()[0].gaps, [""; 0]);
    writer.is_refused(WRITES[1]);
    promise("P16", db.engine);
}

/// A command-line client that may send files.
fn load(db: &TestDb, sql: &str) -> Result<(), String> {
    let mut mariadb = Command::new("mariadb");
    mariadb
        .args(["--no-defaults", "-uroot", "--local-infile=1", "--skip-ssl"])
        .arg("-S")
        .arg(server(db).socket())
        .arg(database(db))
        .args(["-e", sql]);
    let done = mariadb.output().unwrap();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}

async fn a_file_is_loaded_under_the_lock_alone(db: &TestDb) {
    let locks = guarded(db).await;
    let dir = ScratchDir::new("load");
    let file = dir.join("rows");
    std::fs::write(&file, "3\t30\n4\t40\n").unwrap();
    db.sql("SET GLOBAL local_infile = ON");
    let sql = format!(
        "LOAD DATA LOCAL INFILE '{}' INTO TABLE invoices",
        file.display()
    );
    let refused = load(db, &sql).unwrap_err();
    assert!(refused.contains("is guarded by lock"), "{refused}");
    let guard = ledger(&locks).await;
    let show = format!("SET @database_locks_ticket = '{}'", guard.ticket());
    load(db, &format!("{show}; {sql}")).unwrap();
    assert_eq!(total(db), "100");
    promise("P16", db.engine);
}

/// However they are named. What is DDL passes, as documented.
async fn partitions_are_guarded_with_their_table(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id) \
         (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20))",
    );
    db.sql("INSERT INTO events VALUES (1), (11)");
    locks.guard_table("events", "ledger").await.unwrap();
    db.sql("ALTER TABLE events ADD PARTITION (PARTITION p2 VALUES LESS THAN (30))");
    let writes = [
        "INSERT INTO events VALUES (2), (12), (22)",
        "INSERT INTO events PARTITION (p2) VALUES (21)",
        "UPDATE events PARTITION (p1) SET id = id + 1",
        "UPDATE events SET id = id + 10 ORDER BY id DESC",
        "DELETE FROM events PARTITION (p0)",
    ];
    let guard = ledger(&locks).await;
    let mut writer = Writer::new(db);
    for write in writes {
        writer.is_refused(write);
        writer.begin();
        writer.show(guard.grant_id());
        writer.run(write);
        writer.run("ROLLBACK");
        writer.run("SET @database_locks_ticket = NULL");
    }
    db.sql("CREATE TABLE spare (id int PRIMARY KEY)");
    writer.run("ALTER TABLE events EXCHANGE PARTITION p0 WITH TABLE spare");
    writer.run("ALTER TABLE events TRUNCATE PARTITION p1");
    promise("P16", db.engine);
}

/// As documented: a cascade fires no trigger.
async fn a_cascade_into_a_table_that_is_guarded_all_the_same_passes(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE customers (id int PRIMARY KEY)");
    db.sql(
        "CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL, customer int, \
         FOREIGN KEY (customer) REFERENCES customers (id) ON DELETE CASCADE)",
    );
    db.sql("INSERT INTO customers VALUES (1)");
    db.sql("INSERT INTO invoices VALUES (1, 10, 1), (2, 20, NULL)");
    locks
        .guard_table_allowing_cascades("invoices", "ledger")
        .await
        .unwrap();
    let mut writer = Writer::new(db);
    writer.is_refused("DELETE FROM invoices");
    writer.run("DELETE FROM customers");
    assert_eq!(total(db), "20");
}

/// As documented: a trigger reads the temporary table of its session in place of one of the same
/// name. It takes the right to make one in the schema of the locks.
async fn a_temporary_table_in_place_of_the_locks_is_believed(db: &TestDb) {
    let locks = guarded(db).await;
    let _guard = ledger(&locks).await;
    let mut writer = Writer::new(db);
    writer.run("CREATE TEMPORARY TABLE forged LIKE database_locks_lock");
    writer.run("ALTER TABLE forged RENAME TO database_locks_lock");
    let grant = "a".repeat(32);
    writer.run(&format!(
        "INSERT INTO database_locks_lock (name, grant_id, granted_until, expires_at) \
         VALUES ('ledger', '{grant}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))"
    ));
    writer.show(&grant);
    writer.run(WRITES[1]);
    // Not those of other sessions, and not after it.
    let mut other = Writer::new(db);
    other.show(&grant);
    other.is_refused(WRITES[1]);
    writer.run("DROP TEMPORARY TABLE database_locks_lock");
    writer.is_refused(WRITES[1]);
    assert_eq!(total(db), "32");
}

/// A trigger of a table that was renamed keeps its name.
async fn a_renamed_table_stays_guarded(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("RENAME TABLE invoices TO invoices_old");
    db.sql("CREATE TABLE invoices LIKE invoices_old");
    let mut writer = Writer::new(db);
    writer.is_refused("UPDATE invoices_old SET amount = 1");
    writer.run("INSERT INTO invoices VALUES (1, 1)");
    locks.guard_table("invoices", "ledger").await.unwrap();
    writer.is_refused(WRITES[1]);
    let found = locks.guarded_tables().await.unwrap();
    let tables: Vec<&str> = found.iter().map(|one| &*one.table).collect();
    assert_eq!(tables, ["invoices", "invoices_old"]);
    assert_eq!(found[0].gaps, [""; 0]);
    // Its message has the former name until it is made anew, and it refuses as before.
    assert_eq!(found[1].gaps, [""; 0]);
    let message = writer.is_refused("UPDATE invoices_old SET amount = 1");
    assert!(message.contains("table invoices is guarded"), "{message}");
    locks.guard_table("invoices_old", "ledger").await.unwrap();
    let message = writer.is_refused("UPDATE invoices_old SET amount = 1");
    assert!(message.contains("table invoices_old is"), "{message}");
    let found = locks.guarded_tables().await.unwrap();
    assert!(found.iter().all(|one| one.gaps.is_empty()), "{found:?}");
    assert!(locks.unguard_table("invoices_old").await.unwrap());
    writer.is_refused(WRITES[1]);
    db.sql("DROP TRIGGER invoices_guard_delete_2");
    let found = locks.guarded_tables().await.unwrap();
    assert_eq!(found[0].gaps, ["DELETE passes: its trigger is missing"]);
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert!(locks.guarded_tables().await.unwrap()[0].gaps.is_empty());
}

/// Who guards needs TRIGGER on the table and SELECT on the locks; who writes neither. The message has
/// no more than 128 characters.
async fn least_privilege_is_enough(db: &TestDb) {
    let locks = guarded(db).await;
    locks.unguard_table("invoices").await.unwrap();
    let database = database(db);
    let user = |name: &str| format!("{name}_{database}@'127.0.0.1'");
    let (owner, clerk) = (user("own"), user("clerk"));
    for user in [&owner, &clerk] {
        db.sql(&format!("CREATE USER {user}"));
    }
    db.sql(&format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.invoices TO {clerk}"
    ));
    db.sql(&format!("GRANT SELECT ON {database}.invoices TO {owner}"));
    db.sql(&format!(
        "GRANT SELECT ON {database}.database_locks_lock TO {owner}"
    ));
    let url = |name: &str| {
        let (_, at) = db.url.split_once('@').unwrap();
        format!("mysql://{name}_{database}@{at}")
    };
    let of_owner = Locks::connect(&url("own")).await.unwrap();
    let refused = of_owner
        .guard_table("invoices", "ledger")
        .await
        .unwrap_err()
        .chain();
    assert!(refused.contains("GRANT TRIGGER ON"), "{refused}");
    assert_eq!(locks.guarded_tables().await.unwrap(), []);
    db.sql(&format!("GRANT TRIGGER ON {database}.invoices TO {owner}"));
    of_owner.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(of_owner.guarded_tables().await.unwrap().len(), 1);

    let guard = ledger(&locks).await;
    let client = |sql: &str| {
        let mut mariadb = Command::new("mariadb");
        mariadb
            .args(["--no-defaults", "-h127.0.0.1"])
            .arg(format!("-P{}", server(db).port()));
        mariadb
            .arg(format!("-uclerk_{database}"))
            .arg(database)
            .args(["-e", sql]);
        let done = mariadb.output().unwrap();
        (
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    assert!(!client("SELECT * FROM database_locks_lock").0);
    let (done, message) = client(WRITES[1]);
    assert!(!done && message.contains("ERROR 1644 (DL001)"), "{message}");
    let ticket = guard.ticket();
    let (done, message) = client(&format!(
        "SET @database_locks_ticket = '{ticket}'; {}",
        WRITES[1]
    ));
    assert!(done, "{message}");
    assert_eq!(total(db), "32");
    promise("P16", db.engine);
}

/// A dump of the database is restored with its guards, in a database of another name too; the data
/// alone takes the ticket.
async fn dumps_are_restored(db: &TestDb) {
    let locks = guarded(db).await;
    let _ = locks;
    let name = database(db);
    let socket = server(db).socket();
    let run = |program: &str, args: &[&str], input: Option<&std::path::Path>| {
        let mut command = Command::new(program);
        command
            .args(["--no-defaults", "-uroot"])
            .arg("-S")
            .arg(&socket)
            .args(args);
        if let Some(input) = input {
            command.stdin(std::fs::File::open(input).unwrap());
        }
        let done = command.output().unwrap();
        (
            done.status.success(),
            done.stdout,
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let dir = ScratchDir::new("dumps");
    let dump = |file: &str, args: &[&str]| {
        let (done, text, error) = run("mariadb-dump", args, None);
        assert!(done, "{error}");
        std::fs::write(dir.join(file), text).unwrap();
        dir.join(file)
    };
    let options = ["--skip-lock-tables", "--no-tablespaces", "--skip-ssl"];
    let whole = dump("whole", &[&options[..], &[name]].concat());
    let without = ["--no-create-info", "--skip-triggers", name, "invoices"];
    let data = dump("data", &[&options[..], &without[..]].concat());

    let other = match db.engine {
        "mysql" => TestDb::mysql(),
        _ => TestDb::mariadb(),
    };
    let other = other.unwrap();
    let target = database(&other);
    let (done, _, error) = run("mariadb", &["--skip-ssl", target], Some(&whole));
    assert!(done, "{error}");
    Writer::new(&other).is_refused(WRITES[0]);
    assert_eq!(total(&other), "30");
    let there = other.locks().await;
    let found = there.guarded_tables().await.unwrap();
    assert_eq!((found.len(), found[0].gaps.len()), (1, 0), "{found:?}");
    let guard = ledger(&there).await;
    let ticket = guard.ticket().to_string();
    Writer::new(&other)
        .run_with(&ticket, "DELETE FROM invoices")
        .unwrap();
    let (done, _, error) = run("mariadb", &["--skip-ssl", target], Some(&data));
    assert!(!done && error.contains("is guarded by lock"), "{error}");
    let init = format!("--init-command=SET @database_locks_ticket = '{ticket}'");
    let (done, _, error) = run("mariadb", &["--skip-ssl", &init, target], Some(&data));
    assert!(done, "{error}");
    assert_eq!(total(&other), "30");
    promise("P16", db.engine);
}

/// A lock without an end.
async fn an_infinite_lease_opens_the_guard(db: &TestDb) {
    let locks = guarded(db).await;
    let lock = locks.lock("ledger").ttl(Ttl::Infinite);
    let guard = lock.acquire().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    Writer::new(db)
        .run_with(guard.grant_id(), WRITES[1])
        .unwrap();
    guard.release().await.unwrap();
    assert_eq!(total(db), "32");
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        every_statement_that_writes_rows_is_refused,
        a_table_with_cascades_into_it_is_refused,
        other_engines_and_sequences_are_refused,
        the_ticket_of_a_session_outlives_its_transaction_and_not_its_grant,
        a_renewal_that_meets_a_guarded_transaction_is_tried_again,
        a_ticket_of_a_lock_without_a_row_keeps_no_other_lock_waiting,
        a_snapshot_that_is_older_than_the_grant_is_refused,
        what_a_session_remembers_lets_no_write_pass,
        a_guard_that_is_half_made_is_called_so_and_made_whole_by_the_next_run,
        a_table_of_locks_of_the_same_name_elsewhere_has_its_own_guards,
        a_file_is_loaded_under_the_lock_alone,
        partitions_are_guarded_with_their_table,
        a_cascade_into_a_table_that_is_guarded_all_the_same_passes,
        a_temporary_table_in_place_of_the_locks_is_believed,
        a_renamed_table_stays_guarded,
        least_privilege_is_enough,
        dumps_are_restored,
        an_infinite_lease_opens_the_guard,
    ); )* };
}
on!(mariadb, mysql);

/// Where the binary log is on, a trigger takes SUPER or a setting of the server: the error says so.
async fn the_restriction_of_the_binary_log_is_explained(server: MySqlServer) {
    let url = server.fresh_database();
    let name = url.rsplit('/').next().unwrap().to_owned();
    let locks = Locks::connect(&url).await.unwrap();
    locks.migrate().await.unwrap();
    let sql = |text: &str| server.query(&url, text).unwrap();
    sql("CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)");
    sql("CREATE USER app@'127.0.0.1'");
    sql(&format!("GRANT ALL ON {name}.* TO app@'127.0.0.1'"));
    let of_app = url.replace("root@", "app@");
    assert_ne!(of_app, url);
    let app = Locks::connect(&of_app).await.unwrap();
    let refused = app
        .guard_table("invoices", "ledger")
        .await
        .unwrap_err()
        .chain();
    assert!(
        refused.contains("log_bin_trust_function_creators = 1"),
        "{refused}"
    );
    assert!(
        refused.contains("the binary log of the server is on"),
        "{refused}"
    );
    assert_eq!(locks.guarded_tables().await.unwrap(), []);
    sql("SET GLOBAL log_bin_trust_function_creators = 1");
    app.guard_table("invoices", "ledger").await.unwrap();
    assert!(
        server
            .query(&url, WRITES[0])
            .unwrap_err()
            .to_string()
            .contains("DL001")
    );
    let guard = app.lock("ledger").acquire().await.unwrap();
    let write = format!(
        "SET @database_locks_ticket = '{}'; {}",
        guard.ticket(),
        WRITES[0]
    );
    sql(&write);
    assert_eq!(sql("SELECT sum(amount) FROM invoices"), "70");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restriction_of_the_binary_log_is_explained_on_mariadb() {
    let options = MariaDb::options().set("log-bin=binlog").set("server-id=7");
    if let Some(server) = options.start() {
        the_restriction_of_the_binary_log_is_explained(server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_restriction_of_the_binary_log_is_explained_on_mysql() {
    let options = MySql::options().set("log-bin=binlog").set("server-id=7");
    if let Some(server) = options.start() {
        the_restriction_of_the_binary_log_is_explained(server).await;
    }
}
