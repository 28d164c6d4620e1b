//! Why and when a lock was lost, and the text that describes it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::runtime::clock;
use protocol::{BootInstant, Gone, HeldBy, Human, LockName, LostReason, Slot, escaped};

/// The age from which the text contains how long ago the lock was lost.
const MIN_AGE_SHOWN: Duration = Duration::from_secs(1);

/// How a held lock was lost: why, since when, and the new holder. Its methods never wait.
///
/// `Display` writes the text that Rust, Python and `dblock` show of a loss:
///
/// | case | text |
/// | --- | --- |
/// | usual | `lost after 12s: preempted by another holder (now held by web-2.17.ab for 3s, token 1795424892119)` |
/// | noticed late, after a suspend of the machine for example | begins with `lost 58m 3s ago, after 12s` |
/// | renewals failed until trust ended | `lost after 27s: the database refused renewals until the lease expired (last answer: permission denied for table database_locks_lock)` |
///
/// # Example
///
/// ```
/// # use database_locks::{Locks, LostReason};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// # let locks = Locks::connect("memory:").await?;
/// let guard = locks.lock("report").acquire().await?;
/// assert!(guard.loss().is_none());
/// locks.force_release("report").await?;
/// guard.check().await.unwrap_err();
/// let loss = guard.loss().expect("it was just found out");
/// assert_eq!(loss.reason(), LostReason::Forced);
/// assert!(loss.now_held_by().is_none(), "it is free");
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Loss(Arc<Facts>);

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    gone: Gone,
    last_answer: Option<Arc<str>>,
    held_for: Option<Duration>,
    at: BootInstant,
    slot: Slot,
}

impl Loss {
    /// The loss of a grant that was held from `since` until `at`.
    pub(crate) fn of_grant(
        slot: Slot,
        gone: Gone,
        last_answer: Option<Arc<str>>,
        since: BootInstant,
        at: BootInstant,
    ) -> Self {
        Self(Arc::new(Facts {
            gone,
            last_answer,
            held_for: Some(at - since),
            at,
            slot,
        }))
    }

    /// The loss of a grant that this process never held: that of a ticket, or of the parent
    /// process.
    pub(crate) fn of_other_grant(gone: impl Into<Gone>) -> Self {
        Self::of_ticket(Slot::Lock, gone)
    }

    /// [`of_other_grant`](Self::of_other_grant), of a lock or a permit.
    pub(crate) fn of_ticket(slot: Slot, gone: impl Into<Gone>) -> Self {
        Self(Arc::new(Facts {
            gone: gone.into(),
            last_answer: None,
            held_for: None,
            at: clock::now(),
            slot,
        }))
    }

    /// The number of the permit, if one of a semaphore was lost; `None` for a lock.
    pub fn slot(&self) -> Option<u16> {
        self.0.slot.number()
    }

    /// `lock` or `permit`, with the name.
    pub(crate) fn named(&self, name: &LockName) -> impl fmt::Display {
        self.0.slot.named(name)
    }

    /// Why the lock was lost.
    pub fn reason(&self) -> LostReason {
        self.0.gone.reason
    }

    /// How long the lock was held, from the grant to the end of trust, by a local clock that runs
    /// while the machine is suspended.
    ///
    /// `None` if no guard of this process held it: an invalid ticket, a forked child.
    pub fn held_for(&self) -> Option<Duration> {
        self.0.held_for
    }

    /// How long ago trust ended, by the same clock. Another holder may have worked since then.
    pub fn elapsed(&self) -> Duration {
        clock::now() - self.0.at
    }

    /// The holder in the database's answer that reported the loss.
    ///
    /// `None` if the lock was free then, or if trust ended without an answer. Use
    /// [`Locks::show`](crate::Locks::show) to ask.
    pub fn now_held_by(&self) -> Option<&HeldBy> {
        self.0.gone.now.as_ref()
    }

    /// Why the latest renewal failed, if renewals failed until trust ended: the database's error,
    /// or why there was no answer.
    pub fn last_answer(&self) -> Option<&str> {
        self.0.last_answer.as_deref()
    }

    /// The end of the log record: what this library does after the loss.
    pub(crate) fn consequence(&self) -> &'static str {
        match self.reason().leaves_a_lease() {
            true => "its holder was notified, and the rest of its lease is released with the guard",
            false => "its holder was notified, and there is nothing to release",
        }
    }
}

impl fmt::Debug for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loss")
            .field("reason", &self.reason())
            .field("held_for", &self.held_for())
            .field("elapsed", &self.elapsed())
            .field("now_held_by", &self.now_held_by())
            .field("last_answer", &self.last_answer())
            .finish()
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lost")?;
        let ago = Some(self.elapsed()).filter(|ago| *ago >= MIN_AGE_SHOWN);
        if let Some(ago) = ago {
            write!(f, " {} ago", Human(ago))?;
        }
        if let Some(held_for) = self.held_for() {
            let comma = if ago.is_some() { "," } else { "" };
            write!(f, "{comma} after {}", Human(held_for))?;
        }
        write!(f, ": {}", self.reason())?;
        if let Some(now) = self.now_held_by() {
            write!(f, " (now {now})")?;
        }
        match (self.last_answer(), self.reason()) {
            (None, _) => Ok(()),
            (Some(message), LostReason::Unreachable) => {
                write!(f, " (last error: {})", escaped(message))
            }
            (Some(message), _) => write!(f, " (last answer: {})", escaped(message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::Token;

    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn taken_over_by(holder: &str) -> Gone {
        Gone {
            reason: LostReason::Preempted,
            now: Some(HeldBy::new(
                Some(holder.into()),
                Some(Token::from_db(17)),
                Some(secs(3)),
            )),
        }
    }

    #[test]
    fn a_loss_describes_its_reason_its_age_and_the_new_holder() {
        // In the future, so that the elapsed time is zero when it is shown.
        let now = clock::now() + secs(3600);
        let text = |gone: Gone, at: BootInstant| {
            Loss::of_grant(Slot::Lock, gone, None, at - secs(12), at).to_string()
        };
        assert_eq!(
            text(taken_over_by("web-2"), now),
            "lost after 12s: preempted by another holder (now held by web-2 for 3s, token 17)"
        );
        assert_eq!(
            text(LostReason::Forced.into(), now),
            "lost after 12s: released by force"
        );
        // The end of trust counts, not when the loss was noticed.
        let late = text(LostReason::Expired.into(), clock::now() - secs(5));
        assert!(
            late.contains("s ago, after 12s: the lease expired before"),
            "{late}"
        );
        let ticket = Loss::of_other_grant(LostReason::Released).to_string();
        assert_eq!(ticket, "lost: released with its ticket");
    }

    #[test]
    fn a_loss_after_failed_renewals_contains_the_last_answer_of_the_database() {
        let now = clock::now() + secs(3600);
        let text = |reason: LostReason, answer: &str| {
            Loss::of_grant(
                Slot::Lock,
                reason.into(),
                Some(answer.into()),
                now - secs(27),
                now,
            )
            .to_string()
        };
        assert_eq!(
            text(
                LostReason::Refused,
                "permission denied for table t\nERROR forged"
            ),
            "lost after 27s: the database refused renewals until the lease expired (last answer: \
             permission denied for table t\\nERROR forged)"
        );
        assert_eq!(
            text(LostReason::Unreachable, "no answer within 5s"),
            "lost after 27s: the database could not be reached until the lease expired (last error: \
             no answer within 5s)"
        );
    }

    #[test]
    fn the_name_of_another_holder_forges_no_line() {
        let text = Loss::of_other_grant(taken_over_by("web\nERROR all is lost")).to_string();
        assert!(
            text.contains("held by web\\nERROR all is lost for"),
            "{text}"
        );
    }

    #[test]
    fn a_legacy_holder_is_described_by_its_name_alone() {
        let now = HeldBy::new(Some("old".into()), None, None);
        assert_eq!(now.to_string(), "held by old");
    }
}
