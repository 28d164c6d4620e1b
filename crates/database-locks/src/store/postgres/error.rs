//! Errors of the server and of the driver as errors of the store: the table of SQLSTATEs.

use tokio_postgres::error::SqlState;

use crate::store::connect::hosts::{ConnectFailure, FailureKind};
use crate::store::connect::tls::{TlsFailure, tls_failure};
use crate::store::error::{IDS_USED_UP, StoreError, TOKEN_OUT_OF_RANGE};

/// An error of the server or the driver, classified. The driver's own is "db error", with the
/// details in its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) kind: Kind,
    /// Contains no secret.
    pub(crate) message: String,
    pub(crate) code: Option<SqlState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A conflicting transaction was in the way. Try again soon.
    Contention,
    /// The server cannot serve at present, on any connection.
    Unavailable,
    /// The connection is broken. Another one may work.
    Gone,
    /// A pooler has mixed up prepared statements of several clients.
    Pooled,
    /// The table or database is missing. If it existed before, it may come back: a table that is
    /// being renamed or restored, a database that is closed for a while. Otherwise it is
    /// [`Rejected`](Self::Rejected), with the hint.
    Missing(Option<&'static str>),
    /// Trying again will not help. With a hint.
    Rejected(Option<&'static str>),
}

impl ServerError {
    /// Resolve [`Missing`](Kind::Missing), by whether the table has been used before.
    pub(crate) fn settled(mut self, was_there: bool) -> Self {
        if let Kind::Missing(hint) = self.kind {
            self.kind = match was_there {
                true => Kind::Unavailable,
                false => Kind::Rejected(hint),
            };
        }
        self
    }

    /// Whether a statement waited for a lock for as long as it may.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        self.code == Some(SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether the server refused the user or the password.
    pub(crate) fn is_about_login(&self) -> bool {
        let code = self.code.as_ref().map(SqlState::code);
        matches!(code, Some("28P01" | "28000"))
    }

    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            code: None,
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    pub(crate) fn rejected(message: impl Into<String>, hint: Option<&'static str>) -> Self {
        Self::new(Kind::Rejected(hint), message)
    }
}

/// The hint for a pooler that does not support start-up `options`.
pub(crate) const POOLER_HINT: &str = "a pooler in between does not pass `options` on: name the table as \
                                 SCHEMA.NAME, or set search_path by ALTER ROLE … SET";

const INIT_HINT: &str = "make it with `dblock init` or `locks.migrate()`";
const SCHEMA_HINT: &str =
    "make the schema with CREATE SCHEMA, then the table with `dblock init` or `locks.migrate()`";
const UPGRADE_HINT: &str =
    "the table lacks what this version needs: `dblock init` or `locks.migrate()` adds it";
const ENCODING_HINT: &str = "the database's encoding lacks a character of the lock's name or holder: give \
                        others, or use a database of encoding UTF8";
const RIGHTS_HINT: &str = "the role needs USAGE on the schema and SELECT, INSERT and UPDATE on the table (and \
                      USAGE on the sequence of its id, if it has one); DELETE to prune, and on the table of \
                      permits to share locks; to \
                      make the table, CREATE on the schema, and to alter one, to own it";
const CONNECT_HINT: &str = "the role may not connect to this database: as its owner, GRANT CONNECT ON \
                       DATABASE … TO the role, or name another database";
const LOGIN_HINT: &str = "the server does not let this user in: check the user name, the client certificate \
                     if it wants one (sslcert and sslkey), and the server's pg_hba.conf";

const PASSWORD_HINT: &str = "the server asks for a password: give it in the URL, by a function, in PGPASSWORD, or \
                        in ~/.pgpass with mode 0600";

/// The kind of an error, by its code and by the function of the server that raised it. Messages are
/// translated, so they are not used.
///
/// Every class of <https://www.postgresql.org/docs/current/errcodes-appendix.html> is decided here;
/// see the table among the tests.
fn kind_of(code: &SqlState, routine: Option<&str>) -> Kind {
    match code.code() {
        // A prepared statement was planned for columns that have changed since.
        "0A000" if routine == Some("RevalidateCachedQuery") => Kind::Gone,
        // A token greater than any bigint. Otherwise it is the id of a new row.
        "22003" if matches!(routine, Some("int8pl" | "int84pl")) => {
            Kind::Rejected(Some(TOKEN_OUT_OF_RANGE))
        }
        "22003" | "2200H" => Kind::Rejected(Some(IDS_USED_UP)),
        "22021" | "22P05" => Kind::Rejected(Some(ENCODING_HINT)),
        "23505" => Kind::Contention,
        "28P01" => Kind::Rejected(Some("check user name and password")),
        "28000" => Kind::Rejected(Some(LOGIN_HINT)),
        "3D000" => Kind::Missing(Some("check the name of the database, or create it first")),
        // The effect is unknown.
        "40003" => Kind::Unavailable,
        // The server's check at login.
        "42501" if routine == Some("CheckMyDatabase") => Kind::Rejected(Some(CONNECT_HINT)),
        "42501" => Kind::Rejected(Some(RIGHTS_HINT)),
        "42P01" => Kind::Missing(Some(INIT_HINT)),
        "42703" => Kind::Missing(Some(UPGRADE_HINT)),
        // The unique index is missing, which shows only when a row is inserted: the table is in
        // use before.
        "42P10" => Kind::Rejected(Some(UPGRADE_HINT)),
        // A prepared statement or portal does not exist, or exists already.
        "26000" | "34000" | "42P05" => Kind::Pooled,
        // The server accepts no commits until it is vacuumed. Other limits concern the statement.
        "54000" => Kind::Unavailable,
        "55P03" | "55006" => Kind::Contention,
        // The database accepts no connections at present.
        "55000" => Kind::Missing(None),
        // Cancelled, or past the role's statement_timeout.
        "57000" | "57014" => Kind::Unavailable,
        // Also used for a table or database that is being dropped or replaced, and by poolers.
        "XX000" => Kind::Missing(None),
        code => match code.get(..2).unwrap_or_default() {
            // The connection has failed, or its server, session or database was shut down,
            // restarted or dropped.
            "08" | "57" => Kind::Gone,
            // The state of the session: it is read-only after a failover, was ended by
            // transaction_timeout, or has a transaction open that another client left.
            "25" => Kind::Gone,
            // Serialisation failure, deadlock; a snapshot that is too old.
            "40" | "72" => Kind::Contention,
            "3F" => Kind::Missing(Some(SCHEMA_HINT)),
            // Out of memory, disk or connections; an I/O error; a file of its settings.
            "53" | "58" | "F0" => Kind::Unavailable,
            _ => Kind::Rejected(None),
        },
    }
}

impl From<tokio_postgres::Error> for ServerError {
    fn from(error: tokio_postgres::Error) -> Self {
        use std::error::Error as _;

        if let Some(db) = error.as_db_error() {
            let message = format!("{} (SQLSTATE {})", db.message(), db.code().code());
            // PgBouncer's text, with the code for a protocol violation.
            let pooler = message.contains("unsupported startup parameter");
            return Self {
                kind: match pooler {
                    true => Kind::Rejected(Some(POOLER_HINT)),
                    false => kind_of(db.code(), db.routine()),
                },
                message,
                code: Some(db.code().clone()),
            };
        }
        let source = error.source().map(ToString::to_string);
        // By the driver's text, since it has nothing else. On an established connection, an error
        // of TLS means that it broke.
        let begins = error.to_string().starts_with("error performing TLS");
        let about = match source.as_deref() {
            Some("server does not support TLS") if begins => Some(TlsFailure::none_offered()),
            _ => tls_failure(&error).filter(|about| begins || about.client_certificate),
        };
        if let Some(TlsFailure { message, hint, .. }) = about {
            return Self::rejected(message, Some(hint));
        }
        let broken = error.is_closed()
            || error
                .source()
                .is_some_and(|source| source.is::<std::io::Error>());
        let message = match source {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let kind = match &*message {
            _ if broken => Kind::Gone,
            // The driver's text if the server requires a password and the URL has none.
            text if text.ends_with("password missing") => Kind::Rejected(Some(PASSWORD_HINT)),
            _ => Kind::Rejected(None),
        };
        Self::new(kind, message)
    }
}

impl From<ServerError> for ConnectFailure {
    fn from(error: ServerError) -> Self {
        let (kind, hint) = match error.kind {
            Kind::Rejected(hint) | Kind::Missing(hint) => (FailureKind::Refused, hint),
            _ => (FailureKind::Unavailable, None),
        };
        Self::new(kind, error.message, hint)
    }
}

impl From<ServerError> for StoreError {
    fn from(error: ServerError) -> Self {
        // An answer of a server that shuts down or starts does not count as an answer.
        let code = error.code.as_ref().map(SqlState::code);
        // 57014: cancelled, or ended by a limit of the role.
        let serves = code.is_some_and(|code| {
            code == "57014" || !(code.starts_with("08") || code.starts_with("57"))
        });
        match error.kind {
            Kind::Contention => Self::Contention(error.message.into()),
            Kind::Unavailable | Kind::Gone if serves => Self::cannot_serve(error.message),
            Kind::Unavailable | Kind::Gone | Kind::Pooled => {
                Self::Unavailable(error.message.into())
            }
            Kind::Rejected(hint) | Kind::Missing(hint) => Self::rejected(error.message, hint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every class of SQLSTATE, and each code that is not as the rest of its class.
    const DECIDED: &[(&str, Kind)] = &[
        ("03000", Kind::Rejected(None)),
        ("08000", Kind::Gone),
        ("08006", Kind::Gone),
        ("08P01", Kind::Gone),
        ("09000", Kind::Rejected(None)),
        ("0A000", Kind::Rejected(None)),
        ("0B000", Kind::Rejected(None)),
        ("0F000", Kind::Rejected(None)),
        ("0L000", Kind::Rejected(None)),
        ("0P000", Kind::Rejected(None)),
        ("0Z000", Kind::Rejected(None)),
        ("10608", Kind::Rejected(None)),
        ("20000", Kind::Rejected(None)),
        ("21000", Kind::Rejected(None)),
        ("22000", Kind::Rejected(None)),
        ("22003", Kind::Rejected(Some(IDS_USED_UP))),
        ("2200H", Kind::Rejected(Some(IDS_USED_UP))),
        ("22021", Kind::Rejected(Some(ENCODING_HINT))),
        ("22P02", Kind::Rejected(None)),
        ("22P05", Kind::Rejected(Some(ENCODING_HINT))),
        ("23502", Kind::Rejected(None)),
        ("23505", Kind::Contention),
        ("23514", Kind::Rejected(None)),
        ("24000", Kind::Rejected(None)),
        ("25001", Kind::Gone),
        ("25006", Kind::Gone),
        ("25P02", Kind::Gone),
        ("25P03", Kind::Gone),
        ("25P04", Kind::Gone),
        ("26000", Kind::Pooled),
        ("27000", Kind::Rejected(None)),
        ("28000", Kind::Rejected(Some(LOGIN_HINT))),
        ("2B000", Kind::Rejected(None)),
        ("2D000", Kind::Rejected(None)),
        ("2F000", Kind::Rejected(None)),
        ("34000", Kind::Pooled),
        ("38000", Kind::Rejected(None)),
        ("39000", Kind::Rejected(None)),
        ("3B000", Kind::Rejected(None)),
        ("3F000", Kind::Missing(Some(SCHEMA_HINT))),
        ("40000", Kind::Contention),
        ("40001", Kind::Contention),
        ("40002", Kind::Contention),
        ("40003", Kind::Unavailable),
        ("40P01", Kind::Contention),
        ("42501", Kind::Rejected(Some(RIGHTS_HINT))),
        ("42601", Kind::Rejected(None)),
        ("42703", Kind::Missing(Some(UPGRADE_HINT))),
        ("42P01", Kind::Missing(Some(INIT_HINT))),
        ("42P05", Kind::Pooled),
        ("42P10", Kind::Rejected(Some(UPGRADE_HINT))),
        ("44000", Kind::Rejected(None)),
        ("53000", Kind::Unavailable),
        ("53100", Kind::Unavailable),
        ("53200", Kind::Unavailable),
        ("53300", Kind::Unavailable),
        ("53400", Kind::Unavailable),
        ("54000", Kind::Unavailable),
        ("54001", Kind::Rejected(None)),
        ("54011", Kind::Rejected(None)),
        ("54023", Kind::Rejected(None)),
        ("55000", Kind::Missing(None)),
        ("55006", Kind::Contention),
        ("55P02", Kind::Rejected(None)),
        ("55P03", Kind::Contention),
        ("57000", Kind::Unavailable),
        ("57014", Kind::Unavailable),
        ("57P01", Kind::Gone),
        ("57P02", Kind::Gone),
        ("57P03", Kind::Gone),
        ("57P04", Kind::Gone),
        ("57P05", Kind::Gone),
        ("58000", Kind::Unavailable),
        ("58030", Kind::Unavailable),
        ("58P01", Kind::Unavailable),
        ("72000", Kind::Contention),
        ("F0000", Kind::Unavailable),
        ("F0001", Kind::Unavailable),
        ("HV000", Kind::Rejected(None)),
        ("P0000", Kind::Rejected(None)),
        ("P0001", Kind::Rejected(None)),
        ("XX000", Kind::Missing(None)),
        ("XX001", Kind::Rejected(None)),
        ("XX002", Kind::Rejected(None)),
    ];

    #[test]
    fn every_class_of_errors_is_decided() {
        for (code, kind) in DECIDED {
            assert_eq!(kind_of(&SqlState::from_code(code), None), *kind, "{code}");
        }
        let of = |code, routine| kind_of(&SqlState::from_code(code), Some(routine));
        assert_eq!(
            of("22003", "int84pl"),
            Kind::Rejected(Some(TOKEN_OUT_OF_RANGE))
        );
        assert_eq!(of("22003", "int84"), Kind::Rejected(Some(IDS_USED_UP)));
        assert_eq!(of("0A000", "RevalidateCachedQuery"), Kind::Gone);
        let connect = Kind::Rejected(Some(CONNECT_HINT));
        assert_eq!(of("42501", "CheckMyDatabase"), connect);
    }

    #[test]
    fn what_has_been_there_may_come_back_and_what_never_was_is_rejected() {
        let error = |code: &str| ServerError {
            kind: kind_of(&SqlState::from_code(code), None),
            message: "no".into(),
            code: Some(SqlState::from_code(code)),
        };
        for code in ["42P01", "42703", "3F000", "3D000", "55000", "XX000"] {
            let first = StoreError::from(error(code).settled(false));
            assert!(matches!(first, StoreError::Rejected { .. }), "{code}");
            let later = StoreError::from(error(code).settled(true));
            assert!(matches!(later, StoreError::Unavailable(_)), "{code}");
        }
        for code in ["42501", "28P01", "22P02", "42P10"] {
            let later = StoreError::from(error(code).settled(true));
            assert!(matches!(later, StoreError::Rejected { .. }), "{code}");
        }
    }
}
