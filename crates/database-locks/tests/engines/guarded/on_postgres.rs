//! What PostgreSQL has besides INSERT, UPDATE and DELETE.

use std::process::{Command, Output};
use std::time::Duration;

use database_locks::Locks;
use testkit::{Postgres, TestDb, db_tests, promise};
use tokio_postgres::NoTls;

use super::{TIMEOUT, WRITES, Writer, guarded, ledger, total};

/// Each way to write: refused without the lock, even if it concerns no row, and done with it.
async fn every_statement_that_writes_is_refused(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE source (id int, amount int); INSERT INTO source VALUES (1, 1), (9, 9)");
    db.sql(
        "CREATE FUNCTION write_it() RETURNS void LANGUAGE sql SECURITY DEFINER AS \
         'UPDATE invoices SET amount = amount'",
    );
    let version: i32 = db.sql("SHOW server_version_num").parse().unwrap();
    let mut statements = vec![
        "UPDATE invoices SET amount = 1 WHERE false",
        "DELETE FROM invoices WHERE false",
        "INSERT INTO invoices SELECT * FROM source WHERE false",
        "INSERT INTO invoices SELECT * FROM source ON CONFLICT DO NOTHING",
        "INSERT INTO invoices SELECT * FROM source ON CONFLICT (id) DO UPDATE SET amount = 5",
        "WITH w AS (UPDATE invoices SET amount = 6 RETURNING 1) SELECT count(*) FROM w",
        "UPDATE invoices SET amount = s.amount FROM source s WHERE s.id = invoices.id",
        "COPY invoices FROM PROGRAM 'printf \"50\\t5\\n51\\t5\\n\"'",
        "TRUNCATE invoices",
        "TRUNCATE source, invoices",
        "SELECT write_it()",
        "DO $$ BEGIN UPDATE invoices SET amount = amount; END $$",
        "PREPARE p AS DELETE FROM invoices; EXECUTE p; DEALLOCATE p",
    ];
    if version >= 150_000 {
        statements.push(
            "MERGE INTO invoices i USING source s ON s.id = i.id WHEN MATCHED THEN UPDATE SET \
             amount = 4 WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.amount)",
        );
    }
    let mut writer = Writer::new(db);
    for statement in &statements {
        writer.is_refused(statement);
        writer.run("DEALLOCATE ALL");
    }
    assert_eq!(total(db), "30");
    let guard = ledger(&locks).await;
    for statement in &statements {
        let statement = statement.replace("EXECUTE p; ", "");
        writer.begin();
        writer.show(&guard.ticket().to_string());
        writer.run(&statement);
        writer.run("ROLLBACK");
    }
    promise("P16", db.engine);
}

fn writes(table: &str, id: i32, part: i32) -> [String; 3] {
    [
        format!("INSERT INTO {table} VALUES ({id}, {part})"),
        format!("UPDATE {table} SET id = id"),
        format!("DELETE FROM {table}"),
    ]
}

/// By statement triggers on each partition, and a row trigger for those that come later.
async fn partitions_are_guarded_however_they_are_written_to(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE events (id int, part int) PARTITION BY LIST (part); \
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1); \
         CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2) PARTITION BY LIST (id); \
         CREATE TABLE events_2_1 PARTITION OF events_2 FOR VALUES IN (1)",
    );
    locks.guard_table("events", "ledger").await.unwrap();
    let mut writer = Writer::new(db);
    for (table, id, part) in [
        ("events", 1, 1),
        ("events_1", 1, 1),
        ("events_2", 1, 2),
        ("events_2_1", 1, 2),
    ] {
        for write in writes(table, id, part) {
            writer.is_refused(&write);
        }
        writer.is_refused(&format!("TRUNCATE {table}"));
    }
    assert_eq!(locks.guarded_tables().await.unwrap()[0].gaps, [""; 0]);
    those_that_come_later_are_guarded(db, &locks, &mut writer).await;
    // A partition alone cannot be guarded, nor taken out.
    let part = locks
        .guard_table("events_1", "ledger")
        .await
        .unwrap_err()
        .chain();
    assert!(
        part.contains("events_1 is a part of events; guard events"),
        "{part}"
    );
    let part = locks.unguard_table("events_1").await.unwrap_err().chain();
    assert!(
        part.contains("is a part of events, which is guarded"),
        "{part}"
    );
    // One that is detached stays guarded.
    db.sql("ALTER TABLE events DETACH PARTITION events_1");
    writer.is_refused("INSERT INTO events_1 VALUES (1, 1)");
    assert!(locks.unguard_table("events_1").await.unwrap());
    assert!(locks.unguard_table("events").await.unwrap());
    assert_eq!(locks.guarded_tables().await.unwrap(), []);
    assert_eq!(
        db.sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"),
        "0"
    );
    writer.run("INSERT INTO events VALUES (3, 3)");
    promise("P16", db.engine);
}

async fn those_that_come_later_are_guarded(db: &TestDb, locks: &Locks, writer: &mut Writer) {
    // One that is added later, and one that is attached.
    db.sql(
        "CREATE TABLE events_3 PARTITION OF events FOR VALUES IN (3); \
         CREATE TABLE events_4 (id int, part int); \
         INSERT INTO events_4 VALUES (4, 4); \
         ALTER TABLE events ATTACH PARTITION events_4 FOR VALUES IN (4)",
    );
    let guard = ledger(locks).await;
    let ticket = guard.ticket().to_string();
    writer
        .run_with(&ticket, "INSERT INTO events VALUES (3, 3)")
        .unwrap();
    writer
        .run_with(&ticket, "INSERT INTO events_3 VALUES (3, 3)")
        .unwrap();
    guard.release().await.unwrap();
    for (table, part) in [("events_3", 3), ("events_4", 4)] {
        for write in writes(table, part, part) {
            writer.is_refused(&write);
            // A ticket that is out of date opens it no more than none.
            let refused = writer.run_with(&ticket, &write).unwrap_err();
            assert!(refused.contains("is guarded by lock"), "{refused}");
        }
    }
    let gaps = locks.guarded_tables().await.unwrap()[0].gaps.clone();
    assert_eq!(
        gaps,
        [
            "TRUNCATE of the later part events_3 passes",
            "TRUNCATE of the later part events_4 passes"
        ]
    );
    // Guarding again covers them, with no cost for each row.
    locks.guard_table("events", "ledger").await.unwrap();
    assert_eq!(locks.guarded_tables().await.unwrap()[0].gaps, [""; 0]);
    writer.is_refused("TRUNCATE events_3");
    let firing = "SELECT count(*) FROM pg_trigger WHERE tgtype & 1 = 1 AND tgenabled <> 'D' AND \
                  tgrelid IN (SELECT relid FROM pg_partition_tree('events') WHERE isleaf)";
    assert_eq!(db.sql(firing), "0");
}

async fn children_by_inheritance_are_guarded_too(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE a (id int); CREATE TABLE b () INHERITS (a); CREATE TABLE c () INHERITS (b)",
    );
    locks.guard_table("a", "ledger").await.unwrap();
    let mut writer = Writer::new(db);
    for table in ["a", "b", "c"] {
        writer.is_refused(&format!("INSERT INTO {table} VALUES (1)"));
    }
    db.sql("CREATE TABLE d () INHERITS (c)");
    let gaps = locks.guarded_tables().await.unwrap()[0].gaps.clone();
    assert_eq!(gaps, ["a direct write to the later part d passes"]);
    locks.guard_table("a", "ledger").await.unwrap();
    writer.is_refused("INSERT INTO d VALUES (1)");
    let refused = locks.guard_table("c", "bank").await.unwrap_err().chain();
    assert!(refused.contains("c is a part of b"), "{refused}");
}

/// Foreign keys that change or delete rows of a guarded table, or empty it.
async fn cascades_into_a_guarded_table_are_refused(db: &TestDb) {
    let locks = db.locks().await;
    db.sql(
        "CREATE TABLE customers (id int PRIMARY KEY); \
         CREATE TABLE bills (id int PRIMARY KEY, customer int REFERENCES customers \
            ON DELETE CASCADE ON UPDATE CASCADE); \
         CREATE TABLE notes (customer int REFERENCES customers ON DELETE SET NULL); \
         INSERT INTO customers VALUES (1), (2); INSERT INTO bills VALUES (1, 1); \
         INSERT INTO notes VALUES (2)",
    );
    locks.guard_table("bills", "ledger").await.unwrap();
    locks.guard_table("notes", "notes").await.unwrap();
    let mut writer = Writer::new(db);
    let writes = [
        "DELETE FROM customers WHERE id = 1",
        "UPDATE customers SET id = 3 WHERE id = 1",
        "TRUNCATE customers CASCADE",
        "DELETE FROM customers WHERE id = 2",
    ];
    for write in writes {
        writer.is_refused(write);
    }
    let both = locks.all(["ledger", "notes"]).acquire().await.unwrap();
    let tickets: Vec<String> = both.tickets().iter().map(ToString::to_string).collect();
    for write in writes {
        writer.begin();
        writer.show(&tickets.join(","));
        writer.run(write);
        writer.run("ROLLBACK");
    }
    promise("P16", db.engine);
}

/// A trigger that writes at the commit: by then the transaction has to hold the lock too.
async fn a_deferred_trigger_is_refused_at_the_commit(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql(
        "CREATE TABLE orders (id int); \
         CREATE FUNCTION bill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO invoices VALUES (NEW.id, 1); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER bill AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED \
           FOR EACH ROW EXECUTE FUNCTION bill()",
    );
    let guard = ledger(&locks).await;
    let ticket = guard.ticket().to_string();
    let mut writer = Writer::new(db);
    writer.begin();
    writer.run("INSERT INTO orders VALUES (10)");
    writer.is_refused("COMMIT");
    writer
        .run_with(&ticket, "INSERT INTO orders VALUES (10)")
        .unwrap();
    assert_eq!(total(db), "31");
    // The lock is lost between the statement and the commit.
    writer.begin();
    writer.show(&ticket);
    writer.run("INSERT INTO orders VALUES (11)");
    guard.release().await.unwrap();
    let _next = ledger(&locks).await;
    writer.is_refused("COMMIT");
    assert_eq!(total(db), "31");
    promise("P16", db.engine);
}

/// The fields of the error, for programs.
async fn a_refusal_names_lock_and_holder(db: &TestDb) {
    let locks = db.locks().await;
    let (table, name) = ("a_table_with_quite_a_long_name", "n".repeat(255));
    db.sql(&format!("CREATE TABLE {table} (id int)"));
    locks.guard_table(table, &name).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let write = format!("INSERT INTO {table} VALUES (1)");
    let refused = client.execute(&*write, &[]).await.unwrap_err();
    let error = refused.as_db_error().unwrap();
    assert_eq!(error.code().code(), "DL001");
    assert_eq!(
        (error.schema(), error.table()),
        (Some("public"), Some(table))
    );
    assert!(error.message().ends_with("which is free"), "{error:?}");
    assert!(
        error.hint().unwrap().contains("shows no ticket"),
        "{error:?}"
    );
    let holder = "a holder with a name that is rather long, and longer than any other one";
    let guard = locks.lock(&name).holder(holder).acquire().await.unwrap();
    client
        .execute("SET database_locks.ticket = 'stale'", &[])
        .await
        .unwrap();
    let refused = client.execute(&*write, &[]).await.unwrap_err();
    let error = refused.as_db_error().unwrap();
    let message = error.message();
    assert!(message.chars().count() <= 128, "{message}");
    assert!(
        message.contains("nnn...\", held by a holder with"),
        "{message}"
    );
    assert!(error.detail().unwrap().contains(holder), "{error:?}");
    assert!(error.detail().unwrap().contains(&name), "{error:?}");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("is not of the present grant"),
        "{error:?}"
    );
    drop(guard);
    promise("P16", db.engine);
}

fn run(program: &str, db: &TestDb, args: &[&str], ticket: Option<&str>) -> Output {
    let bin = Postgres::shared().unwrap().bin();
    let mut command = Command::new(bin.join(program));
    command
        .args(args)
        .arg("--dbname")
        .arg(&db.url)
        .env_remove("PGOPTIONS");
    if let Some(ticket) = ticket {
        command.env("PGOPTIONS", format!("-c database_locks.ticket={ticket}"));
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A dump of the database is restored with its guards; one of the table alone without; its data
/// alone takes the lock.
async fn dumps_are_restored(db: &TestDb) {
    let _locks = guarded(db).await;
    let dir = testkit::cleanup::ScratchDir::new("dumps");
    let file = |name: &str| dir.join(name).display().to_string();
    let (whole, table) = (file("whole"), file("table"));
    let dumped = run("pg_dump", db, &["-Fc", "-f", &whole], None);
    assert!(dumped.status.success(), "{}", text(&dumped));
    let dumped = run(
        "pg_dump",
        db,
        &["-Fc", "-t", "invoices", "-f", &table],
        None,
    );
    assert!(dumped.status.success(), "{}", text(&dumped));

    let other = TestDb::postgres().unwrap();
    let restored = run("pg_restore", &other, &[&whole], None);
    assert!(restored.status.success(), "{}", text(&restored));
    Writer::new(&other).is_refused(WRITES[0]);
    assert_eq!(total(&other), "30");
    let there = other.locks().await;
    let found = there.guarded_tables().await.unwrap();
    assert_eq!((found.len(), found[0].gaps.len()), (1, 0), "{found:?}");

    let third = TestDb::postgres().unwrap();
    let restored = run("pg_restore", &third, &[&table], None);
    assert!(
        text(&restored).contains("database_locks_guard() does not exist"),
        "{}",
        text(&restored)
    );
    Writer::new(&third).run(WRITES[0]);

    // The data alone: refused, and done under the lock, by PGOPTIONS as `dblock run` sets them.
    let restored = run(
        "pg_restore",
        &other,
        &["--data-only", "-t", "invoices", &whole],
        None,
    );
    assert!(
        text(&restored).contains("is guarded by lock"),
        "{}",
        text(&restored)
    );
    let guard = ledger(&there).await;
    Writer::new(&other)
        .run_with(guard.grant_id(), "TRUNCATE invoices")
        .unwrap();
    let args = ["--data-only", "-t", "invoices", &*whole];
    let restored = run("pg_restore", &other, &args, Some(guard.grant_id()));
    assert!(restored.status.success(), "{}", text(&restored));
    assert_eq!(total(&other), "30");
    promise("P16", db.engine);
}

/// In transaction mode the ticket of one client is never that of another, since a fence sets it for
/// its transaction alone.
async fn a_pooler_gives_no_ticket_to_another_client(db: &TestDb) {
    let locks = guarded(db).await;
    let guard = ledger(&locks).await;
    let connect = async || {
        let (client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let mut holder = connect().await;
    for _ in 0..8 {
        let mut tx = holder.transaction().await.unwrap();
        let open = guard.fence(&mut tx).await.unwrap();
        tx.batch_execute("UPDATE invoices SET amount = amount + 1")
            .await
            .unwrap();
        tx.commit().await.unwrap();
        drop(open);
        // The pool has four connections.
        for _ in 0..6 {
            let refused = connect().await.batch_execute(WRITES[1]).await.unwrap_err();
            assert_eq!(refused.code().unwrap().code(), "DL001");
        }
    }
    assert_eq!(total(db), "46");
    promise("P16", db.engine);
}

/// A transaction that is long open, and renewals that pass its row lock.
async fn renewals_pass_a_guarded_transaction(db: &TestDb) {
    let locks = guarded(db).await;
    let lock = locks
        .lock("ledger")
        .ttl(Duration::from_millis(4500))
        .wait(TIMEOUT);
    let guard = lock.acquire().await.unwrap();
    let mut writer = Writer::new(db);
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    tokio::time::sleep(Duration::from_millis(6000)).await;
    assert!(guard.is_held());
    guard.check().await.unwrap();
    writer.run(WRITES[1]);
    writer.run("COMMIT");
    assert_eq!(total(db), "34");
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        every_statement_that_writes_is_refused,
        partitions_are_guarded_however_they_are_written_to,
        children_by_inheritance_are_guarded_too,
        cascades_into_a_guarded_table_are_refused,
        a_deferred_trigger_is_refused_at_the_commit,
        a_refusal_names_lock_and_holder,
        renewals_pass_a_guarded_transaction,
    ); )* };
}
on!(
    postgres,
    #[ignore = "make prove"]
    postgres12
);
db_tests!(pgbouncer: a_pooler_gives_no_ticket_to_another_client);

mod with_clients_of_its_version {
    use super::dumps_are_restored;
    testkit::db_tests!(postgres: dumps_are_restored);
}

mod on_version_18 {
    use super::*;
    testkit::db_tests!(#[ignore = "make prove"] postgres18:
        every_statement_that_writes_is_refused,
        partitions_are_guarded_however_they_are_written_to,
        cascades_into_a_guarded_table_are_refused,
        a_deferred_trigger_is_refused_at_the_commit,
    );
}
