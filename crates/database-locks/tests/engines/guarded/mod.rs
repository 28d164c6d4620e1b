//! Guarded tables, written to by clients that do not know this library.

mod busy_on_postgres;
mod changed_on_mysql;
mod changed_on_postgres;
mod fences;
mod odd_on_postgres;
mod on_mysql;
mod on_postgres;
mod renewals;
mod replication;
mod rights_on_postgres;
mod setup;

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks};
use testkit::{SqlSession, TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A client that does not know this library.
struct Writer {
    session: SqlSession,
    mysql_like: bool,
}

impl Writer {
    fn new(db: &TestDb) -> Self {
        Self {
            session: db.sql_session(),
            mysql_like: db.is_mysql_like(),
        }
    }

    fn begin(&mut self) {
        self.run("BEGIN");
    }

    fn begin_at(&mut self, level: &str) {
        if self.mysql_like {
            self.run(&format!("SET TRANSACTION ISOLATION LEVEL {level}"));
            self.begin();
        } else {
            self.run(&format!("BEGIN ISOLATION LEVEL {level}"));
        }
    }

    /// Shows this ticket, on PostgreSQL for the transaction alone.
    fn show(&mut self, ticket: &str) {
        let ticket = ticket.replace('\'', "''");
        self.run(&match self.mysql_like {
            true => format!("SET @database_locks_ticket = '{ticket}'"),
            false => format!("SELECT set_config('database_locks.ticket', '{ticket}', true)"),
        });
    }

    #[track_caller]
    fn run(&mut self, sql: &str) -> Vec<String> {
        self.session.run(sql).expect(sql)
    }

    /// Asserts that the guard refuses a statement, and returns the message.
    #[track_caller]
    fn is_refused(&mut self, sql: &str) -> String {
        match self.session.run(sql) {
            Ok(rows) => panic!("it passed: {sql}: {rows:?}"),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("is guarded by lock"), "{sql}: {message}");
                message
            }
        }
    }

    /// Runs a statement in a transaction of its own that shows a ticket.
    #[track_caller]
    fn run_with(&mut self, ticket: &str, sql: &str) -> Result<(), String> {
        self.begin();
        self.show(ticket);
        let done = self.session.run(sql);
        self.run(if done.is_ok() { "COMMIT" } else { "ROLLBACK" });
        if self.mysql_like {
            self.run("SET @database_locks_ticket = NULL");
        }
        done.map(drop).map_err(|error| error.to_string())
    }
}

/// A table of invoices that is guarded by the lock `ledger`.
async fn guarded(db: &TestDb) -> Locks {
    let locks = db.locks().await;
    db.sql("CREATE TABLE invoices (id int PRIMARY KEY, amount int NOT NULL)");
    db.sql("INSERT INTO invoices VALUES (1, 10), (2, 20)");
    locks.guard_table("invoices", "ledger").await.unwrap();
    locks
}

async fn ledger(locks: &Locks) -> LockGuard {
    let lock = locks.lock("ledger").ttl(TIMEOUT).wait(TIMEOUT);
    lock.acquire().await.unwrap()
}

fn levels(db: &TestDb) -> &'static [&'static str] {
    match db.is_mysql_like() {
        true => &[
            "READ UNCOMMITTED",
            "READ COMMITTED",
            "REPEATABLE READ",
            "SERIALIZABLE",
        ],
        false => &["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"],
    }
}

fn total(db: &TestDb) -> String {
    db.sql("SELECT sum(amount) FROM invoices")
}

const WRITES: [&str; 4] = [
    "INSERT INTO invoices VALUES (3, 30), (4, 40)",
    "UPDATE invoices SET amount = amount + 1",
    "UPDATE invoices SET amount = 7 WHERE id = 1",
    "DELETE FROM invoices WHERE id = 2",
];

async fn only_the_holder_writes(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    // By no client, while the lock is free, and while another client holds it.
    for write in WRITES {
        let message = writer.is_refused(write);
        assert!(message.contains("\"ledger\""), "{message}");
    }
    let guard = ledger(&locks).await;
    for write in WRITES {
        writer.is_refused(write);
    }
    assert_eq!(total(db), "30");
    assert_eq!(writer.run("SELECT count(*) FROM invoices"), ["2"]);
    // By its holder, with the ticket, and with the bare grant id.
    let before = guard.ticket().to_string();
    writer.run_with(&before, WRITES[0]).unwrap();
    writer.run_with(guard.grant_id(), WRITES[1]).unwrap();
    assert_eq!(total(db), "104");
    // By a former holder.
    let stale = guard.ticket().to_string();
    guard.release().await.unwrap();
    for write in WRITES {
        assert!(writer.run_with(&stale, write).is_err(), "{write}");
    }
    let next = ledger(&locks).await;
    for write in WRITES {
        assert!(writer.run_with(&stale, write).is_err(), "{write}");
    }
    assert_eq!(total(db), "104");
    // Tickets of other locks do not matter beside the right one.
    let several = format!("{stale},{},0.x.y", next.ticket());
    writer.run_with(&several, WRITES[3]).unwrap();
    assert!(locks.unguard_table("invoices").await.unwrap());
    writer.run(WRITES[2]);
    assert_eq!(total(db), "79");
    promise("P16", db.engine);
}

/// Also by a client whose lease has ended, if no other client has the lock: until its end none gets
/// it.
async fn no_client_gets_the_lock_during_a_guarded_transaction(db: &TestDb) {
    let locks = guarded(db).await;
    let other = db.locks().await;
    let mut writer = Writer::new(db);
    let lock = locks.lock("ledger").ttl(Duration::from_millis(500));
    let guard = lock.auto_renew(false).acquire().await.unwrap();
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!guard.is_held(), "trust has ended");
    assert!(other.lock("ledger").try_acquire().await.unwrap().is_none());
    writer.run(WRITES[1]);
    writer.run("COMMIT");
    let next = ledger(&other).await;
    assert!(next.token() > guard.token());
    assert!(
        writer
            .run_with(&guard.ticket().to_string(), WRITES[1])
            .is_err()
    );
    assert_eq!(total(db), "34");
    // Not by force either.
    writer.begin();
    writer.show(&next.ticket().to_string());
    writer.run(WRITES[1]);
    let forced = locks.force_release("ledger").await;
    assert!(matches!(forced, Err(Error::Conflict { .. })), "{forced:?}");
    writer.run("COMMIT");
    locks.force_release("ledger").await.unwrap().expect("held");
    assert!(
        writer
            .run_with(&next.ticket().to_string(), WRITES[1])
            .is_err()
    );
    assert_eq!(total(db), "36");
    promise("P16", db.engine);
}

/// Of a release by force, of a wait that ends, and of a caller that does not wait; while the lock is
/// held, and after its lease.
async fn an_error_names_the_session_that_keeps_the_row_locked(db: &TestDb) {
    let locks = guarded(db).await;
    let other = db.locks().await;
    let mut writer = Writer::new(db);
    let (own_id, end) = match writer.mysql_like {
        true => ("SELECT CONNECTION_ID()", "KILL ID"),
        false => ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(ID)"),
    };
    let id = writer.run(own_id).remove(0);
    let end = end.replace("ID", &id);
    let names_it = |error: &Error| {
        let all = error.chain();
        let named = all.contains(&format!("id {id} (")) && all.contains("in a transaction for");
        assert!(named && all.contains(&format!("`{end}` ends it")), "{all}");
    };

    let guard = ledger(&locks).await;
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    let forced = other.force_release("ledger").await.unwrap_err();
    assert!(matches!(forced, Error::Conflict { .. }), "{forced:?}");
    names_it(&forced);
    writer.run("ROLLBACK");
    guard.release().await.unwrap();

    let lock = locks.lock("ledger").ttl(Duration::from_millis(500));
    let guard = lock.auto_renew(false).acquire().await.unwrap();
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let forced = other.force_release("ledger").await.unwrap_err();
    assert!(matches!(forced, Error::Conflict { .. }), "{forced:?}");
    names_it(&forced);
    for wait in [Duration::from_secs(4), Duration::ZERO] {
        let waited = other.lock("ledger").wait(wait).acquire().await;
        let waited = waited.unwrap_err();
        assert!(matches!(waited, Error::TimedOut { .. }), "{waited:?}");
        names_it(&waited);
        let set = other.all(["another", "ledger"]).wait(wait).acquire().await;
        let set = set.unwrap_err();
        assert!(matches!(&set, Error::TimedOut { name, .. } if name == "ledger"));
        names_it(&set);
    }
    db.sql(&end);
    let guard = ledger(&other).await;
    assert_eq!(total(db), "30", "what it wrote is undone");

    // On PostgreSQL a lock can be released while its transaction is open.
    if !writer.mysql_like {
        let mut writer = Writer::new(db);
        let id = writer.run(own_id).remove(0);
        writer.begin();
        writer.show(&guard.ticket().to_string());
        writer.run(WRITES[1]);
        guard.release().await.unwrap();
        let forced = other.force_release("ledger").await.unwrap_err();
        let waited = other.lock("ledger").wait(Duration::ZERO).acquire().await;
        for error in [forced, waited.unwrap_err()] {
            let all = error.chain();
            assert!(all.contains(&format!("pid {id} (")), "{all}");
        }
        writer.run("COMMIT");
    }
    promise("P16", db.engine);
}

/// The transaction in the way ends during the tries, and a waiter is granted the lock.
async fn a_release_by_force_of_a_lease_that_has_ended_spares_the_next_holder(db: &TestDb) {
    let locks = guarded(db).await;
    let (other, operator) = (db.locks().await, db.locks().await);
    let mut writer = Writer::new(db);
    let lock = locks.lock("ledger").ttl(Duration::from_millis(500));
    let guard = lock.auto_renew(false).acquire().await.unwrap();
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    tokio::time::sleep(Duration::from_millis(900)).await;
    // It is connected, so that its first try comes before the end of the transaction.
    operator.show("ledger").await.unwrap();
    let waits = tokio::spawn(async move { ledger(&other).await });
    let mut force = Box::pin(operator.force_release("ledger"));
    let early = tokio::time::timeout(Duration::from_secs(1), &mut force).await;
    writer.run("ROLLBACK");
    let force = async {
        match early {
            Ok(forced) => forced,
            Err(_) => force.await,
        }
    };
    let (next, forced) = tokio::join!(waits, force);
    let next = next.unwrap();
    assert!(!matches!(forced, Ok(Some(_))), "{forced:?}");
    next.check().await.unwrap();
}

/// At each isolation level: a snapshot from before a renewal, before a take-over, and before the
/// grant.
async fn a_guard_holds_at_each_isolation_level(db: &TestDb) {
    let locks = guarded(db).await;
    let (mut writer, mut number) = (Writer::new(db), 10);
    for level in levels(db) {
        let guard = ledger(&locks).await;
        let ticket = guard.ticket().to_string();
        let mut insert = || {
            number += 1;
            format!("INSERT INTO invoices VALUES ({number}, 1)")
        };
        // Without a ticket.
        writer.begin_at(level);
        writer.is_refused(&insert());
        writer.run("ROLLBACK");
        // A renewal has changed the row since.
        writer.begin_at(level);
        writer.run("SELECT count(*) FROM invoices");
        guard.extend(TIMEOUT).await.unwrap();
        writer.show(&ticket);
        let wrote = writer.session.run(&insert());
        // MariaDB may refuse to lock a row that has changed since the snapshot.
        let changed = db.engine == "mariadb" && wrote.is_err();
        assert!(wrote.is_ok() || changed, "{level}: {wrote:?}");
        writer.run("ROLLBACK");
        // Another client has the lock since, and has written.
        writer.begin_at(level);
        if *level != "SERIALIZABLE" || !db.is_mysql_like() {
            writer.run("SELECT count(*) FROM invoices");
        }
        writer.show(&ticket);
        guard.release().await.unwrap();
        let next = ledger(&locks).await;
        let refused = writer.session.run(&insert()).unwrap_err().to_string();
        let serialized = !db.is_mysql_like() && refused.contains("could not serialize");
        let changed = refused.contains("1020");
        assert!(
            refused.contains("is guarded by lock") || serialized || changed,
            "{level}: {refused}"
        );
        writer.run("ROLLBACK");
        // A snapshot that is older than the grant, on PostgreSQL; on MySQL in a test of its own.
        writer.begin_at(level);
        // In SERIALIZABLE a read on MySQL locks what it reads.
        writer.run("SELECT count(*) FROM invoices");
        next.release().await.unwrap();
        if !db.is_mysql_like() {
            let later = ledger(&locks).await;
            writer.show(later.grant_id());
            let wrote = writer.session.run(&insert());
            assert_eq!(
                wrote.is_ok(),
                *level == "READ COMMITTED",
                "{level}: {wrote:?}"
            );
            later.release().await.ok();
        }
        writer.run("ROLLBACK");
    }
    promise("P16", db.engine);
}

/// What a savepoint undoes is the write, the row lock and, on PostgreSQL, the ticket: never the row
/// lock alone.
async fn a_savepoint_undoes_the_write_with_the_row_lock(db: &TestDb) {
    let locks = guarded(db).await;
    let other = db.locks().await;
    let mut writer = Writer::new(db);
    let lock = || {
        locks
            .lock("ledger")
            .ttl(Duration::from_millis(600))
            .auto_renew(false)
    };
    // Within a savepoint that is rolled back: nothing is written, and the lock may be taken over.
    let guard = lock().acquire().await.unwrap();
    let ticket = guard.ticket().to_string();
    writer.begin();
    writer.run("SAVEPOINT a");
    writer.show(&ticket);
    writer.run(WRITES[1]);
    writer.run("ROLLBACK TO SAVEPOINT a");
    if db.is_mysql_like() {
        // The row lock may outlast the savepoint there.
        writer.run("ROLLBACK");
        writer.begin();
    } else {
        writer.run("SAVEPOINT b");
        writer.is_refused(WRITES[1]);
        writer.run("ROLLBACK TO SAVEPOINT b");
    }
    let next = ledger(&other).await;
    writer.show(&ticket);
    writer.is_refused(WRITES[1]);
    writer.run("ROLLBACK");
    next.release().await.unwrap();

    // Written outside of the savepoint that is rolled back: the lock stays.
    let guard = lock().acquire().await.unwrap();
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    writer.run("SAVEPOINT a");
    writer.run(WRITES[1]);
    writer.run("ROLLBACK TO SAVEPOINT a");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(other.lock("ledger").try_acquire().await.unwrap().is_none());
    writer.run(WRITES[1]);
    writer.run("COMMIT");
    assert_eq!(total(db), "34");

    // Written in a savepoint that is released: likewise.
    let guard = lock().wait(TIMEOUT).acquire().await.unwrap();
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run("SAVEPOINT a");
    writer.run(WRITES[1]);
    writer.run("RELEASE SAVEPOINT a");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(other.lock("ledger").try_acquire().await.unwrap().is_none());
    writer.run("COMMIT");
    assert_eq!(total(db), "36");
    promise("P16", db.engine);
}

async fn tables_of_several_locks_are_written_in_one_transaction(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE payments (id int PRIMARY KEY, amount int)");
    locks.guard_table("payments", "bank").await.unwrap();
    let both = locks.all(["ledger", "bank"]).acquire().await.unwrap();
    let tickets: Vec<String> = both
        .tickets()
        .iter()
        .map(|ticket| ticket.to_string())
        .collect();
    let pay = "INSERT INTO payments VALUES (1, 1)";
    let mut writer = Writer::new(db);
    for ticket in &tickets {
        writer.begin();
        writer.show(ticket);
        let (first, second) = match ticket.ends_with("ledger") {
            true => (WRITES[1], pay),
            false => (pay, WRITES[1]),
        };
        writer.run(first);
        writer.is_refused(second);
        writer.run("ROLLBACK");
    }
    writer.begin();
    writer.show(&tickets.join(","));
    writer.run(WRITES[1]);
    writer.run(pay);
    writer.run("COMMIT");
    assert_eq!(total(db), "32");
    // One is lost: the other's table can be written to.
    let bank = tickets
        .iter()
        .position(|ticket| ticket.ends_with("bank"))
        .unwrap();
    db.sql(
        "UPDATE database_locks_lock SET grant_id = NULL, expires_at = NULL, granted_until = NULL \
            WHERE name = 'ledger'",
    );
    writer
        .run_with(&tickets.join(","), "DELETE FROM payments")
        .unwrap();
    assert!(writer.run_with(&tickets.join(","), WRITES[1]).is_err());
    assert!(writer.run_with(&tickets[bank], WRITES[1]).is_err());
    promise("P16", db.engine);
}

/// Guesses, tickets of other kinds, and what merely looks like the grant.
async fn a_ticket_opens_nothing_but_its_own_lock(db: &TestDb) {
    let locks = guarded(db).await;
    let guard = ledger(&locks).await;
    let grant = guard.grant_id().to_owned();
    let permit = locks.semaphore("ledger", 3).acquire().await.unwrap();
    let other = locks.lock("Ledger").acquire().await.unwrap();
    let flipped: String = grant.chars().rev().collect();
    let mut writer = Writer::new(db);
    for forged in [
        "",
        ",",
        "ledger",
        "%",
        "' OR true --",
        &grant[..31],
        &grant[1..],
        &flipped,
        &format!("{}.{}.ledger", guard.token(), "0".repeat(32)),
        &permit.ticket().to_string(),
        permit.grant_id(),
        &other.ticket().to_string(),
        &grant
            .to_uppercase()
            .replace(|c: char| c.is_ascii_digit(), "A"),
        "äöü€𝄞",
    ] {
        for write in WRITES {
            let refused = writer.run_with(forged, write).unwrap_err();
            assert!(
                refused.contains("is guarded by lock"),
                "{forged}: {refused}"
            );
        }
    }
    // A client of django-database-locks 0.5 has taken the lock over: it changes no grant.
    let later = match db.is_mysql_like() {
        true => "UTC_TIMESTAMP(6) + INTERVAL 60 SECOND",
        false => "now() + interval '60 s'",
    };
    writer.run_with(&grant, WRITES[1]).unwrap();
    db.sql(&format!(
        "UPDATE database_locks_lock SET locked_by = 'legacy', expires_at = {later} WHERE name = 'ledger'"
    ));
    assert!(writer.run_with(&grant, WRITES[1]).is_err());
    // No grant: an empty text is in every text.
    db.sql("UPDATE database_locks_lock SET grant_id = '', granted_until = expires_at");
    assert!(writer.run_with(&grant, WRITES[1]).is_err());
    assert_eq!(total(db), "32");
    promise("P16", db.engine);
}

macro_rules! on {
    ($($(#$attribute:tt)? $engine:ident),*) => { $( db_tests!($(#$attribute)? $engine:
        only_the_holder_writes,
        no_client_gets_the_lock_during_a_guarded_transaction,
        an_error_names_the_session_that_keeps_the_row_locked,
        a_release_by_force_of_a_lease_that_has_ended_spares_the_next_holder,
        a_guard_holds_at_each_isolation_level,
        a_savepoint_undoes_the_write_with_the_row_lock,
        tables_of_several_locks_are_written_in_one_transaction,
        a_ticket_opens_nothing_but_its_own_lock,
    ); )* };
}
on!(
    postgres,
    mariadb,
    mysql,
    #[ignore = "make prove"]
    postgres12
);
