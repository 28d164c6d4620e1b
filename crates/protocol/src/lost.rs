//! Why a lock was lost, and which holder has it now.

use std::fmt;
use std::time::Duration;

use crate::values::grant::Token;
use crate::values::text::{Holding, escaped};

/// The name in messages of a holder whose row has none.
pub(crate) const UNNAMED_HOLDER: &str = "an unnamed holder";

/// Why a held lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease ended before it was renewed: the process was frozen or starved, or renewals were
    /// switched off.
    Expired,
    /// Another client was granted the lock.
    Preempted,
    /// The lock was released by force.
    Forced,
    /// The lock was released with its ticket.
    Released,
    /// The lock was resumed with its ticket, by another guard.
    Resumed,
    /// The row of the lock was deleted.
    RowGone,
    /// The database could not be reached until the lease ended.
    Unreachable,
    /// The database answered the renewals with an error until the lease ended: for example, a
    /// privilege was revoked, the table was renamed, or a trigger raised an error.
    /// `Loss::last_answer` is that error.
    Refused,
    /// The database forgot the grant: a server that lacks commits replaced it.
    Failover,
    /// This process is a forked child. Its parent holds the lock.
    Forked,
}

impl LostReason {
    /// Whether the row may still hold the grant, so that it should be released.
    #[doc(hidden)]
    pub fn leaves_a_lease(self) -> bool {
        matches!(self, Self::Expired | Self::Unreachable | Self::Refused)
    }

    /// The reason as one word, for labels and logs: `expired`, `preempted`, `row_gone`, …
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

/// The holder of a lock when the database was asked. In a `Loss`: the new holder.
///
/// Its `Display` is `held by web-2.17.ab for 4s, token 1795424892119`, control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldBy {
    /// The name of the holder, from the column `locked_by`.
    pub holder: Option<String>,
    /// The fencing token of its grant; `None` for a legacy holder (django-database-locks 0.5),
    /// which has no tokens.
    pub token: Option<Token>,
    /// For how long it had held the lock, by the database's clock; `None` for a legacy holder.
    pub held_for: Option<Duration>,
}

impl HeldBy {
    /// A holder.
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
        let holder = escaped(self.holder.as_deref().unwrap_or(UNNAMED_HOLDER));
        write!(f, "{}", Holding(&holder, self.held_for))?;
        self.token
            .map_or(Ok(()), |token| write!(f, ", token {token}"))
    }
}

/// A grant that no longer holds its lock, according to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Why the lock was lost.
    pub reason: LostReason,
    /// The present holder; `None` if the lock is free or the answer does not show its holder.
    pub now: Option<HeldBy>,
}

impl From<LostReason> for Gone {
    fn from(reason: LostReason) -> Self {
        Self { reason, now: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reason with its word, and whether the row may still hold the grant.
    #[rustfmt::skip]
    const REASONS: [(LostReason, &str, bool); 10] = [
        (LostReason::Expired, "expired", true),
        (LostReason::Preempted, "preempted", false),
        (LostReason::Forced, "forced", false),
        (LostReason::Released, "released", false),
        (LostReason::Resumed, "resumed", false),
        (LostReason::RowGone, "row_gone", false),
        (LostReason::Unreachable, "unreachable", true),
        (LostReason::Refused, "refused", true),
        (LostReason::Failover, "failover", false),
        (LostReason::Forked, "forked", false),
    ];

    #[test]
    fn only_a_loss_by_lack_of_renewals_leaves_a_lease() {
        for (reason, word, leaves) in REASONS {
            assert_eq!((reason.as_str(), reason.leaves_a_lease()), (word, leaves));
        }
    }

    #[test]
    fn each_reason_has_a_text_of_its_own() {
        let texts: std::collections::HashSet<String> = REASONS
            .iter()
            .map(|(reason, ..)| reason.to_string())
            .collect();
        assert_eq!(texts.len(), REASONS.len());
        assert_eq!(LostReason::Forced.to_string(), "released by force");
    }

    #[test]
    fn a_holder_is_shown_with_what_is_known_of_it() {
        let (token, age) = (Token::from_db(17), Duration::from_secs(4));
        let all = HeldBy::new(Some("web\n2".into()), Some(token), Some(age));
        assert_eq!(all.to_string(), r"held by web\n2 for 4s, token 17");
        let none = HeldBy::new(None, None, None);
        assert_eq!(none.to_string(), "held by an unnamed holder");
    }
}
