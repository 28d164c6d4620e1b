//! Fences of the drivers show the grant: a fenced transaction writes to the guarded table.

use database_locks::{LockGuard, Locks};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, TxOpts};
use testkit::{TestDb, db_tests, promise};
use tokio_postgres::{Client, NoTls};

use super::{WRITES, guarded, ledger, total};

/// A program's own connection.
enum User {
    Postgres(Box<Client>),
    Mysql(Conn),
}

impl User {
    async fn of(db: &TestDb) -> Self {
        if db.is_mysql_like() {
            return Self::Mysql(Conn::new(Opts::from_url(&db.url).unwrap()).await.unwrap());
        }
        let (client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        Self::Postgres(Box::new(client))
    }

    /// Runs statements in a transaction that is fenced by these guards. The error is the database's.
    async fn under(&mut self, guards: &[&LockGuard], statements: &[&str]) -> Result<(), String> {
        let mut open = Vec::new();
        match self {
            Self::Postgres(client) => {
                let mut tx = client.transaction().await.unwrap();
                for guard in guards {
                    open.push(guard.fence(&mut tx).await.unwrap());
                }
                for statement in statements {
                    let done = tx.batch_execute(statement).await;
                    done.map_err(|error| error.as_db_error().unwrap().message().to_owned())?;
                }
                tx.commit().await.unwrap();
            }
            Self::Mysql(conn) => {
                let mut tx = conn.start_transaction(TxOpts::default()).await.unwrap();
                for guard in guards {
                    open.push(guard.fence(&mut tx).await.unwrap());
                }
                for statement in statements {
                    if let Err(error) = tx.query_drop(*statement).await {
                        tx.rollback().await.unwrap();
                        return Err(error.to_string());
                    }
                }
                tx.commit().await.unwrap();
            }
        }
        Ok(())
    }

    /// The ids of the grants that a transaction shows that is fenced by these guards.
    async fn grants_shown(&mut self, guards: &[&LockGuard]) -> Vec<String> {
        let mut open = Vec::new();
        let shown: String = match self {
            Self::Postgres(client) => {
                let mut tx = client.transaction().await.unwrap();
                for guard in guards {
                    open.push(guard.fence(&mut tx).await.unwrap());
                }
                let show = "SELECT current_setting('database_locks.ticket')";
                tx.query_one(show, &[]).await.unwrap().get(0)
            }
            Self::Mysql(conn) => {
                let mut tx = conn.start_transaction(TxOpts::default()).await.unwrap();
                for guard in guards {
                    open.push(guard.fence(&mut tx).await.unwrap());
                }
                let show = "SELECT @database_locks_ticket";
                let shown = tx.query_first(show).await.unwrap().unwrap();
                tx.rollback().await.unwrap();
                shown
            }
        };
        let mut grants: Vec<String> = shown.split([',', ';']).map(str::to_owned).collect();
        grants.retain(|grant| !grant.is_empty());
        grants.sort_unstable();
        grants
    }
}

async fn a_fenced_transaction_writes_to_the_guarded_table(db: &TestDb) {
    let locks = guarded(db).await;
    let mut user = User::of(db).await;
    let refused = user.under(&[], &WRITES[1..2]).await.unwrap_err();
    assert!(refused.contains("is guarded by lock"), "{refused}");
    let guard = ledger(&locks).await;
    user.under(&[&guard], &WRITES[1..2]).await.unwrap();
    assert_eq!(total(db), "32");
    // The next transaction of the connection is not fenced.
    if !db.is_mysql_like() {
        let refused = user.under(&[], &WRITES[1..2]).await.unwrap_err();
        assert!(refused.contains("is guarded by lock"), "{refused}");
    }
    guard.release().await.unwrap();
    let refused = user.under(&[], &WRITES[1..2]).await.unwrap_err();
    assert!(refused.contains("is guarded by lock"), "{refused}");
    assert_eq!(total(db), "32");
    promise("P16", db.engine);
    promise("P9", db.engine);
}

/// Each fence adds its grant, in any order.
async fn fences_of_several_locks_open_the_tables_of_each(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE payments (id int PRIMARY KEY, amount int)");
    locks.guard_table("payments", "bank").await.unwrap();
    let writes = [
        WRITES[1],
        "INSERT INTO payments VALUES (1, 1)",
        "DELETE FROM payments",
    ];
    let (ledger, bank) = (
        ledger(&locks).await,
        locks.lock("bank").acquire().await.unwrap(),
    );
    let mut user = User::of(db).await;
    user.under(&[&ledger, &bank], &writes).await.unwrap();
    user.under(&[&bank, &ledger], &writes).await.unwrap();
    // A permit of a semaphore opens nothing, and closes nothing.
    let permit = locks.semaphore("ledger", 2).acquire().await.unwrap();
    user.under(&[&permit, &ledger, &bank], &writes)
        .await
        .unwrap();
    let mut other = User::of(db).await;
    let refused = other.under(&[&permit, &bank], &writes).await.unwrap_err();
    assert!(refused.contains("guarded by lock \"ledger\""), "{refused}");
    drop((ledger, bank));
    locks.drain().await;
    let both = locks.all(["ledger", "bank"]).acquire().await.unwrap();
    let guards: Vec<&LockGuard> = both.guards().iter().collect();
    user.under(&guards, &writes).await.unwrap();
    assert_eq!(total(db), "38");
    promise("P16", db.engine);
}

/// A connection in a pool fences thousands of transactions. What it shows stays short.
async fn a_session_that_fences_often_keeps_a_short_ticket(db: &TestDb) {
    let locks = guarded(db).await;
    let mut user = User::of(db).await;
    for _ in 0..150 {
        let guard = ledger(&locks).await;
        user.under(&[&guard], &WRITES[1..2]).await.unwrap();
        guard.release().await.unwrap();
    }
    let User::Mysql(mut conn) = user else { return };
    // As after a few more.
    let show = format!(
        "SET @database_locks_ticket = REPEAT(';{}', 300)",
        "0".repeat(32)
    );
    conn.query_drop(show).await.unwrap();
    let guard = ledger(&locks).await;
    let mut user = User::Mysql(conn);
    user.under(&[&guard], &WRITES[1..2]).await.unwrap();
    let User::Mysql(mut conn) = user else { return };
    let length = "SELECT LENGTH(@database_locks_ticket)";
    let length: Option<u32> = conn.query_first(length).await.unwrap();
    assert_eq!(length, Some(33 * 200));
}

/// An application nests fenced blocks, or fences each of its steps, and has the same locks all the time.
async fn a_fence_that_is_repeated_removes_no_other_and_lengthens_nothing(db: &TestDb) {
    let locks = guarded(db).await;
    let (ledger, bank) = (
        ledger(&locks).await,
        locks.lock("bank").acquire().await.unwrap(),
    );
    let mut user = User::of(db).await;
    let mut guards = vec![&ledger];
    guards.extend([&bank; 150]);
    user.under(&guards, &WRITES[1..2]).await.unwrap();
    // Fenced long ago, and again.
    let mut guards = vec![&bank, &ledger];
    guards.extend([&bank; 150]);
    user.under(&guards, &WRITES[1..2]).await.unwrap();
    assert_eq!(total(db), "34");
    let grants = user.grants_shown(&guards).await;
    let mut expected = [ledger.grant_id(), bank.grant_id()];
    expected.sort_unstable();
    assert_eq!(grants, expected);
}

/// As many as there can be, within the fence of another lock, in a session that shows one since it
/// connected and has fenced many transactions.
async fn fences_of_a_hundred_locks_remove_no_other(db: &TestDb) {
    let locks = guarded(db).await;
    db.sql("CREATE TABLE payments (id int PRIMARY KEY, amount int)");
    locks.guard_table("payments", "bank").await.unwrap();
    let (ledger, bank) = (
        ledger(&locks).await,
        locks.lock("bank").acquire().await.unwrap(),
    );
    let names: Vec<String> = (0..100).map(|number| format!("step {number}")).collect();
    let set = locks.all(&names).acquire().await.unwrap();
    let mut guards = vec![&bank];
    guards.extend(set.guards());
    let writes = [
        WRITES[1],
        "INSERT INTO payments VALUES (1, 1)",
        "DELETE FROM payments",
    ];
    let mut user = User::of(db).await;
    match &mut user {
        // A session may be another client's there, behind a pooler.
        User::Postgres(_) => guards.insert(0, &ledger),
        User::Mysql(conn) => {
            let (ticket, earlier) = (ledger.ticket(), "0".repeat(32));
            let show = format!(
                "SET @database_locks_ticket = CONCAT('{ticket}', REPEAT(';{earlier}', 300))"
            );
            conn.query_drop(show).await.unwrap();
        }
    }
    user.under(&guards, &writes).await.unwrap();
    assert_eq!(total(db), "32");
    if db.is_mysql_like() {
        user.under(&[], &WRITES[1..2]).await.unwrap();
        assert_eq!(total(db), "34");
    }
}

async fn a_fence_shows_the_grant_in_any_sql_mode(db: &TestDb) {
    let locks = guarded(db).await;
    let guard = ledger(&locks).await;
    let modes = match db.engine {
        "mariadb" => [
            "ORACLE",
            "EMPTY_STRING_IS_NULL",
            "ANSI,PAD_CHAR_TO_FULL_LENGTH",
        ],
        _ => [
            "ANSI,NO_BACKSLASH_ESCAPES",
            "TRADITIONAL",
            "PAD_CHAR_TO_FULL_LENGTH",
        ],
    };
    for mode in modes {
        let User::Mysql(mut conn) = User::of(db).await else {
            return;
        };
        let set = format!("SET sql_mode = '{mode}'");
        conn.query_drop(set).await.unwrap();
        let mut user = User::Mysql(conn);
        for _ in 0..2 {
            let wrote = user.under(&[&guard], &WRITES[1..2]).await;
            wrote.unwrap_or_else(|error| panic!("{mode}: {error}"));
            let shown = user.grants_shown(&[&guard]).await;
            assert_eq!(shown, [guard.grant_id()], "{mode}");
        }
    }
    assert_eq!(total(db), "42");
}

async fn a_fence_of_sqlx_shows_the_grant(db: &TestDb) {
    use database_locks::sqlx;
    use sqlx::Connection;
    let locks: Locks = guarded(db).await;
    let guard = ledger(&locks).await;
    macro_rules! fenced {
        ($connection:ty) => {{
            let mut connection = <$connection>::connect(&db.url).await.unwrap();
            let mut tx = connection.begin().await.unwrap();
            let open = guard.fence(&mut tx).await.unwrap();
            sqlx::query(WRITES[1]).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
            drop(open);
        }};
    }
    match db.is_mysql_like() {
        true => fenced!(sqlx::MySqlConnection),
        false => fenced!(sqlx::PgConnection),
    }
    assert_eq!(total(db), "32");
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        a_fenced_transaction_writes_to_the_guarded_table,
        fences_of_several_locks_open_the_tables_of_each,
        a_session_that_fences_often_keeps_a_short_ticket,
        a_fence_that_is_repeated_removes_no_other_and_lengthens_nothing,
        fences_of_a_hundred_locks_remove_no_other,
    ); )* };
}
on!(postgres, pgbouncer, mariadb, mysql);

mod in_sql_modes {
    use super::a_fence_shows_the_grant_in_any_sql_mode;
    testkit::db_tests!(mariadb: a_fence_shows_the_grant_in_any_sql_mode);
    testkit::db_tests!(mysql: a_fence_shows_the_grant_in_any_sql_mode);
}

#[cfg(all(feature = "sqlx-mysql", feature = "sqlx-postgres"))]
mod of_sqlx {
    use super::a_fence_of_sqlx_shows_the_grant;
    testkit::db_tests!(postgres: a_fence_of_sqlx_shows_the_grant);
    testkit::db_tests!(mariadb: a_fence_of_sqlx_shows_the_grant);
    testkit::db_tests!(mysql: a_fence_of_sqlx_shows_the_grant);
}
