//! Exit codes, and the message that goes with a failure.

use database_locks::{Error, LockName, LostReason};

use crate::names;
use crate::time::human;

/// CMD was begun in this period already.
pub(crate) const SKIPPED: u8 = 0;
/// `show` of a lock without a row in the table.
pub(crate) const UNKNOWN_LOCK: u8 = 1;
/// The output could not be written: the disk is full, or stdout is closed.
pub(crate) const NOT_PRINTED: u8 = 1;
/// `doctor` has found an error, or with `--strict` a warning.
pub(crate) const FINDINGS: u8 = 1;
/// Bad usage, a bad URL, a bad setting, a bad name.
pub(crate) const USAGE: u8 = 2;
/// The database cannot be reached, refuses, or is blocked (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// Another client has the lock (`EX_TEMPFAIL`: try again later).
pub(crate) const BUSY: u8 = 75;
/// The lock was lost while CMD ran, or a ticket is dead.
pub(crate) const LOST: u8 = 76;
/// CMD was found and cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// CMD was not found.
pub(crate) const NOT_FOUND: u8 = 127;

/// The exit code that a shell reports for a command ended by a signal: 128 + n.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Why a command failed: its exit code, and one line for stderr.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// Nothing is printed if it is empty.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(UNAVAILABLE, message)
    }

    /// A renewal, release or resumption by ticket failed.
    ///
    /// `now` describes the present holder, if it could be read.
    pub(crate) fn of_ticket(error: Error, now: Option<&str>) -> Self {
        let Error::Lost {
            name, reason, loss, ..
        } = error
        else {
            return error.into();
        };
        let what = names::what(&name, loss.slot());
        let why = match reason {
            LostReason::Expired => "its lease has expired".to_owned(),
            // A ticket cannot tell these two apart.
            LostReason::Preempted => {
                "another client has had it since, or it was released by force".to_owned()
            }
            LostReason::Released => "it was released already".to_owned(),
            LostReason::Resumed => "it was resumed already".to_owned(),
            LostReason::RowGone => "its row was deleted".to_owned(),
            other => other.to_string(),
        };
        let now = now.map(|holder| format!("it is now {holder}; "));
        let now = now.unwrap_or_default();
        Self::new(
            LOST,
            format!(
                "the ticket for {what} is dead: {why}; {now}nothing was changed; get a new \
                 ticket with `dblock acquire`"
            ),
        )
    }

    /// No client holds the lock, and it could not be acquired: its row or table is locked.
    pub(crate) fn blocked(what: &str, error: &Error) -> Self {
        let why = match causes(error) {
            none if none.is_empty() => {
                ": no client holds it, but its row or table is locked by a backup or an open \
                 transaction"
                    .to_owned()
            }
            causes => causes,
        };
        Self::unavailable(format!("{what} could not be tried{why}; try again later"))
    }

    /// A signal ended `dblock` before CMD was started.
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
                permits,
                ..
            } => {
                let what = permits.map_or("lock", |_| "semaphore");
                let gave_up = match waited.is_zero() {
                    true => String::new(),
                    false => format!("gave up after {}: ", human(*waited)),
                };
                let next = match (permits, waited.is_zero()) {
                    (Some(0), _) => paused_hint(name),
                    (_, true) => "wait for it with `-w 5m`".to_owned(),
                    (_, false) => "wait longer, or see `dblock list`".to_owned(),
                };
                let state = state(&error);
                Self::new(BUSY, format!("{gave_up}{what} `{name}` {state}; {next}"))
            }
            // For cron a run that is skipped is a success. The library logs it, for `--verbose`.
            Error::AlreadyRan { .. } => Self::new(SKIPPED, ""),
            Error::Lost { .. } => Self::unavailable(format!(
                "{}, right after the grant; try again",
                error.chain()
            )),
            Error::Config { setting, .. } => {
                let quoted = format!("`{setting}`");
                Self::usage(
                    error
                        .to_string()
                        .replacen(&quoted, &option_name(setting), 1),
                )
            }
            Error::Conflict { .. } => Self::new(BUSY, error.chain()),
            Error::Unavailable { .. } => Self::unavailable(format!(
                "{}; try again, or check --url or DATABASE_LOCKS_URL",
                error.chain()
            )),
            _ => Self::unavailable(error.chain()),
        }
    }
}

/// In which state a lock or a semaphore was when a caller gave up.
fn state(error: &Error) -> String {
    let Error::TimedOut {
        holder,
        held_for,
        rests_for,
        permits,
        shared_by,
        row_locker,
        ..
    } = error
    else {
        return String::new();
    };
    if *permits == Some(0) {
        return "is paused by an operator".to_owned();
    }
    if let Some(session) = row_locker {
        let was = match holder {
            Some(holder) => format!("was held by {holder}, and"),
            None => "is not held, but".to_owned(),
        };
        return format!("{was} a transaction keeps its row locked: {session}");
    }
    let of = |what: &str| holder.as_deref().map(|holder| format!(" {what} {holder}"));
    if let Some(left) = rests_for {
        let after = of("after").unwrap_or_default();
        return format!("rests for another {}{after}", human(*left));
    }
    let age = held_for.map(|age| format!(" for {}", human(age)));
    let (by, age) = (of("by").unwrap_or_default(), age.unwrap_or_default());
    match (permits, shared_by) {
        (None, Some(holders)) if *holders > 1 => {
            let one = holder.as_deref().unwrap_or_default();
            format!("is shared by {holders} holders, one of them {one}{age}")
        }
        (None, Some(_)) => format!("is shared{by}{age}"),
        (None | Some(1), _) => format!("is held{by}{age}"),
        (Some(permits), _) => format!("has all {permits} permits held, one{by}{age}"),
    }
}

/// The messages of all sources of an error, each after a colon.
fn causes(error: &Error) -> String {
    let own = error.to_string().replace('\n', " ");
    let chain = error.chain();
    chain.strip_prefix(&own).unwrap_or_default().to_owned()
}

/// What ends the pause of a semaphore.
fn paused_hint(name: &LockName) -> String {
    let name = names::shell_word(name.as_str());
    format!("`dblock limit {name} none` ends the pause")
}

/// The option or variable of `dblock` that sets a setting of the library.
fn option_name(setting: &str) -> String {
    match setting {
        "url" => "the URL (--url, --url-file, DATABASE_LOCKS_URL)".to_owned(),
        "service" => "the service (PGSERVICE, service=)".to_owned(),
        "name" | "names" => "NAME".to_owned(),
        "holder" => "--holder".to_owned(),
        "metadata" => "--meta".to_owned(),
        "at_least" => "--at-least".to_owned(),
        "once_per" => "--once-per".to_owned(),
        "permits" => "--limit".to_owned(),
        // The name of a variable or of a file.
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
    fn the_message_of_a_held_lock_names_its_holder_and_what_to_do() {
        let once = timed_out(Duration::ZERO);
        assert_eq!(once.code, BUSY);
        assert_eq!(
            once.message,
            "lock `job` is held by db1.17.ab for 2m 5s; wait for it with `-w 5m`"
        );
        let later = timed_out(Duration::from_secs(7));
        assert_eq!(
            later.message,
            "gave up after 7s: lock `job` is held by db1.17.ab for 2m 5s; wait longer, or see \
             `dblock list`"
        );
    }

    #[test]
    fn a_bad_setting_is_named_as_the_command_line_names_it() {
        let failure = Failure::from(Error::from(LockName::new("").unwrap_err()));
        assert_eq!(failure.code, USAGE);
        assert_eq!(
            failure.message,
            "NAME is empty, must be 1 to 255 characters without NUL"
        );
    }

    #[test]
    fn the_exit_code_of_a_signal_is_128_plus_its_number() {
        assert_eq!(of_signal(15), 143);
        assert_eq!(of_signal(9), 137);
        assert_eq!(of_signal(200), 255);
    }
}
