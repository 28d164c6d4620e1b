//! Rows that rest, and grants that are too recent.

use super::*;

/// The row after a release with a rest, of which one second is left.
fn resting() -> LockRow {
    LockRow {
        grant: None,
        ..row()
    }
}

#[test]
fn a_lock_rests_without_a_holder_until_its_rest_has_ended() {
    let rest = LockState::Resting { free_in: secs(1) };
    assert!(!resting().is_held() && resting().is_taken());
    assert_eq!(resting().held_by(), None);
    let holder = resting().holder();
    assert!(holder.is_resting && !row().holder().is_resting);
    assert_eq!(
        (holder.free_in, holder.holder.as_deref()),
        (Some(secs(1)), Some("me"))
    );
    assert_eq!(
        resting().failed_acquire_outcome(&another()),
        Outcome::Held(holder)
    );
    let info = resting().into_info();
    assert_eq!((info.state, info.grant, info.held_for), (rest, None, None));
    assert!(info.expires_at.is_some() && info.acquired_at.is_some());
    let ended = LockRow {
        expires_in: Some(0),
        ..resting()
    };
    assert!(!ended.is_taken() && !ended.holder().is_resting);
    assert_eq!(ended.failed_acquire_outcome(&another()), Outcome::Busy);
    let info = ended.into_info();
    assert_eq!((info.state, info.expires_at), (LockState::Free, None));
}

#[test]
fn a_row_of_another_program_or_without_end_does_not_rest() {
    for change in [(|row| row.is_legacy = true) as fn(&mut LockRow), |row| {
        row.is_infinite = true
    }] {
        let mut row = resting();
        change(&mut row);
        assert!(row.is_held() && !row.holder().is_resting);
    }
}

#[test]
fn a_rest_cannot_be_taken_over_by_the_same_holder() {
    let command = TakeOverCommand {
        grant: None,
        ..take_over()
    };
    assert_eq!(
        resting().failed_take_over_outcome(&command),
        Outcome::Held(resting().holder())
    );
}

/// On a cluster the rest ends by the clock of the node, or by observation if that clock is behind.
#[test]
fn on_a_cluster_the_earlier_end_of_a_rest_counts() {
    let rest = |expires_in| LockRow {
        expires_in: Some(expires_in),
        expires_at: Some(1_000_030_000_000),
        renewed_at: Some(1_000_000_000_000),
        multi_primary: true,
        ..resting()
    };
    let resting = |free_in| LockState::Resting { free_in };
    for (expires_in, state) in [
        (20_000_000, resting(secs(20))),
        (50_000_000, resting(secs(30))),
        (0, LockState::Free),
        (-1, LockState::Free),
    ] {
        let row = rest(expires_in);
        let expiry = row.observed_expiry();
        assert_eq!(expiry.is_some(), state != LockState::Free);
        // Its holder is not dead, so no bounded wait is extended for it.
        assert!(expiry.is_none_or(|expiry| expiry.length == secs(30) && !expiry.overdue));
        assert_eq!(row.into_info().state, state, "{expires_in}");
    }
}

#[test]
fn a_grant_within_the_window_is_too_recent_even_if_it_still_holds_the_lock() {
    let command = AcquireCommand {
        not_within: Some(secs(10)),
        ..another()
    };
    let latest = |ago| {
        Outcome::TooRecent(LatestGrant {
            holder: Some("me".into()),
            ago,
        })
    };
    let held = Outcome::Held(row().holder());
    for (held_for, outcome) in [
        (Some(0), latest(secs(0))),
        (Some(10_000_000), latest(secs(10))),
        (Some(10_000_001), held.clone()),
        // The clock of another node was a little ahead, or the clock was set back.
        (Some(-10_000_000), latest(secs(0))),
        (Some(-10_000_001), held.clone()),
        (Some(i64::MIN), held.clone()),
        (None, held),
    ] {
        let seen = LockRow { held_for, ..row() };
        let outcome = match outcome {
            Outcome::Held(_) => Outcome::Held(seen.holder()),
            recent => recent,
        };
        assert_eq!(
            seen.failed_acquire_outcome(&command),
            outcome,
            "{held_for:?}"
        );
    }
    let free = LockRow {
        expires_in: None,
        ..row()
    };
    assert_eq!(free.failed_acquire_outcome(&command), latest(secs(2)));
    assert_eq!(free.failed_acquire_outcome(&another()), Outcome::Busy);
}

#[test]
fn after_a_legacy_holder_the_latest_grant_of_this_library_counts() {
    let legacy = LockRow {
        is_legacy: true,
        ..row()
    };
    let command = AcquireCommand {
        not_within: Some(secs(10)),
        ..another()
    };
    let latest = LatestGrant {
        holder: None,
        ago: secs(2),
    };
    assert_eq!(
        legacy.failed_acquire_outcome(&command),
        Outcome::TooRecent(latest)
    );
}

#[test]
fn a_grant_of_the_same_request_is_not_too_recent() {
    let command = AcquireCommand {
        not_within: Some(secs(10)),
        ..acquire(&grant())
    };
    let outcome = row().failed_acquire_outcome(&command);
    assert!(matches!(outcome, Outcome::Granted { .. }), "{outcome:?}");
}
