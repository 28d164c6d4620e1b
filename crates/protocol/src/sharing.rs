//! Shared grants beside the row of their lock.

use crate::messages::{Holder, Readers};
use crate::observation::Version;
use crate::row::LockRow;
use crate::values::grant::GrantId;

/// Whether a shared grant may begin, according to the lock's own row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The row is not held and marked as shared.
    Open,
    /// The row is not marked as shared.
    NotMarked,
    /// A lease or a rest has run out, and has to be ended in the row first. An expired holder may
    /// have a fenced transaction open, which locks the row.
    Ended,
    /// An exclusive grant holds the lock, or it rests; or a legacy client (django-database-locks
    /// 0.5) wrote the row last, which does not see shared grants ([`Holder::is_legacy`]); or the
    /// exclusive grant that was to be replaced does not hold the lock.
    Held(Holder),
}

impl LockRow {
    /// Whether a shared grant may begin. `beside` is the exclusive grant that it replaces.
    ///
    /// `ended` is the version of the row whose expiry was observed.
    pub fn sharing(&self, beside: Option<GrantId>, ended: Option<&Version>) -> Sharing {
        if self.is_legacy {
            return Sharing::Held(self.holder());
        }
        let is_own = beside.is_some_and(|own| self.is_granted(own.as_str()));
        let seen = self.observed_expiry().map(|expiry| expiry.version);
        let observed = ended.is_some() && seen.as_ref() == ended;
        if beside.is_some() && !is_own {
            return Sharing::Held(self.holder());
        }
        match self.expires_in {
            Some(_) if !is_own && self.is_taken() && !observed => Sharing::Held(self.holder()),
            Some(_) if !is_own => Sharing::Ended,
            _ if !self.is_shared => Sharing::NotMarked,
            _ => Sharing::Open,
        }
    }
}

/// The holder that an exclusive grant waits for, of these shared grants of a lock; `None`: there is
/// none. One whose lease has ended counts until its row is deleted. The rows of those that were
/// released by force are not among them.
pub fn reader_in_the_way(rows: &[LockRow]) -> Option<Holder> {
    let first = rows
        .iter()
        .min_by_key(|row| row.expires_in.unwrap_or(i64::MAX))?;
    Some(Holder {
        readers: Some(Box::new(Readers {
            held: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            observed: rows.iter().filter_map(LockRow::observed_slot).collect(),
        })),
        ..first.holder()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{AcquireCommand, Grant, Kind, Outcome, ReleaseCommand};
    use crate::values::grant::Token;
    use crate::values::name::LockName;
    use crate::values::slot::Slot;
    use crate::values::ttl::Ttl;
    use std::time::Duration;

    /// The row of a lock that was shared, and that a grant holds for one second more.
    fn held() -> LockRow {
        LockRow {
            name: "list".into(),
            holder: Some("a writer".into()),
            token: 7,
            grant: Some(GrantId::of([7; 16]).to_string()),
            expires_in: Some(1_000_000),
            expires_at: Some(4_000_000),
            renewed_at: Some(2_000_000),
            is_shared: true,
            ..LockRow::default()
        }
    }

    fn free() -> LockRow {
        LockRow {
            grant: None,
            expires_in: None,
            expires_at: None,
            ..held()
        }
    }

    #[test]
    fn a_lock_that_is_free_and_marked_is_open_to_shared_grants() {
        assert_eq!(free().sharing(None, None), Sharing::Open);
        let unmarked = LockRow {
            is_shared: false,
            ..free()
        };
        assert_eq!(unmarked.sharing(None, None), Sharing::NotMarked);
        assert_eq!(held().sharing(None, None), Sharing::Held(held().holder()));
    }

    #[test]
    fn a_lease_or_a_rest_that_has_run_out_is_ended_first_whether_it_is_marked_or_not() {
        for is_shared in [true, false] {
            for (grant, expires_in) in [(held().grant, Some(0)), (None, Some(-1))] {
                let row = LockRow {
                    grant,
                    expires_in,
                    is_shared,
                    ..held()
                };
                assert_eq!(row.sharing(None, None), Sharing::Ended);
            }
        }
        let resting = LockRow {
            grant: None,
            ..held()
        };
        assert_eq!(resting.sharing(None, None), Sharing::Held(resting.holder()));
    }

    #[test]
    fn a_row_that_a_legacy_client_wrote_is_never_open() {
        for row in [held(), free()] {
            let row = LockRow {
                is_legacy: true,
                ..row
            };
            let Sharing::Held(holder) = row.sharing(None, None) else {
                panic!("it is open")
            };
            assert!(holder.is_legacy);
        }
    }

    #[test]
    fn on_a_cluster_a_lease_has_run_out_when_that_was_observed() {
        let row = || LockRow {
            expires_in: Some(-5_000_000),
            multi_primary: true,
            ..held()
        };
        let seen = row().observed_expiry().expect("to be observed").version;
        assert_eq!(row().sharing(None, Some(&seen)), Sharing::Ended);
        let other = Version { token: 6, ..seen };
        for version in [None, Some(&other)] {
            let sharing = row().sharing(None, version);
            assert_eq!(sharing, Sharing::Held(row().holder()));
        }
        let open = LockRow {
            multi_primary: true,
            ..free()
        };
        assert_eq!(open.sharing(None, None), Sharing::Open);
    }

    #[test]
    fn an_exclusive_grant_is_replaced_while_it_holds_the_lock_and_no_longer() {
        let (own, other) = (Some(GrantId::of([7; 16])), Some(GrantId::of([8; 16])));
        assert_eq!(held().sharing(own, None), Sharing::Open);
        let unmarked = LockRow {
            is_shared: false,
            ..held()
        };
        assert_eq!(unmarked.sharing(own, None), Sharing::NotMarked);
        let expired = LockRow {
            expires_in: Some(0),
            ..held()
        };
        for row in [free(), expired] {
            assert_eq!(row.sharing(own, None), Sharing::Held(row.holder()));
        }
        assert_eq!(held().sharing(other, None), Sharing::Held(held().holder()));
    }

    fn reader(slot: i32, expires_in: Option<i64>) -> LockRow {
        LockRow {
            slot: Slot::Shared(slot),
            holder: Some(format!("reader {slot}")),
            expires_in,
            ..held()
        }
    }

    #[test]
    fn an_exclusive_grant_waits_for_every_row_and_for_that_which_ends_first_first() {
        assert_eq!(reader_in_the_way(&[]), None);
        let rows = [
            reader(-2, Some(9_000_000)),
            reader(-3, Some(-1)),
            LockRow {
                is_infinite: true,
                ..reader(-4, Some(i64::MAX))
            },
        ];
        let holder = reader_in_the_way(&rows).expect("three are there");
        assert_eq!(holder.holder.as_deref(), Some("reader -3"));
        let readers = holder.readers.expect("they share it");
        assert_eq!((readers.held, readers.observed.len()), (3, 0));
    }

    #[test]
    fn on_a_cluster_the_end_of_each_shared_grant_is_observed() {
        let clustered = |row| LockRow {
            multi_primary: true,
            ..row
        };
        let rows = [
            clustered(reader(-2, Some(9_000_000))),
            clustered(reader(-3, None)),
        ];
        let holder = reader_in_the_way(&rows).expect("two are there");
        let observed = holder.readers.expect("they share it").observed;
        let slots: Vec<Slot> = observed.iter().map(|(slot, _)| *slot).collect();
        assert_eq!(slots, [Slot::Shared(-2)]);
    }

    #[test]
    fn a_grant_whose_lease_was_ended_for_shared_ones_is_not_there_to_be_released() {
        let grant = Grant {
            name: LockName::new("list").unwrap(),
            slot: Slot::Lock,
            token: Token::from_db(7),
            id: GrantId::of([7; 16]),
            holder: "a writer".into(),
            confirmed_by: None,
        };
        let release = ReleaseCommand::of(&grant, Ttl::Infinite);
        assert!(held().contains_grant_of(&release));
        let ended = LockRow {
            expires_in: None,
            ..held()
        };
        assert!(!ended.contains_grant_of(&release));
    }

    #[test]
    fn a_grant_that_is_recognised_tells_whether_its_lock_was_ever_shared() {
        let command = AcquireCommand {
            name: LockName::new("list").unwrap(),
            grant: GrantId::of([7; 16]),
            holder: "a writer".into(),
            length: Duration::from_secs(30),
            not_within: None,
            metadata: "{}".into(),
            expired_version: None,
            kind: Kind::Exclusive,
        };
        for shared in [true, false] {
            let row = LockRow {
                is_shared: shared,
                ..held()
            };
            let outcome = row.failed_acquire_outcome(&command);
            assert!(
                matches!(outcome, Outcome::Granted { is_shared, .. } if is_shared == shared),
                "{outcome:?}"
            );
            let Outcome::Granted { is_shared, .. } = outcome.of_shared(!shared) else {
                panic!("granted")
            };
            assert_eq!(is_shared, !shared);
        }
        assert_eq!(Outcome::Busy.of_shared(true), Outcome::Busy);
    }
}
