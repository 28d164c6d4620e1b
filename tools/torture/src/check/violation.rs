//! What a checker may find.

use std::fmt;

/// The kinds of violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two holders trusted the same lock, or the same slot of a semaphore, at the same moment, or
    /// were in their bodies without a notification that trust had ended.
    TwoHolders,
    /// More permits of a semaphore were held than its limit, or one that is not below it.
    TooMany,
    /// A writer was in beside a reader.
    ReaderAndWriter,
    /// An acquire returned a guard although trust had ended.
    HandedOutLost,
    /// A token was not greater than an earlier one, or was trusted after a greater one was granted.
    Token,
    /// A write was committed after a write or a grant with a greater token.
    StaleWrite,
    /// An increment is missing in its counter, or a confirmed write is missing.
    LostIncrement,
    /// A process waited although the lock was free.
    ForgottenWaiter,
    /// A write to the guarded table was committed after a write or a grant with a greater token.
    LateGuardedWrite,
    /// A write to the guarded table was committed that showed no ticket, or an outdated one.
    UnheldGuardedWrite,
}

/// All kinds, in the order of the tables.
pub const KINDS: [Kind; 10] = [
    Kind::TwoHolders,
    Kind::TooMany,
    Kind::ReaderAndWriter,
    Kind::HandedOutLost,
    Kind::Token,
    Kind::StaleWrite,
    Kind::LostIncrement,
    Kind::ForgottenWaiter,
    Kind::LateGuardedWrite,
    Kind::UnheldGuardedWrite,
];

impl Kind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TwoHolders => "two holders",
            Self::TooMany => "permits above the limit",
            Self::ReaderAndWriter => "writer beside a reader",
            Self::HandedOutLost => "handed out when lost",
            Self::Token => "token goes back",
            Self::StaleWrite => "stale write",
            Self::LostIncrement => "lost increment",
            Self::ForgottenWaiter => "forgotten waiter",
            Self::LateGuardedWrite => "late write past the guard",
            Self::UnheldGuardedWrite => "write past the guard without the grant",
        }
    }
}

/// A violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its kind.
    pub kind: Kind,
    /// Its lock.
    pub lock: String,
    /// When, in microseconds.
    pub at: u64,
    /// The processes, and what they did.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            lock,
            at,
            text,
        } = self;
        write!(f, "{}: lock {lock}, at {at}: {text}", kind.as_str())
    }
}
