//! What can go wrong.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::loss::Loss;
use crate::name::LockName;

/// The cause of an [`Error`], of a type that is nobody's business: a driver's own.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, grouped by what you can do about it.
///
/// That somebody else has the lock is not an error: `try_acquire` answers `Ok(None)`. Deadlocks,
/// serialisation failures, duplicate keys and lock timeouts of the database never come up here; they
/// mean "try again" and are tried again.
///
/// A message never repeats its source: print the chain (`anyhow`'s `{:#}`, or [`Error::chain`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The wait ran out while somebody else had the lock. Nothing was acquired.
    #[error("lock `{name}` not acquired within {}{}", Human(*.waited), Occupied(.holder.as_deref(), *.held_for))]
    TimedOut {
        /// Which lock.
        name: LockName,
        /// How long was waited.
        waited: Duration,
        /// Who had it when it was last looked at, as `locked_by` says.
        holder: Option<String>,
        /// For how long it had been held by then, by the database's clock.
        held_for: Option<Duration>,
    },
    /// The lease ended before it was released. Stop the protected work: another holder may already
    /// be running.
    #[error("lock `{name}` {loss}")]
    #[non_exhaustive]
    Lost {
        /// Which lock.
        name: LockName,
        /// Why.
        reason: LostReason,
        /// Since when, and who has it now, where that is known.
        loss: Loss,
    },
    /// Somebody held on to a row or a table for as long as was tried. It can be done when they let go.
    #[error("could not {op}: somebody else was in the way")]
    Conflict {
        /// What was tried.
        op: String,
        /// What stood in the way.
        #[source]
        source: BoxError,
    },
    /// The database did not answer, or not in time, or cannot do it just now (its disk is full).
    /// Trying again may work.
    #[error("could not {op}: the database {}", state(.source))]
    Unavailable {
        /// What was tried.
        op: String,
        /// What the driver said.
        #[source]
        source: BoxError,
    },
    /// The database answered no: wrong password, missing table, missing right. Trying again will
    /// not help.
    #[error("could not {op}: the database refused{}", Hint(.hint.as_deref()))]
    Rejected {
        /// What was tried.
        op: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
        /// What the database said.
        #[source]
        source: BoxError,
    },
    /// A setting is out of range. Found before any I/O.
    #[error("`{setting}` is {got}, must be {allowed}")]
    Config {
        /// Which setting.
        setting: &'static str,
        /// What it was.
        got: String,
        /// What it may be.
        allowed: String,
    },
}

impl Error {
    pub(crate) fn config(
        setting: &'static str,
        got: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Config {
            setting,
            got: got.into(),
            allowed: allowed.into(),
        }
    }

    /// The message and those of all its sources, on one line.
    ///
    /// ```
    /// let error = database_locks::LockName::new("").unwrap_err();
    /// assert_eq!(error.chain(), "`name` is empty, must be 1 to 255 characters without NUL");
    /// ```
    pub fn chain(&self) -> String {
        let mut all = self.to_string();
        let mut next = StdError::source(self);
        while let Some(source) = next {
            let said = source.to_string();
            // Some drivers print their cause in their own message as well.
            if !said.is_empty() && !all.contains(&said) {
                all.push_str(": ");
                all.push_str(&said);
            }
            next = source.source();
        }
        all.replace('\n', " ")
    }
}

/// For functions that return `io::Result`. The error is kept: `get_ref` and `downcast` have it.
///
/// | error | kind |
/// | --- | --- |
/// | [`TimedOut`](Error::TimedOut) | `TimedOut` |
/// | [`Conflict`](Error::Conflict) | `ResourceBusy` |
/// | [`Config`](Error::Config) | `InvalidInput` |
/// | others | `Other` |
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match &error {
            Error::TimedOut { .. } => ErrorKind::TimedOut,
            Error::Conflict { .. } => ErrorKind::ResourceBusy,
            Error::Config { .. } => ErrorKind::InvalidInput,
            Error::Lost { .. } | Error::Unavailable { .. } | Error::Rejected { .. } => {
                ErrorKind::Other
            }
        };
        Self::new(kind, error)
    }
}

/// The cause of an [`Error::Unavailable`] where the database has answered: it is there, and cannot do
/// what it was asked just now.
#[derive(Debug)]
pub(crate) struct CannotServe(pub(crate) String);

impl fmt::Display for CannotServe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for CannotServe {}

/// How it is with a database that is unavailable.
fn state(source: &BoxError) -> &'static str {
    match source.is::<CannotServe>() {
        true => "cannot do it now",
        false => "cannot be reached",
    }
}

/// Why a held lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease ran out before it could be renewed: the process was frozen or starved, or
    /// renewals were switched off.
    Expired,
    /// Somebody else was granted the lock.
    Preempted,
    /// Somebody freed it by force.
    Forced,
    /// Somebody who had its ticket released it.
    Released,
    /// Somebody who had its ticket went on with it.
    Resumed,
    /// The row was deleted.
    RowGone,
    /// The database could not be reached until the lease ran out.
    Unreachable,
    /// The database answered the renewals with an error until the lease ran out: a right was taken
    /// away, the table renamed, a trigger raised. [`Loss::last_answer`] is what it said.
    Refused,
    /// The database forgot this grant: it was replaced by a server that lacks commits.
    Failover,
    /// This is a forked child: it is the parent that holds the lock.
    Forked,
}

impl LostReason {
    /// Whether the row may still be as the grant left it, so that there is something to be released.
    pub(crate) fn leaves_a_lease(self) -> bool {
        matches!(self, Self::Expired | Self::Unreachable | Self::Refused)
    }

    /// One word, as a label and in logs: `expired`, `preempted`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Preempted => "preempted",
            Self::Forced => "forced",
            Self::Released => "released",
            Self::Resumed => "resumed",
            Self::RowGone => "row_gone",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Failover => "failover",
            Self::Forked => "forked",
        }
    }
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the lease expired before it was renewed",
            Self::Preempted => "preempted by another holder",
            Self::Forced => "released by force",
            Self::Released => "released with its ticket",
            Self::Resumed => "resumed with its ticket",
            Self::RowGone => "its row is gone from the table",
            Self::Unreachable => "the database could not be reached until the lease expired",
            Self::Refused => "the database refused renewals until the lease expired",
            Self::Forked => "held by the process that forked this one",
            Self::Failover => "the database forgot the grant (failover)",
        })
    }
}

/// A duration as people say it: `1.5s`, `2m 5s`, `3h 20m`.
pub(crate) struct Human(pub(crate) Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        match secs {
            0 => write!(f, "{}ms", self.0.as_millis()),
            1..10 if self.0.subsec_millis() >= 100 => write!(f, "{:.1}s", self.0.as_secs_f64()),
            1..60 => write!(f, "{secs}s"),
            60..3600 => write!(f, "{}m {}s", secs / 60, secs % 60),
            3600..86_400 => write!(f, "{}h {}m", secs / 3600, secs % 3600 / 60),
            _ => write!(f, "{}d {}h", secs / 86_400, secs % 86_400 / 3600),
        }
    }
}

struct Occupied<'a>(Option<&'a str>, Option<Duration>);

/// Who has a lock and for how long, in the words of every face.
pub(crate) struct Holding<'a>(pub(crate) &'a str, pub(crate) Option<Duration>);

impl fmt::Display for Holding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held by {}", self.0)?;
        self.1
            .map_or(Ok(()), |age| write!(f, " for {}", Human(age)))
    }
}

impl fmt::Display for Occupied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = self.0.map(|who| Holding(who, self.1));
        who.map_or(Ok(()), |who| write!(f, ": {who}"))
    }
}

struct Hint<'a>(Option<&'a str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_answers_is_not_said_to_be_out_of_reach() {
        let error = |source: BoxError| {
            let op = "acquire lock `job`".into();
            Error::Unavailable { op, source }.chain()
        };
        assert_eq!(
            error("connection refused".into()),
            "could not acquire lock `job`: the database cannot be reached: connection refused"
        );
        assert_eq!(
            error(CannotServe("its disk is full".into()).into()),
            "could not acquire lock `job`: the database cannot do it now: its disk is full"
        );
    }

    #[test]
    fn a_timeout_names_the_holder_and_its_age() {
        let error = Error::TimedOut {
            name: LockName::new("job").unwrap(),
            waited: Duration::from_millis(1500),
            holder: Some("db1.17.ab".into()),
            held_for: Some(Duration::from_secs(125)),
        };
        assert_eq!(
            error.to_string(),
            "lock `job` not acquired within 1.5s: held by db1.17.ab for 2m 5s"
        );
    }
}
