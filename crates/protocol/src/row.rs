//! The interpretation of a row of the table, the same for all engines.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::info::{LockInfo, LockState, Semaphore};
use crate::lost::HeldBy;
use crate::messages::{
    AcquireCommand, Holder, LatestGrant, Outcome, Permits, ReleaseCommand, TakeOverCommand,
};
use crate::observation::{ObservedExpiry, Version};
use crate::values::grant::Token;
use crate::values::name::LockName;
use crate::values::slot::Slot;

/// How long a row without the length of its lease is observed: a legacy row, or one that another
/// program wrote. Most legacy leases last 10 s.
const UNKNOWN_LENGTH: Duration = Duration::from_secs(60);

/// One row, as a plain read returns it. Times are in microseconds of the engine's own clock.
///
/// A row is *legacy* if django-database-locks 0.5 wrote it last. That version knows only the
/// columns `name`, `locked_by`, `expires_at` and the primary key, and leaves the others unchanged:
/// what they contain belongs to an earlier grant.
#[derive(Debug, Default)]
pub struct LockRow {
    /// The name of the lock.
    pub name: String,
    /// Which row of the lock it is.
    pub slot: Slot,
    /// The number of permits that the holder of a permit allowed.
    pub permits: Option<i64>,
    /// The column `shared`: whether the lock was ever shared; of a row of the table of permits,
    /// whether it is a shared grant.
    pub is_shared: bool,
    /// The column `locked_by`.
    pub holder: Option<String>,
    /// The column `token`.
    pub token: i64,
    /// The column `grant_id`.
    pub grant: Option<String>,
    /// `expires_at` less the database's now; `None` if the lock is free.
    pub expires_in: Option<i64>,
    /// Whether `expires_at` is the value that means an infinite lease.
    pub is_infinite: bool,
    /// Whether `granted_until` differs from `expires_at`: a legacy client sets only the latter.
    pub is_legacy: bool,
    /// The database's now less `acquired_at`.
    pub held_for: Option<i64>,
    /// The column `acquired_at`, since 1970, for display.
    pub acquired_at: Option<i64>,
    /// The column `renewed_at`, since 1970.
    pub renewed_at: Option<i64>,
    /// The column `expires_at`, since 1970.
    pub expires_at: Option<i64>,
    /// The column `metadata`.
    pub metadata: Option<String>,
    /// Whether the database has several primaries, each with a clock of its own. None of their
    /// clocks decides whether the lease has ended.
    pub multi_primary: bool,
}

fn micros(n: i64) -> Duration {
    Duration::from_micros(n.max(0).unsigned_abs())
}

impl LockRow {
    /// Whether the row was released with a rest, which may have ended.
    fn has_rest(&self) -> bool {
        self.grant.is_none() && !self.is_legacy && !self.is_infinite && self.expires_in.is_some()
    }

    /// Whether the lock is free, held, resting or expired.
    fn state(&self) -> LockState {
        match self.expires_in {
            _ if self.is_infinite => LockState::Held { free_in: None },
            None => LockState::Free,
            Some(left) if self.has_rest() => self.rest_of(left),
            Some(left) if self.multi_primary => {
                let unknown = || micros(left).saturating_add(UNKNOWN_LENGTH);
                let free_in = self.observed_expiry().map_or_else(unknown, |it| it.length);
                LockState::Held {
                    free_in: Some(free_in),
                }
            }
            Some(left) if left > 0 => LockState::Held {
                free_in: Some(micros(left)),
            },
            Some(left) => LockState::Expired {
                since: micros(left.saturating_neg()),
            },
        }
    }

    /// The state of a row that was released with a rest, of which this is left by the clock of the
    /// database.
    ///
    /// On a cluster a rest ends by the clock of the node that is asked, or by observation,
    /// whichever is earlier. It protects no work, so a clock that is wrong makes it shorter and
    /// nothing worse. By observation alone each job would have to watch the rest of its previous
    /// run first.
    fn rest_of(&self, left: i64) -> LockState {
        if left <= 0 {
            return LockState::Free;
        }
        let observed = self.observed_expiry().map(|expiry| expiry.length);
        let free_in = micros(left).min(observed.unwrap_or(Duration::MAX));
        LockState::Resting { free_in }
    }

    /// Whether a grant holds the lock.
    pub fn is_held(&self) -> bool {
        matches!(self.state(), LockState::Held { .. })
    }

    /// Whether no client can acquire the lock: a grant holds it, or it rests.
    pub fn is_taken(&self) -> bool {
        self.is_held() || matches!(self.state(), LockState::Resting { .. })
    }

    /// The latest grant, if it began too recently for this command.
    ///
    /// A legacy client does not record when it acquired the lock, so the latest grant of this
    /// library counts. Neither does one count that began further in the future than the period: the
    /// clock was set back since.
    fn too_recent(&self, command: &AcquireCommand) -> Option<LatestGrant> {
        let (window, ago) = (command.not_within?, self.held_for?);
        let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        // The reply to an earlier request of this grant was lost.
        let is_own = self.grant.as_deref() == Some(command.grant.as_str());
        // The latest grant of a lock that was ever shared may have given up while it waited for
        // shared ones. The client refuses such a lock.
        if self.is_shared {
            return None;
        }
        (ago.saturating_abs() <= window && !is_own).then(|| LatestGrant {
            holder: self.holder.clone().filter(|_| !self.is_legacy),
            ago: micros(ago),
        })
    }

    /// Whether this grant holds the lock.
    pub fn is_granted(&self, grant: &str) -> bool {
        !self.is_legacy && self.grant.as_deref() == Some(grant) && self.is_held()
    }

    /// Whether the row contains the grant that has to be released. Its lease may have ended.
    pub fn contains_grant_of(&self, release: &ReleaseCommand) -> bool {
        // The lease of a row without an end was ended for the sake of shared grants.
        !self.is_legacy
            && self.expires_in.is_some()
            && self.grant.as_deref() == Some(release.grant.as_str())
            && self.holder.as_deref() == Some(&*release.holder)
            && release.token.is_none_or(|token| token.get() == self.token)
    }

    /// Whether the metadata contains this grant id.
    pub(crate) fn metadata_contains(&self, grant: &str) -> bool {
        let metadata = self.metadata.as_deref();
        metadata.is_some_and(|metadata| metadata.contains(grant))
    }

    /// How the expiry of the lease is observed; `None` if it need not be, or cannot be.
    ///
    /// A legacy row that does not seem expired is not observed: its holder uses the clock of its
    /// own machine, and the row does not contain the length of the lease.
    pub(crate) fn observed_expiry(&self) -> Option<ObservedExpiry> {
        let (expires_at, left) = (self.expires_at?, self.expires_in?);
        if !self.multi_primary || self.is_infinite {
            return None;
        }
        let rests = self.has_rest();
        // Then the clock decides.
        if rests && left <= 0 {
            return None;
        }
        let renewed_at = self.renewed_at.filter(|_| !self.is_legacy);
        let length = renewed_at.and_then(|at| expires_at.checked_sub(at));
        let length = match length.filter(|length| *length >= 0) {
            Some(length) => micros(length),
            None if left > 0 => return None,
            None => UNKNOWN_LENGTH,
        };
        let now = expires_at.saturating_sub(left);
        Some(ObservedExpiry {
            version: Version {
                token: self.token,
                expires_at,
                renewed_at: self.renewed_at,
            },
            length,
            // A lock that rests has no holder, which could be dead.
            overdue: !rests && (left <= 0 || renewed_at.is_some_and(|at| at > now)),
        })
    }

    /// The slot, and how its expiry is observed; `None` if it need not be, or cannot be.
    pub fn observed_slot(&self) -> Option<(Slot, ObservedExpiry)> {
        Some((self.slot, self.observed_expiry()?))
    }

    /// The holder, which stays in the row after a release.
    pub fn holder(&self) -> Holder {
        Holder {
            holder: self.holder.clone(),
            token: Some(Token::from_db(self.token)),
            held_for: self.held_for.filter(|_| !self.is_legacy).map(micros),
            free_in: self.state().free_in(),
            observed_expiry: self.observed_expiry(),
            grant: self.grant.clone(),
            is_legacy: self.is_legacy,
            permits: None,
            readers: None,
            is_resting: matches!(self.state(), LockState::Resting { .. }),
        }
    }

    /// The holder as reported in a loss; `None` if the lock is free or expired.
    pub(crate) fn held_by(&self) -> Option<HeldBy> {
        self.is_held().then(|| self.holder().into_held_by())
    }

    /// The holder of each of these locks, according to the rows that exist; of a lock that rests,
    /// the latest one.
    pub fn holders(names: &[LockName], rows: &[Self]) -> Vec<Option<Holder>> {
        let taken = rows.iter().filter(|row| row.is_taken());
        let taken: HashMap<&str, &Self> = taken.map(|row| (row.name.as_str(), row)).collect();
        let holder = |name: &LockName| taken.get(name.as_str()).map(|row| row.holder());
        names.iter().map(holder).collect()
    }

    /// The permits among the rows of a semaphore, and the operator's limit.
    pub fn permits_and_limit(rows: Vec<Self>) -> (Vec<Self>, Option<u32>) {
        let limit = rows.iter().find(|row| row.slot == Slot::AnyPermit);
        let limit = limit.and_then(|row| u32::try_from(row.permits?).ok());
        let permits = rows.into_iter().filter(|row| row.slot.number().is_some());
        (permits.collect(), limit)
    }

    /// A semaphore as callers get it.
    pub fn semaphore(name: LockName, rows: Vec<Self>) -> Semaphore {
        let (permits, limit) = Self::permits_and_limit(rows);
        Semaphore {
            name,
            limit,
            permits: permits.into_iter().map(Self::into_info).collect(),
        }
    }

    /// The outcome of an acquire that changed no row, according to the present row.
    pub fn failed_acquire_outcome(&self, command: &AcquireCommand) -> Outcome {
        match self.expires_in {
            // The reply to an earlier request of the same grant was lost.
            Some(left) if self.is_granted(command.grant.as_str()) => Outcome::Granted {
                slot: self.slot,
                token: Token::from_db(self.token),
                length: micros(left),
                is_shared: self.is_shared,
                confirmed_by: None,
            },
            _ => match self.too_recent(command) {
                Some(latest) => Outcome::TooRecent(latest),
                None if self.is_taken() => Outcome::Held(self.holder()),
                None => Outcome::Busy,
            },
        }
    }

    /// The outcome of a take-over that changed no row, according to the present row.
    pub fn failed_take_over_outcome(&self, command: &TakeOverCommand) -> Outcome {
        let is_unchanged = self.token == command.token.get()
            && self.grant == command.grant
            && self.holder.as_deref() == Some(&*command.to.holder);
        match self.failed_acquire_outcome(&command.to) {
            // Only another transaction that had the row locked can have prevented it. A rest cannot
            // be taken over.
            Outcome::Held(holder) if is_unchanged && !holder.is_resting => Outcome::Busy,
            outcome => outcome,
        }
    }

    /// The lock as callers get it.
    pub fn into_info(self) -> LockInfo {
        let state = self.state();
        let observed_expiry = self.observed_expiry();
        // A legacy client leaves the columns of an earlier grant unchanged.
        let is_current = !self.is_legacy;
        let is_granted =
            is_current && matches!(state, LockState::Held { .. } | LockState::Expired { .. });
        let has_end = state != LockState::Free && !self.is_infinite;
        let at = |stamp: Option<i64>| {
            stamp.and_then(|us| SystemTime::UNIX_EPOCH.checked_add(micros(us)))
        };
        LockInfo {
            name: LockName::from_db(self.name),
            state,
            holder: self.holder,
            token: Token::from_db(self.token),
            grant: self.grant.filter(|_| is_granted),
            held_for: self.held_for.filter(|_| is_granted).map(micros),
            acquired_at: at(self.acquired_at.filter(|_| is_current)),
            renewed_at: at(self.renewed_at.filter(|_| is_current)),
            expires_at: at(self.expires_at.filter(|_| has_end)),
            metadata: self.metadata.filter(|_| is_granted),
            slot: self.slot.number(),
            waits_for: None,
            was_shared: self.is_shared && !self.slot.is_permit(),
            shared_slot: self.slot.column().filter(|_| self.slot.is_shared()),
            permits: self.permits.and_then(|permits| u32::try_from(permits).ok()),
            observed_expiry,
        }
    }
}

/// The outcome of an acquire that found no free permit. `first` is the permit whose lease ends
/// first.
pub fn no_permit_free(permits: Permits, first: Option<&LockRow>) -> Outcome {
    Outcome::Held(Holder {
        // The next grant may be that of any permit.
        token: None,
        grant: None,
        observed_expiry: None,
        permits: Some(permits),
        ..first.map(LockRow::holder).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests;
