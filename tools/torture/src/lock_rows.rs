//! Reads and changes the rows of the locks directly, past all proxies.

use std::time::Duration;

use testkit::time::{now, sleep};
use tokio::runtime::Runtime;

use crate::sql::Sql;
use crate::target::{Kind, Target};

/// The poll interval of [`Rows::wait_for`].
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A connection for a thread that injects faults.
#[derive(Debug)]
pub struct Rows {
    // Dropped before its runtime.
    sql: Sql,
    runtime: Runtime,
}

/// The row of a lock, or of one slot of a semaphore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRow {
    /// The condition that finds it.
    key: RowKey,
    /// The token of its latest grant.
    pub token: i64,
    /// Whether it has no lease, not even one that has ended.
    pub free: bool,
    /// The latest holder.
    pub holder: String,
}

/// Which row it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    table: &'static str,
    condition: String,
}

const LOCKS: &str = "database_locks_lock";
const PERMITS: &str = "database_locks_permit";

impl LockRow {
    /// Which row it is.
    pub fn key(&self) -> &RowKey {
        &self.key
    }
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

    /// Reads the row of a lock and of its readers, or those of the slots of a semaphore, if they are
    /// there.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn read(&mut self, target: &Target) -> Result<Vec<LockRow>, String> {
        let name = &target.name;
        match target.kind {
            Kind::Semaphore(_) => {
                self.select(PERMITS, "slot", &format!("name = '{name}' AND slot >= 0"))
            }
            Kind::Lock | Kind::Guarded => self.select(LOCKS, "-1", &format!("name = '{name}'")),
            Kind::Shared => {
                let mut rows = self.select(LOCKS, "-1", &format!("name = '{name}'"))?;
                let readers = format!("name = '{name}' AND slot <= -2");
                rows.extend(self.select(PERMITS, "slot", &readers)?);
                Ok(rows)
            }
        }
    }

    /// Reads all rows of locks and slots, but for those of shared locks: the token of a reader is that
    /// of the lock's row and one more.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn all(&mut self) -> Result<Vec<LockRow>, String> {
        let mut rows = self.select(LOCKS, "-1", "NOT shared")?;
        rows.extend(self.select(PERMITS, "slot", "slot >= 0")?);
        Ok(rows)
    }

    fn select(
        &mut self,
        table: &'static str,
        slot: &str,
        wanted: &str,
    ) -> Result<Vec<LockRow>, String> {
        let read = format!(
            "SELECT token, CASE WHEN expires_at IS NULL THEN 1 ELSE 0 END, \
             COALESCE(locked_by, ''), name, {slot} FROM {table} WHERE {wanted} ORDER BY name"
        );
        let answer = self.runtime.block_on(self.sql.run(&read))?;
        let row = |row: &Vec<String>| {
            let [token, free, holder, name, slot] = &row[..] else {
                return None;
            };
            let of_slot = match slot.as_str() {
                "-1" => String::new(),
                slot => format!(" AND slot = {slot}"),
            };
            Some(LockRow {
                key: RowKey {
                    table,
                    condition: format!("name = '{name}'{of_slot}"),
                },
                token: token.parse().ok()?,
                free: free == "1",
                holder: holder.clone(),
            })
        };
        let row = |values| row(values).ok_or_else(|| format!("no row of a lock: {values:?}"));
        answer.rows.iter().map(row).collect()
    }

    /// The operator's limit of a semaphore, as the database has it.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn limit(&mut self, semaphore: &str) -> Result<Option<u32>, String> {
        let read =
            format!("SELECT permits FROM {PERMITS} WHERE name = '{semaphore}' AND slot = -1");
        let answer = self.runtime.block_on(self.sql.run(&read))?;
        let limit = answer.rows.first().and_then(|row| row.first());
        Ok(limit.and_then(|limit| limit.parse().ok()))
    }

    /// Polls the rows of a target until `wanted` accepts one; `None` if that takes too long.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn wait_for(
        &mut self,
        target: &Target,
        within: Duration,
        wanted: impl Fn(&LockRow) -> bool,
    ) -> Result<Option<LockRow>, String> {
        let begun = now();
        loop {
            if let Some(row) = self.read(target)?.into_iter().find(&wanted) {
                return Ok(Some(row));
            }
            if begun.elapsed() >= within {
                return Ok(None);
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Puts the token of a row back to an older one if it is free; whether it was. A lock that was
    /// shared since the copy keeps its token.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn put_back(&mut self, row: &LockRow) -> Result<bool, String> {
        let (RowKey { table, condition }, token) = (&row.key, row.token);
        let update = format!(
            "UPDATE {table} SET token = {token} \
             WHERE {condition} AND expires_at IS NULL AND token > {token} AND NOT shared"
        );
        let answer = self.runtime.block_on(self.sql.run(&update))?;
        Ok(answer.affected > 0)
    }
}
