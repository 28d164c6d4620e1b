//! Reads and changes the rows of the locks directly, past all proxies.

use std::time::Duration;

use testkit::time::{now, sleep};
use tokio::runtime::Runtime;

use crate::sql::Sql;

/// The poll interval of [`Rows::wait_for`].
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A connection for a thread that injects faults.
#[derive(Debug)]
pub struct Rows {
    // Dropped before its runtime.
    sql: Sql,
    runtime: Runtime,
}

/// The row of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRow {
    /// The token of its latest grant.
    pub token: i64,
    /// Whether it has no lease, not even one that has ended.
    pub free: bool,
    /// The latest holder.
    pub holder: String,
}

impl Rows {
    /// Connects to the database of the locks.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn connect(url: &str) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let sql = runtime.block_on(Sql::connect(url))?;
        Ok(Self { sql, runtime })
    }

    /// Reads the row of a lock, if it has one.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn read(&mut self, lock: &str) -> Result<Option<LockRow>, String> {
        let read = format!(
            "SELECT token, CASE WHEN expires_at IS NULL THEN 1 ELSE 0 END, \
             COALESCE(locked_by, '') FROM database_locks_lock WHERE name = '{lock}'"
        );
        let answer = self.runtime.block_on(self.sql.run(&read))?;
        let row = |row: &Vec<String>| {
            Some(LockRow {
                token: row.first()?.parse().ok()?,
                free: row.get(1)? == "1",
                holder: row.get(2)?.clone(),
            })
        };
        answer
            .rows
            .first()
            .map(|values| row(values).ok_or_else(|| format!("no row of a lock: {values:?}")))
            .transpose()
    }

    /// Reads the names and tokens of all rows.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn tokens(&mut self) -> Result<Vec<(String, i64)>, String> {
        let read = "SELECT name, token FROM database_locks_lock ORDER BY name";
        let answer = self.runtime.block_on(self.sql.run(read))?;
        let row = |row: &Vec<String>| Some((row.first()?.clone(), row.get(1)?.parse().ok()?));
        Ok(answer.rows.iter().filter_map(row).collect())
    }

    /// Polls the row of a lock until `wanted` accepts it; `None` if that takes too long.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn wait_for(
        &mut self,
        lock: &str,
        within: Duration,
        wanted: impl Fn(&LockRow) -> bool,
    ) -> Result<Option<LockRow>, String> {
        let begun = now();
        loop {
            if let Some(row) = self.read(lock)?.filter(&wanted) {
                return Ok(Some(row));
            }
            if begun.elapsed() >= within {
                return Ok(None);
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Puts the token of a lock back to an older one if the lock is free; whether it was.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn put_back(&mut self, lock: &str, token: i64) -> Result<bool, String> {
        let update = format!(
            "UPDATE database_locks_lock SET token = {token} \
             WHERE name = '{lock}' AND expires_at IS NULL AND token > {token}"
        );
        let answer = self.runtime.block_on(self.sql.run(&update))?;
        Ok(answer.affected > 0)
    }
}
