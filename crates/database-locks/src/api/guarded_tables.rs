//! Guarded tables: the database refuses every write in a transaction that does not hold the lock.

use std::time::Duration;

use crate::api::locks::Locks;
use crate::error::Error;
use crate::store::retry::{ddl_while_contended, while_contended};
use protocol::{GuardCommand, InvalidSetting, LockName, REQUEST_TIMEOUT, TableGuard};

/// How long the attempts to create or drop triggers go on. They wait for the transactions that
/// write to the table.
const DDL_TIMEOUT: Duration = Duration::from_secs(30);

/// A name longer than any identifier that can be quoted, with its schema.
const MAX_TABLE_CHARS: usize = 300;

impl Locks {
    /// Put a table under the guard of a lock: from then on the database refuses every INSERT,
    /// UPDATE, DELETE and (on PostgreSQL) TRUNCATE of it in a transaction that does not hold the
    /// lock, whatever program it comes from. Done again, it changes nothing; on PostgreSQL it covers
    /// partitions that were added meanwhile.
    ///
    /// A transaction holds the lock if it has been [fenced](crate::LockGuard::fence), or shows a
    /// ticket of the present grant in another way, as under `dblock run --pgoptions`. Permits of
    /// semaphores do not open a guard.
    ///
    /// `table` is `TABLE` or `SCHEMA.TABLE`, as SQL writes it: in quotes if it has to be quoted. The
    /// table is in the database of the locks, and has one guard at most.
    ///
    /// # Errors
    ///
    /// | error | if |
    /// | --- | --- |
    /// | [`Error::Rejected`] | there is no such table, or it cannot be guarded: a view, a temporary table, the table of the locks, a partition, on MySQL another engine than InnoDB; it is guarded by another lock; this user lacks a right; the engine is SQLite or `memory:` |
    /// | [`Error::Rejected`] | on MySQL and MariaDB: a foreign key of the table changes or deletes its rows when another table is written to, which no trigger sees: see [`Locks::guard_table_allowing_cascades`] |
    /// | [`Error::Config`] | the name of the lock or of the table is invalid |
    /// | [`Error::Conflict`] | transactions that write to the table keep it busy for 30 s |
    /// | [`Error::Unavailable`] | the database does not answer |
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the table may or may not be guarded; on MySQL and MariaDB also
    /// against INSERT or against INSERT and UPDATE alone, until it is guarded again.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("postgres://…").await?;
    /// locks.guard_table("invoices", "ledger").await?; // once, for example in a migration
    /// # Ok(()) }
    /// ```
    pub fn guard_table<T: AsRef<str>, N: AsRef<str>>(
        &self,
        table: T,
        lock: N,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static + use<T, N> {
        self.guard(table.as_ref(), lock.as_ref(), false)
    }

    /// [`Locks::guard_table`] for a table of MySQL or MariaDB with a foreign key that cascades into
    /// it: `ON DELETE` or `ON UPDATE` with `CASCADE` or `SET NULL`. Its cascades pass by the guard,
    /// since the server fires no trigger for them: guard the parent too, by the same lock.
    ///
    /// # Errors
    ///
    /// As [`Locks::guard_table`].
    ///
    /// # Cancel safety
    ///
    /// As [`Locks::guard_table`].
    pub fn guard_table_allowing_cascades<T: AsRef<str>, N: AsRef<str>>(
        &self,
        table: T,
        lock: N,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static + use<T, N> {
        self.guard(table.as_ref(), lock.as_ref(), true)
    }

    fn guard(
        &self,
        table: &str,
        lock: &str,
        allow_cascades: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static + use<> {
        let command = checked(table).and_then(|table| {
            Ok(GuardCommand {
                table,
                lock: LockName::new(lock)?,
                allow_cascades,
            })
        });
        self.in_background(move |client| async move {
            let command = command?;
            let guarded = ddl_while_contended(DDL_TIMEOUT, |within| {
                client.store.guard_table(&command, within)
            });
            let guarded = guarded.await;
            guarded.map_err(|e| e.into_error(format!("guard table `{}`", command.table)))
        })
    }

    /// Remove the guard of a table, and return whether it had one.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] if there is no such table, or without the right to drop its triggers;
    /// otherwise as [`Locks::guard_table`]. On MySQL and MariaDB the message says so if a part of the
    /// guard was removed by then.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the guard may or may not be removed; on MySQL and MariaDB also in
    /// part, so that DELETE or DELETE and INSERT pass, until the table is guarded or unguarded again.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("postgres://…").await?;
    /// assert!(locks.unguard_table("invoices").await?);
    /// # Ok(()) }
    /// ```
    pub fn unguard_table<T: AsRef<str>>(
        &self,
        table: T,
    ) -> impl Future<Output = Result<bool, Error>> + Send + 'static + use<T> {
        let table = checked(table.as_ref());
        self.in_background(move |client| async move {
            let table = table?;
            let removed = ddl_while_contended(DDL_TIMEOUT, |within| {
                client.store.unguard_table(&table, within)
            });
            let removed = removed.await;
            removed.map_err(|e| e.into_error(format!("remove the guard of table `{table}`")))
        })
    }

    /// Read the guarded tables, ordered by name, and whether their guards are intact.
    ///
    /// On MySQL and MariaDB only those of which this user may see the triggers, which takes the
    /// right TRIGGER on the table. On SQLite and `memory:` there are none.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]; [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// for guarded in locks.guarded_tables().await? {
    ///     println!("{} is guarded by {}", guarded.table, guarded.lock);
    ///     assert!(guarded.gaps.is_empty(), "{:?}", guarded.gaps);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn guarded_tables(
        &self,
    ) -> impl Future<Output = Result<Vec<TableGuard>, Error>> + Send + use<> {
        self.in_background(move |client| async move {
            let read = while_contended(REQUEST_TIMEOUT, || {
                client.store.guarded_tables(REQUEST_TIMEOUT)
            });
            let read = read.await;
            read.map_err(|e| e.into_error("read the guarded tables"))
        })
    }
}

/// The name of a table, if it can be one. The engine parses it.
fn checked(table: &str) -> Result<String, InvalidSetting> {
    let refused = |got: &str| {
        let allowed = "TABLE or SCHEMA.TABLE, as SQL writes it";
        Err(InvalidSetting::new("table", got.to_owned(), allowed))
    };
    match table.chars().count() {
        0 => refused("empty"),
        MAX_TABLE_CHARS.. => refused("too long"),
        _ if table.contains('\0') => refused("a text with a NUL in it"),
        _ => Ok(table.to_owned()),
    }
}
