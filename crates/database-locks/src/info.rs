//! What the table says of a lock, for people to read.

use std::time::{Duration, SystemTime};

use crate::name::LockName;
use crate::token::Token;

/// One lock as its row stood when it was read.
///
/// All durations are measured by the database's clock. The three points in time are for display
/// only: never compare them with a clock of your own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// Its name.
    pub name: LockName,
    /// Held, free, or left behind by a holder that did not renew it.
    pub state: LockState,
    /// Who has it, or had it last.
    pub holder: Option<String>,
    /// The fencing number of its latest grant; 0 where it never was granted by this library.
    pub token: Token,
    /// The id of the present grant; none where it is free.
    pub grant: Option<String>,
    /// For how long it has been held; none where it is free, or held by a version of
    /// `django-database-locks` (0.5) that does not say.
    pub held_for: Option<Duration>,
    /// When the present or latest grant was made.
    pub acquired_at: Option<SystemTime>,
    /// When it was last renewed or released.
    pub renewed_at: Option<SystemTime>,
    /// When the lease ends; none where it is free or without end.
    pub expires_at: Option<SystemTime>,
    /// What the holder says of itself, as JSON.
    pub metadata: Option<String>,
}

/// Whether a lock can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockState {
    /// Nobody has it.
    Free,
    /// Somebody has it.
    Held {
        /// How long its lease goes on unless it is renewed; none: without end.
        free_in: Option<Duration>,
    },
    /// Its lease has run out; whoever comes next gets it.
    Expired {
        /// For how long.
        since: Duration,
    },
}
