//! One connection to the file: opening it, and what its errors mean.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::runtime::fork;
use crate::store::sqlite::fence::Fences;
use crate::store::sqlite::statements::Statements;
use crate::store::{
    api::{NO_TOKEN, StoreError},
    connect::table::Table,
};

/// How long SQLite itself tries where the file is busy, before the caller may do something else:
/// enough for other processes' writes, short enough that a renewal does not queue long behind it.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_millis(50);

/// SQLite 3.42, as `sqlite3_libversion_number` has it. Only a library of the system can be older.
const LEAST_VERSION: i32 = 3_042_000;

/// An open file.
pub(crate) struct File {
    pub(crate) connection: Connection,
    /// Device and inode: whether the path still leads here.
    identity: (u64, u64),
}

/// A file of locks, as all connections of one store know it.
pub(crate) struct Database {
    pub(crate) path: PathBuf,
    /// Whether the file is made where it is missing.
    create: bool,
    pub(crate) fences: Fences,
    pub(crate) statements: Statements,
    /// The table has been used.
    used: AtomicBool,
    /// It has been written to.
    written: AtomicBool,
}

impl Database {
    pub(crate) fn new(path: PathBuf, create: bool, table: &Table) -> Self {
        Self {
            create,
            fences: Fences::beside(&path, table.as_str()),
            statements: Statements::of(table),
            path,
            used: AtomicBool::new(false),
            written: AtomicBool::new(false),
        }
    }

    pub(crate) fn note_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

/// A connection, used by one thread at a time.
pub(crate) struct Worker {
    pub(crate) database: Arc<Database>,
    pub(crate) file: Option<File>,
}

pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

impl Worker {
    /// One that opens the file when it is first needed.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        let file = None;
        Self { database, file }
    }

    /// The file, opened if it is not yet.
    ///
    /// A file that was deleted or replaced under us is given up: its locks would exclude nobody but
    /// those who have it open still.
    pub(crate) fn connection(&mut self) -> Result<(&mut Connection, &Statements), StoreError> {
        let gone = self
            .file
            .as_ref()
            .is_some_and(|f| identity(&self.database.path) != Some(f.identity));
        let file = match self.file.take() {
            Some(file) if !gone => file,
            _ => self.database.open()?,
        };
        let connection = &mut self.file.insert(file).connection;
        Ok((connection, &self.database.statements))
    }

    /// Carry out `work` on the open file.
    pub(crate) fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Connection, &Statements) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let (connection, statements) = self.connection()?;
        let done = work(connection, statements);
        done.map_err(|error| {
            let error = self.database.explain(error);
            if matches!(error, StoreError::Unavailable(_)) {
                self.file = None;
            }
            error
        })
    }

    /// The same with the write lock, committed at the end.
    pub(crate) fn write<T>(
        &mut self,
        work: impl FnOnce(&Connection, &Statements) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.write_unless_fenced(|tx, statements, _| work(tx, statements))
    }

    /// The same for what gives a lock to somebody, which an open fence keeps out.
    pub(crate) fn write_unless_fenced<T>(
        &mut self,
        work: impl FnOnce(&Connection, &Statements, &Fences) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        let done = self.with(|connection, statements| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&tx, statements, &database.fences)?;
            tx.commit()?;
            Ok(done)
        })?;
        database.note_used();
        database.written.store(true, Ordering::Relaxed);
        Ok(done)
    }
}

impl Database {
    fn open(&self) -> Result<File, StoreError> {
        // SQLite keeps account of its file locks for the whole process, and a forked child inherits
        // the account without the locks: https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
        static OPENED_IN: OnceLock<u64> = OnceLock::new();
        let generation = fork::generation();
        if *OPENED_IN.get_or_init(|| generation) != generation {
            let said = "SQLite was in use when this process was forked";
            let hint = "connect in the child only, or let it exec";
            return Err(StoreError::rejected(said, Some(hint)));
        }
        new_enough(rusqlite::version_number(), rusqlite::version())?;
        let shown = self.path.display();
        if !self.create && !self.path.exists() {
            let hint = "check the path, or make the file and its table with `dblock init`";
            return Err(StoreError::rejected(
                format!("there is no file {shown}"),
                Some(hint),
            ));
        }
        // For its owner only, whatever the umask: who can write it can take every lock.
        // Closed again before SQLite opens it, and by one thread at a time: closing any descriptor of
        // a file gives up all locks that this process has on it, SQLite's among them.
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
        if let Err(error) = made
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            if passes(&error) {
                return Err(StoreError::cannot_serve(format!(
                    "cannot make {shown}: {error}"
                )));
            }
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => "make its folder first",
                _ => "the folder must be writable by this user",
            };
            return Err(StoreError::rejected(
                format!("cannot make {shown}: {error}"),
                Some(hint),
            ));
        }
        let open = || {
            let connection = Connection::open(&self.path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Readers, who look at a lock that is held, then neither wait for a writer nor stop one.
            connection.pragma_update(None, "journal_mode", "wal")?;
            // A commit that a power cut forgets would let a token come twice.
            connection.pragma_update(None, "synchronous", "full")?;
            let tables = "SELECT count(*) FROM sqlite_schema";
            let empty = connection.query_row(tables, [], |row| row.get::<_, i64>(0))? == 0;
            if empty {
                connection.execute_batch(&self.statements.install)?;
            }
            Ok(connection)
        };
        let connection = open().map_err(|error| self.explain(error))?;
        match identity(&self.path) {
            Some(identity) => Ok(File {
                connection,
                identity,
            }),
            None => Err(StoreError::Contention(
                format!("{shown} was deleted just now").into(),
            )),
        }
    }

    /// What an error means. What is lacking in a file that has been used may come back.
    fn explain(&self, error: rusqlite::Error) -> StoreError {
        let used = self.used.load(Ordering::Relaxed);
        let (message, code) = message_and_code(&error);
        let shown = self.path.display();
        let said = format!("{shown}: {message}");
        let Some(code) = code else {
            if let rusqlite::Error::ToSqlConversionFailure(source) = &error
                && source.downcast_ref().is_some_and(passes)
            {
                return StoreError::cannot_serve(said);
            }
            let token = said.contains("name: token");
            return StoreError::rejected(said, token.then_some(NO_TOKEN));
        };
        let missing = said.contains("no such table") || said.contains("no such column");
        let hint = match code {
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::SchemaChanged => return StoreError::Contention(said.into()),
            ErrorCode::DiskFull => {
                // And what it was in the midst of is rolled back.
                return StoreError::cannot_serve(format!("{shown}: the disk is full")).undone();
            }
            // A disk that fails, memory that is short, a statement that was interrupted.
            ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted => return StoreError::cannot_serve(said),
            // Too many open files, a disk that is full or mounted read-only for a while.
            ErrorCode::CannotOpen if used => return StoreError::cannot_serve(said),
            ErrorCode::ReadOnly if self.written.load(Ordering::Relaxed) => {
                return StoreError::cannot_serve(said);
            }
            _ if missing && used => return StoreError::cannot_serve(said),
            ErrorCode::CannotOpen => Some("the file and its folder must be writable by this user"),
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => {
                Some("the file and its folder must be writable by this user")
            }
            ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => {
                Some("give a file of its own, or none: it is made where it is missing")
            }
            _ if missing => Some("make its table with `dblock init` or `locks.migrate()`"),
            _ if said.contains("unknown database") => {
                Some("SQLite has no schemas: give the table's NAME alone")
            }
            _ => None,
        };
        StoreError::rejected(said, hint)
    }
}

/// What SQLite said, and the code of it where SQLite said it.
///
/// For an error at some place of a statement the driver's text is `MESSAGE in STATEMENT at offset N`. The
/// statement is left out. The variant is not in every version and build of the driver, so it is known by
/// its source.
fn message_and_code(error: &rusqlite::Error) -> (String, Option<ErrorCode>) {
    let message = error.to_string();
    if let Some(code) = error.sqlite_error_code() {
        return (message, Some(code));
    }
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    let Some(rusqlite::ffi::Error { code, .. }) = source else {
        return (message, None);
    };
    let said = message.split(" in ").next().unwrap_or_default();
    (said.to_owned(), Some(*code))
}

/// Refuse a library whose `unixepoch` knows no `subsec`: it answers NULL, and no lease would ever end.
fn new_enough(version: i32, shown: &str) -> Result<(), StoreError> {
    match version >= LEAST_VERSION {
        true => Ok(()),
        false => Err(StoreError::rejected(
            format!("SQLite {shown} is too old, must be 3.42 or later"),
            Some("build with the feature `sqlite` of database-locks, which compiles SQLite in"),
        )),
    }
}

/// Whether an error of the file system is one that passes, or is seen to: no space, no quota, too many
/// open files.
pub(crate) fn passes(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::IO,
    ]
    .iter()
    .any(|passing| code == Some(*passing))
}

/// An error of the files of fences, as one of SQLite.
pub(crate) fn of_file(error: std::io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
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

    #[test]
    fn an_error_in_a_statement_does_not_show_the_statement() {
        let connection = Connection::open_in_memory().unwrap();
        let error = connection.execute("DELETE FROM lacking WHERE 1 IN (1)", []);
        let (said, code) = message_and_code(&error.unwrap_err());
        assert_eq!(said, "no such table: lacking");
        assert_eq!(code, Some(ErrorCode::Unknown));
    }
}
