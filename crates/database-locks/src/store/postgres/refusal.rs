//! What a server's or driver's error means to whoever called.

use tokio_postgres::error::SqlState;

use crate::store::hosts::{Failure, Verdict};
use crate::store::tls::{Complaint, complaint};
use crate::store::{NO_TOKEN, StoreError};

/// An error, as the callers of this engine need to know it. The driver's own says "db error" and
/// leaves the rest to its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    /// In words, without anything secret.
    pub(super) said: String,
    pub(super) code: Option<SqlState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody else was first. Try again soon.
    Contention,
    /// It cannot serve just now; the connection is as good as another.
    Unavailable,
    /// Another connection may fare better.
    Gone,
    /// A pooler gave our prepared statements to somebody else, or somebody else's to us.
    Pooled,
    /// Trying again will not help; what may.
    Rejected(Option<&'static str>),
}

impl Refusal {
    pub(super) fn unavailable(said: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unavailable,
            said: said.into(),
            code: None,
        }
    }

    pub(super) fn rejected(said: impl Into<String>, hint: Option<&'static str>) -> Self {
        Self {
            kind: Kind::Rejected(hint),
            said: said.into(),
            code: None,
        }
    }
}

/// What to do where a pooler is in between that knows no start-up `options`.
pub(super) const POOLER: &str = "a pooler in between does not pass `options` on: name the table as \
                                 SCHEMA.NAME, or set search_path by ALTER ROLE … SET";

/// What an error code of the server calls for.
fn kind_of(code: &SqlState) -> Kind {
    match code.code() {
        // Serialisation failure, deadlock, lock timeout, duplicate key.
        "40001" | "40P01" | "55P03" | "23505" => Kind::Contention,
        // A read-only transaction: the server that was the primary a moment ago is a standby now.
        // A new connection may find the new primary, or is told what is wrong.
        "25006" => Kind::Gone,
        // Somebody stopped the server or our connection.
        "57P01" | "57P02" | "57P03" | "57P05" => Kind::Gone,
        // A prepared statement is not there, or is there already.
        "26000" | "42P05" => Kind::Pooled,
        "42P01" => Kind::Rejected(Some("make it with `dblock init` or `locks.migrate()`")),
        "42703" | "42P10" => Kind::Rejected(Some(
            "the table lacks what this version needs: `dblock init` or `locks.migrate()` adds it",
        )),
        "22003" => Kind::Rejected(Some(NO_TOKEN)),
        "28P01" => Kind::Rejected(Some("check user name and password")),
        "28000" => Kind::Rejected(Some(
            "the server does not let this user in: check the user name, the client certificate if \
             it wants one (sslcert and sslkey), and the server's pg_hba.conf",
        )),
        "3D000" => Kind::Rejected(Some("check the name of the database, or create it first")),
        "42501" => Kind::Rejected(Some(
            "the role needs USAGE on the schema and SELECT, INSERT and UPDATE on the table (and USAGE \
             on the sequence of its id, if it has one); DELETE on the table to prune; to make the \
             table, CREATE on the schema, and to alter one, to own it",
        )),
        code => match code.get(..2).unwrap_or_default() {
            "08" => Kind::Gone,
            // Out of memory, disk or connections; cancelled, or past the role's statement_timeout;
            // an I/O error of the server's.
            "53" | "57" | "58" => Kind::Unavailable,
            _ => Kind::Rejected(None),
        },
    }
}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        use std::error::Error as _;

        if let Some(db) = error.as_db_error() {
            let said = format!("{} (SQLSTATE {})", db.message(), db.code().code());
            // PgBouncer's words, under the code for a broken protocol.
            let pooler = said.contains("unsupported startup parameter");
            return Self {
                kind: if pooler {
                    Kind::Rejected(Some(POOLER))
                } else {
                    kind_of(db.code())
                },
                said,
                code: Some(db.code().clone()),
            };
        }
        // In the driver's words, which has no other way to tell. On a connection that was made, what
        // TLS has to say means that it broke.
        if error.to_string().starts_with("error performing TLS") {
            let source = error.source().map(ToString::to_string);
            let none = source.as_deref() == Some("server does not support TLS");
            let about = none.then(Complaint::none_offered);
            if let Some(Complaint { said, hint, .. }) = about.or_else(|| complaint(&error)) {
                return Self::rejected(said, Some(hint));
            }
        }
        if let Some(Complaint { said, hint, .. }) = complaint(&error).filter(|c| c.of_ours) {
            return Self::rejected(said, Some(hint));
        }
        let broken = error.is_closed()
            || error
                .source()
                .is_some_and(|source| source.is::<std::io::Error>());
        let said = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let kind = match &*said {
            _ if broken => Kind::Gone,
            // The driver's word where the server asks for a password and the URL has none.
            said if said.ends_with("password missing") => {
                Kind::Rejected(Some("the server asks for a password: put it into the URL"))
            }
            _ => Kind::Rejected(None),
        };
        Self {
            kind,
            said,
            code: None,
        }
    }
}

impl From<Refusal> for Failure<&'static str> {
    fn from(refusal: Refusal) -> Self {
        let (verdict, hint) = match refusal.kind {
            Kind::Rejected(hint) => (Verdict::Refused, hint),
            _ => (Verdict::Unavailable, None),
        };
        let said = refusal.said;
        Self {
            verdict,
            said,
            hint,
        }
    }
}

impl From<Failure<&'static str>> for Refusal {
    fn from(failure: Failure<&'static str>) -> Self {
        match failure.verdict {
            Verdict::Unavailable => Self::unavailable(failure.said),
            Verdict::ReadOnly | Verdict::Refused => Self::rejected(failure.said, failure.hint),
        }
    }
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            Kind::Contention => Self::Contention(refusal.said.into()),
            Kind::Unavailable | Kind::Gone | Kind::Pooled => Self::Unavailable(refusal.said.into()),
            Kind::Rejected(hint) => Self::rejected(refusal.said, hint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contention_is_no_error_and_an_outage_no_refusal() {
        let kind = |code: &str| kind_of(&SqlState::from_code(code));
        for code in ["40001", "40P01", "55P03", "23505"] {
            assert_eq!(kind(code), Kind::Contention, "{code}");
        }
        for code in ["08006", "57P01", "57P03", "25006"] {
            assert_eq!(kind(code), Kind::Gone, "{code}");
        }
        for code in ["53100", "53300", "57014", "58030"] {
            assert_eq!(kind(code), Kind::Unavailable, "{code}");
        }
        for code in ["42P01", "42703", "28P01", "28000", "3D000", "42501"] {
            assert!(matches!(kind(code), Kind::Rejected(Some(_))), "{code}");
        }
        assert_eq!(kind("22P02"), Kind::Rejected(None));
    }
}
