//! What an error of the server, or of the driver, means to the library.

use mysql_async::{DriverError, IoError, ServerError};

use super::super::{NO_ID, NO_TOKEN, StoreError};

pub(super) const INIT: &str = "make it with `dblock init` or `locks.migrate()`";
const UPGRADE: &str = "the table is of an older version: run `dblock init` or `locks.migrate()`";
const LOGIN: &str = "give this user another login: ALTER USER … IDENTIFIED WITH caching_sha2_password on \
                     MySQL, IDENTIFIED VIA ed25519 or mysql_native_password on MariaDB";

/// Whether there is no room left to write to. Then nothing was done, and it passes when room is made.
fn is_full(error: &ServerError) -> bool {
    let no_space = ["No space left", "quota exceeded", "errno: 28", "error 28"];
    match error.code {
        1021 | 1114 => true,
        3 | 1026 | 1030 | 1180 => no_space.iter().any(|words| error.message.contains(words)),
        _ => false,
    }
}

/// What an error means, and whether the connection is of no use after it.
///
/// Put into words of ours: the driver's own errors may hold whole packets.
pub(super) fn meaning(at: &str, error: &mysql_async::Error) -> (StoreError, bool) {
    use mysql_async::Error::{Driver, Io, Server};
    let unavailable = |said: String| (StoreError::Unavailable(said.into()), true);
    let error = match error {
        Server(error) => error,
        Io(IoError::Io(error)) => return unavailable(format!("{at}: {error}")),
        Driver(
            error @ (DriverError::UnknownAuthPlugin { .. }
            | DriverError::CleartextPluginDisabled
            | DriverError::MysqlOldPasswordDisabled),
        ) => {
            return (
                StoreError::rejected(format!("{at}: {error}"), Some(LOGIN)),
                true,
            );
        }
        error => return unavailable(format!("{at}: {error}")),
    };
    let said = format!("{at}: {} (error {})", error.message, error.code);
    let refused = |hint| (StoreError::rejected(&*said, hint), false);
    if is_full(error) {
        let said = format!("the disk of the database, or its tablespace, is full: {said}");
        return (StoreError::cannot_serve(said), false);
    }
    match error.code {
        // MariaDB, and MySQL, where no id is left for a new row.
        167 => refused(Some(NO_ID)),
        1062 if error.message.trim_end_matches('\'').ends_with("PRIMARY") => refused(Some(NO_ID)),
        1467 => refused(Some(NO_ID)),
        // Rolled back by the group, in the words of the storage engine.
        1180 if error.message.contains("149") => (StoreError::Contention(said.into()), false),
        // Lock wait, deadlock, duplicate key, NOWAIT, changed since the snapshot, rolled back by
        // the group, table altered or statement to be prepared anew, KILL QUERY.
        1205 | 1213 | 1062 | 3572 | 1020 | 3101 | 1412 | 1615 | 1317 => {
            (StoreError::Contention(said.into()), false)
        }
        // Too many connections, shutting down, gone, killed, cluster node not ready, cut off from the
        // others while it commits, not in step with them, offline, no answer;
        // read-only: a failover, and the next connection may find the new primary.
        1040
        | 1203
        | 1226
        | 1047
        | 1053
        | 1152..=1161
        | 1180
        | 1243
        | 1290
        | 1792
        | 1836
        | 1927
        | 1969
        | 2006
        | 2013
        | 3024
        | 3032
        | 3100
        | 3168
        | 3796..=3799
        | 4031 => unavailable(said),
        // Out of memory, of room for row locks, of undo slots.
        1037 | 1041 | 1206 | 1637 => (StoreError::cannot_serve(said), false),
        _ if error.state.starts_with("40") => (StoreError::Contention(said.into()), false),
        _ if error.state.starts_with("08") => unavailable(said),
        1146 | 1932 => refused(Some(INIT)),
        1054 | 1176 => refused(Some(UPGRADE)),
        1264 | 1690 => refused(Some(NO_TOKEN)),
        1044 => refused(Some(
            "check the database's name at the end of the URL, or grant this user rights in it",
        )),
        1142 | 1143 | 1227 => refused(Some(
            "this user needs SELECT, INSERT and UPDATE on the table; DELETE on the table to prune; \
             CREATE, ALTER and INDEX for `dblock init`",
        )),
        1045 | 1698 => refused(Some("check user name and password")),
        3159 => refused(Some("the server wants TLS: sslmode=require")),
        1665 => refused(Some(
            "set binlog_format to ROW or MIXED: this cannot be replicated as text",
        )),
        1049 => refused(Some(
            "check the database's name at the end of the URL, or create it",
        )),
        _ => refused(None),
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::Error;

    use super::*;

    /// What the server says, and whether the connection is given up.
    fn told(code: u16, message: &str) -> (StoreError, bool) {
        let refused = ServerError {
            code,
            message: message.into(),
            state: "HY000".into(),
        };
        meaning("h:1", &Error::Server(refused))
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
            let (error, broken) = told(code, message);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            assert_eq!(broken, gives_up, "{error}");
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
            let (error, broken) = told(code, message);
            assert!(matches!(error, StoreError::Contention(_)), "{error}");
            assert!(!broken, "{error}");
        }
    }

    #[test]
    fn a_full_disk_is_called_so_and_other_write_errors_are_not() {
        let said = told(1114, "The table 't' is full").0.to_string();
        assert!(said.contains("disk of the database"), "{said}");
        let other = told(1030, "Got error 168 from storage engine")
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
            let (StoreError::Rejected { hint, .. }, false) = told(code, message) else {
                panic!("{message}");
            };
            assert!(hint.unwrap_or_default().contains("bigint"), "{message}");
        }
    }
}
