//! The error type, grouped by what the caller can do.

pub(crate) mod loss;

use std::error::Error as StdError;
use std::time::Duration;

use crate::error::loss::Loss;
use crate::runtime::RuntimeError;
use protocol::{Holding, Human, InvalidSetting, LatestGrant, LockName, LostReason, Resting};

/// The cause of an [`Error`]. Its type is not part of the interface.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, grouped by what the caller can do about it.
///
/// | variant | what to do |
/// | --- | --- |
/// | `TimedOut` | wait longer, or do without |
/// | `AlreadyRan` | do without: the work of this period was begun |
/// | `Lost` | stop the protected work; to go on, acquire again and start from what is stored |
/// | `Conflict`, `Unavailable` | try again later |
/// | `Rejected` | fix the cause: a right, a table, a password |
/// | `Config` | correct the program |
///
/// Contention is not an error: if another client holds the lock, `try_acquire` returns `Ok(None)`.
/// Deadlocks, serialization failures, duplicate keys and lock timeouts of the database are retried
/// and not returned either.
///
/// A message never repeats its source: print the chain (`anyhow`'s `{:#}`, or [`Error::chain`]).
/// Variants and fields may be added: match with `..` and a last arm.
///
/// ```
/// use database_locks::{Error, Locks};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
/// # let locks = Locks::connect("memory:").await?;
/// match locks.lock("report").wait(std::time::Duration::from_secs(5)).acquire().await {
///     Ok(guard) => guard.release().await?,
///     Err(Error::TimedOut { holder, .. }) => println!("busy: {}", holder.unwrap_or_default()),
///     Err(Error::Unavailable { .. } | Error::Conflict { .. }) => println!("later"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The wait ran out while another client held the lock, or the lock rested. Nothing was
    /// acquired.
    #[error("{} `{name}` not acquired within {}{}{}{}",
        if permits.is_some() { "a permit of" } else { "lock" },
        Human(*.waited), permits_suffix(*.permits), shared_suffix(*.shared_by),
        holder_suffix(.holder.as_deref(), *.held_for, *.rests_for, .row_locker.as_deref()))]
    #[non_exhaustive]
    TimedOut {
        /// Which lock.
        name: LockName,
        /// How long the caller waited.
        waited: Duration,
        /// The holder when the lock was last read, or the latest one of a lock that rested; `None`
        /// if no holder was known.
        holder: Option<String>,
        /// How long the lock had been held by then, by the database's clock.
        held_for: Option<Duration>,
        /// The number of permits of a semaphore, all of them held; 0 if an operator has paused it.
        /// `None` for a lock.
        permits: Option<u32>,
        /// The number of [shared](crate::Lock::shared) holders that an exclusive acquire waited for;
        /// `holder` is one of them. `None` if it waited for another exclusive holder.
        shared_by: Option<u32>,
        /// How long the lock [rested](crate::Lock::at_least) from then on; `None` if it was held.
        rests_for: Option<Duration>,
        /// Where no client holds the lock, but a transaction keeps its row locked: the session of the
        /// database, and how to end it. As a rule that is a fenced or guarded transaction of the latest
        /// holder, which `holder` then names. `None` otherwise.
        row_locker: Option<Box<str>>,
    },
    /// The latest grant of the lock began too recently for one [once per](crate::Lock::once_per)
    /// period. Nothing was acquired.
    #[error("lock `{name}` not acquired: it was granted{} {} ago, and is granted once per {}", granted_to(.holder.as_deref()), Human(*.ago), Human(*.once_per))]
    #[non_exhaustive]
    AlreadyRan {
        /// Which lock.
        name: LockName,
        /// The period of the caller.
        once_per: Duration,
        /// How long ago the latest grant began, by the database's clock.
        ago: Duration,
        /// Its holder, which may still hold the lock; `None` if it is not known.
        holder: Option<String>,
    },
    /// The lease ended before it was released. Stop the protected work: another holder may already
    /// be running.
    #[error("{} {loss}", loss.named(name))]
    #[non_exhaustive]
    Lost {
        /// Which lock.
        name: LockName,
        /// Why.
        reason: LostReason,
        /// When, and the new holder if it is known.
        loss: Loss,
    },
    /// A transaction of another client kept a row or the table locked. Try again when it has ended.
    #[error("could not {op}: conflicting transaction; try again")]
    #[non_exhaustive]
    Conflict {
        /// What was tried.
        op: String,
        /// The conflict.
        #[source]
        source: BoxError,
    },
    /// The database did not answer in time, or cannot do it now (its disk is full). Trying again
    /// may work.
    #[error("could not {op}: the database {}", state(.source))]
    #[non_exhaustive]
    Unavailable {
        /// What was tried.
        op: String,
        /// The driver's error.
        #[source]
        source: BoxError,
    },
    /// The database refused: wrong password, missing table, missing right. Trying again does not
    /// help.
    #[error("could not {op}: the database refused")]
    #[non_exhaustive]
    Rejected {
        /// What was tried.
        op: String,
        /// What to do about it, if known.
        hint: Option<String>,
        /// The database's error; its message ends with the hint.
        #[source]
        source: BoxError,
    },
    /// A setting is out of range. Found before any I/O.
    #[error("{}", InvalidSetting::new(.setting, .got, .allowed))]
    #[non_exhaustive]
    Config {
        /// Which setting.
        setting: &'static str,
        /// Its value, such as `0ms`, or its fault, such as `has the unknown option …`.
        got: String,
        /// The allowed values, or what to do.
        allowed: String,
    },
}

impl Error {
    pub(crate) fn lost(name: &LockName, loss: Loss) -> Self {
        Self::Lost {
            name: name.clone(),
            reason: loss.reason(),
            loss,
        }
    }

    pub(crate) fn already_ran(name: &LockName, once_per: Duration, latest: LatestGrant) -> Self {
        Self::AlreadyRan {
            name: name.clone(),
            once_per,
            ago: latest.ago,
            holder: latest.holder,
        }
    }

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

    /// A rejection by the database, with a hint if one is known.
    pub(crate) fn rejected(op: impl Into<String>, hint: Option<String>, source: BoxError) -> Self {
        Self::Rejected {
            op: op.into(),
            source: match &hint {
                None => source,
                Some(hint) => RejectedCause::new(source, hint).into(),
            },
            hint,
        }
    }

    /// The messages of this error and of all its sources, on one line: what was tried, the cause,
    /// the hint.
    ///
    /// ```
    /// let error = database_locks::Error::from(database_locks::LockName::new("").unwrap_err());
    /// assert_eq!(error.chain(), "`name` is empty, must be 1 to 255 characters without NUL");
    /// ```
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// The message of an error and those of its sources, on one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let message = source.to_string();
        // Some drivers include the cause in their own message.
        if !message.is_empty() && !all.contains(&message) {
            all.push_str(": ");
            all.push_str(&message);
        }
        next = source.source();
    }
    all.replace('\n', " ")
}

/// The source of an [`Error::Rejected`] with a hint: the driver's messages, then the hint.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct RejectedCause {
    message: String,
    #[allow(dead_code, reason = "shown by Debug")]
    cause: BoxError,
}

impl RejectedCause {
    fn new(cause: BoxError, hint: &str) -> Self {
        let message = format!("{}; {hint}", chain(&*cause));
        Self { message, cause }
    }
}

impl From<InvalidSetting> for Error {
    fn from(invalid: InvalidSetting) -> Self {
        let InvalidSetting {
            setting,
            got,
            allowed,
            ..
        } = invalid;
        Self::Config {
            setting,
            got,
            allowed,
        }
    }
}

impl From<RuntimeError> for Error {
    fn from(failed: RuntimeError) -> Self {
        let unavailable = |op: &str, source: BoxError| Self::Unavailable {
            op: op.into(),
            source,
        };
        match failed {
            RuntimeError::NotStarted(source) => {
                unavailable("start the thread that renews leases", source.into())
            }
            RuntimeError::Stopped(source) => {
                unavailable("complete a background operation", source.into())
            }
            RuntimeError::DrivesRuntime => Self::config(
                "a blocking call",
                "made on the thread that renews leases, by a log subscriber, a waker or a future that \
                 runs there",
                "made on another thread",
            ),
        }
    }
}

/// For functions that return `io::Result`. `get_ref` and `downcast` give the original error.
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
            Error::AlreadyRan { .. }
            | Error::Lost { .. }
            | Error::Unavailable { .. }
            | Error::Rejected { .. } => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// The source of an [`Error::Unavailable`] with more facts than its message.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Cause {
    pub(crate) message: String,
    /// The database answered, so it can be reached, but cannot do the operation now.
    pub(crate) answered: bool,
    /// The operation was not done and will not be: it was never sent, or was refused.
    pub(crate) undone: bool,
}

impl Cause {
    /// A cause with this message, and the facts of `source` if it has any.
    pub(crate) fn of(source: &BoxError, message: String) -> Self {
        let known = source.downcast_ref::<Self>();
        Self {
            message,
            answered: known.is_some_and(|cause| cause.answered),
            undone: known.is_some_and(|cause| cause.undone),
        }
    }
}

/// The state of a database that is unavailable.
fn state(source: &BoxError) -> &'static str {
    match Cause::of(source, String::new()).answered {
        true => "cannot do it now",
        false => "cannot be reached",
    }
}

fn permits_suffix(permits: Option<u32>) -> String {
    match permits {
        None => String::new(),
        Some(0) => ": it is paused".into(),
        Some(1) => ": its one permit is held".into(),
        Some(permits) => format!(": all {permits} permits are held"),
    }
}

fn shared_suffix(holders: Option<u32>) -> String {
    match holders {
        None => String::new(),
        Some(1) => ": one holder shares it".into(),
        Some(holders) => format!(": {holders} holders share it"),
    }
}

/// The holder, for how long it has held the lock or the lock rests after it, and the session that
/// keeps the row of a free lock locked.
fn holder_suffix(
    holder: Option<&str>,
    held_for: Option<Duration>,
    rests_for: Option<Duration>,
    session: Option<&str>,
) -> String {
    const LOCKED: &str = "a transaction keeps its row locked";
    match (holder, rests_for, session) {
        (Some(holder), _, Some(session)) => {
            format!(": was held by {holder}, and {LOCKED}: {session}")
        }
        (None, _, Some(session)) => format!(": {LOCKED}: {session}"),
        (Some(holder), Some(left), None) => format!(": {}", Resting(holder, left)),
        (Some(holder), None, None) => format!(": {}", Holding(holder, held_for)),
        (None, _, None) => String::new(),
    }
}

fn granted_to(holder: Option<&str>) -> String {
    let to = |holder| format!(" to {holder}");
    holder.map(to).unwrap_or_default()
}

#[cfg(test)]
mod tests;
