//! A table that another client has locked as a whole, as ALTER TABLE does. Statements hang in it,
//! and those that were given up must not pile up in the server.

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks, Ttl};
use testkit::sql::SqlSession;
use testkit::time::{ms, now, wait_until};
use testkit::tls::Authority;
use testkit::{MariaDb, MySql, MySqlServer, PgBouncer, Postgres, promise};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Renewals give a connection up each 100 ms, and waits each 150 ms, so without an end to them there
/// would be some eighty.
const BLOCKED_FOR: Duration = Duration::from_secs(10);
/// What is there at any one time: the latest, and some that are being ended. That takes a second or
/// two on a busy machine.
const AT_MOST: usize = 30;

async fn holder(locks: &Locks) -> LockGuard {
    let lock = locks.lock("held").ttl(Ttl::Infinite).renew_every(ms(100));
    lock.acquire().await.unwrap()
}

/// Holds a lock and waits for others, while `blocked` counts the statements that hang in the
/// server. Returns the most that there were at once.
async fn most_that_hang(
    locks: &Locks,
    guard: &LockGuard,
    mut blocked: impl FnMut() -> usize,
) -> usize {
    let (began, mut most) = (now(), 0);
    while began.elapsed() < BLOCKED_FOR {
        let waits = locks.lock("free").wait(ms(150));
        waits.acquire().await.unwrap_err();
        assert!(guard.is_held());
        most = most.max(blocked());
    }
    most
}

/// How many sessions of this database wait for a lock.
fn waiting(admin: &mut SqlSession) -> usize {
    let count = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND wait_event_type = 'Lock'";
    admin.run(count).unwrap().remove(0).parse().unwrap()
}

async fn statements_that_hang_are_ended(server: &Postgres, url: &str, database: &str) {
    let locks = Locks::connect(url).await.unwrap();
    locks.migrate().await.unwrap();
    let guard = holder(&locks).await;
    let (mut session, mut admin) = (server.sql_session(database), server.sql_session(database));
    session.run("BEGIN").unwrap();
    session
        .run("LOCK TABLE database_locks_lock IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let most = most_that_hang(&locks, &guard, || waiting(&mut admin)).await;
    assert!(most > 0, "nothing hung");
    assert!(most <= AT_MOST, "{most} hang at once");

    session.run("ROLLBACK").unwrap();
    // Cancelled statements do no harm: all goes on as before.
    tokio::time::timeout(TIMEOUT, async { while guard.check().await.is_err() {} })
        .await
        .expect("goes on");
    let got = locks.lock("free").wait(TIMEOUT).acquire().await.unwrap();
    got.release().await.unwrap();
    guard.release().await.unwrap();
    // Once the client is dropped, its statements end as well, if not at this very moment.
    assert!(wait_until(TIMEOUT, || waiting(&mut admin) == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_hang_do_not_pile_up_in_postgres() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    statements_that_hang_are_ended(server, &url, &url).await;
    let database = server.fresh_database();
    statements_that_hang_are_ended(server, &server.socket_url(&database), &database).await;
    promise("P4", "postgres");
}

/// The request to cancel goes the way of the connection, TLS and all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_hang_are_cancelled_through_tls_too() {
    let certificate = Authority::new("blocked").certify(&["localhost"]);
    let Some(server) = Postgres::options().tls(&certificate).start() else {
        return;
    };
    let database = server.fresh_database();
    let url = format!("{database}?sslmode=require");
    statements_that_hang_are_ended(&server, &url, &database).await;
}

/// There the wait for such a table has its own limit, which is set at each connect.
/// PgBouncer 1.18 ends if the connection of a request to cancel is closed early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_hang_are_cancelled_through_pgbouncer_which_goes_on() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let Some(pooler) = PgBouncer::start(server, &[]) else {
        return;
    };
    let database = server.fresh_database();
    statements_that_hang_are_ended(server, &pooler.url(&database), &database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_hang_do_not_pile_up_in_mariadb() {
    if let Some(server) = MariaDb::shared() {
        do_not_pile_up(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_hang_do_not_pile_up_in_mysql() {
    if let Some(server) = MySql::shared() {
        do_not_pile_up(server).await;
    }
}

async fn do_not_pile_up(server: &MySqlServer) {
    let url = server.fresh_database();
    let locks = Locks::connect(&url).await.unwrap();
    locks.migrate().await.unwrap();
    let guard = holder(&locks).await;
    let (mut session, mut admin) = (server.sql_session(&url), server.sql_session(&url));
    session
        .run("LOCK TABLES database_locks_lock WRITE")
        .unwrap();
    let count = "SELECT count(*) FROM information_schema.processlist
                  WHERE db = database() AND state LIKE 'Waiting for table metadata lock%'";
    let blocked = || admin.run(count).unwrap().remove(0).parse().unwrap();
    let most = most_that_hang(&locks, &guard, blocked).await;
    assert!(most > 0, "nothing hung");
    // Each for a second, and a new one each 100 ms.
    assert!(most <= AT_MOST, "{most} hang at once");

    session.run("UNLOCK TABLES").unwrap();
    tokio::time::timeout(TIMEOUT, async { while guard.check().await.is_err() {} })
        .await
        .expect("goes on");
    guard.release().await.unwrap();
    promise("P4", server.flavor().engine());
}

/// A backup's lock on all tables: a lock that was never acquired is not reported as held, and held
/// locks are kept.
async fn a_table_under_a_backup_is_blocked_and_not_held(server: Option<MySqlServer>, engine: &str) {
    let Some(server) = server else { return };
    let url = server.fresh_database();
    let locks = Locks::connect(&url).await.unwrap();
    locks.migrate().await.unwrap();
    let guard = locks.lock("held").ttl(3 * TIMEOUT).acquire().await.unwrap();
    locks
        .lock("free")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let mut backup = server.sql_session("mysql");
    backup.run("FLUSH TABLES WITH READ LOCK").unwrap();
    for name in ["never had", "free"] {
        let tried = locks.lock(name).try_acquire().await.unwrap_err();
        let message = tried.chain();
        assert!(
            matches!(tried, Error::Unavailable { .. }),
            "{name}: {message}"
        );
        assert!(
            message.contains("blocked by another session"),
            "{name}: {message}"
        );
        let waited = locks
            .lock(name)
            .wait(ms(1_500))
            .acquire()
            .await
            .unwrap_err();
        assert!(
            !matches!(waited, Error::TimedOut { .. }),
            "{name}: {}",
            waited.chain()
        );
    }
    assert!(
        locks.lock("held").try_acquire().await.unwrap().is_none(),
        "its holder is known"
    );
    backup.run("UNLOCK TABLES").unwrap();
    for name in ["never had", "free"] {
        locks
            .lock(name)
            .wait(TIMEOUT)
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
    promise("P15", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_under_a_backup_is_blocked_and_not_held() {
    a_table_under_a_backup_is_blocked_and_not_held(MariaDb::start(), "mariadb").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_under_a_backup_is_blocked_and_not_held() {
    a_table_under_a_backup_is_blocked_and_not_held(MySql::start(), "mysql").await;
}
