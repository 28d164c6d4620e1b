//! The session that has the row of a lock locked, behind a balancer: the connection that waits for the row and
//! the one that asks for whom it waits are on two servers.

use std::time::Duration;

use database_locks::Locks;
use database_locks::seam::{LockName, Slot, Table, open};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use testkit::{MariaDb, MySql, MySqlServer as Server, Proxy, SqlSession, promise};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Numbers of sessions that the connection that waits may have.
const STRANGERS: usize = 40;
const DATABASE: &str = "t_balanced";

async fn connect(server: &Server) -> Conn {
    let opts = Opts::from_url(&server.url_of(DATABASE)).unwrap();
    Conn::new(opts).await.unwrap()
}

/// A database with the lock `ledger` and a row of the application, and a session that has these locked.
async fn locked(server: &Server, rows: &[&str]) -> SqlSession {
    let create = format!("CREATE DATABASE {DATABASE}");
    server.query("mysql", &create).unwrap();
    let locks = Locks::connect(&server.url_of(DATABASE)).await.unwrap();
    locks.migrate().await.unwrap();
    let guard = locks.lock("ledger").acquire().await.unwrap();
    guard.release().await.unwrap();
    let mut session = server.sql_session(DATABASE);
    for statement in [
        "CREATE TABLE orders (id int PRIMARY KEY)",
        "INSERT INTO orders VALUES (1)",
        "BEGIN",
    ]
    .iter()
    .chain(rows)
    {
        session.run(statement).unwrap();
    }
    session
}

/// Opens sessions until both servers give the same number to the next one.
async fn number_alike(servers: [&Server; 2]) {
    loop {
        let [first, second] = [connect(servers[0]).await, connect(servers[1]).await];
        let (ids, behind) = match (first.id(), second.id()) {
            (a, b) if a == b => return,
            (a, b) if a < b => (b - a, servers[0]),
            (a, b) => (a - b, servers[1]),
        };
        for _ in 0..ids {
            connect(behind).await.disconnect().await.unwrap();
        }
    }
}

async fn no_session_of_the_other_server_is_killed(servers: [&Server; 2], engine: &'static str) {
    let [first, second] = servers;
    let ledger = "SELECT id FROM database_locks_lock WHERE name = 'ledger' FOR UPDATE";
    let mut locker = locked(first, &[ledger]).await;
    let mut other = locked(second, &["SELECT id FROM orders FOR UPDATE"]).await;
    number_alike(servers).await;
    // Of the application: they wait for its own row.
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let mut conn = connect(second).await;
        strangers.push(tokio::spawn(async move {
            let waited: Vec<u32> = conn.query("SELECT id FROM orders FOR UPDATE").await?;
            conn.disconnect().await?;
            Ok::<_, mysql_async::Error>(waited)
        }));
    }
    let own = "SELECT CONNECTION_ID()";
    let locker_id = locker.run(own).unwrap().remove(0);
    let other_id = other.run(own).unwrap().remove(0);
    let waiting =
        "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'";
    // MariaDB shows the same answer for as long as it is asked each 100 ms.
    while other.run(waiting).unwrap().remove(0) != STRANGERS.to_string() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let proxy = Proxy::to_url(&first.url_of(DATABASE));
    let store = open(&proxy.url(&first.url_of(DATABASE)), &Table::default()).unwrap();
    let name = LockName::new("ledger").unwrap();
    let find = async || store.row_locker(&name, Slot::Lock, TIMEOUT).await.unwrap();
    // Both on the first.
    let found = find().await.expect("its row is locked");
    assert!(
        found.contains(&format!("`KILL {locker_id}` ends it")),
        "{found}"
    );
    // The connection that waits reaches the first as a rule, and the other one the second. If both reach the
    // same, or each the other, the locker is named, or none is there.
    proxy.alternate_with(second.port());
    let mut apart = 0;
    for _ in 0..30 {
        let Some(found) = find().await else { continue };
        assert!(!found.contains(&format!("`KILL {other_id}`")), "{found}");
        apart += u32::from(!found.contains("KILL"));
        if apart == 3 {
            break;
        }
    }
    assert_eq!(apart, 3, "they never reached two servers");

    other.run("ROLLBACK").unwrap();
    for stranger in strangers {
        let waited = tokio::time::timeout(TIMEOUT, stranger).await.unwrap();
        assert_eq!(waited.unwrap().expect("it was not killed"), [1]);
    }
    locker.run("ROLLBACK").unwrap();
    promise("P17", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_of_the_other_server_is_killed_on_mariadb() {
    let Some((first, second)) = MariaDb::start().zip(MariaDb::start()) else {
        return;
    };
    no_session_of_the_other_server_is_killed([&first, &second], "mariadb").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_of_the_other_server_is_killed_on_mysql() {
    let Some((first, second)) = MySql::start().zip(MySql::start()) else {
        return;
    };
    no_session_of_the_other_server_is_killed([&first, &second], "mysql").await;
}
