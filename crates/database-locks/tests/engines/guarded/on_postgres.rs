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
    let direct = |table: &str, id: i32, part: i32| {
        [
            format!("INSERT INTO {table} VALUES ({id}, {part})"),
            format!("UPDATE {table} SET id = id"),
            format!("DELETE FROM {table}"),
        ]
    };
    for (table, id, part) in [
        ("events", 1, 1),
        ("events_1", 1, 1),
        ("events_2", 1, 2),
        ("events_2_1", 1, 2),
    ] {
        for write in direct(table, id, part) {
            writer.is_refused(&write);
        }
        writer.is_refused(&format!("TRUNCATE {table}"));
    }
    assert_eq!(locks.guarded_tables().await.unwrap()[0].gaps, [""; 0]);
    // One that is added later, and one that is attached.
    db.sql(
        "CREATE TABLE events_3 PARTITION OF events FOR VALUES IN (3); \
         CREATE TABLE events_4 (id int, part int); \
         INSERT INTO events_4 VALUES (4, 4); \
         ALTER TABLE events ATTACH PARTITION events_4 FOR VALUES IN (4)",
    );
    let guard = ledger(&locks).await;
    let ticket = guard.ticket().to_string();
    writer
        .run_with(&ticket, "INSERT INTO events VALUES (3, 3)")
        .unwrap();
    writer
        .run_with(&ticket, "INSERT INTO events_3 VALUES (3, 3)")
        .unwrap();
    guard.release().await.unwrap();
    for (table, part) in [("events_3", 3), ("events_4", 4)] {
        for write in direct(table, part, part) {
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

/// Functions and operators of the same names, tables in its own schema, a temporary table: none is
/// called instead.
async fn a_search_path_fools_no_guard(db: &TestDb) {
    let _locks = guarded(db).await;
    let user = format!("mallory_{}", db.url.rsplit('/').next().unwrap());
    db.sql(&format!(
        "CREATE ROLE {user} LOGIN; CREATE SCHEMA {user} AUTHORIZATION {user}; \
         GRANT INSERT, UPDATE, DELETE, SELECT ON invoices TO {user}; \
         GRANT TEMPORARY ON DATABASE {} TO {user}",
        db.url.rsplit('/').next().unwrap()
    ));
    let mut writer = Writer::new(db);
    writer.run(&format!("SET SESSION AUTHORIZATION {user}"));
    writer.run(&format!("SET search_path = {user}, pg_catalog, public"));
    for lie in [
        "CREATE FUNCTION strpos(text, text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION strpos(text, character) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION length(character) RETURNS int LANGUAGE sql AS 'SELECT 32'",
        "CREATE FUNCTION current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
        "CREATE FUNCTION true_(anyelement, anyelement) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE TABLE database_locks_lock (name text, grant_id char(32), granted_until timestamptz, \
            expires_at timestamptz, locked_by text)",
        "INSERT INTO database_locks_lock VALUES ('ledger', 'x', now(), now(), 'me')",
        "CREATE TEMPORARY TABLE database_locks_lock (LIKE database_locks_lock)",
        "INSERT INTO pg_temp.database_locks_lock VALUES ('ledger', repeat('a', 32), now(), now(), 'me')",
        "CREATE FUNCTION text_true(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = text_true)",
    ] {
        writer.run(lie);
    }
    for ticket in ["x", &"a".repeat(32)] {
        writer.run(&format!("SET database_locks.ticket = '{ticket}'"));
        writer.is_refused("UPDATE public.invoices SET amount = 1");
        writer.is_refused("INSERT INTO public.invoices VALUES (77, 1)");
    }
    // Nor can it remove the guard, or replace its function.
    for change in [
        "DROP TRIGGER database_locks_guard ON public.invoices",
        "ALTER TABLE public.invoices DISABLE TRIGGER ALL",
        "DROP FUNCTION public.database_locks_guard()",
        "CREATE OR REPLACE FUNCTION public.database_locks_guard() RETURNS trigger LANGUAGE plpgsql AS \
            'BEGIN RETURN NULL; END'",
        "SET session_replication_role = replica",
    ] {
        let refused = writer.session.run(change).unwrap_err().to_string();
        assert!(
            refused.contains("must be owner") || refused.contains("permission denied"),
            "{refused}"
        );
    }
    promise("P16", db.engine);
}

/// A writer needs no right on the table of locks, and a role that guards only those that the error
/// names.
async fn least_privilege_is_enough(db: &TestDb) {
    let locks = db.locks().await;
    let database = db.url.rsplit('/').next().unwrap();
    let (owner, clerk) = (format!("owner_{database}"), format!("writer_{database}"));
    db.sql(&format!(
        "CREATE ROLE {owner} LOGIN; CREATE ROLE {clerk} LOGIN; \
         REVOKE ALL ON SCHEMA public FROM PUBLIC; \
         GRANT USAGE ON SCHEMA public TO {owner}, {clerk}; \
         CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL); \
         INSERT INTO invoices VALUES (1, 10), (2, 20); \
         GRANT SELECT, INSERT, UPDATE, DELETE ON invoices TO {clerk}"
    ));
    let url = db.url.replace("postgres@", &format!("{owner}@"));
    let of_owner = Locks::connect(&url).await.unwrap();
    let mut refusals = Vec::new();
    for grant in [
        format!("GRANT TRIGGER ON invoices TO {owner}"),
        format!("GRANT SELECT, UPDATE ON database_locks_lock TO {owner}"),
        format!("GRANT CREATE ON SCHEMA public TO {owner}"),
    ] {
        let refused = of_owner
            .guard_table("invoices", "ledger")
            .await
            .unwrap_err();
        refusals.push(refused.chain());
        db.sql(&grant);
    }
    assert!(
        refusals[0].contains("may not create a trigger on invoices"),
        "{refusals:?}"
    );
    assert!(
        refusals[0].contains("GRANT TRIGGER ON invoices TO"),
        "{refusals:?}"
    );
    assert!(
        refusals[1].contains("lacks SELECT or UPDATE on database_locks_lock"),
        "{refusals:?}"
    );
    assert!(
        refusals[2].contains("may not create the trigger function"),
        "{refusals:?}"
    );
    of_owner.guard_table("invoices", "ledger").await.unwrap();
    // Another one that guards a table later needs no more than the right to its triggers.
    db.sql(&format!(
        "CREATE TABLE other (id int); GRANT TRIGGER ON other TO {clerk}"
    ));
    let url = db.url.replace("postgres@", &format!("{clerk}@"));
    let of_clerk = Locks::connect(&url).await.unwrap();
    of_clerk.guard_table("other", "ledger").await.unwrap();
    let refused = of_clerk.unguard_table("other").await.unwrap_err().chain();
    assert!(
        refused.contains("does not own other; only its owner"),
        "{refused}"
    );

    let guard = ledger(&locks).await;
    let mut writer = Writer::new(db);
    writer.run(&format!("SET SESSION AUTHORIZATION {clerk}"));
    assert!(
        writer
            .session
            .run("SELECT * FROM database_locks_lock")
            .is_err()
    );
    let message = writer.is_refused(WRITES[1]);
    assert!(message.contains(guard.holder()), "{message}");
    writer
        .run_with(&guard.ticket().to_string(), WRITES[1])
        .unwrap();
    // The function's owner has lost its rights: refused, and found.
    db.sql(&format!(
        "REVOKE UPDATE ON database_locks_lock FROM {owner}"
    ));
    assert!(
        writer
            .run_with(&guard.ticket().to_string(), WRITES[1])
            .is_err()
    );
    let found = locks.guarded_tables().await.unwrap();
    assert!(found[0].gaps[0].contains("lacks rights"), "{found:?}");
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

/// What an owner or an administrator can do is found.
async fn a_guard_that_is_switched_off_is_found(db: &TestDb) {
    let locks = guarded(db).await;
    let gaps = async || locks.guarded_tables().await.unwrap()[0].gaps.join("; ");
    assert_eq!(gaps().await, "");
    for mode in ["DISABLE", "ENABLE REPLICA"] {
        db.sql(&format!(
            "ALTER TABLE invoices {mode} TRIGGER database_locks_guard"
        ));
        assert_eq!(
            gaps().await,
            "the trigger of invoices is disabled",
            "{mode}"
        );
        Writer::new(db).run("UPDATE invoices SET amount = amount");
        locks.guard_table("invoices", "ledger").await.unwrap();
        assert_eq!(gaps().await, "", "{mode}");
        Writer::new(db).is_refused(WRITES[0]);
    }
    db.sql(
        "CREATE OR REPLACE FUNCTION database_locks_guard() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN NULL; END'",
    );
    assert!(
        gaps().await.contains("of another version"),
        "{}",
        gaps().await
    );
    Writer::new(db).run("UPDATE invoices SET amount = amount");
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(gaps().await, "");
    Writer::new(db).is_refused(WRITES[0]);
    // It has become a partition of a table that is not guarded.
    db.sql(
        "CREATE TABLE root (id int NOT NULL, amount int NOT NULL) PARTITION BY LIST (id); \
         ALTER TABLE root ATTACH PARTITION invoices DEFAULT",
    );
    assert!(
        gaps()
            .await
            .contains("a write to root, of which it is a part"),
        "{}",
        gaps().await
    );
    // Replication's workers pass, as does an administrator who says so.
    let mut writer = Writer::new(db);
    writer.run("SET session_replication_role = replica");
    writer.run("UPDATE invoices SET amount = amount");
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
        .ttl(Duration::from_millis(900))
        .wait(TIMEOUT);
    let guard = lock.acquire().await.unwrap();
    let mut writer = Writer::new(db);
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    tokio::time::sleep(Duration::from_millis(2700)).await;
    assert!(guard.is_held());
    guard.check().await.unwrap();
    writer.run(WRITES[1]);
    writer.run("COMMIT");
    assert_eq!(total(db), "34");
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        every_statement_that_writes_is_refused,
        partitions_are_guarded_however_they_are_written_to,
        children_by_inheritance_are_guarded_too,
        cascades_into_a_guarded_table_are_refused,
        a_deferred_trigger_is_refused_at_the_commit,
        a_search_path_fools_no_guard,
        least_privilege_is_enough,
        a_refusal_names_lock_and_holder,
        a_guard_that_is_switched_off_is_found,
        renewals_pass_a_guarded_transaction,
    ); )* };
}
on!(postgres);
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
        a_search_path_fools_no_guard,
        a_guard_that_is_switched_off_is_found,
    );
}
