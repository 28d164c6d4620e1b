//! What `dblock` ends with, and what it says then.

use database_locks::{Error, LockName, LostReason, Ttl};

/// `show` of a name that was never locked.
pub(crate) const UNKNOWN: u8 = 1;
/// What was to be printed did not arrive: the disk is full, or stdout is closed.
pub(crate) const UNPRINTED: u8 = 1;
/// `doctor` has found an error, or with `--strict` a warning.
pub(crate) const FOUND: u8 = 1;
/// Bad usage, a bad URL, a bad setting, a bad name.
pub(crate) const USAGE: u8 = 2;
/// The database cannot be reached, refuses, or is blocked (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// Another client has the lock (`EX_TEMPFAIL`: try again later).
pub(crate) const BUSY: u8 = 75;
/// The lock was lost while CMD ran; or a ticket is dead.
pub(crate) const LOST: u8 = 76;
/// CMD is there and cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// CMD is not there.
pub(crate) const NOT_FOUND: u8 = 127;

/// What a shell says of a command that a signal has ended.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Why nothing came of it: the exit code, and one line for people.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// Empty: there is nothing to say.
    pub(crate) said: String,
}

impl Failure {
    pub(crate) fn new(code: u8, said: impl Into<String>) -> Self {
        Self {
            code,
            said: said.into(),
        }
    }

    pub(crate) fn usage(said: impl Into<String>) -> Self {
        Self::new(USAGE, said)
    }

    pub(crate) fn unavailable(said: impl Into<String>) -> Self {
        Self::new(UNAVAILABLE, said)
    }

    /// What was to be done with a ticket was not.
    ///
    /// `now` is who has the lock, where that could be asked.
    pub(crate) fn of_ticket(error: Error, now: Option<&str>) -> Self {
        let Error::Lost { name, reason, .. } = error else {
            return error.into();
        };
        let why = match reason {
            LostReason::Expired => "its lease has expired".to_owned(),
            // A ticket cannot tell these two apart.
            LostReason::Preempted => {
                "another client has had the lock since, or it was released by force".to_owned()
            }
            LostReason::Released => "it was released already".to_owned(),
            LostReason::Resumed => "it was resumed already".to_owned(),
            LostReason::RowGone => "the table does not know the lock any more".to_owned(),
            other => other.to_string(),
        };
        let now = now.map(|whose| format!("it is now {whose}; "));
        let now = now.unwrap_or_default();
        let next = format!("{now}nothing was changed; `dblock acquire` gives a new one");
        Self::new(
            LOST,
            format!("the ticket for lock `{name}` is dead: {why}; {next}"),
        )
    }

    /// A lock without a known holder could not be tried: something blocks its row or its table.
    pub(crate) fn blocked(name: &LockName, error: &Error) -> Self {
        let what = match causes(error) {
            none if none.is_empty() => {
                ": no client holds it, but its row or table is locked by a backup or an open \
                 transaction"
                    .to_owned()
            }
            causes => causes,
        };
        Self::unavailable(format!(
            "lock `{name}` could not be tried{what}; try again later"
        ))
    }

    /// A signal has ended us, before there was a command to pass it on to.
    pub(crate) fn interrupted(signal: i32) -> Self {
        Self::new(of_signal(signal), "")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::TimedOut {
                name,
                waited,
                holder,
                held_for,
                ..
            } => {
                let tried = match waited.is_zero() {
                    true => String::new(),
                    false => format!("gave up after {}: ", Ttl::from(*waited)),
                };
                let by = holder
                    .as_deref()
                    .map(|who| format!(" by {who}"))
                    .unwrap_or_default();
                let age = held_for.map(|age| format!(" for {}", Ttl::from(age)));
                let age = age.unwrap_or_default();
                let next = match waited.is_zero() {
                    true => "wait for it with `-w 5m`",
                    false => "wait longer, or see `dblock list`",
                };
                let said = format!("{tried}lock `{name}` is held{by}{age}; {next}");
                Self::new(BUSY, said)
            }
            Error::Lost { .. } => {
                Self::unavailable(format!("{}, at once; try again", error.chain()))
            }
            Error::Config { setting, .. } => {
                let said = error.to_string();
                let what = format!("`{setting}`");
                Self::usage(said.replacen(&what, &flag(setting), 1))
            }
            Error::Conflict { .. } => {
                Self::new(BUSY, format!("{}; try again later", error.chain()))
            }
            Error::Unavailable { .. } => {
                let next = "try again, or check --url or DATABASE_LOCKS_URL";
                Self::unavailable(format!("{}; {next}", error.chain()))
            }
            _ => Self::unavailable(error.chain()),
        }
    }
}

/// The messages of all sources of an error: `: this: and that`.
fn causes(error: &Error) -> String {
    let own = error.to_string().replace('\n', " ");
    let chain = error.chain();
    chain.strip_prefix(&own).unwrap_or_default().to_owned()
}

/// What a setting of the library is called here.
fn flag(setting: &str) -> String {
    match setting {
        "url" => "the URL (--url, --url-file, DATABASE_LOCKS_URL)".to_owned(),
        "service" => "the service (PGSERVICE, service=)".to_owned(),
        "name" => "NAME".to_owned(),
        "holder" => "--holder".to_owned(),
        "metadata" => "--meta".to_owned(),
        // A variable or a file.
        other if other.starts_with(|c: char| c.is_ascii_uppercase() || c == '~') => {
            other.to_owned()
        }
        other => format!("--{other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn timed_out(waited: Duration) -> Failure {
        let name = LockName::new("job").unwrap();
        let held_for = Duration::from_secs(125);
        database_locks::__testing::timed_out(name, waited, "db1.17.ab", held_for).into()
    }

    #[test]
    fn a_lock_that_somebody_has_is_told_with_who_and_what_to_do() {
        let once = timed_out(Duration::ZERO);
        assert_eq!(once.code, BUSY);
        assert_eq!(
            once.said,
            "lock `job` is held by db1.17.ab for 2m 5s; wait for it with `-w 5m`"
        );
        let later = timed_out(Duration::from_secs(7));
        assert_eq!(
            later.said,
            "gave up after 7s: lock `job` is held by db1.17.ab for 2m 5s; wait longer, or see \
             `dblock list`"
        );
    }

    #[test]
    fn a_bad_setting_is_named_as_the_command_line_names_it() {
        let failure = Failure::from(Error::from(LockName::new("").unwrap_err()));
        assert_eq!(failure.code, USAGE);
        assert_eq!(
            failure.said,
            "NAME is empty, must be 1 to 255 characters without NUL"
        );
    }

    #[test]
    fn a_signal_is_128_more() {
        assert_eq!(of_signal(15), 143);
        assert_eq!(of_signal(9), 137);
        assert_eq!(of_signal(200), 255);
    }
}
