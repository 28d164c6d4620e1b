//! Why a store has no answer.

use std::fmt;
use std::time::Duration;

use crate::error::{BoxError, Cause, Error};

/// The hint where no id is left for the row of a new name.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) const IDS_USED_UP: &str = "the ids of its rows are used up: as the owner of the table, let its column id be a \
                     bigint (PostgreSQL: ALTER TABLE … ALTER COLUMN id TYPE bigint, and ALTER SEQUENCE … AS \
                     bigint for one made by serial; MySQL: ALTER TABLE … MODIFY id bigint AUTO_INCREMENT)";

/// The hint where a token cannot be raised. Only another program can have written such a token.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite-unbundled"))]
pub(crate) const TOKEN_OUT_OF_RANGE: &str =
    "its token is out of range: delete its row once no program works under the lock";

/// Why a row could not be written to: another transaction keeps it locked.
pub(crate) const ROW_LOCKED: &str = "its row is locked by another transaction";

/// Why a store has no answer. The request may have been carried out all the same, unless it was
/// rejected or [`is_undone`](Self::is_undone).
#[derive(Debug)]
pub enum StoreError {
    /// A conflicting transaction was in the way. Try again soon.
    Contention(BoxError),
    /// The database did not answer in time, or cannot serve at present.
    Unavailable(BoxError),
    /// The database refused the request. Trying again will not help.
    Rejected {
        /// What to do about it, if it is known.
        hint: Option<String>,
        /// The message of the database.
        source: BoxError,
    },
}

impl StoreError {
    pub(crate) fn rejected(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Rejected {
            hint: hint.map(str::to_owned),
            source: message.into().into(),
        }
    }

    /// Another transaction has the row locked.
    pub(crate) fn row_locked() -> Self {
        Self::Contention(ROW_LOCKED.into())
    }

    /// The refusal to guard tables of an engine whose locks are not in the database of the tables.
    pub(crate) fn no_guards() -> Self {
        Self::rejected(
            "these locks are in a file or in memory of their own, and no trigger of a table can read \
             them",
            Some(
                "guarded tables take PostgreSQL, MySQL or MariaDB, with the locks in the same database",
            ),
        )
    }

    /// Whether a table is missing, by the hint that every engine gives.
    pub(crate) fn is_missing_table(&self) -> bool {
        let Self::Rejected { hint, .. } = self else {
            return false;
        };
        hint.as_ref()
            .is_some_and(|hint| hint.contains("dblock init"))
    }

    /// The database answered that it cannot serve at present.
    pub(crate) fn cannot_serve(message: impl Into<String>) -> Self {
        let cause = Cause {
            message: message.into(),
            answered: true,
            undone: false,
        };
        Self::Unavailable(cause.into())
    }

    /// Mark that the request was not carried out: it was not sent, or the database refused it.
    pub(crate) fn undone(self) -> Self {
        match self {
            Self::Unavailable(source) => {
                let cause = Cause::of(&source, source.to_string());
                let undone = true;
                Self::Unavailable(Cause { undone, ..cause }.into())
            }
            other => other,
        }
    }

    /// Whether the request was not carried out, and will not be.
    pub fn is_undone(&self) -> bool {
        match self {
            Self::Unavailable(source) => Cause::of(source, String::new()).undone,
            Self::Rejected { .. } => true,
            Self::Contention(_) => false,
        }
    }

    /// Whether the error is an answer of the database.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Unavailable(source) => Cause::of(source, String::new()).answered,
            Self::Contention(_) | Self::Rejected { .. } => true,
        }
    }

    /// A copy, for another request that failed for the same reason.
    pub(crate) fn duplicate(&self) -> Self {
        let copy = |source: &BoxError| -> BoxError { Cause::of(source, source.to_string()).into() };
        match self {
            Self::Contention(source) => Self::Contention(copy(source)),
            Self::Unavailable(source) => Self::Unavailable(copy(source)),
            Self::Rejected { hint, source } => Self::Rejected {
                hint: hint.clone(),
                source: copy(source),
            },
        }
    }

    pub(crate) fn late(within: Duration) -> Self {
        Self::Unavailable(format!("no answer within {}", protocol::Human(within)).into())
    }

    #[cfg(feature = "mysql")]
    pub(crate) fn no_connection_within(within: Duration, what: &str) -> Self {
        Self::Unavailable(
            format!("no connection within {}: {what}", protocol::Human(within)).into(),
        )
    }

    /// The error of the public API.
    pub fn into_error(self, op: impl Into<String>) -> Error {
        let op = op.into();
        match self {
            Self::Contention(source) => Error::Conflict { op, source },
            Self::Unavailable(source) => Error::Unavailable { op, source },
            Self::Rejected { hint, source } => Error::rejected(op, hint, source),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contention(source) => write!(f, "contention: {source}"),
            Self::Unavailable(source) => write!(f, "unavailable: {source}"),
            Self::Rejected { source, .. } => write!(f, "rejected: {source}"),
        }
    }
}
