use std::sync::Arc;

use super::*;
use crate::messages::{Grant, Kind};
use crate::values::grant::GrantId;
use crate::values::ttl::Ttl;

const GRANT: &str = "07070707070707070707070707070707";

fn grant() -> Grant {
    Grant {
        slot: Slot::Lock,
        name: LockName::new("job").unwrap(),
        token: Token::from_db(7),
        id: GrantId::of([7; 16]),
        holder: "me".into(),
        confirmed_by: None,
    }
}

/// The row of a grant whose lease lasts one second more.
fn row() -> LockRow {
    LockRow {
        name: "job".into(),
        holder: Some("me".into()),
        token: 7,
        grant: Some(GRANT.into()),
        expires_in: Some(1_000_000),
        held_for: Some(2_000_000),
        acquired_at: Some(1_000_000),
        renewed_at: Some(2_000_000),
        expires_at: Some(4_000_000),
        metadata: Some("{}".into()),
        ..LockRow::default()
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn held_for(length: Duration) -> LockState {
    LockState::Held {
        free_in: Some(length),
    }
}

#[test]
fn a_lease_ends_when_the_clock_of_the_database_says_so() {
    for (expires_in, state) in [
        (None, LockState::Free),
        (Some(1), held_for(Duration::from_micros(1))),
        (Some(0), LockState::Expired { since: secs(0) }),
        (Some(-2_000_000), LockState::Expired { since: secs(2) }),
        (
            Some(i64::MIN),
            LockState::Expired {
                since: micros(i64::MAX),
            },
        ),
    ] {
        let row = LockRow {
            expires_in,
            ..row()
        };
        assert_eq!(row.is_held(), matches!(state, LockState::Held { .. }));
        assert_eq!(row.holder().free_in, state.free_in());
        assert_eq!(row.into_info().state, state);
    }
}

#[test]
fn an_infinite_lease_is_held_and_has_no_end() {
    for multi_primary in [false, true] {
        let row = LockRow {
            is_infinite: true,
            multi_primary,
            ..row()
        };
        assert!(row.is_held());
        assert_eq!(
            (row.holder().free_in, row.holder().observed_expiry),
            (None, None)
        );
        let info = row.into_info();
        assert_eq!(info.state, LockState::Held { free_in: None });
        assert_eq!(info.expires_at, None);
    }
}

#[test]
fn the_columns_of_a_held_row_are_shown() {
    let at = |secs| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs));
    let info = row().into_info();
    assert_eq!(
        (info.name.as_str(), info.holder.as_deref()),
        ("job", Some("me"))
    );
    assert_eq!((info.token.get(), info.grant.as_deref()), (7, Some(GRANT)));
    assert_eq!(
        (info.held_for, info.metadata.as_deref()),
        (Some(secs(2)), Some("{}"))
    );
    assert_eq!(
        (info.acquired_at, info.renewed_at, info.expires_at),
        (at(1), at(2), at(4))
    );
    assert_eq!(info.observed_expiry, None);
    assert_eq!(
        row().holder(),
        Holder {
            holder: Some("me".into()),
            token: Some(Token::from_db(7)),
            held_for: Some(secs(2)),
            free_in: Some(secs(1)),
            observed_expiry: None,
            grant: Some(GRANT.into()),
            is_legacy: false,
            permits: None,
            readers: None,
            is_resting: false,
        }
    );
}

#[test]
fn a_free_row_shows_its_latest_holder_and_no_grant() {
    let row = LockRow {
        expires_in: None,
        expires_at: None,
        ..row()
    };
    let info = row.into_info();
    assert_eq!((info.holder.as_deref(), info.token.get()), (Some("me"), 7));
    assert_eq!(
        (info.grant, info.held_for, info.metadata),
        (None, None, None)
    );
    assert!(info.acquired_at.is_some() && info.renewed_at.is_some());
}

#[test]
fn what_a_legacy_row_shows_of_an_earlier_grant_is_left_out() {
    let row = || LockRow {
        is_legacy: true,
        ..row()
    };
    let holder = row().holder();
    assert_eq!((holder.held_for, holder.is_legacy), (None, true));
    assert_eq!(
        row().held_by(),
        Some(HeldBy::new(Some("me".into()), None, None))
    );
    let info = row().into_info();
    assert_eq!(
        (info.grant, info.held_for, info.metadata),
        (None, None, None)
    );
    assert_eq!((info.acquired_at, info.renewed_at), (None, None));
    assert!(info.expires_at.is_some());
}

#[test]
fn the_holder_of_each_lock_is_found_by_its_name() {
    let names = ["free", "none", "job"].map(|name| LockName::new(name).unwrap());
    let free = LockRow {
        name: "free".into(),
        expires_in: None,
        ..row()
    };
    let holders = LockRow::holders(&names, &[row(), free]);
    assert_eq!(holders, [None, None, Some(row().holder())]);
}

/// A request for this grant.
fn acquire(grant: &Grant) -> AcquireCommand {
    AcquireCommand {
        grant: grant.id,
        ..take_over().to
    }
}

/// A request for another grant than that of the row.
fn another() -> AcquireCommand {
    take_over().to
}

#[test]
fn an_acquire_recognizes_its_own_grant() {
    let granted = Outcome::Granted {
        slot: Slot::Lock,
        token: Token::from_db(7),
        length: secs(1),
        is_shared: false,
        confirmed_by: None,
    };
    assert_eq!(row().failed_acquire_outcome(&acquire(&grant())), granted);
    assert_eq!(
        row().failed_acquire_outcome(&another()),
        Outcome::Held(row().holder())
    );
    let legacy = LockRow {
        is_legacy: true,
        ..row()
    };
    assert_eq!(
        legacy.failed_acquire_outcome(&acquire(&grant())),
        Outcome::Held(legacy.holder())
    );
}

#[test]
fn a_row_that_could_have_been_taken_is_busy() {
    for expires_in in [None, Some(0), Some(-1)] {
        let row = LockRow {
            expires_in,
            ..row()
        };
        assert_eq!(
            row.failed_acquire_outcome(&acquire(&grant())),
            Outcome::Busy
        );
        assert_eq!(row.failed_acquire_outcome(&another()), Outcome::Busy);
    }
}

fn take_over() -> TakeOverCommand {
    TakeOverCommand {
        to: AcquireCommand {
            name: grant().name,
            grant: GrantId::of([8; 16]),
            holder: "me".into(),
            length: secs(30),
            not_within: None,
            metadata: "{}".into(),
            expired_version: None,
            kind: Kind::Exclusive,
        },
        token: Token::from_db(7),
        grant: Some(GRANT.into()),
    }
}

#[test]
fn a_take_over_of_an_unchanged_row_met_another_transaction() {
    assert_eq!(row().failed_take_over_outcome(&take_over()), Outcome::Busy);
    let changes: [fn(&mut LockRow); 3] = [
        |row| row.token = 8,
        |row| row.grant = Some("another".into()),
        |row| row.holder = Some("you".into()),
    ];
    for change in changes {
        let mut row = row();
        change(&mut row);
        assert_eq!(
            row.failed_take_over_outcome(&take_over()),
            Outcome::Held(row.holder())
        );
    }
}

#[test]
fn a_take_over_recognizes_its_own_grant() {
    let row = LockRow {
        token: 8,
        grant: Some(take_over().to.grant.to_string()),
        ..row()
    };
    let granted = Outcome::Granted {
        slot: Slot::Lock,
        token: Token::from_db(8),
        length: secs(1),
        is_shared: false,
        confirmed_by: None,
    };
    assert_eq!(row.failed_take_over_outcome(&take_over()), granted);
}

#[test]
fn a_release_finds_its_grant_by_all_that_it_knows() {
    let release = ReleaseCommand::of(&grant(), Ttl::Infinite);
    let without_token = ReleaseCommand {
        slot: Slot::Lock,
        token: None,
        ..release.clone()
    };
    let is_of = |change: fn(&mut LockRow)| {
        let mut row = row();
        change(&mut row);
        (
            row.contains_grant_of(&release),
            row.contains_grant_of(&without_token),
        )
    };
    assert_eq!(is_of(|_| ()), (true, true));
    assert_eq!(
        is_of(|row| row.expires_in = Some(-1)),
        (true, true),
        "its lease ended"
    );
    assert_eq!(is_of(|row| row.token = 8), (false, true));
    assert_eq!(
        is_of(|row| row.grant = Some("another".into())),
        (false, false)
    );
    assert_eq!(is_of(|row| row.holder = None), (false, false));
    assert_eq!(is_of(|row| row.is_legacy = true), (false, false));
    let other = ReleaseCommand {
        holder: Arc::from("you"),
        ..release.clone()
    };
    assert!(!row().contains_grant_of(&other));
}

/// A lease of 30 s on a cluster, renewed this many microseconds ago by the clock of the node that
/// was asked.
fn on_cluster(ago: i64) -> LockRow {
    LockRow {
        expires_in: Some(30_000_000 - ago),
        expires_at: Some(1_000_030_000_000),
        renewed_at: Some(1_000_000_000_000),
        multi_primary: true,
        ..row()
    }
}

#[test]
fn no_clock_of_a_cluster_ends_a_lease() {
    for (ago, overdue) in [
        (0, false),
        (1, false),
        (29_999_999, false),
        // The holder is dead, or the clock of the node is ahead.
        (30_000_000, true),
        (330_000_000, true),
        // The clock is behind that of the node which renewed the lease.
        (-1, true),
        (-300_000_000, true),
    ] {
        let row = on_cluster(ago);
        let expiry = row.observed_expiry().expect("it is observed");
        assert_eq!(
            (expiry.length, expiry.overdue),
            (secs(30), overdue),
            "{ago}"
        );
        assert!(row.is_granted(GRANT), "{ago}");
        assert_eq!(row.holder().free_in, Some(secs(30)), "{ago}");
        assert_eq!(row.holder().observed_expiry.as_ref(), Some(&expiry));
        let info = row.into_info();
        assert_eq!(
            (info.state, info.observed_expiry),
            (held_for(secs(30)), Some(expiry))
        );
    }
    let free = LockRow {
        expires_in: None,
        expires_at: None,
        ..on_cluster(0)
    };
    assert_eq!(free.observed_expiry(), None);
    assert_eq!(free.failed_acquire_outcome(&another()), Outcome::Busy);
}

#[test]
fn one_clock_needs_no_observation() {
    let row = LockRow {
        multi_primary: false,
        ..on_cluster(30_000_000)
    };
    assert_eq!(row.observed_expiry(), None);
}

#[test]
fn each_write_makes_another_version() {
    let version = |change: fn(&mut LockRow)| {
        let mut row = on_cluster(1);
        change(&mut row);
        row.observed_expiry().map(|expiry| expiry.version)
    };
    let seen = version(|_| ());
    let expected = Version {
        token: 7,
        expires_at: 1_000_030_000_000,
        renewed_at: Some(1_000_000_000_000),
    };
    assert_eq!(seen, Some(expected));
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
}

#[test]
fn a_row_without_a_length_is_observed_for_a_minute_once_it_looks_expired() {
    let unknown: [fn(&mut LockRow); 3] = [
        |row| row.is_legacy = true,
        |row| row.renewed_at = None,
        |row| row.renewed_at = row.expires_at.map(|at| at + 1),
    ];
    for change in unknown {
        let observed = |ago| {
            let mut row = on_cluster(ago);
            change(&mut row);
            (row.observed_expiry(), row.holder().free_in)
        };
        assert_eq!(observed(10_000_000), (None, Some(secs(60 + 20))));
        assert_eq!(observed(29_999_999).0, None);
        let (expiry, free_in) = observed(30_000_000);
        let expiry = expiry.expect("it is observed");
        assert_eq!((expiry.length, expiry.overdue), (secs(60), true));
        assert_eq!(free_in, Some(secs(60)));
    }
    let renewed_at_its_end = LockRow {
        renewed_at: Some(1_000_030_000_000),
        ..on_cluster(30_000_000)
    };
    let expiry = renewed_at_its_end
        .observed_expiry()
        .expect("it is observed");
    assert_eq!(expiry.length, Duration::ZERO);
}

mod semaphore;
mod spacing;

#[test]
fn a_row_shows_whether_it_is_shared_or_its_lock_ever_was() {
    for (slot, marked, was_shared, shared_slot) in [
        (Slot::Lock, true, true, None),
        (Slot::Lock, false, false, None),
        (Slot::Shared(-2), true, false, Some(-2)),
        (Slot::Permit(2), false, false, None),
    ] {
        let info = LockRow {
            slot,
            is_shared: marked,
            ..row()
        };
        let info = info.into_info();
        assert_eq!(
            (info.was_shared, info.shared_slot),
            (was_shared, shared_slot)
        );
        assert_eq!(info.waits_for, None);
    }
}
