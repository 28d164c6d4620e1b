//! Errors of the server and of the driver as errors of the store.

use std::{fmt, io};

use mysql_async::{DriverError, IoError, ServerError};

use crate::store::error::{IDS_USED_UP, StoreError, TOKEN_OUT_OF_RANGE};

pub(crate) const INIT_HINT: &str = "make it with `dblock init` or `locks.migrate()`";
const UPGRADE_HINT: &str =
    "the table is of an older version: run `dblock init` or `locks.migrate()`";
/// For a user that does not exist MySQL asks for another authentication plugin, so that clients
/// cannot find out which users exist.
const LOGIN_HINT: &str = "check user name and password first: MySQL answers so for a user that it does not know; else \
                     give this user another login: ALTER USER … IDENTIFIED WITH caching_sha2_password on \
                     MySQL, IDENTIFIED VIA ed25519 or mysql_native_password on MariaDB";

/// Whether there is no space left. The statement was then not carried out.
fn is_full(error: &ServerError) -> bool {
    let no_space = ["No space left", "quota exceeded", "errno: 28", "error 28"];
    match error.code {
        1021 | 1114 => true,
        3 | 1026 | 1030 | 1180 => no_space.iter().any(|text| error.message.contains(text)),
        _ => false,
    }
}

/// Whether a node of a cluster is apart from the others: not ready, cut off while it commits, not in
/// step with them. Another node may serve.
pub(crate) fn is_apart(code: u16) -> bool {
    matches!(code, 1047 | 1180 | 3100 | 3168 | 3796..=3799)
}

/// The error of the store, and whether the connection is broken.
///
/// The text is this library's own, since errors of the driver may contain whole packets.
pub(crate) fn classify(at: &str, error: &mysql_async::Error) -> (StoreError, bool) {
    use mysql_async::Error::{Driver, Io, Server};
    match error {
        Server(error) => of_server(at, error),
        Driver(error) => (of_driver(at, error), true),
        Io(IoError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            (unavailable(at, "the server closed the connection"), true)
        }
        Io(IoError::Io(error)) => (unavailable(at, error), true),
        error => (unavailable(at, error), true),
    }
}

fn unavailable(at: &str, what: impl fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{at}: {what}").into())
}

fn of_driver(at: &str, error: &DriverError) -> StoreError {
    if let DriverError::UnknownAuthPlugin { name } = error {
        let message =
            format!("{at}: the server asks for a login by {name}, which is not supported");
        return StoreError::rejected(message, Some(LOGIN_HINT));
    }
    let text = error.to_string();
    let text = text.trim_end_matches('.');
    match error {
        DriverError::CleartextPluginDisabled | DriverError::MysqlOldPasswordDisabled => {
            StoreError::rejected(format!("{at}: {text}"), Some(LOGIN_HINT))
        }
        DriverError::ConnectionClosed => unavailable(at, "the server closed the connection"),
        _ => unavailable(at, text),
    }
}

fn of_server(at: &str, error: &ServerError) -> (StoreError, bool) {
    let message = format!("{at}: {} (error {})", error.message, error.code);
    if is_full(error) {
        let message = format!("the disk of the database, or its tablespace, is full: {message}");
        return (StoreError::cannot_serve(message), false);
    }
    match error.code {
        // Rolled back by the group, as the storage engine reports it.
        1180 if error.message.contains("149") => (StoreError::Contention(message.into()), false),
        1062 if is_of_primary_key(error) => (StoreError::rejected(message, hint(error)), false),
        // Lock wait, deadlock, duplicate key, NOWAIT, changed since the snapshot, rolled back by
        // the group, table altered or statement to be prepared anew, KILL QUERY.
        1205 | 1213 | 1062 | 3572 | 1020 | 3101 | 1412 | 1615 | 1317 => {
            (StoreError::Contention(message.into()), false)
        }
        // Read-only: a failover, and the next connection may find the new primary.
        1290 | 1836 if error.message.to_lowercase().contains("read-only") => {
            let (text, code) = (&error.message, error.code);
            let message = format!("the server at {at} is read-only: {text} (error {code})");
            (StoreError::cannot_serve(message), true)
        }
        1290 | 1792 | 1836 => (StoreError::cannot_serve(message), true),
        // Too many connections.
        1040 | 1203 | 1226 => (StoreError::cannot_serve(message), true),
        code if is_apart(code) => (StoreError::Unavailable(message.into()), true),
        // Shutting down, gone, killed, offline, no answer.
        1053 | 1152..=1161 | 1243 | 1927 | 1969 | 2006 | 2013 | 3024 | 3032 | 4031 => {
            (StoreError::Unavailable(message.into()), true)
        }
        // Out of memory, of room for row locks, of undo slots.
        1037 | 1041 | 1206 | 1637 => (StoreError::cannot_serve(message), false),
        _ if error.state.starts_with("40") => (StoreError::Contention(message.into()), false),
        _ if error.state.starts_with("08") => (StoreError::Unavailable(message.into()), true),
        code => {
            let refused = StoreError::Rejected {
                hint: hint(error).map(str::to_owned),
                source: Box::new(Refusal { message, code }),
            };
            (refused, false)
        }
    }
}

/// The message of an error that does not pass by itself, with its code.
#[derive(Debug)]
struct Refusal {
    message: String,
    code: u16,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The code with which the server refused a statement for good.
pub(crate) fn code_of(failure: &StoreError) -> Option<u16> {
    let StoreError::Rejected { source, .. } = failure else {
        return None;
    };
    source.downcast_ref().map(|refusal: &Refusal| refusal.code)
}

/// Whether the server refused a statement for good with one of these codes.
pub(crate) fn is_code(failure: &StoreError, codes: &[u16]) -> bool {
    code_of(failure).is_some_and(|code| codes.contains(&code))
}

/// Whether the duplicate is the id and not the name: when the ids are used up, the last id is
/// handed out again.
fn is_of_primary_key(error: &ServerError) -> bool {
    error.code == 1062 && error.message.trim_end_matches('\'').ends_with("PRIMARY")
}

/// The hint for an error that does not pass by itself.
fn hint(error: &ServerError) -> Option<&'static str> {
    Some(match error.code {
        // MariaDB, and MySQL, where no id is left for a new row.
        167 | 1062 | 1467 => IDS_USED_UP,
        1146 | 1932 => INIT_HINT,
        1054 | 1176 => UPGRADE_HINT,
        1264 | 1690 => TOKEN_OUT_OF_RANGE,
        1044 => "check the database's name at the end of the URL, or grant this user rights in it",
        1142 | 1143 | 1227 => {
            "this user needs SELECT, INSERT and UPDATE on the table; DELETE to prune, and on the \
             table of permits to share locks; \
             CREATE, ALTER and INDEX for `dblock init`"
        }
        1045 | 1698 => "check user name and password",
        3159 => "the server wants TLS: sslmode=require",
        1665 => "set binlog_format to ROW or MIXED: this cannot be replicated as text",
        1049 => "check the database's name at the end of the URL, or create it",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use mysql_async::Error;

    use super::*;

    /// The classification of an error of the server.
    fn answer(code: u16, message: &str) -> (StoreError, bool) {
        let refused = ServerError {
            code,
            message: message.into(),
            state: "HY000".into(),
        };
        classify("h:1", &Error::Server(refused))
    }

    #[test]
    fn what_passes_ends_no_wait() {
        for (code, message, gives_up) in [
            (1114, "The table 't' is full", false),
            (
                1021,
                "Disk full (/tmp); waiting for someone to free some space",
                false,
            ),
            (
                1026,
                "Error writing file 'x' (errno: 28 \"No space left on device\")",
                false,
            ),
            (
                1030,
                "Got error 28 \"No space left on device\" from storage engine InnoDB",
                false,
            ),
            (1637, "Too many active concurrent transactions", false),
            (3032, "The server is currently in offline mode", true),
            (3798, "Group replication in the process of a change", true),
            (1290, "running with the --read-only option", true),
            (1040, "Too many connections", true),
        ] {
            let (error, broken) = answer(code, message);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            assert_eq!(broken, gives_up, "{error}");
            // These come from a server that goes on serving others.
            let serves = !matches!(code, 3032 | 3798);
            assert_eq!(error.is_answer(), serves, "{error}");
        }
        for (code, message) in [
            (
                1180,
                "Got error 149 - 'Lock deadlock; Retry transaction' during COMMIT",
            ),
            (1205, "Lock wait timeout exceeded"),
            (
                1412,
                "Table definition has changed, please retry transaction",
            ),
            (1062, "Duplicate entry 'a' for key 't.name'"),
        ] {
            let (error, broken) = answer(code, message);
            assert!(matches!(error, StoreError::Contention(_)), "{error}");
            assert!(!broken, "{error}");
        }
    }

    #[test]
    fn a_refusal_has_the_code_of_the_server() {
        let refused = answer(1419, "You do not have the SUPER privilege").0;
        assert_eq!(code_of(&refused), Some(1419));
        assert!(refused.to_string().ends_with("(error 1419)"), "{refused}");
        let quoting = StoreError::rejected("it said (error 1419)", None);
        assert_eq!(code_of(&quoting), None);
        assert_eq!(code_of(&answer(1205, "Lock wait timeout").0), None);
    }

    #[test]
    fn a_full_disk_is_called_so_and_other_write_errors_are_not() {
        let message = answer(1114, "The table 't' is full").0.to_string();
        assert!(message.contains("disk of the database"), "{message}");
        let other = answer(1030, "Got error 168 from storage engine")
            .0
            .to_string();
        assert!(!other.contains("disk"), "{other}");
    }

    #[test]
    fn ids_that_are_used_up_are_no_contention() {
        for (code, message) in [
            (167, "Out of range value for column 'id' at row 1"),
            (1062, "Duplicate entry '2147483647' for key 't.PRIMARY'"),
            (
                1467,
                "Failed to read auto-increment value from storage engine",
            ),
        ] {
            let (StoreError::Rejected { hint, .. }, false) = answer(code, message) else {
                panic!("{message}");
            };
            assert!(hint.unwrap_or_default().contains("bigint"), "{message}");
        }
    }

    #[test]
    fn a_server_that_ends_is_said_to_close_the_connection() {
        let tls = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/latest";
        let of_tls = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, tls);
        for error in [
            Error::Io(IoError::Io(of_tls)),
            Error::Driver(DriverError::ConnectionClosed),
        ] {
            let (error, broken) = classify("h:1", &error);
            assert_eq!(
                error.to_string(),
                "unavailable: h:1: the server closed the connection"
            );
            assert!(broken);
        }
    }

    #[test]
    fn a_login_of_an_unknown_kind_is_put_down_to_name_and_password_first() {
        let name = "sha256_password".to_owned();
        let error = Error::Driver(DriverError::UnknownAuthPlugin { name });
        let (StoreError::Rejected { hint, source }, true) = classify("h:1", &error) else {
            panic!("not refused");
        };
        let (message, hint) = (source.to_string(), hint.unwrap_or_default());
        assert!(
            message.contains("sha256_password") && !message.ends_with('.'),
            "{message}"
        );
        assert!(hint.starts_with("check user name and password"), "{hint}");
        assert!(hint.contains("caching_sha2_password"), "{hint}");
    }
}
