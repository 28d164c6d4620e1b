//! What a URL sets of a connection: where the table is found, what is run first, how long to try.

use std::net::TcpListener;

use database_locks::{Error, Locks};
use testkit::contract::{self, StoreFixture};
use testkit::time::{ms, now};
use testkit::{MariaDb, MySql, MySqlServer, Proxy, TestDb, db_tests, promise};

async fn works(url: &str) -> Locks {
    let locks = Locks::connect(url).await;
    let locks = locks.unwrap_or_else(|error| panic!("{url}: {}", error.chain()));
    locks.migrate().await.expect("makes the table");
    let guard = locks.lock("job").acquire().await.expect("free");
    guard.release().await.expect("still held");
    locks
}

/// The tables of two schemas are two, and each spelling of a table's name finds the same one.
async fn a_search_path_says_where_the_table_is(db: &TestDb) {
    for schema in ["app", "\"two words\"", "empty"] {
        db.sql(&format!("CREATE SCHEMA {schema}"));
    }
    let forms = [
        "search_path=app,public",
        "options=-c search_path=app,public",
        "options=-csearch_path%3Dapp",
        "options=--search-path=app -c statement_timeout=20s -c lock_timeout=1s",
        "options=-c search_path=empty&search_path=app",
        "search_path=app&options=-c default_transaction_isolation=serializable -c jit=off \
         -c TimeZone=Asia/Kathmandu -c datestyle=SQL,DMY -c intervalstyle=sql_standard",
    ];
    let migrated = Locks::builder(&db.url)
        .table("app.database_locks_lock")
        .connect()
        .await;
    let migrated = migrated.unwrap();
    migrated.migrate().await.unwrap();
    for form in forms {
        let locks = works(&format!("{}?{form}", db.url)).await;
        let guard = locks.lock("job").acquire().await.unwrap();
        let same = migrated.lock("job").try_acquire().await.unwrap();
        assert!(same.is_none(), "{form}: another table");
        guard.release().await.unwrap();
    }
    let odd = works(&format!("{}?search_path=\"two words\", public", db.url)).await;
    let guard = odd.lock("job").acquire().await.unwrap();
    assert!(migrated.lock("job").try_acquire().await.unwrap().is_some());
    assert_eq!(
        db.sql("SELECT count(*) FROM \"two words\".database_locks_lock")
            .trim(),
        "1"
    );
    guard.release().await.unwrap();
    promise("P1", db.engine);
}

/// Another role than the one that logged in, for example the owner of the table.
async fn a_role_may_be_taken(db: &TestDb) {
    let database = db.url.rsplit('/').next().unwrap();
    let role = format!("owner_of_{database}");
    db.sql(&format!("CREATE ROLE {role}"));
    db.sql(&format!("CREATE SCHEMA app AUTHORIZATION {role}"));
    let url = format!("{}?options=-c role={role} -c search_path=app", db.url);
    works(&url).await;
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'database_locks_lock'";
    assert_eq!(db.sql(owner).trim(), role);
    let missing_role = format!("{}?options=-c role=missing_role", db.url);
    let message = Locks::connect(missing_role).await.unwrap_err();
    assert!(matches!(message, Error::Rejected { .. }), "{message:?}");
}

/// The library's own settings take effect after any `init_command`: isolation, the clock that ends
/// a lease, and how names and batches are compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_work_under_any_init_command_on_mariadb() {
    if let Some(server) = MariaDb::shared() {
        locks_work_under_any_init_command(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_work_under_any_init_command_on_mysql() {
    if let Some(server) = MySql::shared() {
        locks_work_under_any_init_command(server).await;
    }
}

async fn locks_work_under_any_init_command(server: &MySqlServer) {
    let engine = server.flavor().engine();
    for command in [
        "SET SESSION sql_mode=''",
        "SET time_zone='%2B05:00'",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
        "SET autocommit=0, innodb_lock_wait_timeout=50, sql_select_limit=1, unique_checks=0",
        "START TRANSACTION; SELECT 1; SELECT 2",
        "SET completion_type=CHAIN; BEGIN",
        "SET timestamp=1000000000",
        "SET NAMES latin1, character_set_results=NULL",
    ] {
        let fixture = || {
            StoreFixture::new(
                engine,
                format!("{}?init_command={command}", server.fresh_database()),
            )
        };
        contract::a_held_lock_names_its_holder(&fixture()).await;
        contract::the_first_token_is_the_time_of_the_database(&fixture()).await;
        contract::a_reader_sees_what_the_holder_wrote(&fixture()).await;
        // Both await the end of a lease.
        let (one, two) = (fixture(), fixture());
        tokio::join!(
            contract::an_expired_lock_is_free(&one),
            contract::a_batch_of_renewals_is_answered_one_by_one(&two),
        );
        // A name beyond ASCII, as another client reads it.
        let plain = server.fresh_database();
        let locks = works(&format!("{plain}?init_command={command}")).await;
        let guard = locks.lock("jöb 🔒").acquire().await.unwrap();
        let other = Locks::connect(&plain).await.unwrap();
        let row = other.show("jöb 🔒").await.unwrap().expect("committed");
        assert_eq!(row.token, guard.token());
        guard.check().await.unwrap();
    }
    for id in ["P1", "P5"] {
        promise(id, engine);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_runs_an_init_command_on_each_connection_and_its_failure_is_reported() {
    if let Some(server) = MariaDb::shared() {
        an_init_command_is_run_on_each_connection(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_runs_an_init_command_on_each_connection_and_its_failure_is_reported() {
    if let Some(server) = MySql::shared() {
        an_init_command_is_run_on_each_connection(server).await;
    }
}

async fn an_init_command_is_run_on_each_connection(server: &MySqlServer) {
    let url = server.fresh_database();
    let marks = "CREATE TABLE marks (id int AUTO_INCREMENT PRIMARY KEY)";
    server.query(&url, marks).unwrap();
    let proxy = Proxy::to_url(&url);
    let through = format!(
        "{}?init_command=INSERT INTO marks VALUES ()",
        proxy.url(&url)
    );
    let locks = works(&through).await;
    let count = || {
        let counted = server.query(&url, "SELECT count(*) FROM marks").unwrap();
        counted.trim().parse::<u32>().unwrap()
    };
    let before = count();
    assert!(before > 0, "it is committed");
    proxy.cut();
    locks
        .lock("job")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert!(count() > before, "on the new connection, too");

    for command in ["SELECT 'hunter2' FROM", "SELECT 1 FROM no_such_table"] {
        let message = Locks::connect(format!("{url}?init_command={command}")).await;
        let message = message.unwrap_err();
        assert!(matches!(message, Error::Rejected { .. }), "{message:?}");
        let chain = message.chain();
        assert!(chain.contains("init_command failed"), "{chain}");
        assert!(!chain.contains("hunter2"), "{chain}");
    }
    promise("P14", server.flavor().engine());
}

/// Each host has so long, and no longer.
async fn a_host_is_tried_for_as_long_as_the_url_says(db: &TestDb) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (login, rest) = db.url.split_once('@').unwrap();
    let (_, database) = rest.split_once('/').unwrap();
    let at = listener.local_addr().unwrap();
    for (seconds, least) in [(1, ms(900)), (6, ms(5900))] {
        let began = now();
        let url = format!("{login}@{at}/{database}?connect_timeout={seconds}");
        let message = Locks::connect(url).await.unwrap_err();
        let took = began.elapsed();
        assert!(matches!(message, Error::Unavailable { .. }), "{message:?}");
        let chain = message.chain();
        assert!(
            chain.contains(&format!("did not answer within {seconds}s")),
            "{chain}"
        );
        assert!(took >= least && took < least + ms(6000), "{took:?}");
    }
    // By default it would be given up after 3 or 4 s.
    let proxy = Proxy::to_url(&db.url);
    proxy.stall_replies();
    let url = format!("{}?connect_timeout=30", proxy.url(&db.url));
    let connect = tokio::spawn(async move { works(&url).await });
    tokio::time::sleep(ms(6000)).await;
    assert!(!connect.is_finished());
    proxy.resume();
    drop(connect.await.unwrap());
    promise("P12", db.engine);
}

db_tests!(postgres:
    a_search_path_says_where_the_table_is,
    a_role_may_be_taken,
    a_host_is_tried_for_as_long_as_the_url_says,
);
db_tests!(mariadb: a_host_is_tried_for_as_long_as_the_url_says);
db_tests!(mysql: a_host_is_tried_for_as_long_as_the_url_says);
