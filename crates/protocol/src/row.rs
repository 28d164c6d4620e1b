//! What a row means, the same on every engine.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::info::{LockInfo, LockState};
use crate::lost::Gone;
use crate::lost::HeldBy;
use crate::lost::LostReason;
use crate::messages::ReleaseCommand;
use crate::messages::{Grant, Holder, Outcome, Renewal, ResumeCommand, TakeOverCommand};
use crate::observation::{ObservedExpiry, Version};
use crate::values::grant::Token;
use crate::values::name::LockName;

/// What is watched of a row that does not say how long its lease lasts, since 0.5 wrote it, or no
/// program that knows the protocol: most leases of 0.5 are of 10 s, and renewed in time.
const UNKNOWN_LENGTH: Duration = Duration::from_secs(60);

/// One row as a plain read gave it; times in microseconds, as the engine's own clock has them.
#[derive(Debug, Default)]
pub struct LockRow {
    /// The column `name`.
    pub name: String,
    /// The column `locked_by`.
    pub holder: Option<String>,
    /// The column `token`.
    pub token: i64,
    /// The column `grant_id`.
    pub grant: Option<String>,
    /// `expires_at` less the database's now; none: free.
    pub expires_in: Option<i64>,
    /// `expires_at` is the one that means "without end".
    pub endless: bool,
    /// `granted_until` equals `expires_at`: the row was last written by this protocol, not by
    /// django-database-locks 0.5, which knows only the first four columns.
    pub intact: bool,
    /// The database's now less `acquired_at`.
    pub held_for: Option<i64>,
    /// Since 1970, for display.
    pub acquired_at: Option<i64>,
    /// Since 1970, for display.
    pub renewed_at: Option<i64>,
    /// Since 1970, for display.
    pub expires_at: Option<i64>,
    /// The column `metadata`.
    pub metadata: Option<String>,
    /// The database has several clocks, and its now is that of one of them: it decides nothing.
    pub clocks: bool,
}

fn micros(n: i64) -> Duration {
    Duration::from_micros(n.max(0).unsigned_abs())
}

impl LockRow {
    /// Whether a lease is there that has not ended.
    pub fn is_held(&self) -> bool {
        self.endless || self.expires_in.is_some_and(|left| left > 0 || self.clocks)
    }

    /// Whether that grant has the lock.
    pub fn is_granted(&self, grant: &str) -> bool {
        self.intact && self.grant.as_deref() == Some(grant) && self.is_held()
    }

    /// Whether that grant has the lock, be its lease over or not.
    pub fn is_of(&self, what: &ReleaseCommand) -> bool {
        self.intact
            && self.grant.as_deref() == Some(what.grant.as_str())
            && self.holder.as_deref() == Some(&*what.holder)
            && what.token.is_none_or(|token| token.get() == self.token)
    }

    /// How the lease ends, where that is by being watched.
    ///
    /// A row of 0.5 that does not look expired is left alone: 0.5 goes by its own clock, and who knows
    /// for how long it wanted the lock.
    fn lapse(&self) -> Option<ObservedExpiry> {
        let (expires_at, left) = (self.expires_at?, self.expires_in?);
        if !self.clocks || self.endless {
            return None;
        }
        let renewed_at = self.renewed_at.filter(|_| self.intact);
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
            overdue: left <= 0 || renewed_at.is_some_and(|at| at > now),
        })
    }

    /// How long the lease goes on; none: without end, or free.
    fn free_in(&self, lapse: Option<&ObservedExpiry>) -> Option<Duration> {
        let left = self.expires_in.filter(|_| !self.endless).map(micros)?;
        Some(match lapse {
            Some(lapse) => lapse.length,
            None if self.clocks => left.saturating_add(UNKNOWN_LENGTH),
            None => left,
        })
    }

    /// Who has the lock.
    fn held_by(&self) -> Option<HeldBy> {
        self.is_held().then(|| HeldBy {
            holder: self.holder.clone(),
            token: self.intact.then(|| Token::from_db(self.token)),
            held_for: self.held_for.filter(|_| self.intact).map(micros),
        })
    }

    /// The holder, as a try that was refused reports it.
    pub fn occupant(&self) -> Holder {
        let lapse = self.lapse();
        Holder {
            holder: self.holder.clone(),
            token: Some(Token::from_db(self.token)),
            held_for: self.held_for.filter(|_| self.intact).map(micros),
            free_in: self.free_in(lapse.as_ref()),
            lapse,
            grant: self.grant.clone(),
            intact: self.intact,
        }
    }

    /// Who has each of these locks, by the rows that were found of them.
    pub fn occupants(names: &[LockName], rows: &[Self]) -> Vec<Option<Holder>> {
        let held = rows.iter().filter(|row| row.is_held());
        let held: HashMap<&str, &Self> = held.map(|row| (row.name.as_str(), row)).collect();
        let occupant = |name: &LockName| held.get(name.as_str()).map(|row| row.occupant());
        names.iter().map(occupant).collect()
    }

    /// What an acquire that granted nothing has to say, from the row that stood in its way.
    pub fn refusal(&self, grant: &str) -> Outcome {
        match self.expires_in {
            // The reply to an earlier request of the same grant was lost.
            Some(left) if self.is_granted(grant) => Outcome::Granted {
                token: Token::from_db(self.token),
                length: micros(left),
                confirmed_by: None,
            },
            _ if self.is_held() => Outcome::Held(self.occupant()),
            _ => Outcome::Busy,
        }
    }

    /// The same of a take-over that changed nothing.
    pub fn not_taken_over(&self, what: &TakeOverCommand) -> Outcome {
        let as_seen = self.token == what.token.get()
            && self.grant == what.grant
            && self.holder.as_deref() == Some(&*what.to.holder);
        match self.refusal(what.to.grant.as_str()) {
            // Nothing but somebody who has the row locked was in the way.
            Outcome::Held(_) if as_seen => Outcome::Busy,
            outcome => outcome,
        }
    }

    /// The row as lists show it.
    pub fn into_info(self) -> LockInfo {
        let lapse = self.lapse();
        let state = match self.expires_in {
            Some(_) if self.endless => LockState::Held { free_in: None },
            Some(_) if self.clocks => LockState::Held {
                free_in: self.free_in(lapse.as_ref()),
            },
            Some(left) if left > 0 => LockState::Held {
                free_in: Some(micros(left)),
            },
            Some(left) => LockState::Expired {
                since: micros(left.saturating_neg()),
            },
            None => LockState::Free,
        };
        // What 0.5 left standing beside its own columns belongs to an earlier grant.
        let ours = self.intact;
        let held = ours && state != LockState::Free;
        let at = |stamp: Option<i64>| {
            stamp.and_then(|us| SystemTime::UNIX_EPOCH.checked_add(micros(us)))
        };
        LockInfo {
            name: LockName::from_db(self.name),
            state,
            holder: self.holder,
            token: Token::from_db(self.token),
            grant: self.grant.filter(|_| held),
            held_for: self.held_for.filter(|_| held).map(micros),
            acquired_at: at(self.acquired_at.filter(|_| ours)),
            renewed_at: at(self.renewed_at.filter(|_| ours)),
            expires_at: at(self.expires_at.filter(|_| !self.endless)),
            metadata: self.metadata.filter(|_| held),
            lapse,
        }
    }
}

/// What a plain read says of a grant that a renewal did not renew.
///
/// Still ours means that somebody has the row locked; anything else is a loss, and why.
pub fn judge(ours: &Grant, row: Option<&LockRow>) -> Renewal {
    let Some(row) = row else {
        return Renewal::Lost(LostReason::RowGone.into());
    };
    let token = ours.token.get();
    let same_holder = row.holder.as_deref() == Some(&*ours.holder);
    // Whoever takes a grant up, or over from the same holder, leaves its id behind among what it says
    // of itself: 128 random bits are nowhere else.
    let said = row.metadata.as_deref().unwrap_or_default();
    let named = said.contains(ours.id.as_str());
    let reason = if row.token > token {
        // A release by force raises the token and leaves the rest of the row; a take-over names
        // its own holder, which stays in the row after its release.
        if row.grant.is_none() && same_holder && !named {
            LostReason::Forced
        } else {
            LostReason::Preempted
        }
    } else if row.token < token {
        LostReason::Failover
    } else if !row.intact {
        LostReason::Preempted
    } else if row.grant.is_none() {
        // Who released it with its ticket left the holder as it was, or had taken it up. Another
        // grant of the same token is that of a server which never knew of ours.
        if same_holder || named {
            LostReason::Released
        } else {
            LostReason::Failover
        }
    } else if row.grant.as_deref() != Some(ours.id.as_str()) {
        if named {
            LostReason::Resumed
        } else {
            LostReason::Failover
        }
    } else if !same_holder {
        LostReason::Preempted
    } else if row.is_held() {
        return Renewal::Busy;
    } else {
        LostReason::Expired
    };
    // A row that was changed by hand may still show the grant that is lost: that is not who has it now.
    let own = same_holder && (row.token == token || row.grant.as_deref() == Some(ours.id.as_str()));
    let now = row.held_by().filter(|_| !own);
    Renewal::Lost(Gone { reason, now })
}

/// The same on another server than the one that confirmed the grant last.
///
/// While its holder trusts a lease, nobody can have taken it over, and it has not run out, on a server
/// that knows of it. So if this one says so it forgot the grant or its renewals, unless the row shows
/// that somebody knew of that very grant.
pub fn judge_elsewhere(ours: &Grant, row: Option<&LockRow>) -> Renewal {
    let id = ours.id.as_str();
    let known = row.is_some_and(|row| {
        row.grant.as_deref() == Some(id) || row.metadata.as_deref().is_some_and(|m| m.contains(id))
    });
    let mut verdict = judge(ours, row);
    if let Renewal::Lost(gone) = &mut verdict {
        gone.reason = match gone.reason {
            LostReason::RowGone | LostReason::Expired => LostReason::Failover,
            LostReason::Preempted if !known => LostReason::Failover,
            reason => reason,
        };
    }
    verdict
}

/// What a plain read says of a ticket that could not be resumed: the same, but a ticket does not
/// know who held it.
pub fn judge_ticket(what: &ResumeCommand, row: Option<&LockRow>) -> Renewal {
    if let Some(row) = row.filter(|row| row.token > what.token.get()) {
        return Renewal::Lost(Gone {
            reason: LostReason::Preempted,
            now: row.held_by(),
        });
    }
    let holder = row
        .and_then(|row| row.holder.as_deref())
        .unwrap_or_default();
    let given = Grant {
        name: what.to.name.clone(),
        token: what.token,
        id: what.from,
        holder: holder.into(),
        confirmed_by: None,
    };
    judge(&given, row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::grant::GrantId;

    fn grant() -> Grant {
        Grant {
            name: LockName::new("job").unwrap(),
            token: Token::from_db(7),
            id: GrantId::of([7; 16]),
            holder: "me".into(),
            confirmed_by: None,
        }
    }

    fn row(of: &Grant) -> LockRow {
        LockRow {
            name: "job".into(),
            holder: Some("me".into()),
            token: 7,
            grant: Some(of.id.to_string()),
            expires_in: Some(1_000_000),
            intact: true,
            ..LockRow::default()
        }
    }

    #[test]
    fn each_way_of_losing_has_its_reason() {
        use LostReason::*;
        let ours = grant();
        let verdict = |change: fn(&mut LockRow)| {
            let mut row = row(&ours);
            change(&mut row);
            judge(&ours, Some(&row)).lost()
        };
        assert_eq!(verdict(|_| ()), None);
        assert_eq!(judge(&ours, None).lost(), Some(RowGone));
        assert_eq!(verdict(|r| r.expires_in = Some(0)), Some(Expired));
        assert_eq!(verdict(|r| r.token = 8), Some(Preempted));
        assert_eq!(verdict(|r| (r.token, r.grant) = (8, None)), Some(Forced));
        let mut over = row(&ours);
        (over.token, over.grant) = (8, None);
        over.metadata = Some(format!("{{\"over\":\"{}\"}}", ours.id));
        assert_eq!(judge(&ours, Some(&over)).lost(), Some(Preempted));
        assert_eq!(verdict(|r| r.grant = None), Some(Released));
        assert_eq!(
            verdict(|r| (r.grant, r.holder) = (None, Some("somebody".into()))),
            Some(Failover)
        );
        assert_eq!(verdict(|r| r.token = 6), Some(Failover));
        assert_eq!(verdict(|r| r.grant = Some("other".into())), Some(Failover));
        let mut up = row(&ours);
        up.grant = Some("other".into());
        up.metadata = Some(format!("{{\"from\":\"{}\"}}", ours.id));
        assert_eq!(judge(&ours, Some(&up)).lost(), Some(Resumed));
        assert_eq!(verdict(|r| r.intact = false), Some(Preempted));
    }

    #[test]
    fn a_loss_names_who_has_it_now_and_nobody_where_it_is_free() {
        let ours = grant();
        let now = |change: fn(&mut LockRow)| {
            let mut row = row(&ours);
            change(&mut row);
            match judge(&ours, Some(&row)) {
                Renewal::Lost(gone) => gone.now,
                other => panic!("{other:?}"),
            }
        };
        let taken = now(|r| {
            (r.token, r.holder) = (8, Some("you".into()));
            r.held_for = Some(3_000_000);
        });
        assert_eq!(
            taken.expect("it is held").to_string(),
            "held by you for 3s, token 8"
        );
        assert_eq!(
            now(|r| (r.token, r.grant, r.expires_in) = (8, None, None)),
            None
        );
        assert_eq!(now(|r| (r.token, r.expires_in) = (8, Some(0))), None);
        // What stands beside the columns of 0.5 belongs to an earlier grant.
        let by_old = now(|r| (r.intact, r.holder) = (false, Some("old".into())));
        assert_eq!(by_old.expect("it is held").to_string(), "held by old");
        assert_eq!(now(|r| r.expires_in = Some(0)), None);
    }

    /// Of a server that has taken the place of another: what it does not know of ours it forgot.
    #[test]
    fn what_another_server_does_not_know_was_forgotten() {
        use LostReason::*;
        let ours = grant();
        let verdict = |change: &dyn Fn(&mut LockRow)| {
            let mut row = row(&ours);
            change(&mut row);
            judge_elsewhere(&ours, Some(&row)).lost()
        };
        let other = || Some("other".to_owned());
        let named = format!("{{\"over\":\"{}\"}}", ours.id);
        for (change, expected) in [
            (&(|_: &mut LockRow| ()) as &dyn Fn(&mut LockRow), None),
            // An earlier renewal is all that it has, and that has run out.
            (&|r| r.expires_in = Some(0), Some(Failover)),
            (&|r| (r.token, r.grant) = (6, None), Some(Failover)),
            (&|r| r.grant = other(), Some(Failover)),
            (
                &|r| (r.token, r.grant, r.holder) = (8, other(), other()),
                Some(Failover),
            ),
            (
                &|r| (r.token, r.grant, r.holder) = (8, None, other()),
                Some(Failover),
            ),
            // What somebody did who knew of it.
            (&|r| (r.token, r.grant) = (8, None), Some(Forced)),
            (&|r| r.grant = None, Some(Released)),
            (
                &|r| (r.token, r.grant, r.metadata) = (8, other(), Some(named.clone())),
                Some(Preempted),
            ),
            (&|r| r.intact = false, Some(Preempted)),
            (
                &|r| (r.grant, r.metadata) = (other(), Some(named.clone())),
                Some(Resumed),
            ),
        ] {
            assert_eq!(verdict(change), expected);
        }
        assert_eq!(judge_elsewhere(&ours, None).lost(), Some(Failover));
    }

    /// A lease of 30 s, renewed so long ago by the clock of the node that was asked.
    fn on_cluster(of: &Grant, ago: i64) -> LockRow {
        LockRow {
            expires_in: Some(30_000_000 - ago),
            expires_at: Some(1_000_030_000_000),
            renewed_at: Some(1_000_000_000_000),
            clocks: true,
            ..row(of)
        }
    }

    #[test]
    fn no_clock_of_a_cluster_ends_a_lease() {
        let ours = grant();
        for (ago, overdue) in [
            (1, false),
            (29_999_999, false),
            // As good as dead, or the clock is ahead.
            (30_000_000, true),
            (330_000_000, true),
            // The clock is behind that of the node which renewed it.
            (-1, true),
            (-300_000_000, true),
        ] {
            let seen = on_cluster(&ours, ago);
            let lapse = seen.lapse().expect("it ends by being watched");
            assert_eq!(
                (lapse.length, lapse.overdue),
                (Duration::from_secs(30), overdue)
            );
            assert_eq!(
                judge(&ours, Some(&seen)),
                Renewal::Busy,
                "{ago}: still ours"
            );
            let Outcome::Held(occupant) = seen.refusal("another") else {
                panic!("{ago}: not held")
            };
            assert_eq!(occupant.free_in, Some(lapse.length), "{ago}");
            let LockState::Held { free_in } = on_cluster(&ours, ago).into_info().state else {
                panic!("{ago}: not held")
            };
            assert_eq!(free_in, Some(lapse.length));
        }
        let free = LockRow {
            expires_in: None,
            expires_at: None,
            ..on_cluster(&ours, 0)
        };
        assert_eq!(free.lapse(), None);
        assert_eq!(free.refusal("another"), Outcome::Busy);
    }

    #[test]
    fn each_write_is_another_version_and_an_endless_lease_has_none() {
        let ours = grant();
        let version = |change: fn(&mut LockRow)| {
            let mut seen = on_cluster(&ours, 1);
            change(&mut seen);
            seen.lapse().map(|lapse| lapse.version)
        };
        let seen = version(|_| ());
        assert!(seen.is_some());
        assert_eq!(
            seen,
            version(|row| row.expires_in = Some(7)),
            "another clock"
        );
        assert_ne!(seen, version(|row| row.token += 1));
        assert_ne!(
            seen,
            version(|row| row.renewed_at = Some(1_000_000_000_001))
        );
        assert_ne!(
            seen,
            version(|row| row.expires_at = Some(1_000_030_000_001))
        );
        assert_eq!(version(|row| row.endless = true), None);
    }

    #[test]
    fn what_does_not_say_its_length_is_watched_for_a_minute_once_it_looks_expired() {
        let ours = grant();
        let unknown: [fn(&mut LockRow); 3] = [
            |row| row.intact = false,
            |row| row.renewed_at = None,
            |row| row.renewed_at = row.expires_at.map(|at| at + 1),
        ];
        for change in unknown {
            let lapse = |ago| {
                let mut seen = on_cluster(&ours, ago);
                change(&mut seen);
                let Outcome::Held(occupant) = seen.refusal("another") else {
                    panic!("not held")
                };
                (seen.lapse(), occupant.free_in)
            };
            let whole = Duration::from_secs(60);
            let (live, free_in) = lapse(10_000_000);
            assert_eq!(
                (live, free_in),
                (None, Some(whole + Duration::from_secs(20)))
            );
            let (dead, free_in) = lapse(30_000_000);
            let dead = dead.expect("it is watched");
            assert_eq!(
                (dead.length, dead.overdue, free_in),
                (whole, true, Some(whole))
            );
        }
    }

    #[test]
    fn an_acquire_recognises_its_own_grant() {
        let ours = grant();
        let outcome = row(&ours).refusal(ours.id.as_str());
        let length = Duration::from_secs(1);
        assert_eq!(
            outcome,
            Outcome::Granted {
                token: ours.token,
                length,
                confirmed_by: None
            }
        );
        assert!(matches!(row(&ours).refusal("another"), Outcome::Held(_)));
    }
}
