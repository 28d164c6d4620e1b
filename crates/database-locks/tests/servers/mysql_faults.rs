//! Troubles of a server of MySQL or MariaDB that must cost no lock: too few connections, no
//! prepared statements left, a table that is away, a change to read-only, odd defaults.

use std::time::Duration;

use database_locks::{Error, LockState, Locks, LostReason};
use testkit::contract::{self, StoreFixture};
use testkit::time::{ms, now};
use testkit::{MariaDb, MySql, MySqlServer as Server, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

macro_rules! on_servers {
    ($($test:ident $(($($setting:expr),+))?),+ $(,)?) => {
        on_servers!(mariadb, MariaDb: $($test $(($($setting),+))?),+);
        on_servers!(mysql, MySql: $($test $(($($setting),+))?),+);
    };
    ($engine:ident, $kind:ident: $($test:ident $(($($setting:expr),+))?),+) => {
        mod $engine {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let options = $kind::options() $($(.set($setting))+)?;
                    if let Some(server) = options.start() {
                        super::$test(&server, stringify!($engine)).await;
                    }
                }
            )+
        }
    };
}

on_servers!(
    a_lease_outlives_a_full_connection_table,
    a_process_has_two_connections_at_most,
    a_server_without_prepared_statements_left_is_served,
    a_select_limit_of_the_server_does_not_hide_its_settings,
    a_connection_to_a_server_that_becomes_read_only_is_replaced,
    a_prune_goes_by_pages_of_ids,
    a_waiter_outlives_a_table_that_is_away_for_a_moment,
    the_error_for_used_up_ids_names_the_fix,
    an_insert_of_many_rows_by_another_client_is_waited_for,
    every_grant_raises_the_token_to_the_clock,
    a_table_is_created_under_any_server_defaults(
        "innodb-default-row-format=compact",
        "default-storage-engine=MyISAM",
        "character-set-server=latin1"
    ),
);

async fn connect(url: &str) -> Locks {
    let locks = Locks::connect(url).await;
    let locks = locks.unwrap_or_else(|error| panic!("{}", error.chain()));
    locks.migrate().await.expect("makes the table");
    locks
}

async fn stays_held(guard: &database_locks::LockGuard, for_long: Duration) {
    let began = now();
    while began.elapsed() < for_long {
        assert!(
            guard.is_held(),
            "lost after {:?}: {:?}",
            began.elapsed(),
            guard.loss()
        );
        tokio::time::sleep(ms(50)).await;
    }
}

/// Waits until a renewal got through that was sent from now on.
async fn is_renewed(guard: &database_locks::LockGuard, ttl: Duration) {
    let began = now();
    while guard.trusted_for() + began.elapsed() <= ttl {
        assert!(guard.is_held(), "{:?}: {:?}", began.elapsed(), guard.loss());
        tokio::time::sleep(ms(50)).await;
    }
}

/// How many connections there are of the user of the tests.
fn connections(server: &Server) -> usize {
    let count = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'locker'";
    server
        .query("mysql", count)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Each of the connections that there are is taken: one by this process, and the rest by others.
async fn a_lease_outlives_a_full_connection_table(server: &Server, engine: &'static str) {
    let url = server.locker_url(&server.fresh_database());
    let locks = connect(&url).await;
    drop(locks.list().await.unwrap());
    // That of the superuser comes on top.
    let mut root = server.sql_session("mysql");
    let there = root.run("SHOW STATUS LIKE 'Threads_connected'").unwrap();
    let there: usize = there[0].rsplit('\t').next().unwrap().parse().unwrap();
    let most = there.max(10);
    root.run(&format!("SET GLOBAL max_connections = {most}"))
        .unwrap();
    let mut others = Vec::new();
    let full = loop {
        let connected = mysql_async::Conn::new(mysql_async::Opts::from_url(&url).unwrap()).await;
        match connected {
            Ok(other) => others.push(other),
            Err(refused) => break refused.to_string(),
        }
        assert!(others.len() <= most, "it is never full");
    };
    assert!(
        full.contains("1040") || full.contains("oo many connections"),
        "{full}"
    );
    // So many that one of them asks for another connection.
    for lock in ["a", "b", "c", "d"] {
        let guard = locks.lock(lock).acquire().await.unwrap();
        guard.release().await.unwrap();
    }
    let guard = locks.lock("job").ttl(ms(6000)).acquire().await.unwrap();
    stays_held(&guard, ms(8000)).await;
    guard.check().await.unwrap();
    guard.release().await.unwrap();
    drop(others);
    promise("P6", engine);
}

/// Renewals, waits, and acquires both at the same time and one after another.
async fn a_process_has_two_connections_at_most(server: &Server, _: &'static str) {
    let locks = connect(&server.locker_url(&server.fresh_database())).await;
    let lock = locks.lock("held").ttl(ms(6000)).renew_every(ms(300));
    let held = lock.acquire().await.unwrap();
    let waiting = locks.lock("held");
    let waiting = tokio::spawn(async move { waiting.acquire().await.unwrap() });
    let crowd: Vec<_> = (0..20)
        .map(|i| {
            let lock = locks.lock(format!("lock {i}"));
            tokio::spawn(async move {
                for _ in 0..20 {
                    lock.acquire().await.unwrap().release().await.unwrap();
                }
            })
        })
        .collect();
    let mut most = 0;
    while !crowd.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(connections(server));
        tokio::time::sleep(ms(10)).await;
    }
    is_renewed(&held, ms(6000)).await;
    assert!((1..=2).contains(&most.max(connections(server))), "{most}");
    held.release().await.unwrap();
    waiting.await.unwrap().release().await.unwrap();
}

async fn a_server_without_prepared_statements_left_is_served(
    server: &Server,
    engine: &'static str,
) {
    let none = "SET GLOBAL max_prepared_stmt_count = 0";
    server.query("mysql", none).unwrap();
    let fixture = || StoreFixture::new(engine, server.locker_url(&server.fresh_database()));
    contract::a_held_lock_names_its_holder(&fixture()).await;
    contract::tokens_grow(&fixture()).await;
    contract::distinct_names_are_distinct_locks(&fixture()).await;
    contract::a_reader_sees_what_the_holder_wrote(&fixture()).await;
    contract::a_large_batch_of_acquires_is_answered_one_by_one(&fixture()).await;
    contract::a_large_batch_of_releases_is_answered_one_by_one(&fixture()).await;
    contract::two_thousand_leases_are_renewed_by_one_call(&fixture()).await;
    contract::a_ticket_resumes_a_lock_once(&fixture()).await;
    contract::the_same_holder_takes_over(&fixture()).await;
    contract::pruning_deletes_locks_that_are_free_for_long(&fixture()).await;
    contract::a_release_by_force_is_a_loss_for_the_holder(&fixture()).await;

    // On a connection that has some prepared already.
    server
        .query("mysql", "SET GLOBAL max_prepared_stmt_count = 16382")
        .unwrap();
    let locks = connect(&server.locker_url(&server.fresh_database())).await;
    let first = locks.lock("first").acquire().await.unwrap();
    server.query("mysql", none).unwrap();
    let lock = locks
        .lock("'; DROP TABLE database_locks_lock; -- \\")
        .ttl(ms(8000));
    let guard = lock.acquire().await.unwrap();
    is_renewed(&guard, ms(8000)).await;
    let report = locks.doctor().await.unwrap();
    assert!(
        report.checks.iter().any(|check| check.area == "locks"),
        "{report:#?}"
    );
    guard.release().await.unwrap();
    first.release().await.unwrap();
}

/// Its defaults hide all rows but one of every answer.
async fn a_select_limit_of_the_server_does_not_hide_its_settings(
    server: &Server,
    engine: &'static str,
) {
    server
        .query("mysql", "SET GLOBAL sql_select_limit = 1")
        .unwrap();
    let url = server.locker_url(&server.fresh_database());
    let locks = connect(&url).await;
    let guards = [
        locks.lock("a").acquire().await.unwrap(),
        locks.lock("b").acquire().await.unwrap(),
    ];
    assert_eq!(locks.list().await.unwrap().len(), 2);
    for guard in guards {
        guard.release().await.unwrap();
    }
    contract::a_batch_of_renewals_is_answered_one_by_one(&StoreFixture::new(engine, url)).await;
}

/// A privileged user may go on writing there. What is written to a replica is seen by no other
/// client.
async fn a_connection_to_a_server_that_becomes_read_only_is_replaced(
    server: &Server,
    engine: &'static str,
) {
    let url = server.url_of(server.fresh_database().rsplit('/').next().unwrap());
    let locks = connect(&url).await;
    let lock = |name: &str| locks.lock(name).ttl(ms(5000)).renew_every(ms(500));
    let (kept, freed) = (
        lock("kept").acquire().await.unwrap(),
        lock("freed").acquire().await.unwrap(),
    );
    lock("old")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    // The renewals have their connection, and have used it.
    stays_held(&kept, ms(1500)).await;
    server.query("mysql", "SET GLOBAL read_only = 1").unwrap();
    let privileged = server.query(&url, "INSERT INTO database_locks_lock (name) VALUES ('x')");
    assert!(privileged.is_ok(), "the user of this test may write");
    for name in ["old", "new"] {
        let error = lock(name).try_acquire().await.unwrap_err();
        let message = error.chain();
        assert!(matches!(error, Error::Unavailable { .. }), "{message}");
        let server = "the database cannot do it now: the server at 127.0.0.1:";
        assert!(message.contains(server), "{message}");
        assert!(message.contains("is read-only"), "{message}");
    }
    // Those that ask at the same time are answered together, from one attempt to connect.
    let together: Vec<_> = (0..5)
        .map(|n| {
            let asked = lock(&format!("new {n}"));
            tokio::spawn(async move { asked.try_acquire().await })
        })
        .collect();
    for answer in together {
        let message = answer.await.unwrap().unwrap_err().chain();
        assert!(message.contains("cannot do it now: "), "{message}");
    }
    let lost = tokio::time::timeout(TIMEOUT, kept.lost())
        .await
        .expect("not renewed");
    assert_eq!(lost.reason(), LostReason::Refused, "{lost:?}");
    assert!(
        freed.release().await.is_err(),
        "nothing is freed on a replica"
    );
    let rows = "SELECT COUNT(*) FROM database_locks_lock WHERE name = 'freed' AND grant_id IS NOT NULL \
                UNION ALL SELECT COUNT(*) FROM database_locks_lock WHERE name = 'new'";
    assert_eq!(
        server
            .query(&url, rows)
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["1", "0"]
    );

    let waiter = lock("old").wait(TIMEOUT);
    let waiter = tokio::spawn(async move { waiter.acquire().await });
    tokio::time::sleep(ms(500)).await;
    server.query("mysql", "SET GLOBAL read_only = 0").unwrap();
    waiter
        .await
        .unwrap()
        .expect("the waiter outlives it")
        .release()
        .await
        .unwrap();
    promise("P6", engine);
}

/// A statement reads a page of rows, however many rows stay.
async fn a_prune_goes_by_pages_of_ids(server: &Server, engine: &'static str) {
    const ROWS: u64 = 2_500;
    let url = server.fresh_database();
    let store = StoreFixture::new(engine, url.clone()).ready().await;
    let digits = (0..10).map(|digit| format!("SELECT {digit} d"));
    let digits = digits.collect::<Vec<_>>().join(" UNION ALL ");
    let fill = format!(
        "INSERT INTO database_locks_lock (name, token, expires_at, granted_until)
         SELECT CONCAT('row ', a.d, b.d, c.d, d.d), 1, IF(a.d = 0, '9999-12-31', NULL),
                IF(a.d = 0, '9999-12-31', NULL)
           FROM ({digits}) a, ({digits}) b, ({digits}) c, ({digits}) d
          ORDER BY 1 LIMIT {ROWS}"
    );
    server.query(&url, &fill).unwrap();
    let (mut after, mut deleted) = (None, Vec::new());
    loop {
        let page = store
            .prune(
                database_locks::seam::Rows::Locks,
                Duration::ZERO,
                true,
                after,
                TIMEOUT,
            )
            .await;
        let page = page.unwrap();
        if page.last.is_none() {
            break;
        }
        assert!(page.last > after, "{after:?}: {page:?}");
        after = page.last;
        deleted.push(page.deleted);
    }
    // A thousand are held.
    assert_eq!(deleted, [0, 1_000, 500]);
    let behind = store
        .prune(
            database_locks::seam::Rows::Locks,
            Duration::ZERO,
            true,
            after,
            TIMEOUT,
        )
        .await;
    assert_eq!(behind.unwrap().deleted, 0);
}

async fn a_waiter_outlives_a_table_that_is_away_for_a_moment(
    server: &Server,
    engine: &'static str,
) {
    let url = server.fresh_database();
    let first = Locks::connect(&url).await.unwrap();
    let error = first.lock("job").try_acquire().await.unwrap_err();
    let Error::Rejected { hint, .. } = &error else {
        panic!("{}", error.chain());
    };
    assert!(hint.as_ref().unwrap().contains("dblock init"), "{hint:?}");

    let (locks, others) = (connect(&url).await, connect(&url).await);
    // Several renewals are due while the table is away.
    let holder = locks.lock("job").ttl(TIMEOUT).renew_every(ms(500));
    let holder = holder.acquire().await.unwrap();
    let waiter = others.lock("job").wait(TIMEOUT);
    let waiter = tokio::spawn(async move { waiter.acquire().await });
    tokio::time::sleep(ms(500)).await;
    server
        .query(&url, "RENAME TABLE database_locks_lock TO away")
        .unwrap();
    let missing = others.doctor().await.unwrap();
    assert_eq!(missing.findings[0].id, "table-missing", "{missing:#?}");
    tokio::time::sleep(ms(2500)).await;
    assert!(!waiter.is_finished(), "it gave up: {:?}", waiter.await);
    server
        .query(&url, "RENAME TABLE away TO database_locks_lock")
        .unwrap();
    is_renewed(&holder, TIMEOUT).await;
    holder.release().await.unwrap();
    let next = tokio::time::timeout(TIMEOUT, waiter)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(matches!(
        others.show("job").await.unwrap().unwrap().state,
        LockState::Held { .. }
    ));
    next.release().await.unwrap();
    promise("P12", engine);
}

async fn the_error_for_used_up_ids_names_the_fix(server: &Server, _: &'static str) {
    let url = server.fresh_database();
    let locks = connect(&url).await;
    let alter = "ALTER TABLE database_locks_lock MODIFY id int NOT NULL AUTO_INCREMENT";
    server.query(&url, alter).unwrap();
    let last = "INSERT INTO database_locks_lock (id, name) VALUES (2147483647, 'last')";
    server.query(&url, last).unwrap();
    let found = locks.doctor().await.unwrap();
    let found = found
        .findings
        .iter()
        .find(|found| found.id == "ids-run-out");
    assert!(
        found.unwrap().message.contains("of 2147483647 ids of"),
        "{found:?}"
    );
    let new = locks.lock("new").wait(TIMEOUT);
    let error = tokio::time::timeout(TIMEOUT / 2, new.acquire())
        .await
        .expect("no wait mends it")
        .unwrap_err();
    let Error::Rejected { hint, .. } = &error else {
        panic!("{}", error.chain());
    };
    assert!(
        hint.as_ref()
            .unwrap()
            .to_lowercase()
            .contains("modify id bigint"),
        "{hint:?}"
    );
    let old = locks
        .lock("last")
        .acquire()
        .await
        .expect("a row that is there");
    old.release().await.unwrap();
    server
        .query(&url, &alter.replace(" int ", " bigint "))
        .unwrap();
    locks
        .lock("new")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let found = locks.doctor().await.unwrap();
    assert!(
        found.findings.iter().all(|found| found.id != "ids-run-out"),
        "{found:#?}"
    );
}

/// After a restored backup or a copied table: what is written with an older token is refused.
async fn every_grant_raises_the_token_to_the_clock(server: &Server, engine: &'static str) {
    let url = server.fresh_database();
    let locks = connect(&url).await;
    let clock = "SELECT FLOOR(UNIX_TIMESTAMP(NOW(3)) * 1000)";
    let ahead = "9000000000000";
    let set = |token: &str| {
        let rows = "('one', TOKEN), ('two', TOKEN), ('three', TOKEN)".replace("TOKEN", token);
        let add = format!("REPLACE INTO database_locks_lock (name, token) VALUES {rows}");
        server.query(&url, &add).unwrap();
    };
    for (token, least) in [
        ("-7", None),
        ("0", None),
        ("5", None),
        (ahead, Some(9_000_000_000_001)),
    ] {
        set(token);
        let now: i64 = server.query(&url, clock).unwrap().trim().parse().unwrap();
        let one = locks.lock("one").acquire().await.unwrap();
        let all = ["two", "three"].map(|name| {
            let lock = locks.lock(name);
            tokio::spawn(async move { lock.acquire().await })
        });
        let mut guards = vec![one];
        for guard in all {
            guards.push(guard.await.unwrap().unwrap());
        }
        for guard in &guards {
            let got = guard.token().get();
            assert!(
                got >= least.unwrap_or(now),
                "{token}: {got} is below {least:?} or {now}"
            );
            assert!(least.is_none_or(|least| got == least), "{token}: {got}");
        }
        drop(locks.force_release("two").await.unwrap());
        let row = locks.show("two").await.unwrap().unwrap();
        assert!(row.token > guards[1].token(), "{row:?}");
        for guard in guards {
            let _ = guard.release().await;
        }
    }
    set("9223372036854775807");
    let error = locks.lock("one").try_acquire().await.unwrap_err();
    assert!(
        error.chain().to_string().contains("out of range"),
        "{}",
        error.chain()
    );
    promise("P2", engine);
}

/// An old row format survives many upgrades; its index is too short for the names of locks.
async fn a_table_is_created_under_any_server_defaults(server: &Server, engine: &'static str) {
    let fixture = || StoreFixture::new(engine, server.fresh_database());
    contract::distinct_names_are_distinct_locks(&fixture()).await;
    // One of the legacy package, in the format of that server.
    let url = server.fresh_database();
    let legacy = "CREATE TABLE database_locks_lock (id integer AUTO_INCREMENT NOT NULL PRIMARY KEY, name \
                  varchar(255) NOT NULL UNIQUE, locked_by longtext NULL, expires_at datetime(6) NULL) \
                  ENGINE = InnoDB ROW_FORMAT = COMPACT CHARACTER SET latin1";
    server.query(&url, legacy).unwrap();
    let locks = connect(&url).await;
    let name = "😀".repeat(255);
    locks
        .lock(&name)
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let made = server
        .query(&url, "SHOW CREATE TABLE database_locks_lock")
        .unwrap();
    assert!(
        made.contains("DYNAMIC") && made.contains("`id` int"),
        "{made}"
    );
}

/// An INSERT … SELECT has the counter of the ids locked to its end, and others do not get an id
/// meanwhile.
async fn an_insert_of_many_rows_by_another_client_is_waited_for(server: &Server, engine: &str) {
    let url = server.fresh_database();
    let locks = connect(&url).await;
    let mut session = server.sql_session(&url);
    session.send(
        "INSERT INTO database_locks_lock (name)
         SELECT CONCAT('row ', n.n, SLEEP(1)) FROM (SELECT 1 n UNION ALL SELECT 2 UNION ALL SELECT 3
                UNION ALL SELECT 4) n",
    );
    // The first of its rows is there after a second.
    tokio::time::sleep(ms(1_500)).await;
    for i in 0..5 {
        let lock = locks.lock(format!("new {i}")).wait(TIMEOUT);
        let guard = lock.acquire().await;
        let guard = guard.unwrap_or_else(|error| panic!("{}", error.chain()));
        guard.release().await.unwrap();
    }
    session.answer(TIMEOUT).unwrap().unwrap();
    promise("P15", engine);
}
