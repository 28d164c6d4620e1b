//! Why a lock was lost, and who holds it instead.

use std::fmt;
use std::time::Duration;

use crate::values::grant::Token;
use crate::values::text::{Holding, escaped};

/// Why a held lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease expired before it was renewed: the process was frozen or starved, or renewals were
    /// switched off.
    Expired,
    /// Another client was granted the lock.
    Preempted,
    /// It was released by force.
    Forced,
    /// It was released with its ticket.
    Released,
    /// It was resumed with its ticket, by another guard.
    Resumed,
    /// The row was deleted.
    RowGone,
    /// The database could not be reached until the lease expired.
    Unreachable,
    /// The database refused renewals until the lease expired: a missing right, a renamed table, a
    /// trigger. `Loss::last_answer` is its error.
    Refused,
    /// The database lost this grant: another server took its place and lacks the commit.
    Failover,
    /// This is a forked child; the parent holds the lock.
    Forked,
}

impl LostReason {
    /// Whether the row may still be as the grant left it, so that there is something to be
    /// released.
    #[doc(hidden)]
    pub fn leaves_a_lease(self) -> bool {
        matches!(self, Self::Expired | Self::Unreachable | Self::Refused)
    }

    /// The reason in one word, for labels and logs: `expired`, `preempted`, `row_gone`, …
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

/// The holder of a lock at the moment of a read: in a `Loss`, the new holder.
///
/// `Display` writes `held by web-2.17.ab for 4s, token 1795424892119`, with control characters
/// escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldBy {
    /// Its name, from `locked_by`.
    pub holder: Option<String>,
    /// The fencing token of that grant; `None` for a legacy holder (django-database-locks 0.5).
    pub token: Option<Token>,
    /// How long it had held the lock by then, by the database's clock; `None` for a legacy holder.
    pub held_for: Option<Duration>,
}

impl HeldBy {
    #[doc(hidden)]
    pub fn new(holder: Option<String>, token: Option<Token>, held_for: Option<Duration>) -> Self {
        Self {
            holder,
            token,
            held_for,
        }
    }
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = escaped(self.holder.as_deref().unwrap_or("somebody"));
        write!(f, "{}", Holding(&holder, self.held_for))?;
        self.token
            .map_or(Ok(()), |token| write!(f, ", token {token}"))
    }
}

/// What the database's answer says of a grant that is not there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Why.
    pub reason: LostReason,
    /// Who has the lock instead; none: nobody, or the answer did not show it.
    pub now: Option<HeldBy>,
}

impl From<LostReason> for Gone {
    fn from(reason: LostReason) -> Self {
        Self { reason, now: None }
    }
}
