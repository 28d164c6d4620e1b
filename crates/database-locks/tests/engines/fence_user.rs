//! A program that fences its transactions, with the driver of each engine.

use std::time::Duration;

use database_locks::{Error, LockGuard, OpenFence};
use mysql_async::{Conn, Opts, TxOpts};
use testkit::TestDb;
use tokio_postgres::{Client, NoTls};

/// A connection of the program's own, to the database of the lock; on SQLite to a file of its own.
pub(crate) enum User {
    Postgres(Client),
    Mysql(Conn),
    Sqlite(rusqlite::Connection),
    /// `memory:` has no transactions; the fence does not care whose it is.
    Memory(rusqlite::Connection),
}

impl User {
    pub(crate) async fn of(db: &TestDb) -> Self {
        match db.engine {
            "postgres" | "pgbouncer" => Self::Postgres(client(&db.url).await),
            "mariadb" | "mysql" => Self::Mysql(connection(&db.url).await),
            "sqlite" => Self::Sqlite(rusqlite::Connection::open_in_memory().unwrap()),
            _ => Self::Memory(rusqlite::Connection::open_in_memory().unwrap()),
        }
    }

    /// Fence a transaction, do something under it, and commit.
    pub(crate) async fn under<T>(
        &mut self,
        guard: &LockGuard,
        lasting: Option<Duration>,
        what: impl AsyncFnOnce(&OpenFence) -> T,
    ) -> Result<T, Error> {
        macro_rules! fenced {
            ($tx:expr) => {
                match lasting {
                    Some(lasting) => guard.fence_with_duration(&mut $tx, lasting).await?,
                    None => guard.fence(&mut $tx).await?,
                }
            };
        }
        match self {
            Self::Postgres(client) => {
                let mut tx = client.transaction().await.unwrap();
                let open = fenced!(tx);
                let done = what(&open).await;
                tx.commit().await.unwrap();
                Ok(done)
            }
            Self::Mysql(conn) => {
                let mut tx = conn.start_transaction(TxOpts::default()).await.unwrap();
                let open = fenced!(tx);
                let done = what(&open).await;
                tx.commit().await.unwrap();
                drop(open);
                Ok(done)
            }
            Self::Sqlite(file) | Self::Memory(file) => {
                let mut tx = file.transaction().unwrap();
                let open = fenced!(tx);
                let done = what(&open).await;
                tx.commit().unwrap();
                Ok(done)
            }
        }
    }
}

pub(crate) async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn connection(url: &str) -> Conn {
    Conn::new(Opts::from_url(url).unwrap()).await.unwrap()
}
