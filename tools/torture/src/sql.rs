//! SQL without parameters, on any engine.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// How long a statement may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection.
pub enum Sql {
    /// To PostgreSQL.
    Postgres(tokio_postgres::Client),
    /// To MariaDB or MySQL.
    MySql(Box<mysql_async::Conn>),
    /// To a file.
    Sqlite(rusqlite::Connection),
}

impl std::fmt::Debug for Sql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sql")
    }
}

/// The answer to a statement.
#[derive(Debug, Default)]
pub struct Answer {
    /// The number of changed rows.
    pub affected: u64,
    /// The value of MySQL's `LAST_INSERT_ID(…)`; 0 if it was not called.
    pub last_id: i64,
    /// The rows, each value as text.
    pub rows: Vec<Vec<String>>,
}

impl Sql {
    /// Connects, within a few seconds.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub async fn connect(url: &str) -> Result<Self, String> {
        with_timeout(Self::open(url)).await
    }

    async fn open(url: &str) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("sqlite://") {
            let file = rusqlite::Connection::open(path).map_err(error_text)?;
            file.busy_timeout(TIMEOUT).map_err(error_text)?;
            return Ok(Self::Sqlite(file));
        }
        if url.starts_with("postgres:") {
            let (client, connection) = tokio_postgres::connect(url, NoTls)
                .await
                .map_err(error_text)?;
            tokio::spawn(connection);
            return Ok(Self::Postgres(client));
        }
        let options = mysql_async::OptsBuilder::from_opts(
            mysql_async::Opts::from_url(url).map_err(error_text)?,
        )
        // Over the proxy, and not past it.
        .prefer_socket(false)
        .client_found_rows(true);
        let connection = mysql_async::Conn::new(options).await.map_err(error_text)?;
        Ok(Self::MySql(Box::new(connection)))
    }

    /// Runs a statement.
    ///
    /// # Errors
    ///
    /// The error of the database, or a timeout, after which the connection must be dropped.
    pub async fn run(&mut self, statement: &str) -> Result<Answer, String> {
        with_timeout(self.run_now(statement)).await
    }

    async fn run_now(&mut self, statement: &str) -> Result<Answer, String> {
        let mut answer = Answer::default();
        match self {
            Self::Postgres(client) => {
                for message in client.simple_query(statement).await.map_err(error_text)? {
                    match message {
                        SimpleQueryMessage::Row(row) => {
                            let value = |at| row.get(at).unwrap_or_default().to_owned();
                            answer.rows.push((0..row.len()).map(value).collect());
                        }
                        SimpleQueryMessage::CommandComplete(many) => answer.affected = many,
                        _ => {}
                    }
                }
            }
            Self::MySql(connection) => {
                let rows: Vec<mysql_async::Row> =
                    connection.query(statement).await.map_err(error_text)?;
                answer.affected = connection.affected_rows();
                let last_id = connection.last_insert_id().unwrap_or_default();
                answer.last_id = last_id.try_into().map_err(error_text)?;
                for row in rows {
                    let value = |value: mysql_async::Value| match value {
                        mysql_async::Value::Bytes(bytes) => {
                            String::from_utf8_lossy(&bytes).into_owned()
                        }
                        mysql_async::Value::NULL => String::new(),
                        other => other.as_sql(true),
                    };
                    answer
                        .rows
                        .push(row.unwrap().into_iter().map(value).collect());
                }
            }
            Self::Sqlite(file) => {
                let mut statement = file.prepare(statement).map_err(error_text)?;
                if statement.column_count() == 0 {
                    answer.affected = statement.execute([]).map_err(error_text)? as u64;
                } else {
                    let width = statement.column_count();
                    let mut rows = statement.query([]).map_err(error_text)?;
                    while let Some(row) = rows.next().map_err(error_text)? {
                        let value = |at| match row.get_ref(at) {
                            Ok(rusqlite::types::ValueRef::Integer(number)) => number.to_string(),
                            Ok(value) => value.as_str().unwrap_or_default().to_owned(),
                            Err(_) => String::new(),
                        };
                        answer.rows.push((0..width).map(value).collect());
                    }
                }
            }
        }
        Ok(answer)
    }
}

/// Bounds some work, so that a stalled connection does not block its caller forever.
///
/// # Errors
///
/// The error of `work`, or a timeout.
pub async fn with_timeout<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

/// An error with its causes.
pub fn error_text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
