//! A connection that writes to a table, in transactions that show the grant of the lock.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use testkit::time;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::baseline;
use crate::child::since;
use crate::servers::Engine;

/// What a transaction took, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// The first statement, which locks the row of the lock.
    pub(super) first: f64,
    /// The same statement again, with the next ids.
    pub(super) again: f64,
    /// From before BEGIN until after COMMIT.
    pub(super) whole: f64,
}

pub(super) enum Writer {
    Postgres {
        client: Client,
        show: tokio_postgres::Statement,
    },
    MySql {
        conn: Conn,
        show: mysql_async::Statement,
    },
}

/// A statement with one parameter, prepared.
pub(super) enum Prepared {
    Postgres(tokio_postgres::Statement),
    MySql(mysql_async::Statement),
}

impl Writer {
    pub(super) async fn connect(engine: &Engine) -> Self {
        if engine.key == "postgres" {
            let client = baseline::postgres(&engine.url).await;
            let show = "SELECT set_config('database_locks.ticket', $1, true)";
            let show = client.prepare_typed(show, &[Type::TEXT]).await;
            let show = show.expect("prepares");
            return Self::Postgres { client, show };
        }
        let mut conn = Conn::from_url(&engine.url).await.expect("connects");
        let show = conn.prep("SET @database_locks_ticket = ?").await;
        let show = show.expect("prepares");
        Self::MySql { conn, show }
    }

    pub(super) async fn prepare(&mut self, sql: &str) -> Prepared {
        match self {
            Self::Postgres { client, .. } => {
                let sql = sql.replace('?', "$1");
                let prepared = client.prepare_typed(&sql, &[Type::INT4]).await;
                Prepared::Postgres(prepared.expect("prepares"))
            }
            Self::MySql { conn, .. } => Prepared::MySql(conn.prep(sql).await.expect("prepares")),
        }
    }

    pub(super) async fn run(&mut self, sql: &str) {
        match self {
            Self::Postgres { client, .. } => client.batch_execute(sql).await.expect(sql),
            Self::MySql { conn, .. } => conn.query_drop(sql).await.expect(sql),
        }
    }

    /// Show the grant, within a transaction.
    async fn show(&mut self, grant: &str) {
        match self {
            Self::Postgres { client, show } => {
                client.execute(show, &[&grant]).await.expect("is shown");
            }
            Self::MySql { conn, show } => {
                conn.exec_drop(&*show, (grant,)).await.expect("is shown");
            }
        }
    }

    async fn execute(&mut self, statement: &Prepared, id: i32) -> u64 {
        match (self, statement) {
            (Self::Postgres { client, .. }, Prepared::Postgres(statement)) => {
                client.execute(statement, &[&id]).await.expect("writes")
            }
            (Self::MySql { conn, .. }, Prepared::MySql(statement)) => {
                conn.exec_drop(statement, (id,)).await.expect("writes");
                conn.affected_rows()
            }
            _ => unreachable!("a statement is prepared on its own connection"),
        }
    }

    /// Run statements in a transaction that shows the grant.
    pub(super) async fn run_with(&mut self, grant: &str, statements: &[String]) {
        self.run("BEGIN").await;
        self.show(grant).await;
        for sql in statements {
            self.run(sql).await;
        }
        self.run("COMMIT").await;
    }

    /// Execute a statement with each of these ids, in a transaction that shows the grant. Each writes
    /// so many rows.
    pub(super) async fn transaction(
        &mut self,
        grant: &str,
        statement: &Prepared,
        ids: [i32; 2],
        rows: u32,
    ) -> Times {
        let began = time::now();
        self.run("BEGIN").await;
        self.show(grant).await;
        let mut took = [0.0; 2];
        for (took, id) in took.iter_mut().zip(ids) {
            let began = time::now();
            let written = self.execute(statement, id).await;
            *took = since(began) * 1_000.0;
            assert_eq!(written, u64::from(rows));
        }
        self.run("COMMIT").await;
        Times {
            first: took[0],
            again: took[1],
            whole: since(began) * 1_000.0,
        }
    }
}
