//! SQL of another client, through the command-line client of the database.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use crate::process::ChildProcess;
use crate::time;

/// How long [`SqlSession::run`] waits for an answer. Statements that wait for a lock use
/// [`SqlSession::send`].
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long a line that an ended client has printed may take to be read.
const LAST_LINE_WITHIN: Duration = Duration::from_secs(10);

/// The password of the user `locker` of every server, with characters that a URL or SQL must
/// escape.
pub const LOCKER_PASSWORD: &str = "p@ss:w/rd?#% &='é";

/// Printed after every statement, to know where its answer ends.
const END: &str = "--- end of answer ---";

/// An error of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError(String);

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SqlError {}

/// A session of a client that does not use the library: it keeps its transaction, and with it its
/// row locks, until the test ends it.
///
/// On drop the client is killed; the server rolls back soon after, but not at once. To be sure,
/// [`run`](Self::run) `ROLLBACK` first.
#[derive(Debug)]
pub struct SqlSession {
    client: ChildProcess,
    /// What makes the client print [`END`].
    end: String,
    /// Answers not read yet.
    owed: usize,
    /// The lines so far of an answer that has not ended.
    partial: Vec<String>,
}

impl SqlSession {
    /// A session of the client `command`, which `end` makes print [`END`].
    fn new(command: &Command, end: String) -> Self {
        Self {
            client: ChildProcess::spawn_merged(command),
            end,
            owed: 0,
            partial: Vec::new(),
        }
    }

    /// A session of `psql`.
    pub(crate) fn psql(command: &mut Command, database: &str) -> Self {
        command
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .args([
                "--field-separator",
                "\t",
                "--no-password",
                "--dbname",
                database,
            ])
            // A frozen server accepts connections and never answers.
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGOPTIONS", "-c client_min_messages=warning");
        Self::new(command, format!("\\echo '{END}'"))
    }

    /// A session of `mariadb`.
    pub(crate) fn mariadb(command: &mut Command) -> Self {
        command
            // Go on after an error.
            .args(["--batch", "--skip-column-names", "--unbuffered", "--force"])
            .args(["--skip-reconnect", "--connect-timeout=10"]);
        // A SELECT would never be answered after the server has ended.
        Self::new(command, format!("\\! echo '{END}'"))
    }

    /// Sends a statement without waiting for its answer.
    pub fn send(&mut self, sql: &str) {
        let sql = sql.trim();
        let semicolon = if sql.ends_with(';') { "" } else { ";" };
        // It fails if the client has ended; `answer` reports that.
        let _ = self
            .client
            .send_line(&format!("{sql}{semicolon}\n{}", self.end));
        self.owed += 1;
    }

    /// The answer to the oldest statement sent and not answered: its rows, columns apart
    /// by tabs. `None` when it is still at work after `within`.
    ///
    /// # Panics
    ///
    /// If no statement was sent.
    pub fn answer(&mut self, within: Duration) -> Option<Result<Vec<String>, SqlError>> {
        assert!(self.owed > 0, "no statement was sent");
        let start = time::now();
        loop {
            let left = within.saturating_sub(start.elapsed());
            match self.client.line(left) {
                Some(line) if line == END => break,
                Some(line) => self.partial.push(line),
                None if self.client.wait(Duration::ZERO).is_some() => {
                    // Its last lines, until the end of its output.
                    while let Some(line) = self.client.line(LAST_LINE_WITHIN) {
                        self.partial.push(line);
                    }
                    self.partial.push("ERROR: the client has ended".into());
                    break;
                }
                None if left.is_zero() => return None,
                None => {}
            }
        }
        self.owed -= 1;
        let lines = std::mem::take(&mut self.partial);
        let failed = lines.iter().any(|line| {
            ["ERROR", "FATAL", "psql: error"]
                .iter()
                .any(|mark| line.starts_with(mark))
        });
        Some(if failed {
            Err(SqlError(lines.join("\n")))
        } else {
            Ok(lines)
        })
    }

    /// Runs a statement and waits for its rows.
    ///
    /// # Errors
    ///
    /// What the database answered instead, or that it did not within half a minute.
    pub fn run(&mut self, sql: &str) -> Result<Vec<String>, SqlError> {
        self.send(sql);
        self.answer(ANSWER_WITHIN).unwrap_or_else(|| {
            Err(SqlError(format!(
                "no answer within {ANSWER_WITHIN:?}: {sql}"
            )))
        })
    }

    /// Ends the session in order and waits until the client has ended.
    pub fn close(mut self) {
        self.client.close_input();
        self.client.wait(ANSWER_WITHIN);
    }

    /// Runs one statement and ends the session.
    pub(crate) fn run_once(mut self, sql: &str) -> Result<String, SqlError> {
        let rows = self.run(sql)?;
        self.close();
        Ok(rows.join("\n"))
    }
}

/// The name of a database, given that or its URL.
pub(crate) fn database_of(database: &str) -> &str {
    let name = match database.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, name)| name),
        None => database,
    };
    name.split('?').next().unwrap_or_default()
}

/// Encodes a part of a URL.
pub fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_given_by_name_or_url() {
        assert_eq!(database_of("t_1"), "t_1");
        assert_eq!(database_of("postgres://u:p@h:1/t_1"), "t_1");
        assert_eq!(database_of("postgres:///t_1?host=/tmp/x"), "t_1");
        assert_eq!(database_of("mysql://u@h"), "");
    }
}
