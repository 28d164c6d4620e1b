//! Errors of SQLite as errors of the store.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::store::error::{StoreError, TOKEN_OUT_OF_RANGE};

/// The earlier uses of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileHistory {
    pub(crate) used: bool,
    pub(crate) written: bool,
}

const NOT_WRITABLE: &str = "the file and its folder must be writable by this user";

/// The error of the store. A table that existed before may come back; so may the right to
/// write.
pub(crate) fn classify(path: &Path, error: &rusqlite::Error, history: FileHistory) -> StoreError {
    let (message, code) = message_and_code(error);
    let shown = path.display();
    let message = format!("{shown}: {message}");
    let Some(code) = code else {
        if let rusqlite::Error::ToSqlConversionFailure(source) = error
            && source.downcast_ref().is_some_and(is_transient)
        {
            return StoreError::cannot_serve(message);
        }
        let token = message.contains("name: token");
        return StoreError::rejected(message, token.then_some(TOKEN_OUT_OF_RANGE));
    };
    let missing_table = message.contains("no such table");
    // A table of legacy (django-database-locks 0.5) is read before the first statement that it
    // cannot run: that it was used says nothing about its columns.
    let missing_column = ["no such column", "has no column named"]
        .iter()
        .any(|fault| message.contains(fault));
    let hint = match code {
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::SchemaChanged => return StoreError::Contention(message.into()),
        ErrorCode::DiskFull => {
            // The transaction was rolled back.
            return StoreError::cannot_serve(format!("{shown}: the disk is full")).undone();
        }
        // A failing disk, too little memory, an interrupted statement.
        ErrorCode::SystemIoFailure
        | ErrorCode::OutOfMemory
        | ErrorCode::OperationInterrupted
        | ErrorCode::OperationAborted => return StoreError::cannot_serve(message),
        // Too many open files, or a disk that is full or mounted read-only for a while.
        ErrorCode::CannotOpen if history.used => return StoreError::cannot_serve(message),
        ErrorCode::ReadOnly if history.written => return StoreError::cannot_serve(message),
        _ if missing_table && history.used => return StoreError::cannot_serve(message),
        ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied => {
            Some(NOT_WRITABLE)
        }
        ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => {
            Some("give a file of its own, or none: it is made where it is missing")
        }
        _ if missing_table => Some("make its table with `dblock init` or `locks.migrate()`"),
        _ if missing_column => Some(
            "the table is of another program or version: give another file, or another table by \
             `table`",
        ),
        _ if message.contains("unknown database") => {
            Some("SQLite has no schemas: give the table's NAME alone")
        }
        _ => None,
    };
    StoreError::rejected(message, hint)
}

/// The message of SQLite, and the code of it where the error is one of SQLite.
///
/// For an error at some place of a statement the driver's text is `MESSAGE in STATEMENT at offset
/// N`. The statement is left out. The variant is not in every version and build of the driver, so
/// it is known by its source.
fn message_and_code(error: &rusqlite::Error) -> (String, Option<ErrorCode>) {
    let message = error.to_string();
    if let Some(code) = error.sqlite_error_code() {
        return (message, Some(code));
    }
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    let Some(rusqlite::ffi::Error { code, .. }) = source else {
        return (message, None);
    };
    let short = message.split(" in ").next().unwrap_or_default();
    (short.to_owned(), Some(*code))
}

/// Whether an error of the file system passes, or an administrator can see to it: no space, no
/// quota, too many open files.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::IO,
    ];
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    code.is_some_and(|code| passing.contains(&code))
}

/// An error of the files of fences, as one of SQLite.
pub(crate) fn io_error(error: io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn an_error_in_a_statement_does_not_show_the_statement() {
        let connection = Connection::open_in_memory().unwrap();
        let error = connection.execute("DELETE FROM lacking WHERE 1 IN (1)", []);
        let (message, code) = message_and_code(&error.unwrap_err());
        assert_eq!(message, "no such table: lacking");
        assert_eq!(code, Some(ErrorCode::Unknown));
    }
}
