//! What the locks stand on, without them: the same drivers, with prepared statements, on the same
//! sockets, and each on the thread that waits for it.

use std::sync::Arc;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use testkit::{MySqlServer, time};
use tokio::runtime::Runtime;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls};

use crate::contender::{Contender, Times, repeat, since};
use crate::servers::{Servers, postgres_config};

/// The statements that a lock without any care would make: one commit each.
const PG_TAKE: &str = "UPDATE floor SET locked_by = $2, token = token + 1, grant_id = $3, metadata = $4, \
    expires_at = clock_timestamp() + interval '30 s', granted_until = clock_timestamp() + interval '30 s', \
    acquired_at = clock_timestamp(), renewed_at = clock_timestamp() WHERE name = $1";
const PG_FREE: &str = "UPDATE floor SET expires_at = NULL, granted_until = NULL, grant_id = NULL, \
    renewed_at = clock_timestamp() WHERE name = $1 AND grant_id = $2";
const MY_TAKE: &str = "UPDATE floor SET locked_by = ?, token = token + 1, grant_id = ?, metadata = ?, \
    expires_at = UTC_TIMESTAMP(6) + INTERVAL 30 SECOND, granted_until = UTC_TIMESTAMP(6) + INTERVAL 30 SECOND, \
    acquired_at = UTC_TIMESTAMP(6), renewed_at = UTC_TIMESTAMP(6) WHERE name = ?";
const MY_FREE: &str = "UPDATE floor SET expires_at = NULL, granted_until = NULL, grant_id = NULL, \
    renewed_at = UTC_TIMESTAMP(6) WHERE name = ? AND grant_id = ?";
const LITE_TAKE: &str = "UPDATE floor SET locked_by = ?2, token = token + 1, grant_id = ?3, metadata = ?4, \
    expires_at = '2030-01-01 00:00:00.000000', granted_until = '2030-01-01 00:00:00.000000', \
    acquired_at = '2029-01-01 00:00:00.000000', renewed_at = '2029-01-01 00:00:00.000000' WHERE name = ?1";
const LITE_FREE: &str = "UPDATE floor SET expires_at = NULL, granted_until = NULL, grant_id = NULL, \
    renewed_at = '2029-01-01 00:00:00.000000' WHERE name = ?1 AND grant_id = ?2";

/// The name of the row of two commits that a task of the default runtime makes.
const TASKED: &str = "two bare `UPDATE` commits, in a task of `#[tokio::main]`";

const NAME: &str = "bench";
const HOLDER: &str = "database-host.12345.0123456789ab";
const GRANT: &str = "0123456789abcdef0123456789abcdef";
const METADATA: &str =
    r#"{"program":"bench","host":"database-host","pid":12345,"version":"1.0.0"}"#;

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

/// What `#[tokio::main]` makes.
pub(crate) fn default_runtime() -> Runtime {
    tokio::runtime::Runtime::new().expect("a runtime can be made")
}

/// The table of locks under the name `floor`; MySQL's and MariaDB's have a collation for names.
fn schema(engine: &str, collation: &str) -> String {
    let text = match engine {
        "postgres" => include_str!("../../database-locks/schema/postgres.sql"),
        "mysql" => include_str!("../../database-locks/schema/mysql.sql"),
        _ => include_str!("../../database-locks/schema/sqlite.sql"),
    };
    text.replace("{table}", "floor")
        .replace("{collation}", collation)
}

pub(crate) async fn connect(config: &tokio_postgres::Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

pub(crate) fn postgres(servers: &Servers) -> Vec<Contender> {
    let Some(server) = &servers.postgres else {
        return Vec::new();
    };
    let database = server.fresh_database();
    let config = postgres_config(server, crate::servers::database(&database));
    let connected = || {
        let runtime = runtime();
        let client = runtime.block_on(connect(&config));
        (runtime, client)
    };

    let (runtime, client) = connected();
    let trip = {
        let select = runtime
            .block_on(client.prepare("SELECT 1"))
            .expect("prepares");
        Contender::new(
            "postgres-trip",
            "one round trip: `SELECT 1`",
            move |slice| {
                repeat(slice, |times| {
                    let t0 = time::now();
                    runtime
                        .block_on(client.query_one(&select, &[]))
                        .expect("answers");
                    times.acquire.push(since(t0));
                })
            },
        )
    };

    let (runtime, client) = connected();
    let bare = {
        runtime.block_on(async {
            client
                .batch_execute(&schema("postgres", ""))
                .await
                .expect("makes the table");
            let insert = format!("INSERT INTO floor (name) VALUES ('{NAME}')");
            client.batch_execute(&insert).await.expect("makes the row");
        });
        let text = Type::TEXT;
        let types = [text.clone(), text.clone(), text.clone(), text.clone()];
        let take = runtime
            .block_on(client.prepare_typed(PG_TAKE, &types))
            .expect("prepares");
        let free = runtime
            .block_on(client.prepare_typed(PG_FREE, &types[..2]))
            .expect("prepares");
        Contender::new(
            "postgres-bare",
            "two bare prepared `UPDATE` commits",
            move |slice| {
                let all: [&(dyn ToSql + Sync); 4] = [&NAME, &HOLDER, &GRANT, &METADATA];
                let two: [&(dyn ToSql + Sync); 2] = [&NAME, &GRANT];
                repeat(slice, |times| {
                    let t0 = time::now();
                    let rows = runtime
                        .block_on(client.execute(&take, &all))
                        .expect("commits");
                    let t1 = time::now();
                    times.acquire.push(since(t0));
                    let freed = runtime
                        .block_on(client.execute(&free, &two))
                        .expect("commits");
                    times.release.push(since(t1));
                    assert_eq!((rows, freed), (1, 1));
                })
            },
        )
    };

    let tasked = {
        let runtime = default_runtime();
        let client = Arc::new(runtime.block_on(connect(&config)));
        let types = [Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT];
        let take = runtime
            .block_on(client.prepare_typed(PG_TAKE, &types))
            .expect("prepares");
        let free = runtime
            .block_on(client.prepare_typed(PG_FREE, &types[..2]))
            .expect("prepares");
        Contender::new("postgres-bare-task", TASKED, move |slice| {
            let (client, take, free) = (Arc::clone(&client), take.clone(), free.clone());
            let task = runtime.spawn(async move {
                let all: [&(dyn ToSql + Sync); 4] = [&NAME, &HOLDER, &GRANT, &METADATA];
                let two: [&(dyn ToSql + Sync); 2] = [&NAME, &GRANT];
                let (began, mut times) = (time::now(), Times::default());
                while began.elapsed() < slice || times.acquire.len() < 3 {
                    let t0 = time::now();
                    let rows = client.execute(&take, &all).await.expect("commits");
                    let t1 = time::now();
                    times.acquire.push(since(t0));
                    let freed = client.execute(&free, &two).await.expect("commits");
                    times.release.push(since(t1));
                    assert_eq!((rows, freed), (1, 1));
                }
                times
            });
            runtime.block_on(task).expect("the task ends")
        })
    };

    let (runtime, client) = connected();
    let advisory = {
        let prepare = |sql: &str| runtime.block_on(client.prepare(sql)).expect("prepares");
        let take = prepare("SELECT pg_advisory_lock($1)");
        let free = prepare("SELECT pg_advisory_unlock($1)");
        Contender::new(
            "postgres-advisory",
            "bare `pg_advisory_lock`, prepared",
            move |slice| {
                repeat(slice, |times| {
                    let t0 = time::now();
                    runtime
                        .block_on(client.query_one(&take, &[&7i64]))
                        .expect("answers");
                    let t1 = time::now();
                    times.acquire.push(since(t0));
                    runtime
                        .block_on(client.query_one(&free, &[&7i64]))
                        .expect("answers");
                    times.release.push(since(t1));
                })
            },
        )
    };
    vec![trip, bare, tasked, advisory]
}

pub(crate) fn mariadb(servers: &Servers) -> Vec<Contender> {
    let server = servers.mariadb.as_ref();
    server.map_or_else(Vec::new, |server| {
        speaking_mysql(server, "mariadb", "utf8mb4_nopad_bin")
    })
}

pub(crate) fn mysql(servers: &Servers) -> Vec<Contender> {
    let server = servers.mysql.as_ref();
    server.map_or_else(Vec::new, |server| {
        speaking_mysql(server, "mysql", "utf8mb4_0900_bin")
    })
}

fn speaking_mysql(server: &MySqlServer, key: &str, collation: &str) -> Vec<Contender> {
    let url = server.fresh_database();
    let opts = mysql_async::OptsBuilder::default()
        .socket(Some(server.socket().display().to_string()))
        .user(Some("root"))
        .db_name(Some(crate::servers::database(&url)));
    let key = |what: &str| format!("{key}-{what}");
    vec![
        mysql_trip(key("trip"), &opts),
        mysql_bare(key("bare"), &opts, &schema("mysql", collation)),
        mysql_tasked(key("bare-task"), &opts),
        mysql_get_lock(key("getlock"), &opts),
    ]
}

fn mysql_connected(opts: &OptsBuilder) -> (Runtime, Conn) {
    let runtime = runtime();
    let conn = runtime.block_on(Conn::new(opts.clone()));
    (runtime, conn.expect("connects"))
}

fn mysql_trip(key: String, opts: &OptsBuilder) -> Contender {
    let (runtime, mut conn) = mysql_connected(opts);
    let select = runtime.block_on(conn.prep("SELECT 1")).expect("prepares");
    Contender::new(key, "one round trip: `SELECT 1`", move |slice| {
        repeat(slice, |times| {
            let t0 = time::now();
            let one: Option<u8> = runtime
                .block_on(conn.exec_first(&select, ()))
                .expect("answers");
            times.acquire.push(since(t0));
            assert_eq!(one, Some(1));
        })
    })
}

/// Makes the table and its row first.
fn mysql_bare(key: String, opts: &OptsBuilder, schema: &str) -> Contender {
    let (runtime, mut conn) = mysql_connected(opts);
    let (take, free) = runtime.block_on(async {
        conn.query_drop(schema).await.expect("makes the table");
        let insert = format!("INSERT INTO floor (name) VALUES ('{NAME}')");
        conn.query_drop(insert).await.expect("makes the row");
        let take = conn.prep(MY_TAKE).await.expect("prepares");
        (take, conn.prep(MY_FREE).await.expect("prepares"))
    });
    Contender::new(key, "two bare prepared `UPDATE` commits", move |slice| {
        repeat(slice, |times| {
            let t0 = time::now();
            let all = (HOLDER, GRANT, METADATA, NAME);
            runtime
                .block_on(conn.exec_drop(&take, all))
                .expect("commits");
            let t1 = time::now();
            times.acquire.push(since(t0));
            runtime
                .block_on(conn.exec_drop(&free, (NAME, GRANT)))
                .expect("commits");
            times.release.push(since(t1));
            assert_eq!(conn.affected_rows(), 1);
        })
    })
}

fn mysql_tasked(key: String, opts: &OptsBuilder) -> Contender {
    let runtime = default_runtime();
    let conn = runtime.block_on(async {
        let mut conn = Conn::new(opts.clone()).await.expect("connects");
        let take = conn.prep(MY_TAKE).await.expect("prepares");
        let free = conn.prep(MY_FREE).await.expect("prepares");
        (conn, take, free)
    });
    let mut parts = Some(conn);
    Contender::new(key, TASKED, move |slice| {
        let (mut conn, take, free) = parts.take().expect("the task before gave it back");
        let task = runtime.spawn(async move {
            let (began, mut times) = (time::now(), Times::default());
            while began.elapsed() < slice || times.acquire.len() < 3 {
                let t0 = time::now();
                let all = (HOLDER, GRANT, METADATA, NAME);
                conn.exec_drop(&take, all).await.expect("commits");
                let t1 = time::now();
                times.acquire.push(since(t0));
                conn.exec_drop(&free, (NAME, GRANT)).await.expect("commits");
                times.release.push(since(t1));
                assert_eq!(conn.affected_rows(), 1);
            }
            ((conn, take, free), times)
        });
        let (back, times) = runtime.block_on(task).expect("the task ends");
        parts = Some(back);
        times
    })
}

fn mysql_get_lock(key: String, opts: &OptsBuilder) -> Contender {
    let (runtime, mut conn) = mysql_connected(opts);
    let prepare = |conn: &mut Conn, sql| runtime.block_on(conn.prep(sql)).expect("prepares");
    let take = prepare(&mut conn, "SELECT GET_LOCK(?, 60)");
    let free = prepare(&mut conn, "SELECT RELEASE_LOCK(?)");
    Contender::new(key, "bare `GET_LOCK`, prepared", move |slice| {
        repeat(slice, |times| {
            let t0 = time::now();
            let got: Option<u8> = runtime
                .block_on(conn.exec_first(&take, (NAME,)))
                .expect("answers");
            let t1 = time::now();
            times.acquire.push(since(t0));
            let freed: Option<u8> = runtime
                .block_on(conn.exec_first(&free, (NAME,)))
                .expect("answers");
            times.release.push(since(t1));
            assert_eq!((got, freed), (Some(1), Some(1)));
        })
    })
}

/// On a file as ours: write-ahead log, each commit on the disk.
pub(crate) fn sqlite(servers: &Servers) -> Vec<Contender> {
    let file = rusqlite::Connection::open(
        servers
            .files
            .join(&format!("floor-{:x}.sqlite3", fastrand::u64(..))),
    )
    .expect("opens");
    file.pragma_update(None, "journal_mode", "wal")
        .expect("takes it");
    file.pragma_update(None, "synchronous", "full")
        .expect("takes it");
    file.execute_batch(&schema("sqlite", ""))
        .expect("makes the table");
    let insert = format!("INSERT INTO floor (name) VALUES ('{NAME}')");
    file.execute_batch(&insert).expect("makes the row");
    let bare = Contender::new(
        "sqlite-bare",
        "two bare prepared `UPDATE` commits",
        move |slice| {
            let mut take = file.prepare_cached(LITE_TAKE).expect("prepares");
            let mut free = file.prepare_cached(LITE_FREE).expect("prepares");
            repeat(slice, |times| {
                let t0 = time::now();
                take.execute((NAME, HOLDER, GRANT, METADATA))
                    .expect("commits");
                let t1 = time::now();
                times.acquire.push(since(t0));
                free.execute((NAME, GRANT)).expect("commits");
                times.release.push(since(t1));
            })
        },
    );
    vec![bare]
}

/// The statements of the floor for a driver that is given whole texts: with its values in them.
pub(crate) fn postgres_texts() -> (String, String) {
    let fill = |sql: &str, values: &[&str]| {
        let numbered = values.iter().enumerate();
        numbered.fold(sql.to_owned(), |text, (at, value)| {
            text.replace(&format!("${}", at + 1), &format!("'{value}'"))
        })
    };
    (
        fill(PG_TAKE, &[NAME, HOLDER, GRANT, METADATA]),
        fill(PG_FREE, &[NAME, GRANT]),
    )
}

/// The table that these texts change.
pub(crate) fn postgres_setup() -> String {
    format!(
        "{};INSERT INTO floor (name) VALUES ('{NAME}')",
        schema("postgres", "")
    )
}
