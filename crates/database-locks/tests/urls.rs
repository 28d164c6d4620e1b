//! URLs against real servers: several hosts, sockets, names and passwords that have to be encoded;
//! and servers and tables that are refused, with the reason.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::{Error, Locks};
use testkit::sql::LOCKER_PASSWORD;
use testkit::time::{ms, now};
use testkit::{
    MariaDb, MySql, MySqlServer, Postgres, Proxy, TestDb, assert_error_contains, db_tests, promise,
};

const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// The URL with these in the place of its host.
fn at(url: &str, hosts: &[String]) -> String {
    let (login, rest) = url.split_once('@').expect("a user");
    let (_, database) = rest.split_once('/').expect("a database");
    format!("{login}@{}/{database}", hosts.join(","))
}

fn host_of(url: &str) -> String {
    let (_, rest) = url.split_once('@').expect("a user");
    rest.split(['/', '?']).next().unwrap_or_default().to_owned()
}

/// A host without a listener.
fn dead() -> String {
    format!("127.0.0.1:{}", testkit::server::free_port())
}

/// A host that accepts connections and never answers.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let host = listener.local_addr().expect("bound").to_string();
    (listener, host)
}

async fn works(url: &str) {
    let locks = Locks::connect(url).await;
    let locks = locks.unwrap_or_else(|error| panic!("{url}: {}", error.chain()));
    locks.migrate().await.expect("makes the table");
    let guard = locks.lock("job").acquire().await.expect("free");
    guard.release().await.expect("still held");
}

async fn refused(url: &str, words: &[&str]) {
    assert_rejected(&Locks::connect(url).await.expect_err(url), words);
}

/// The first connection fails at once; a wait would go on, since a failover may be under way.
async fn cannot_be_written(url: &str, words: &[&str]) {
    let error = Locks::connect(url).await.expect_err(url);
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_error_contains(&error, words);
}

fn assert_rejected(error: &Error, words: &[&str]) {
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert_error_contains(error, words);
}

async fn a_dead_host_and_a_silent_one_are_passed_over(db: &TestDb) {
    let (_listener, silent) = silent();
    let hosts = [dead(), silent, host_of(&db.url)];
    let began = now();
    works(&at(&db.url, &hosts)).await;
    assert!(began.elapsed() < ms(12_000), "{:?}", began.elapsed());
    promise("P12", db.engine);
}

async fn the_error_without_a_usable_host_names_each_with_its_reason(db: &TestDb) {
    let (_listener, silent) = silent();
    let hosts = [dead(), silent];
    let url = at(&db.url, &hosts).replacen('@', ":hunter2@", 1);
    let error = Locks::connect(&url).await.expect_err("no server");
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let chain = error.chain();
    for word in [&*hosts[0], "refused", &*hosts[1], "did not answer within"] {
        assert!(chain.contains(word), "`{word}` is not in: {chain}");
    }
    assert!(!format!("{chain} {error:?}").contains("hunter2"), "{chain}");
    promise("P14", db.engine);
}

/// Its hosts are cut off one after the other: the holder keeps its lock, the waiter its place.
async fn holders_and_waiters_move_to_another_host(db: &TestDb) {
    let (first, second) = (Proxy::to_url(&db.url), Proxy::to_url(&db.url));
    let hosts = [&first, &second].map(|proxy| format!("127.0.0.1:{}", proxy.port()));
    let (url, other) = (at(&db.url, &hosts), db.locks().await);
    let locks = db.locks_at(&url).await;
    let held = locks.lock("held").ttl(ms(15_000)).renew_every(ms(500));
    let guard = held.acquire().await.unwrap();
    let blocker = other.lock("waited for").acquire().await.unwrap();
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("waited for").acquire().await })
    };
    tokio::time::sleep(ms(700)).await;
    assert_eq!(second.counts().connections, 0, "the first will do");
    for (gone, next) in [(&first, &second), (&second, &first)] {
        next.refuse(false);
        next.reset_counts();
        gone.refuse(true);
        gone.cut();
        tokio::time::sleep(ms(3000)).await;
        assert!(guard.is_held() && next.counts().connections > 0);
        in_time(guard.check())
            .await
            .expect("renewed over the other host");
        assert!(!waiter.is_finished());
    }
    blocker.release().await.unwrap();
    let waited = in_time(waiter).await.unwrap().unwrap();
    waited.release().await.unwrap();
    guard.release().await.unwrap();
    promise("P6", db.engine);
    promise("P12", db.engine);
}

/// A host that served is stayed with, though one before it is back.
async fn a_connection_that_broke_is_made_anew_where_it_was(db: &TestDb) {
    let (first, second) = (Proxy::to_url(&db.url), Proxy::to_url(&db.url));
    let hosts = [&first, &second].map(|proxy| format!("127.0.0.1:{}", proxy.port()));
    first.refuse(true);
    let locks = db.locks_at(&at(&db.url, &hosts)).await;
    first.refuse(false);
    second.cut();
    let guard = in_time(locks.lock("job").acquire()).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(first.counts().connections, 0);
    assert!(second.counts().connections >= 2);
    promise("P12", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_dead_host_and_a_silent_one_are_passed_over,
            the_error_without_a_usable_host_names_each_with_its_reason,
            holders_and_waiters_move_to_another_host,
            a_connection_that_broke_is_made_anew_where_it_was,
        );
    )* };
}
on!(postgres, mariadb, mysql);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_postgres_is_passed_over_for_its_primary() {
    let Some(primary) = Postgres::start() else {
        return;
    };
    let url = primary.fresh_database();
    let standby = primary.standby();
    let standby = format!("127.0.0.1:{}", standby.port());
    // Not dropped before the end.
    let (first, second) = (standby.clone(), host_of(&url));
    for attrs in [
        "",
        "?target_session_attrs=read-write",
        "?target_session_attrs=any",
    ] {
        works(&format!(
            "{}{attrs}",
            at(&url, &[first.clone(), second.clone()])
        ))
        .await;
    }
    let alone = at(&url, std::slice::from_ref(&standby));
    cannot_be_written(&alone, &[&standby, "read-only standby", "primary"]).await;
    let asked = Locks::connect(format!("{url}?target_session_attrs=read-only")).await;
    assert!(
        matches!(asked, Err(Error::Config { setting: "url", .. })),
        "{asked:?}"
    );
    promise("P12", "postgres");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_postgres_is_passed_over_or_refused() {
    let (Some(read_only), Some(primary)) = (Postgres::start(), Postgres::shared()) else {
        return;
    };
    let setting = "ALTER DATABASE postgres SET default_transaction_read_only = on";
    read_only.query("postgres", setting).expect("is set");
    let url = primary.fresh_database();
    // Of the name that the database has on both.
    let hosts = [format!("127.0.0.1:{}", read_only.port()), host_of(&url)];
    works(&at(&primary.url(), &hosts)).await;
    let words = ["is read-only", "default_transaction_read_only"];
    cannot_be_written(&read_only.url(), &words).await;
}

async fn read_only(replica: Option<MySqlServer>, primary: Option<&'static MySqlServer>) {
    let (Some(replica), Some(primary)) = (replica, primary) else {
        return;
    };
    let kept = replica.fresh_database();
    works(&kept).await;
    replica
        .query("mysql", "SET GLOBAL read_only = ON")
        .expect("is set");
    let url = primary.fresh_database();
    let hosts = [format!("127.0.0.1:{}", replica.port()), host_of(&url)];
    works(&at(&url, &hosts)).await;
    cannot_be_written(&replica.url(), &["is read-only", "primary"]).await;
    // A wait that begins now, with the first connection, outlasts it.
    outlasts(&kept, || {
        replica
            .query("mysql", "SET GLOBAL read_only = OFF")
            .expect("is set");
    })
    .await;
}

/// A wait begins before there is a connection, while the server is read-only, and has the lock when
/// it no longer is; a try-once answers at once.
async fn outlasts(url: &str, writable: impl FnOnce()) {
    let locks = Locks::builder(url).connect_lazy().unwrap();
    let tried = locks.lock("job").try_acquire().await.unwrap_err();
    assert_error_contains(&tried, &["is read-only"]);
    let lock = locks.lock("job").wait(ms(30_000));
    let waiting = tokio::spawn(async move { lock.acquire().await });
    tokio::time::sleep(ms(700)).await;
    assert!(!waiting.is_finished(), "it gave up");
    writable();
    let guard = in_time(waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_mariadb_is_passed_over_or_refused() {
    read_only(MariaDb::start(), MariaDb::shared()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_mysql_is_passed_over_or_refused() {
    read_only(MySql::start(), MySql::shared()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_mariadb_is_refused_with_its_version() {
    let Some(old) = MariaDb::options().set("version=10.5.8-MariaDB").start() else {
        return;
    };
    refused(&old.url(), &["10.5.8", "10.6 at least"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_hosts_like_others() {
    let encode = testkit::sql::percent_encode;
    if let Some(server) = Postgres::shared() {
        let url = server.fresh_database();
        works(&server.socket_url(&url)).await;
        let socket = format!(
            "{}:{}",
            encode(&server.socket_dir().display().to_string()),
            server.port()
        );
        works(&at(&url, std::slice::from_ref(&socket))).await;
        works(&at(&url, &["%2Fnowhere".into(), dead(), socket])).await;
        refused_names_a_socket(&at(&url, &["%2Fnowhere:1".into()]), "/nowhere/.s.PGSQL.1").await;
    }
    for server in [MariaDb::shared(), MySql::shared()].into_iter().flatten() {
        let url = server.fresh_database();
        works(&server.socket_url(&url)).await;
        let socket = encode(&server.socket().display().to_string());
        works(&at(&url, std::slice::from_ref(&socket))).await;
        works(&at(&url, &["%2Fnowhere".into(), dead(), socket])).await;
        refused_names_a_socket(&at(&url, &["%2Fnowhere".into()]), "/nowhere").await;
    }
}

async fn refused_names_a_socket(url: &str, socket: &str) {
    let error = Locks::connect(url).await.expect_err("no server");
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.chain().contains(socket), "{}", error.chain());
}

/// Every character that means something in a URL or in SQL, in the name and in the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_passwords_may_contain_any_character() {
    let (odd, encode) = ("o/d:d@us%er?#&'é", testkit::sql::percent_encode);
    let login = format!("{}:{}", encode(odd), encode(LOCKER_PASSWORD));
    let (sql_name, sql_password) = (odd.replace('\'', "''"), LOCKER_PASSWORD.replace('\'', "''"));
    // On PostgreSQL only `locker` needs the password; the name is another's as well.
    if let Some(server) = Postgres::shared() {
        let url = server.fresh_database();
        let role = format!("CREATE ROLE \"{odd}\" SUPERUSER LOGIN PASSWORD '{sql_password}'");
        server.query("postgres", &role).expect("makes a role");
        works(&url.replace("postgres@", &format!("{login}@"))).await;
        let as_options = url.replace("postgres@", "");
        let (user, password) = (encode(odd), encode(LOCKER_PASSWORD));
        works(&format!("{as_options}?user={user}&password={password}")).await;
        works(&server.locker_url(&server.fresh_database())).await;
        let bad = server.locker_url_with("postgres", "hunter2");
        refused(&bad, &["password", "check user name and password"]).await;
    }
    for server in [MariaDb::shared(), MySql::shared()].into_iter().flatten() {
        let url = server.fresh_database();
        let user = format!("'{sql_name}'@'127.0.0.1'");
        let made = format!("CREATE USER {user} IDENTIFIED BY '{sql_password}'");
        server.query("mysql", &made).expect("makes a user");
        let granted = format!("GRANT ALL ON *.* TO {user}");
        server.query("mysql", &granted).expect("grants");
        works(&url.replace("root@", &format!("{login}@"))).await;
        let bad = server.locker_url_with("mysql", "hunter2");
        refused(&bad, &["Access denied", "check user name and password"]).await;
        // MySQL asks for a login of one kind or another in the name of a user that it does not
        // know.
        for user in 0..8 {
            let bad = url.replace("root@", &format!("unknown{user}:hunter2@"));
            let error = Locks::connect(&bad).await.expect_err("no such user");
            assert_rejected(&error, &["check user name and password"]);
            assert!(!error.chain().contains(".;"), "{}", error.chain());
        }
    }
}

/// The table is refused when it is used, and not when connecting: `migrate` puts it right.
async fn refused_until_mended(db: &TestDb, spoil: &str, words: &[&str]) {
    db.locks().await;
    db.sql(spoil);
    let locks = Locks::connect(&db.url).await.expect("the server is fit");
    assert_rejected(
        &locks.lock("job").try_acquire().await.expect_err(spoil),
        words,
    );
    assert_rejected(&locks.list().await.expect_err(spoil), words);
    locks.migrate().await.expect("mends it");
    let guard = in_time(locks.lock("job").acquire())
        .await
        .expect("it is fit now");
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_mariadb_that_cannot_hold_locks_is_refused() {
    cannot_hold_locks(TestDb::mariadb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_mysql_that_cannot_hold_locks_is_refused() {
    cannot_hold_locks(TestDb::mysql).await;
}

async fn cannot_hold_locks(db: fn() -> Option<TestDb>) {
    let Some(engine) = db().map(|db| db.engine) else {
        return;
    };
    let table = "ALTER TABLE database_locks_lock";
    let blind =
        "MODIFY name varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL";
    let padded = "MODIFY name varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL";
    let of_myisam = match engine {
        // Its keys have 1000 bytes there.
        "mysql" => {
            "ENGINE = MyISAM, MODIFY name varchar(240) CHARACTER SET utf8mb4 \
             COLLATE utf8mb4_0900_bin NOT NULL"
        }
        _ => "ENGINE = MyISAM",
    };
    for (spoil, words) in [
        (
            blind,
            [
                "utf8mb4_general_ci",
                "two names could be one lock",
                "dblock init",
            ],
        ),
        (
            padded,
            ["utf8mb4_bin", "two names could be one lock", "dblock init"],
        ),
        (of_myisam, ["MyISAM", "without transactions", "dblock init"]),
        (
            "DROP INDEX name",
            ["the same name twice", "two could get", "dblock init"],
        ),
        (
            "DROP COLUMN grant_id",
            ["grant_id", "older version", "dblock init"],
        ),
    ] {
        let Some(db) = db() else { return };
        refused_until_mended(&db, &format!("{table} {spoil}"), &words).await;
    }
    promise("P10", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_postgres_that_cannot_hold_locks_is_refused() {
    let Some(db) = TestDb::postgres() else { return };
    let dropped = "ALTER TABLE database_locks_lock DROP COLUMN grant_id";
    refused_until_mended(&db, dropped, &["grant_id", "dblock init"]).await;

    let blind = "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2',
                                         deterministic = false);
                 ALTER TABLE database_locks_lock
                       ALTER COLUMN name TYPE varchar(255) COLLATE blind";
    let to_text = "ALTER TABLE database_locks_lock
                         ALTER COLUMN name TYPE varchar(255) COLLATE \"C\"";
    let padded = "ALTER TABLE database_locks_lock ALTER COLUMN name TYPE char(255)";
    let table = "ALTER TABLE database_locks_lock";
    let (unlogged, logged) = (
        format!("{table} SET UNLOGGED"),
        format!("{table} SET LOGGED"),
    );
    for (spoil, words, mend) in [
        (
            blind,
            [
                "nondeterministic",
                "two names could be one lock",
                "ALTER COLUMN",
            ],
            to_text,
        ),
        (
            padded,
            [
                "neither varchar nor text",
                "two names could be one lock",
                "ALTER COLUMN",
            ],
            to_text,
        ),
        (&unlogged, ["UNLOGGED", "a crash", "SET LOGGED"], &*logged),
    ] {
        db.locks().await;
        for statement in spoil.split(';') {
            db.sql(statement);
        }
        let locks = Locks::connect(&db.url).await.expect("the server is fit");
        assert_rejected(
            &locks.lock("job").try_acquire().await.expect_err(spoil),
            &words,
        );
        match locks.list().await {
            Ok(rows) => assert!(!spoil.contains("COLLATE"), "{rows:?}"),
            Err(error) => assert_rejected(&error, &words),
        }
        db.sql(mend);
        let guard = in_time(locks.lock("job").acquire())
            .await
            .expect("it is fit now");
        guard.release().await.unwrap();
    }
    promise("P10", "postgres");
}

/// All that the library and its drivers log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn add(&self, line: impl std::fmt::Debug) {
        let mut log = self.0.lock().unwrap();
        log.push_str(&format!("{line:?}\n"));
    }
}

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.add(format_args!("{field}={value:?}"));
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.add(record.args());
    }
    fn flush(&self) {}
}

/// Logs of the whole process, also those of the other tests of this file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_password_is_logged() {
    let seen = Log::default();
    tracing::subscriber::set_global_default(seen.clone()).expect("the only one");
    log::set_boxed_logger(Box::new(seen.clone())).expect("the only one");
    log::set_max_level(log::LevelFilter::Trace);
    let postgres = Postgres::shared().map(|s| ("postgres", s.locker_url(&s.fresh_database())));
    let of = |s: &MySqlServer| (s.flavor().engine(), s.locker_url(&s.fresh_database()));
    let (mariadb, mysql) = (MariaDb::shared().map(of), MySql::shared().map(of));
    for (engine, url) in [postgres, mariadb, mysql].into_iter().flatten() {
        works(&url).await;
        let (_listener, silent) = silent();
        let several = at(&url, &[dead(), silent, host_of(&url)]);
        let locks = Locks::connect(&several).await.expect("the last one");
        let guard = locks.lock("job").acquire().await.expect("free");
        let metadata = locks.show("job").await.unwrap().expect("a row").metadata;
        let shown = format!("{locks:?} {guard:?} {metadata:?}");
        guard.release().await.unwrap();
        let wrong = url.replace(&testkit::sql::percent_encode(LOCKER_PASSWORD), "hunter2");
        let error = Locks::connect(&wrong).await.expect_err("a wrong password");
        let log = seen.0.lock().unwrap().clone();
        assert!(log.contains(&host_of(&url)), "nothing was logged");
        let encoded = testkit::sql::percent_encode(LOCKER_PASSWORD);
        for text in [log, shown, error.chain(), format!("{error:?}")] {
            for secret in [LOCKER_PASSWORD, &encoded, "hunter2"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
        promise("P14", engine);
    }
}
