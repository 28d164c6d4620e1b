//! What a checker may find.

use std::fmt;

/// What somebody was promised and did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two holders trusted the same lock at the same moment, or were in their bodies without being told
    /// that trust had ended.
    TwoHolders,
    /// A lock was handed out although trust had ended.
    HandedOutLost,
    /// A token that was not greater than an earlier one, or that was trusted after a greater one was
    /// granted.
    Token,
    /// A write that was committed after one, or after a grant, with a greater token.
    StaleWrite,
    /// An increment of the counter that is not in it, or a confirmed write that is not there.
    LostIncrement,
    /// Somebody waited although the lock was free.
    ForgottenWaiter,
}

/// All kinds, as they stand in tables.
pub const KINDS: [Kind; 6] = [
    Kind::TwoHolders,
    Kind::HandedOutLost,
    Kind::Token,
    Kind::StaleWrite,
    Kind::LostIncrement,
    Kind::ForgottenWaiter,
];

impl Kind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TwoHolders => "two holders",
            Self::HandedOutLost => "handed out when lost",
            Self::Token => "token goes back",
            Self::StaleWrite => "stale write",
            Self::LostIncrement => "lost increment",
            Self::ForgottenWaiter => "forgotten waiter",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: Kind,
    /// Of which lock.
    pub lock: String,
    /// When, in microseconds.
    pub at: u64,
    /// Who, and what.
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
