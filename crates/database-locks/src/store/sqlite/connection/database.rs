//! The file of locks: creating it, opening it, and its errors.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::session::Session;
use crate::runtime::fork;
use crate::store::api::StoreError;
use crate::store::connect::table::{Rows, Table};
use crate::store::sqlite::error::{FileHistory, classify, is_transient};
use crate::store::sqlite::fence::Fences;
use crate::store::sqlite::statements::sql::Statements;

/// The script that creates the tables.
const INSTALL: &str = concat!(
    include_str!("../../../../schema/sqlite.sql"),
    include_str!("../../../../schema/sqlite_permit.sql")
);

/// How long SQLite itself waits for a busy file: long enough for the writes of other processes,
/// short enough that a renewal does not queue long behind it.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_millis(50);

/// SQLite 3.42, as `sqlite3_libversion_number` has it. Only a library of the system can be older.
const LEAST_VERSION: i32 = 3_042_000;

/// An open file.
pub(crate) struct File {
    pub(crate) connection: Connection,
    /// Device and inode: whether the path still leads here.
    pub(crate) identity: (u64, u64),
}

pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// A file of locks, shared by all connections of one store.
pub(crate) struct Database {
    pub(crate) path: PathBuf,
    /// Whether a missing file is created.
    create: bool,
    fences: Fences,
    locks: Statements,
    permits: Statements,
    install: String,
    permits_table: String,
    /// Whether the table has been used.
    used: AtomicBool,
    /// Whether it has been written to.
    written: AtomicBool,
}

impl Database {
    pub(crate) fn new(path: PathBuf, create: bool, table: &Table) -> Self {
        Self {
            create,
            fences: Fences::of_database(&path, table.as_str()),
            locks: Statements::of(table, Rows::Locks),
            permits: Statements::of(table, Rows::Permits),
            install: table.fill(INSTALL),
            permits_table: table.permits(),
            path,
            used: AtomicBool::new(false),
            written: AtomicBool::new(false),
        }
    }

    pub(super) fn session<'a>(&'a self, connection: &'a Connection) -> Session<'a> {
        Session {
            connection,
            locks: &self.locks,
            permits: &self.permits,
            fences: &self.fences,
        }
    }

    pub(crate) fn note_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    pub(super) fn note_written(&self) {
        self.note_used();
        self.written.store(true, Ordering::Relaxed);
    }

    /// Create the tables that are missing: all in one transaction, since a client that found only
    /// the first would neither create the second nor be able to use it.
    pub(crate) fn install(&self, connection: &Connection) -> rusqlite::Result<()> {
        // Deferred: tables that are there need no write lock.
        let tx = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
        tx.execute_batch(&self.install)?;
        tx.commit()
    }

    pub(super) fn explain(&self, error: &rusqlite::Error) -> StoreError {
        // The table of locks may have been used for long when the first permit is requested.
        let about_permits = error.to_string().contains(&self.permits_table);
        let history = FileHistory {
            used: self.used.load(Ordering::Relaxed) && !about_permits,
            written: self.written.load(Ordering::Relaxed),
        };
        classify(&self.path, error, history)
    }

    pub(super) fn open(&self) -> Result<File, StoreError> {
        // SQLite records its file locks for the whole process, and a forked child inherits the
        // record without the locks:
        // https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
        static OPENED_IN: OnceLock<u64> = OnceLock::new();
        let generation = fork::generation();
        if *OPENED_IN.get_or_init(|| generation) != generation {
            let message = "SQLite was in use when this process was forked";
            let hint = "connect in the child only, or let it exec";
            return Err(StoreError::rejected(message, Some(hint)));
        }
        new_enough(rusqlite::version_number(), rusqlite::version())?;
        self.make_file()?;
        let connection = self.connect().map_err(|error| self.explain(&error))?;
        match identity(&self.path) {
            Some(identity) => Ok(File {
                connection,
                identity,
            }),
            None => {
                let message = format!("{} was deleted just now", self.path.display());
                Err(StoreError::Contention(message.into()))
            }
        }
    }

    /// Create the file if it is missing: for its owner only, whatever the umask, since every user
    /// who can write it can take every lock.
    fn make_file(&self) -> Result<(), StoreError> {
        let shown = self.path.display();
        if !self.create && !self.path.exists() {
            let hint = "check the path, or make the file and its table with `dblock init`";
            let message = format!("there is no file {shown}");
            return Err(StoreError::rejected(message, Some(hint)));
        }
        // It is closed before SQLite opens it, and by one thread at a time: closing any descriptor
        // of a file releases all locks that this process has on it, including SQLite's.
        // https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
        static MAKING: Mutex<()> = Mutex::new(());
        let alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
            .map(drop);
        drop(alone);
        let Err(error) = made else { return Ok(()) };
        let message = format!("cannot make {shown}: {error}");
        match error.kind() {
            ErrorKind::AlreadyExists => Ok(()),
            _ if is_transient(&error) => Err(StoreError::cannot_serve(message)),
            ErrorKind::NotFound => {
                Err(StoreError::rejected(message, Some("make its folder first")))
            }
            _ => {
                let hint = "the folder must be writable by this user";
                Err(StoreError::rejected(message, Some(hint)))
            }
        }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // With WAL, readers neither wait for a writer nor block one.
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A commit that is lost in a power cut would let a token be granted twice.
        connection.pragma_update(None, "synchronous", "full")?;
        let tables = "SELECT count(*) FROM sqlite_schema";
        if connection.query_row(tables, [], |row| row.get::<_, i64>(0))? == 0 {
            self.install(&connection)?;
        }
        Ok(connection)
    }
}

/// Refuse a library whose `unixepoch` lacks `subsec`: it answers NULL, and no lease would ever end.
fn new_enough(version: i32, shown: &str) -> Result<(), StoreError> {
    match version >= LEAST_VERSION {
        true => Ok(()),
        false => Err(StoreError::rejected(
            format!("SQLite {shown} is too old, must be 3.42 or later"),
            Some("build with the feature `sqlite` of database-locks, which compiles SQLite in"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_the_system_that_is_too_old_is_refused() {
        let error = new_enough(3_040_001, "3.40.1").unwrap_err();
        let StoreError::Rejected { hint, source } = error else {
            panic!("{error}");
        };
        assert!(source.to_string().contains("3.40.1"), "{source}");
        assert!(hint.is_some_and(|hint| hint.contains("`sqlite`")));
        assert!(new_enough(3_042_000, "3.42.0").is_ok());
    }
}
