//! Putting tables under guard: names, rights, and what is refused.

use std::time::Duration;

use database_locks::{Error, Locks};
use testkit::time::now;
use testkit::{TestDb, db_tests, promise};

use super::{TIMEOUT, WRITES, Writer, guarded};

fn said(error: &Error) -> String {
    assert!(
        matches!(error, Error::Rejected { .. } | Error::Config { .. }),
        "{error:?}"
    );
    error.chain()
}

async fn a_second_guard_changes_nothing(db: &TestDb) {
    let locks = guarded(db).await;
    let one = locks.guarded_tables().await.unwrap();
    assert_eq!(one.len(), 1, "{one:?}");
    assert_eq!(
        (&*one[0].table, one[0].lock.as_str()),
        ("invoices", "ledger")
    );
    assert!(
        one[0].gaps.is_empty() && one[0].bypasses.is_empty(),
        "{one:?}"
    );
    locks.guard_table("invoices", "ledger").await.unwrap();
    assert_eq!(locks.guarded_tables().await.unwrap(), one);
    let other = locks.guard_table("invoices", "bank").await.unwrap_err();
    assert!(
        said(&other).contains("guarded by the lock \"ledger\" already"),
        "{}",
        said(&other)
    );
    assert_eq!(locks.guarded_tables().await.unwrap(), one);
    assert!(locks.unguard_table("invoices").await.unwrap());
    assert!(
        !locks.unguard_table("invoices").await.unwrap(),
        "there is none any more"
    );
    assert_eq!(locks.guarded_tables().await.unwrap(), []);
    locks.guard_table("invoices", "bank").await.unwrap();
    assert_eq!(locks.guarded_tables().await.unwrap()[0].lock, "bank");
    promise("P16", db.engine);
}

/// Several programs that migrate at once.
async fn guards_at_the_same_time_succeed(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)");
    let mut all = Vec::new();
    for _ in 0..6 {
        let locks = Locks::connect(&db.url).await.unwrap();
        all.push(tokio::spawn(async move {
            locks.guard_table("invoices", "ledger").await
        }));
    }
    for one in all {
        one.await.unwrap().unwrap();
    }
    let found = locks.guarded_tables().await.unwrap();
    assert_eq!((found.len(), found[0].gaps.len()), (1, 0), "{found:?}");
    if db.is_mysql_like() {
        let triggers = "SELECT COUNT(*) FROM information_schema.triggers \
                        WHERE event_object_schema = DATABASE()";
        assert_eq!(db.sql(triggers), "3");
    }
    Writer::new(db).is_refused(WRITES[0]);
}

async fn names_of_tables_and_locks_are_quoted(db: &TestDb) {
    let locks = db.locks().await;
    let quote = |name: &str| match db.is_mysql_like() {
        true => format!("`{}`", name.replace('`', "``")),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    };
    let long = "n".repeat(63);
    let tables = [
        "Order",
        "it's; DROP TABLE x; --",
        "ä b",
        "a\"b`c",
        "%s %I $1",
        &long,
    ];
    let names = [
        "it's \"a\" näme \\ 100% :'name' $1",
        &"𝄞".repeat(255),
        " ",
        "'",
        "\\",
        "a\nb",
    ];
    for (table, name) in tables.iter().zip(names) {
        let table = quote(table);
        db.sql(&format!("CREATE TABLE {table} (a int)"));
        locks.guard_table(&table, name).await.unwrap();
        let insert = format!("INSERT INTO {table} VALUES (1)");
        let mut writer = Writer::new(db);
        writer.is_refused(&insert);
        let guard = locks.lock(name).acquire().await.unwrap();
        writer
            .run_with(&guard.ticket().to_string(), &insert)
            .unwrap();
        let found = locks.guarded_tables().await.unwrap();
        assert_eq!(
            (found.len(), found[0].lock.as_str()),
            (1, name),
            "{found:?}"
        );
        assert_eq!(found[0].gaps, [""; 0], "{table}");
        if !db.is_mysql_like() {
            assert_eq!(found[0].table.trim_matches('"'), table.trim_matches('"'));
        }
        assert!(locks.unguard_table(&table).await.unwrap());
        writer.run(&insert);
    }
    // In another schema, which is another database on MySQL.
    let schema = format!("other_{}", db.url.rsplit('/').next().unwrap());
    db.sql(&format!("CREATE SCHEMA {schema}"));
    db.sql(&format!("CREATE TABLE {schema}.bills (a int)"));
    let table = format!("{schema}.bills");
    locks.guard_table(&table, "ledger").await.unwrap();
    let insert = format!("INSERT INTO {table} VALUES (1)");
    Writer::new(db).is_refused(&insert);
    let guard = locks.lock("ledger").acquire().await.unwrap();
    Writer::new(db).run_with(guard.grant_id(), &insert).unwrap();
    assert_eq!(locks.guarded_tables().await.unwrap()[0].table, table);
    assert!(locks.unguard_table(&table).await.unwrap());
    db.sql(&format!("DROP TABLE {table}"));
    db.sql(&format!("DROP SCHEMA {schema}"));
}

async fn what_cannot_be_guarded_is_refused_with_the_reason(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE VIEW seen AS SELECT * FROM invoices");
    for (table, reason) in [
        ("no_such_table", "there is no table no_such_table"),
        ("no_such_schema.invoices", "there is no table"),
        ("seen", "is a view; guard the tables"),
        ("database_locks_lock", "is the table of the locks"),
        ("database_locks_permit", "is the table of the locks"),
        ("a.b.c.d", "is not the name of a table"),
        ("", "must be TABLE or SCHEMA.TABLE"),
        ("a\0b", "must be TABLE or SCHEMA.TABLE"),
    ] {
        let refused = locks.guard_table(table, "ledger").await.unwrap_err();
        let message = said(&refused);
        assert!(message.contains(reason), "{table}: {message}");
    }
    let refused = locks.guard_table("invoices", "").await.unwrap_err();
    assert!(matches!(refused, Error::Config { .. }), "{refused:?}");
    let refused = locks.unguard_table("no_such_table").await.unwrap_err();
    assert!(
        said(&refused).contains("there is no table"),
        "{}",
        said(&refused)
    );
    let before_init = Locks::builder(&db.url)
        .table("other_locks")
        .connect()
        .await
        .unwrap();
    let refused = before_init
        .guard_table("invoices", "ledger")
        .await
        .unwrap_err();
    assert!(said(&refused).contains("dblock init"), "{}", said(&refused));
}

/// Another table of locks has guards of its own.
async fn each_table_of_locks_has_its_guards(db: &TestDb) {
    let locks = guarded(db).await;
    let others = Locks::builder(&db.url)
        .table("other_locks")
        .connect()
        .await
        .unwrap();
    others.migrate().await.unwrap();
    assert_eq!(others.guarded_tables().await.unwrap(), []);
    others.guard_table("invoices", "bank").await.unwrap();
    assert_eq!(locks.guarded_tables().await.unwrap()[0].lock, "ledger");
    assert_eq!(others.guarded_tables().await.unwrap()[0].lock, "bank");
    let (one, two) = (locks.lock("ledger"), others.lock("bank"));
    let (one, two) = (one.acquire().await.unwrap(), two.acquire().await.unwrap());
    let mut writer = Writer::new(db);
    assert!(writer.run_with(one.grant_id(), WRITES[1]).is_err());
    assert!(writer.run_with(two.grant_id(), WRITES[1]).is_err());
    let both = format!("{},{}", one.grant_id(), two.grant_id());
    writer.run_with(&both, WRITES[1]).unwrap();
    assert!(others.unguard_table("invoices").await.unwrap());
    writer.run_with(one.grant_id(), WRITES[1]).unwrap();
}

/// A busy table: the statement waits for the transactions that write to it, and not longer than it
/// says.
async fn a_table_that_is_being_written_to_is_guarded_afterwards(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)");
    let open = db.begin_with(WRITES[0]);
    let guarding = tokio::spawn({
        let locks = locks.clone();
        async move { locks.guard_table("invoices", "ledger").await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!guarding.is_finished());
    // Renewals go on meanwhile.
    let lock = locks.lock("job").wait(TIMEOUT);
    lock.acquire().await.unwrap().check().await.unwrap();
    open.commit();
    guarding.await.unwrap().unwrap();
    Writer::new(db).is_refused(WRITES[1]);
}

/// While guarding waits for one transaction, every other statement about the table waits behind it.
async fn others_use_a_busy_table_for_most_of_the_time(db: &TestDb) {
    let locks = guarded(db).await;
    locks.unguard_table("invoices").await.unwrap();
    let open = db.begin_with("INSERT INTO invoices VALUES (3, 30)");
    let guarding = tokio::spawn({
        let locks = locks.clone();
        async move { locks.guard_table("invoices", "ledger").await }
    });
    let mut writer = Writer::new(db);
    let (begun, mut waited) = (now(), Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(9) {
        let sent = now();
        writer.run("UPDATE invoices SET amount = 5 WHERE id = 1");
        if sent.elapsed() > Duration::from_millis(60) {
            waited += sent.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = begun.elapsed();
    assert!(!guarding.is_finished());
    assert!(waited * 10 < took * 6, "{waited:?} of {took:?}");
    open.commit();
    guarding.await.unwrap().unwrap();
    writer.is_refused(WRITES[1]);
    promise("P16", db.engine);
}

async fn doctor_says_which_guards_are_intact(db: &TestDb) {
    let locks = db.locks().await;
    let none = locks.doctor().await.unwrap();
    assert!(
        none.checks.iter().all(|check| check.area != "guards"),
        "{none:?}"
    );
    let locks = guarded(db).await;
    let report = locks.doctor().await.unwrap();
    let check = report.checks.iter().find(|check| check.area == "guards");
    let intact = "intact: invoices by the lock \"ledger\"";
    assert_eq!(
        check.map(|check| &*check.message),
        Some(intact),
        "{report:?}"
    );
    assert!(
        report.findings.iter().all(|found| found.area != "guards"),
        "{report:?}"
    );
    db.sql(match db.is_mysql_like() {
        true => "DROP TRIGGER invoices_guard_delete",
        false => "ALTER TABLE invoices DISABLE TRIGGER database_locks_guard",
    });
    let report = locks.doctor().await.unwrap();
    let found = report
        .findings
        .iter()
        .find(|found| found.id == "guard-incomplete");
    let found = found.unwrap_or_else(|| panic!("{report:?}"));
    assert!(
        found
            .message
            .contains("the guard of invoices by the lock \"ledger\""),
        "{found:?}"
    );
    assert!(
        report.checks.iter().all(|check| check.area != "guards"),
        "{report:?}"
    );
    if db.is_mysql_like() {
        db.sql("CREATE TABLE customers (id int PRIMARY KEY)");
        db.sql("INSERT INTO customers VALUES (10), (20)");
        db.sql("ALTER TABLE invoices ADD FOREIGN KEY (amount) REFERENCES customers (id) ON DELETE CASCADE");
        let report = locks.doctor().await.unwrap();
        assert!(
            report
                .findings
                .iter()
                .any(|found| found.id == "guard-bypassed"),
            "{report:?}"
        );
    }
}

async fn engines_without_guards_say_why(db: &TestDb) {
    let locks = db.locks().await;
    for refused in [
        locks.guard_table("invoices", "ledger").await.unwrap_err(),
        locks
            .guard_table_allowing_cascades("invoices", "ledger")
            .await
            .unwrap_err(),
        locks.unguard_table("invoices").await.unwrap_err(),
    ] {
        let message = said(&refused);
        assert!(
            message.contains("no trigger of a table can read them"),
            "{message}"
        );
        assert!(
            message.contains("PostgreSQL, MySQL or MariaDB"),
            "{message}"
        );
    }
    assert_eq!(locks.guarded_tables().await.unwrap(), []);
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        a_second_guard_changes_nothing,
        guards_at_the_same_time_succeed,
        names_of_tables_and_locks_are_quoted,
        what_cannot_be_guarded_is_refused_with_the_reason,
        each_table_of_locks_has_its_guards,
        a_table_that_is_being_written_to_is_guarded_afterwards,
        others_use_a_busy_table_for_most_of_the_time,
        doctor_says_which_guards_are_intact,
    ); )* };
}
on!(
    postgres,
    mariadb,
    mysql,
    #[ignore = "make prove"]
    postgres12
);
db_tests!(sqlite: engines_without_guards_say_why);
db_tests!(memory: engines_without_guards_say_why);
