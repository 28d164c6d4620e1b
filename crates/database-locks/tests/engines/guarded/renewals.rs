//! Renewals of a lock whose row is locked by the transactions that it protects. On MySQL and MariaDB a
//! guard, a fence and a renewal lock the same row.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use database_locks::seam::{Renewal, Table, open};
use database_locks::{Fence, LockGuard, Locks, LostReason, ParamStyle, Ttl};
use testkit::contract::granted;
use testkit::time::now;
use testkit::{TestDb, db_tests, promise};

use super::{TIMEOUT, WRITES, Writer, guarded};

const SECOND: Duration = Duration::from_secs(1);

async fn held(locks: &Locks, name: &str, ttl: Duration) -> LockGuard {
    let lock = locks.lock(name).ttl(ttl).wait(TIMEOUT);
    lock.acquire().await.unwrap()
}

/// Runs transactions one after another on some sessions, until it is told to stop. The answer is how
/// many were committed.
fn write_in_loops(
    db: &TestDb,
    first: &str,
    transaction: impl Fn(usize) -> Vec<String>,
    stop: &'static AtomicBool,
) -> Vec<JoinHandle<usize>> {
    let loops = (0..3).map(|session| {
        let mut writer = Writer::new(db);
        if !first.is_empty() {
            writer.run(first);
        }
        let statements = transaction(session);
        thread::spawn(move || {
            let mut committed = 0;
            while !stop.load(Ordering::Relaxed) {
                for statement in &statements {
                    writer.run(statement);
                }
                committed += 1;
            }
            committed
        })
    });
    loops.collect()
}

/// The lock is held for as long as they write, and they are not kept from it.
async fn holds_while_they_write(
    guard: &LockGuard,
    loops: Vec<JoinHandle<usize>>,
    stop: &AtomicBool,
) {
    let began = now();
    while began.elapsed() < 10 * SECOND && guard.is_held() {
        tokio::time::sleep(SECOND / 20).await;
    }
    let (held, after) = (guard.is_held(), began.elapsed());
    stop.store(true, Ordering::Relaxed);
    for writer in loops {
        let committed = writer.join().unwrap();
        assert!(committed > 20, "{committed}");
    }
    assert!(held, "lost after {after:?}: {:?}", guard.loss());
    guard.check().await.unwrap();
}

/// The sessions write rows of their own, so that one has the lock's row locked while another one commits.
async fn short_guarded_transactions_do_not_starve_renewals(db: &TestDb) {
    let locks = guarded(db).await;
    let guard = held(&locks, "ledger", 6 * SECOND).await;
    let show = format!("SET @database_locks_ticket = '{}'", guard.ticket());
    db.sql(&format!("{show}; INSERT INTO invoices VALUES (3, 0)"));
    let transaction = |session: usize| {
        let update = format!("UPDATE invoices SET amount = amount + 1 WHERE id = {session} + 1");
        let statements = ["BEGIN", &update, "DO SLEEP(0.02)", "COMMIT"];
        statements.map(str::to_owned).to_vec()
    };
    let stop: &'static AtomicBool = Box::leak(Box::default());
    let loops = write_in_loops(db, &show, transaction, stop);
    holds_while_they_write(&guard, loops, stop).await;
    promise("P16", db.engine);
}

async fn short_fenced_transactions_do_not_starve_renewals(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE notes (id int PRIMARY KEY, amount int NOT NULL)");
    db.sql("INSERT INTO notes VALUES (0, 0), (1, 0), (2, 0)");
    let guard = held(&locks, "fenced", 6 * SECOND).await;
    let fence = filled(&guard.fence_statement().unwrap());
    let transaction = |session: usize| {
        let update = format!("UPDATE notes SET amount = amount + 1 WHERE id = {session}");
        let statements = ["BEGIN", &fence, &update, "DO SLEEP(0.005)", "COMMIT"];
        statements.map(str::to_owned).to_vec()
    };
    let stop: &'static AtomicBool = Box::leak(Box::default());
    let loops = write_in_loops(db, "", transaction, stop);
    holds_while_they_write(&guard, loops, stop).await;
    promise("P9", db.engine);
}

/// With the parameters in it, as a script has it.
fn filled(fence: &Fence) -> String {
    let (name, token, grant) = fence.params();
    let sql = fence.sql(ParamStyle::Numbered).unwrap();
    sql.replace("$1", &format!("'{name}'"))
        .replace("$2", &token.to_string())
        .replace("$3", &format!("'{grant}'"))
}

/// The renewal that waits for the row keeps no other request of the process waiting.
async fn a_long_guarded_transaction_delays_no_other_lock(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    let other = held(&locks, "other", 6 * SECOND).await;
    let guard = held(&locks, "ledger", 15 * SECOND).await;
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    let (began, mut slow) = (now(), Vec::new());
    // The renewal is due after 5 s, and waits again and again from then on.
    while began.elapsed() < 11 * SECOND {
        let asked = now();
        let next = held(&locks, "next", TIMEOUT).await;
        next.release().await.unwrap();
        locks.show("next").await.unwrap();
        if asked.elapsed() > SECOND * 7 / 10 {
            slow.push(asked.elapsed());
        }
        assert!(other.is_held(), "{:?}", other.loss());
        tokio::time::sleep(SECOND / 20).await;
    }
    // Some may be the machine's. Behind the waits for the row, of a second each, there are more.
    assert!(slow.len() < 4, "{slow:?}");
    assert!(guard.is_held(), "{:?}", guard.loss());
    writer.run("COMMIT");
    tokio::time::sleep(4 * SECOND).await;
    assert!(guard.is_held(), "{:?}", guard.loss());
    assert!(other.is_held(), "{:?}", other.loss());
    promise("P16", db.engine);
}

/// Also if trust ends while a renewal waits for the row.
async fn a_guarded_transaction_that_is_too_long_is_the_reason_of_the_loss(db: &TestDb) {
    let locks = guarded(db).await;
    let mut writer = Writer::new(db);
    let guard = held(&locks, "ledger", 3 * SECOND).await;
    writer.begin();
    writer.show(&guard.ticket().to_string());
    writer.run(WRITES[1]);
    let loss = tokio::time::timeout(TIMEOUT, guard.lost()).await.unwrap();
    assert_eq!(loss.reason(), LostReason::Expired, "{loss:?}");
    let last = loss.last_answer().unwrap_or_default();
    assert!(last.contains("its row is locked"), "{loss:?}");
    writer.run("ROLLBACK");
    promise("P16", db.engine);
}

/// In its queue it is renewed when the transaction in the way ends. It is busy if that lasts, and lost if
/// the lease ends first: nothing revives it.
async fn a_renewal_that_waits_for_its_row_renews_what_is_held(db: &TestDb) {
    drop(db.locks().await);
    let store = open(&db.url, &Table::default()).unwrap();
    assert!(store.renews_waiting());
    let mut writer = Writer::new(db);
    let mut after = async |name: &str, length: Duration, open: Duration| {
        let grant = granted(&*store, name, "me", length).await;
        writer.begin();
        writer.run(&format!(
            "SELECT id FROM database_locks_lock WHERE name = '{name}' LOCK IN SHARE MODE"
        ));
        let renewal = (grant, Ttl::Finite(TIMEOUT));
        let ends = async {
            tokio::time::sleep(open).await;
            writer.run("COMMIT");
        };
        let (answer, ()) = tokio::join!(store.renew_waiting(&renewal, TIMEOUT), ends);
        let held = "SELECT expires_at > UTC_TIMESTAMP(6) + INTERVAL 5 SECOND";
        let held = writer.run(&format!(
            "{held} FROM database_locks_lock WHERE name = '{name}'"
        ));
        (answer.unwrap(), held[0] == "1", renewal)
    };
    let mut tries = 0;
    let renewed = loop {
        let (answer, held, renewal) =
            after(&format!("in time {tries}"), TIMEOUT / 5, SECOND / 3).await;
        assert_eq!(held, answer != Renewal::Busy, "{answer:?}");
        if held {
            assert_eq!(answer, Renewal::Renewed { confirmed_by: None });
            break renewal;
        }
        tries += 1;
        assert!(tries < 5, "the machine is too slow");
    };
    let (answer, held, _) = after("long", TIMEOUT / 5, 3 * SECOND).await;
    assert_eq!((answer, held), (Renewal::Busy, false));
    loop {
        let (answer, held, _) = after(&format!("late {tries}"), SECOND / 2, SECOND * 4 / 5).await;
        assert!(!held, "{answer:?}");
        if let Renewal::Lost(gone) = answer {
            assert_eq!(gone.reason, LostReason::Expired);
            break;
        }
        tries += 1;
        assert!(tries < 9, "the machine is too slow");
    }
    let (mut grant, ttl) = renewed;
    grant.holder = "another".into();
    let answer = store.renew_waiting(&(grant, ttl), TIMEOUT).await.unwrap();
    assert!(matches!(answer, Renewal::Lost(_)), "{answer:?}");
    promise("P3", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        short_guarded_transactions_do_not_starve_renewals,
        short_fenced_transactions_do_not_starve_renewals,
        a_guarded_transaction_that_is_too_long_is_the_reason_of_the_loss,
        a_renewal_that_waits_for_its_row_renews_what_is_held,
        a_long_guarded_transaction_delays_no_other_lock,
    ); )* };
}
on!(mariadb, mysql);
