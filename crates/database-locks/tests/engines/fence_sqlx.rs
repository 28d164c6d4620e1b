//! The fence in transactions of sqlx.

use std::time::Duration;

use database_locks::{Error, FenceTransaction, LockGuard, Locks};
use sqlx::{Connection, MySqlConnection, PgConnection, SqliteConnection};
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

async fn held(locks: &Locks) -> LockGuard {
    // Too short for its process to listen for a release by force.
    let lock = locks.lock("job").ttl(Duration::from_secs(15)).wait(TIMEOUT);
    lock.auto_renew(false).acquire().await.unwrap()
}

/// With transactions that `begin!` makes: no other client gets the lock before the transaction has
/// ended, and a grant that is gone is refused.
macro_rules! fenced {
    ($db:expr, $connection:expr) => {{
        let (db, mut connection): (&TestDb, _) = ($db, $connection);
        let (locks, other) = (db.locks().await, db.locks().await);
        let guard = held(&locks).await;

        let outside = refused(&guard, &mut connection).await;
        assert!(outside.to_string().contains("outside"), "{outside}");

        let mut tx = connection.begin().await.unwrap();
        let open = guard.fence(&mut tx).await.unwrap();
        let forced = other.force_release("job").await.unwrap_err();
        assert!(matches!(forced, Error::Conflict { .. }), "{forced}");
        tx.commit().await.unwrap();
        drop(open);

        let mut tx = connection.begin().await.unwrap();
        let open = guard.fence(&mut *tx).await.unwrap();
        tx.rollback().await.unwrap();
        drop(open);

        other.force_release("job").await.unwrap().expect("freed");
        let next = held(&other).await;
        assert!(guard.is_held(), "it has not heard of it yet");
        let mut tx = connection.begin().await.unwrap();
        let lost = refused(&guard, &mut tx).await;
        assert!(matches!(lost, Error::Lost { .. }), "{}", lost.chain());
        tx.rollback().await.unwrap();
        next.check().await.unwrap();
        promise("P9", db.engine);
    }};
}

async fn refused(guard: &LockGuard, tx: &mut impl FenceTransaction) -> Error {
    guard.fence(tx).await.unwrap_err()
}

async fn a_transaction_of_sqlx_can_be_fenced(db: &TestDb) {
    match db.engine {
        "postgres" => fenced!(db, PgConnection::connect(&db.url).await.unwrap()),
        "mariadb" | "mysql" => fenced!(db, MySqlConnection::connect(&db.url).await.unwrap()),
        _ => fenced!(
            db,
            SqliteConnection::connect("sqlite::memory:").await.unwrap()
        ),
    }
}

db_tests!(sqlite: a_transaction_of_sqlx_can_be_fenced);
db_tests!(postgres: a_transaction_of_sqlx_can_be_fenced);
db_tests!(mariadb: a_transaction_of_sqlx_can_be_fenced);
db_tests!(mysql: a_transaction_of_sqlx_can_be_fenced);
