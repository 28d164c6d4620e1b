//! Requests of a client to a store, and the answers.
//!
//! All times are durations, so that no caller can compare the clocks of two machines.

use std::sync::Arc;
use std::time::Duration;

use crate::info::LockInfo;
use crate::lost::{Gone, HeldBy, LostReason};
use crate::observation::{ObservedExpiry, Version};
use crate::values::grant::{GrantId, Token};
use crate::values::name::LockName;
use crate::values::slot::Slot;
use crate::values::ttl::Ttl;

/// The number of rows that a store examines for one page.
pub const PAGE: u32 = 1_000;

/// One page of a listing.
#[derive(Debug, Default)]
pub struct Page {
    /// The rows that match, in the order of their ids.
    pub rows: Vec<LockInfo>,
    /// The last id that was examined; `None` after the last page.
    pub last: Option<i64>,
}

/// The outcome of pruning one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The number of rows that were deleted.
    pub deleted: u64,
    /// Where the next page begins; `None` after the last page.
    pub last: Option<i64>,
}

/// A request for a lock.
#[derive(Clone, Debug)]
pub struct AcquireCommand {
    /// The name of the lock.
    pub name: LockName,
    /// The id of the new grant. It is drawn before the request is sent: if the request is repeated,
    /// the store recognizes the grant.
    pub grant: GrantId,
    /// The name of the holder, for the column `locked_by`.
    pub holder: Arc<str>,
    /// The length of the lease.
    pub length: Duration,
    /// The lock is not granted if its latest grant began less than this long ago; `None`: whenever
    /// that began. See [`OncePer::window`](crate::OncePer::window).
    pub not_within: Option<Duration>,
    /// The metadata of the holder, as JSON.
    pub metadata: Arc<str>,
    /// The version of the row whose expiry was observed: if the row still has it, the lock is
    /// granted as if it were free. See [`ObservedExpiry`].
    pub expired_version: Option<Version>,
    /// What is requested.
    pub kind: Kind,
}

/// What an [`AcquireCommand`] requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The lock itself, which has one holder.
    #[default]
    Exclusive,
    /// One permit of a semaphore.
    Permit {
        /// The number of permits that the caller allows. A limit that an operator has set in the
        /// database takes precedence.
        limit: u32,
        /// The versions of slots whose expiry was observed, as `expired_version` of a lock.
        expired: Vec<(Slot, Version)>,
    },
    /// The lock together with other shared grants, and without an exclusive one.
    Shared {
        /// The exclusive grant of the same client that this one replaces, if it does.
        beside: Option<GrantId>,
    },
}

impl AcquireCommand {
    /// The grant that was made with this token, confirmed by this server.
    pub fn granted(&self, slot: Slot, token: Token, confirmed_by: Option<Primary>) -> Grant {
        Grant {
            name: self.name.clone(),
            slot,
            token,
            id: self.grant,
            holder: Arc::clone(&self.holder),
            confirmed_by,
        }
    }
}

/// The outcome of an [`AcquireCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The lock is granted, for at least `length` since the request was sent.
    Granted {
        /// The row that has the grant.
        slot: Slot,
        /// The fencing token.
        token: Token,
        /// The requested length, or the rest of it if an earlier request made this grant.
        length: Duration,
        /// Whether the lock was ever shared. If so, shared grants may exist beside this exclusive
        /// one, which counts only after [`Readers`] have ended.
        is_shared: bool,
        /// The server that granted it; `None` if the engine does not tell servers apart.
        confirmed_by: Option<Primary>,
    },
    /// Another grant holds the lock, or the lock rests. Of a semaphore: no permit is free, and this is
    /// the holder whose lease ends first.
    Held(Holder),
    /// The latest grant began less than [`AcquireCommand::not_within`] ago, whether it still holds
    /// the lock or not. Waiting for the lock is useless.
    TooRecent(LatestGrant),
    /// The lock seems free or expired, but another transaction has its row locked or has just
    /// created it. Try again soon.
    Busy,
}

impl Outcome {
    /// A grant of a lock that was never shared, by an engine that does not tell servers apart.
    pub fn granted(slot: Slot, token: Token, length: Duration) -> Self {
        Self::Granted {
            slot,
            token,
            length,
            is_shared: false,
            confirmed_by: None,
        }
    }

    /// This outcome, of a lock that was ever shared or not.
    #[must_use]
    pub fn of_shared(mut self, shared: bool) -> Self {
        if let Self::Granted { is_shared, .. } = &mut self {
            *is_shared = shared;
        }
        self
    }

    /// This outcome, with the server that confirmed it.
    #[must_use]
    pub fn confirmed_by(mut self, server: Option<Primary>) -> Self {
        if let Self::Granted { confirmed_by, .. } = &mut self {
            *confirmed_by = server;
        }
        self
    }
}

/// The latest grant of a lock, which began too recently for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatestGrant {
    /// The name of its holder, from the column `locked_by`.
    pub holder: Option<String>,
    /// How long ago it began, by the database's clock. Zero if that clock is behind the one by
    /// which it was made.
    pub ago: Duration,
}

/// One of several database servers, of which a standby may replace the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// Identifies the database cluster: equal for a primary and its standbys.
    pub system: i64,
    /// Increases when a standby replaces its primary.
    pub timeline: u32,
}

/// The holder of a lock, according to its row; of a lock that rests, the latest one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The name of the holder, from the column `locked_by`.
    pub holder: Option<String>,
    /// The token in the row. In a legacy row it is that of an earlier grant.
    pub token: Option<Token>,
    /// For how long the lock has been held.
    pub held_for: Option<Duration>,
    /// How long the lease lasts; `None` if it is infinite. If its expiry has to be observed, this
    /// is the time that an observation takes from now on.
    pub free_in: Option<Duration>,
    /// How to observe the expiry of the lease; `None` if the database's clock decides.
    pub observed_expiry: Option<ObservedExpiry>,
    /// The grant id in the row. In a legacy row it is that of an earlier grant.
    pub grant: Option<String>,
    /// Whether the row was last written by a legacy client (django-database-locks 0.5), which
    /// leaves the columns that it does not know unchanged.
    pub is_legacy: bool,
    /// Whether this holder has released the lock, which rests until `free_in` has passed.
    pub is_resting: bool,
    /// The permits of a semaphore; `None` for a lock.
    pub permits: Option<Permits>,
    /// The shared grants, of which this holder has the one that ends first; `None` for another
    /// holder.
    pub readers: Option<Box<Readers>>,
}

/// The shared grants that an exclusive one waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// How many there are.
    pub held: u32,
    /// Those whose expiry has to be observed.
    pub observed: Vec<(Slot, ObservedExpiry)>,
}

/// The permits of a semaphore that has none free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    /// How many holders are allowed; 0 if an operator has paused the semaphore.
    pub limit: u32,
    /// How many permits are held, which may be more than the limit after it was lowered.
    pub held: u32,
    /// The slots whose expiry has to be observed.
    pub observed: Vec<(Slot, ObservedExpiry)>,
}

impl Holder {
    /// The holder as reported in a loss, without the token of an earlier grant.
    pub fn into_held_by(self) -> HeldBy {
        HeldBy {
            token: self.token.filter(|_| !self.is_legacy),
            holder: self.holder,
            held_for: self.held_for,
        }
    }
}

/// One grant: the data that a renewal and a release need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The name of the lock.
    pub name: LockName,
    /// The row that has the grant.
    pub slot: Slot,
    /// The fencing token.
    pub token: Token,
    /// The random id.
    pub id: GrantId,
    /// The name of the holder, as in the column `locked_by`.
    pub holder: Arc<str>,
    /// The server that granted or renewed it last; `None` if it is not known.
    pub confirmed_by: Option<Primary>,
}

/// The outcome of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lasts for at least the requested ttl since the request was sent.
    Renewed {
        /// The server that renewed it; `None` if the engine does not tell servers apart.
        confirmed_by: Option<Primary>,
    },
    /// A plain read shows that the grant holds the lock, but another transaction has the row
    /// locked.
    Busy,
    /// A plain read shows that the grant no longer holds the lock.
    Lost(Gone),
}

impl Renewal {
    /// Why the lock was lost, if it was.
    pub fn lost(&self) -> Option<LostReason> {
        match self {
            Self::Lost(gone) => Some(gone.reason),
            Self::Renewed { .. } | Self::Busy => None,
        }
    }

    /// Whether it was renewed.
    pub fn is_renewed(&self) -> bool {
        matches!(self, Self::Renewed { .. })
    }
}

/// A request for a lock that ends the present grant, which is one of the same holder.
#[derive(Clone, Debug)]
pub struct TakeOverCommand {
    /// The new grant, with the same holder.
    pub to: AcquireCommand,
    /// The token of the grant that ends.
    pub token: Token,
    /// The grant id in the row of the grant that ends; `None` for a legacy grant in a row that has
    /// none.
    pub grant: Option<String>,
}

/// A request, made with a ticket, to continue a grant under another id.
#[derive(Clone, Debug)]
pub struct ResumeCommand {
    /// The row that has both grants.
    pub slot: Slot,
    /// The token of both grants.
    pub token: Token,
    /// The id of the grant that ends.
    pub from: GrantId,
    /// The grant that replaces it.
    pub to: AcquireCommand,
}

impl ResumeCommand {
    /// The grant that continues the one of the ticket, confirmed by this server.
    pub fn granted(&self, confirmed_by: Option<Primary>) -> Grant {
        self.to.granted(self.slot, self.token, confirmed_by)
    }
}

/// A request to release a grant.
#[derive(Clone, Debug)]
pub struct ReleaseCommand {
    /// The name of the lock.
    pub name: LockName,
    /// The row that has the grant.
    pub slot: Slot,
    /// The fencing token; `None` if the reply to the acquire was lost. The random id identifies the
    /// grant in that case.
    pub token: Option<Token>,
    /// The random id.
    pub grant: GrantId,
    /// The name of the holder, as in the column `locked_by`.
    pub holder: Arc<str>,
    /// How long the lock rests: no client can acquire it before that has passed. Zero: it is free
    /// at once.
    pub rest: Duration,
    /// Whether the release has to survive a crash of the database. If that of an infinite lease
    /// were lost, the lock would stay held for ever. If one with a rest were lost, the lock would
    /// be free when its lease ends, which may be earlier.
    pub durable: bool,
}

impl ReleaseCommand {
    /// The release of a grant whose lease has this ttl.
    pub fn of(grant: &Grant, ttl: Ttl) -> Self {
        Self {
            name: grant.name.clone(),
            slot: grant.slot,
            token: Some(grant.token),
            grant: grant.id,
            holder: Arc::clone(&grant.holder),
            rest: Duration::ZERO,
            durable: ttl == Ttl::Infinite,
        }
    }

    /// This release, after which the lock rests.
    #[must_use]
    pub fn resting(self, rest: Duration) -> Self {
        Self {
            durable: self.durable || !rest.is_zero(),
            rest,
            ..self
        }
    }
}

/// The outcome of a [`ReleaseCommand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The grant held the lock, which is free now, or rests.
    Freed,
    /// The grant held the lock, which is free now, or rests, and the store notified waiters.
    Awaited,
    /// The grant holds the lock, but another transaction has the row locked.
    Busy,
    /// The grant did not hold the lock any more. Nothing was changed.
    NotHeld,
}

/// The outcome of a release by force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    /// The lock is free now; this was its holder, or the latest one if it rested.
    Freed(Holder),
    /// The lock was free, or has no row.
    WasFree,
    /// Another transaction has the row locked: perhaps one with a fence.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            name: LockName::new("job").unwrap(),
            slot: Slot::Permit(3),
            token: Token::from_db(7),
            id: GrantId::of([7; 16]),
            holder: "me".into(),
            confirmed_by: None,
        }
    }

    #[test]
    fn a_release_asks_for_its_grant_and_is_durable_if_the_lease_is_infinite() {
        for (ttl, durable) in [
            (Ttl::Finite(Duration::from_secs(1)), false),
            (Ttl::Infinite, true),
        ] {
            let release = ReleaseCommand::of(&grant(), ttl);
            let asked = (
                release.name,
                release.slot,
                release.token,
                release.grant,
                release.holder,
            );
            let Grant {
                name,
                slot,
                token,
                id,
                holder,
                confirmed_by: _,
            } = grant();
            assert_eq!(asked, (name, slot, Some(token), id, holder));
            assert_eq!(release.durable, durable);
        }
    }

    #[test]
    fn a_release_after_which_the_lock_rests_is_durable() {
        let release = ReleaseCommand::of(&grant(), Ttl::Finite(Duration::from_secs(1)));
        let at_once = release.clone().resting(Duration::ZERO);
        assert_eq!((at_once.rest, at_once.durable), (Duration::ZERO, false));
        let rest = Duration::from_micros(1);
        let resting = release.resting(rest);
        assert_eq!((resting.rest, resting.durable), (rest, true));
        let infinite = ReleaseCommand::of(&grant(), Ttl::Infinite);
        assert!(infinite.resting(Duration::ZERO).durable);
    }

    #[test]
    fn a_resumed_grant_has_the_server_that_confirmed_it_as_an_acquired_one_has() {
        let to = AcquireCommand {
            name: LockName::new("job").unwrap(),
            grant: GrantId::of([8; 16]),
            holder: "me".into(),
            length: Duration::from_secs(30),
            not_within: None,
            metadata: "{}".into(),
            expired_version: None,
            kind: Kind::Exclusive,
        };
        let server = Some(Primary {
            system: 1,
            timeline: 2,
        });
        let expected = Grant {
            id: to.grant,
            confirmed_by: server,
            ..grant()
        };
        assert_eq!(
            to.granted(Slot::Permit(3), Token::from_db(7), server),
            expected
        );
        let resume = ResumeCommand {
            slot: Slot::Permit(3),
            token: Token::from_db(7),
            from: grant().id,
            to,
        };
        assert_eq!(resume.granted(server), expected);
    }

    #[test]
    fn only_a_lost_renewal_has_a_reason() {
        let lost = Renewal::Lost(LostReason::Forced.into());
        assert_eq!(lost.lost(), Some(LostReason::Forced));
        assert_eq!(Renewal::Renewed { confirmed_by: None }.lost(), None);
        assert_eq!(Renewal::Busy.lost(), None);
        assert!(Renewal::Renewed { confirmed_by: None }.is_renewed());
        assert!(!lost.is_renewed() && !Renewal::Busy.is_renewed());
    }
}
