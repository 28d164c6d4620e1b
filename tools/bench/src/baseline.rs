//! The baseline of the locks: a prepared `UPDATE` that writes the same columns of the same table,
//! and one that clears them, each committed by itself, on the same driver, socket and runtime.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use rusqlite::Connection;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls, Statement};

use crate::drive::BlockingCycle;
use crate::serve::Cycle;

const PG_ACQUIRE: &str = "UPDATE baseline SET locked_by = $2, token = token + 1, grant_id = $3, metadata = $4, \
    expires_at = clock_timestamp() + interval '30 s', granted_until = clock_timestamp() + interval '30 s', \
    acquired_at = clock_timestamp(), renewed_at = clock_timestamp() WHERE name = $1";
const PG_RELEASE: &str = "UPDATE baseline SET expires_at = NULL, granted_until = NULL, grant_id = NULL, \
    renewed_at = clock_timestamp() WHERE name = $1 AND grant_id = $2";
const MY_ACQUIRE: &str = "UPDATE baseline SET locked_by = ?, token = token + 1, grant_id = ?, metadata = ?, \
    expires_at = UTC_TIMESTAMP(6) + INTERVAL 30 SECOND, granted_until = UTC_TIMESTAMP(6) + INTERVAL 30 SECOND, \
    acquired_at = UTC_TIMESTAMP(6), renewed_at = UTC_TIMESTAMP(6) WHERE name = ?";
const MY_RELEASE: &str = "UPDATE baseline SET expires_at = NULL, granted_until = NULL, grant_id = NULL, \
    renewed_at = UTC_TIMESTAMP(6) WHERE name = ? AND grant_id = ?";
const LITE_ACQUIRE: &str = "UPDATE baseline SET locked_by = ?2, token = token + 1, grant_id = ?3, metadata = ?4, \
    expires_at = '2030-01-01 00:00:00.000000', granted_until = '2030-01-01 00:00:00.000000', \
    acquired_at = '2029-01-01 00:00:00.000000', renewed_at = '2029-01-01 00:00:00.000000' WHERE name = ?1";
const LITE_RELEASE: &str = "UPDATE baseline SET expires_at = NULL, granted_until = NULL, grant_id = NULL, \
    renewed_at = '2029-01-01 00:00:00.000000' WHERE name = ?1 AND grant_id = ?2";

const HOLDER: &str = "database-host.12345.0123456789ab";
const GRANT: &str = "0123456789abcdef0123456789abcdef";
const METADATA: &str =
    r#"{"program":"bench","host":"database-host","pid":12345,"version":"1.0.0"}"#;
/// The key of `pg_advisory_lock`.
const ADVISORY: i64 = 7;

/// The statements that make the table of locks under the name `baseline`. The collation of names
/// differs between MySQL and MariaDB.
pub(crate) fn schema(engine: &str) -> String {
    let (text, collation) = match engine {
        "postgres" => (
            include_str!("../../../crates/database-locks/schema/postgres.sql"),
            "",
        ),
        "sqlite" => (
            include_str!("../../../crates/database-locks/schema/sqlite.sql"),
            "",
        ),
        "mysql" => (
            include_str!("../../../crates/database-locks/schema/mysql.sql"),
            "utf8mb4_0900_bin",
        ),
        _ => (
            include_str!("../../../crates/database-locks/schema/mysql.sql"),
            "utf8mb4_nopad_bin",
        ),
    };
    text.replace("{table}", "baseline")
        .replace("{collation}", collation)
}

/// The statements of the baseline in Python, with their parameters in place.
pub(crate) fn python_statements(name: &str) -> [String; 2] {
    let quoted = |text: &str| format!("'{text}'");
    [PG_ACQUIRE, PG_RELEASE].map(|sql| {
        let second = if sql == PG_ACQUIRE { HOLDER } else { GRANT };
        sql.replace("$1", &quoted(name))
            .replace("$2", &quoted(second))
            .replace("$3", &quoted(GRANT))
            .replace("$4", &quoted(METADATA))
    })
}

pub(crate) async fn postgres(url: &str) -> Client {
    let mut config: tokio_postgres::Config = url.parse().expect("a good URL");
    config.user("postgres");
    let (client, connection) = config.connect(NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

/// Two commits on PostgreSQL.
pub(crate) struct Postgres {
    client: Client,
    acquire: Statement,
    release: Statement,
    name: String,
}

impl Postgres {
    /// Connects and makes the row; the table exists already.
    pub(crate) async fn connect(url: &str, name: &str) -> Self {
        let client = postgres(url).await;
        let insert = format!("INSERT INTO baseline (name) VALUES ('{name}')");
        client.batch_execute(&insert).await.expect("makes the row");
        let types = [Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT];
        let prepare = |sql, types| client.prepare_typed(sql, types);
        let acquire = prepare(PG_ACQUIRE, &types[..]).await.expect("prepares");
        let release = prepare(PG_RELEASE, &types[..2]).await.expect("prepares");
        let name = name.to_owned();
        Self {
            client,
            acquire,
            release,
            name,
        }
    }
}

impl Cycle for Postgres {
    async fn acquire(&mut self) {
        let all: [&(dyn ToSql + Sync); 4] = [&self.name, &HOLDER, &GRANT, &METADATA];
        let done = self.client.execute(&self.acquire, &all).await;
        assert_eq!(done.expect("commits"), 1);
    }

    async fn release(&mut self) {
        let two: [&(dyn ToSql + Sync); 2] = [&self.name, &GRANT];
        let done = self.client.execute(&self.release, &two).await;
        assert_eq!(done.expect("commits"), 1);
    }
}

/// `pg_advisory_lock` alone: it commits nothing and ends with its connection.
pub(crate) struct Advisory {
    client: Client,
    acquire: Statement,
    release: Statement,
}

impl Advisory {
    pub(crate) async fn connect(url: &str) -> Self {
        let client = postgres(url).await;
        let prepare = |sql| client.prepare(sql);
        let acquire = prepare("SELECT pg_advisory_lock($1)").await;
        let release = prepare("SELECT pg_advisory_unlock($1)").await;
        Self {
            acquire: acquire.expect("prepares"),
            release: release.expect("prepares"),
            client,
        }
    }
}

impl Cycle for Advisory {
    async fn acquire(&mut self) {
        let answer = self.client.query_one(&self.acquire, &[&ADVISORY]).await;
        answer.expect("answers");
    }

    async fn release(&mut self) {
        let answer = self.client.query_one(&self.release, &[&ADVISORY]).await;
        answer.expect("answers");
    }
}

/// Two commits on MySQL or MariaDB.
pub(crate) struct MySql {
    conn: Conn,
    acquire: mysql_async::Statement,
    release: mysql_async::Statement,
    name: String,
}

impl MySql {
    /// Connects and makes the row; the table exists already.
    pub(crate) async fn connect(url: &str, name: &str) -> Self {
        let mut conn = Conn::from_url(url).await.expect("connects");
        let insert = format!("INSERT INTO baseline (name) VALUES ('{name}')");
        conn.query_drop(insert).await.expect("makes the row");
        Self {
            acquire: conn.prep(MY_ACQUIRE).await.expect("prepares"),
            release: conn.prep(MY_RELEASE).await.expect("prepares"),
            conn,
            name: name.to_owned(),
        }
    }
}

impl Cycle for MySql {
    async fn acquire(&mut self) {
        let all = (HOLDER, GRANT, METADATA, self.name.as_str());
        let done = self.conn.exec_drop(&self.acquire, all);
        done.await.expect("commits");
    }

    async fn release(&mut self) {
        let two = (self.name.as_str(), GRANT);
        let done = self.conn.exec_drop(&self.release, two);
        done.await.expect("commits");
        assert_eq!(self.conn.affected_rows(), 1);
    }
}

/// Two commits on a file like that of the locks: write-ahead log, each commit on the disk.
pub(crate) struct Sqlite {
    file: Connection,
    name: String,
}

impl Sqlite {
    pub(crate) fn open(file: &str, name: &str) -> Self {
        let file = Connection::open(file).expect("opens");
        for (setting, value) in [("journal_mode", "wal"), ("synchronous", "full")] {
            file.pragma_update(None, setting, value).expect("takes it");
        }
        file.execute_batch(&schema("sqlite"))
            .expect("makes the table");
        let insert = format!("INSERT INTO baseline (name) VALUES ('{name}')");
        file.execute_batch(&insert).expect("makes the row");
        let name = name.to_owned();
        Self { file, name }
    }
}

impl BlockingCycle for Sqlite {
    fn acquire(&mut self) {
        let mut update = self.file.prepare_cached(LITE_ACQUIRE).expect("prepares");
        let done = update.execute((&self.name, HOLDER, GRANT, METADATA));
        assert_eq!(done.expect("commits"), 1);
    }

    fn release(&mut self) {
        let mut update = self.file.prepare_cached(LITE_RELEASE).expect("prepares");
        let done = update.execute((&self.name, GRANT));
        assert_eq!(done.expect("commits"), 1);
    }
}
