//! Guards on MySQL and MariaDB of which a part is missing, is there twice, or is of another lock;
//! and tables that were changed since.

use database_locks::Locks;
use testkit::{MariaDb, MySql, MySqlServer};

use super::ledger;

/// The server's clock was set back since, or its time zone repeats an hour.
async fn a_session_whose_transaction_seems_to_begin_later_is_named(server: MySqlServer) {
    let url = server.fresh_database();
    let locks = Locks::connect(&url).await.unwrap();
    locks.migrate().await.unwrap();
    let _guard = ledger(&locks).await;
    let mut session = server.sql_session(&url);
    let id = session.run("SELECT CONNECTION_ID()").unwrap().remove(0);
    session.run("BEGIN").unwrap();
    session
        .run("SELECT id FROM database_locks_lock WHERE name = 'ledger' FOR UPDATE")
        .unwrap();
    let sql = |text: &str| server.query(&url, text).unwrap();
    sql("CREATE USER app@'127.0.0.1'");
    sql("GRANT SELECT, INSERT, UPDATE, DELETE, PROCESS ON *.* TO app@'127.0.0.1'");
    // Not run for a user with the right SUPER.
    sql("SET GLOBAL init_connect = 'SET timestamp = 1700000000'");
    let app = Locks::connect(url.replace("root@", "app@")).await.unwrap();
    let refused = app.force_release("ledger").await.unwrap_err().chain();
    assert!(refused.contains(&format!("id {id} (")), "{refused}");
    assert!(refused.contains("in a transaction for 0"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_transaction_seems_to_begin_later_is_named_on_mariadb() {
    if let Some(server) = MariaDb::options().start() {
        a_session_whose_transaction_seems_to_begin_later_is_named(server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_transaction_seems_to_begin_later_is_named_on_mysql() {
    if let Some(server) = MySql::options().start() {
        a_session_whose_transaction_seems_to_begin_later_is_named(server).await;
    }
}
