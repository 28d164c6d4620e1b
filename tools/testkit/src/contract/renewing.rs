//! Renewals: which extend a lease, and which come too late.

use std::time::Duration;

use database_locks::seam::{AcquireCommand, Grant, Outcome, ReleaseCommand, Released, Renewal};
use database_locks::{ListFilter, LockInfo, LockState, LostReason, Ttl};

use super::fixture::{
    BRIEF, LONG, SHORT, StoreFixture, WITHIN, acquire_command, grant_of, granted, holder_of, info,
    list, name, outlived, release, renew, try_once,
};
use crate::promise::promise;

/// Renewing lengthens.
pub async fn renewed_leases_outlive_their_first_length(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", BRIEF).await;
    assert!(renew(&*store, &grant, LONG).await.is_renewed());
    outlived(BRIEF).await;
    assert!(matches!(
        try_once(&*store, &acquire_command("job", "other", LONG)).await,
        Outcome::Held(_)
    ));
}

/// Renewing never shortens.
pub async fn a_renewal_shortens_nothing(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    assert!(renew(&*store, &grant, SHORT).await.is_renewed());
    outlived(SHORT).await;
    assert_eq!(holder_of(&*store, "job").await.as_deref(), Some("me"));
    assert!(renew(&*store, &grant, Ttl::Infinite).await.is_renewed());
    assert!(renew(&*store, &grant, LONG).await.is_renewed());
    let state = info(&*store, "job").await.expect("a row").state;
    assert_eq!(
        state,
        LockState::Held { free_in: None },
        "without end it stays"
    );
}

/// A renewal that is repeated, since its reply was lost, does no harm.
pub async fn a_renewal_may_be_repeated(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    for _ in 0..3 {
        assert!(renew(&*store, &grant, LONG).await.is_renewed());
    }
    let twice = store
        .renew(&[(grant.clone(), LONG.into())], WITHIN)
        .await
        .expect("an answer");
    assert!(matches!(twice[..], [Renewal::Renewed { .. }]));
    assert_eq!(release(&*store, &grant).await, Released::Freed);
}

/// A lease without end lasts until it is released.
pub async fn an_endless_lease_ends_only_by_release(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", BRIEF).await;
    assert!(renew(&*store, &grant, Ttl::Infinite).await.is_renewed());
    outlived(BRIEF).await;
    let Outcome::Held(by) = try_once(&*store, &acquire_command("job", "other", LONG)).await else {
        panic!("given away")
    };
    assert_eq!(by.free_in, None);
    let row = info(&*store, "job").await.expect("a row");
    assert_eq!(
        (row.state, row.expires_at),
        (LockState::Held { free_in: None }, None)
    );
    let what = ReleaseCommand::of(&grant, Ttl::Infinite);
    assert_eq!(
        store.release(&[what], WITHIN).await.expect("an answer"),
        [Released::Freed]
    );
    granted(&*store, "job", "other", LONG).await;
}

/// After a take-over the old holder's late calls change nothing.
pub async fn a_stale_grant_can_neither_renew_nor_release(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let old = granted(&*store, "job", "first", SHORT).await;
    outlived(SHORT).await;
    let new = granted(&*store, "job", "second", LONG).await;
    let before = info(&*store, "job").await;

    let Renewal::Lost(gone) = renew(&*store, &old, LONG).await else {
        panic!("renewed")
    };
    assert_eq!(gone.reason, LostReason::Preempted);
    let now = gone.now.expect("who has it");
    assert_eq!(
        (now.holder.as_deref(), now.token),
        (Some("second"), Some(new.token))
    );
    assert!(now.held_for.is_some_and(|age| age < LONG), "{now:?}");
    assert_eq!(release(&*store, &old).await, Released::NotHeld);
    let after = info(&*store, "job").await.expect("a row");
    assert_eq!(after.token, new.token);
    assert_eq!(after.expires_at, before.and_then(|row| row.expires_at));
    promise("P3", fixture.engine);
}

/// A grant of the same holder is another grant: the grant counts, not the holder's name.
pub async fn the_same_holder_is_another_grant(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let old = granted(&*store, "job", "me", SHORT).await;
    outlived(SHORT).await;
    let new = granted(&*store, "job", "me", LONG).await;
    assert!(matches!(renew(&*store, &old, LONG).await, Renewal::Lost(_)));
    assert_eq!(release(&*store, &old).await, Released::NotHeld);
    assert!(renew(&*store, &new, LONG).await.is_renewed());
}

/// A renewal that comes after the release, or after the end, revives nothing.
pub async fn a_late_renewal_revives_nothing(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let released = granted(&*store, "released", "me", LONG).await;
    release(&*store, &released).await;
    let expired = granted(&*store, "expired", "me", SHORT).await;
    outlived(SHORT).await;

    assert_eq!(
        renew(&*store, &released, LONG).await.lost(),
        Some(LostReason::Released)
    );
    assert_eq!(holder_of(&*store, "released").await, None);
    // On a cluster no clock ends the lease: its holder keeps it until another client takes over.
    if !fixture.is_cluster() {
        assert_eq!(
            renew(&*store, &expired, LONG).await.lost(),
            Some(LostReason::Expired)
        );
        assert_eq!(holder_of(&*store, "expired").await, None);
    }
    let never = Grant {
        slot: Default::default(),
        name: name("never made"),
        ..expired
    };
    assert_eq!(
        renew(&*store, &never, LONG).await.lost(),
        Some(LostReason::RowGone)
    );
    assert_eq!(
        info(&*store, "never made").await,
        None,
        "renewing makes no row"
    );
    promise("P3", fixture.engine);
}

/// Token, grant id and holder must all be right.
pub async fn a_grant_that_differs_in_any_part_is_refused(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let other = granted(&*store, "other", "me", LONG).await;
    let token = other
        .token
        .max(granted(&*store, "third", "me", LONG).await.token);
    let wrong = [
        Grant {
            id: other.id,
            ..grant.clone()
        },
        Grant {
            holder: "you".into(),
            ..grant.clone()
        },
        Grant {
            token: if token == grant.token {
                other.token
            } else {
                token
            },
            ..grant.clone()
        },
    ];
    for wrong in wrong.iter().filter(|wrong| **wrong != grant) {
        assert!(
            matches!(renew(&*store, wrong, LONG).await, Renewal::Lost(_)),
            "{wrong:?}"
        );
        assert_eq!(
            release(&*store, wrong).await,
            Released::NotHeld,
            "{wrong:?}"
        );
    }
    assert!(renew(&*store, &grant, LONG).await.is_renewed());
}

/// Each renewal of a batch has its own answer and its own length.
pub async fn a_batch_of_renewals_is_answered_one_by_one(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let gone = granted(&*store, "gone", "me", LONG).await;
    release(&*store, &gone).await;
    let kept = granted(&*store, "kept", "me", BRIEF).await;
    let endless = granted(&*store, "endless", "me", BRIEF).await;
    let round = [
        (gone, LONG.into()),
        (kept.clone(), LONG.into()),
        (
            Grant {
                slot: Default::default(),
                name: name("no row"),
                ..kept
            },
            LONG.into(),
        ),
        (endless, Ttl::Infinite),
    ];
    let answers = store.renew(&round, WITHIN).await.expect("an answer");
    let lost = |reason: LostReason| Renewal::Lost(reason.into());
    assert_eq!(answers[0], lost(LostReason::Released));
    assert!(answers[1].is_renewed(), "{answers:?}");
    assert_eq!(answers[2], lost(LostReason::RowGone));
    assert!(answers[3].is_renewed(), "{answers:?}");
    outlived(BRIEF).await;
    let state = |row: Option<LockInfo>| row.expect("a row").state;
    assert_eq!(
        state(info(&*store, "endless").await),
        LockState::Held { free_in: None }
    );
    assert_eq!(holder_of(&*store, "kept").await.as_deref(), Some("me"));
}

/// One call renews two thousand leases.
pub async fn two_thousand_leases_are_renewed_by_one_call(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let commands: Vec<AcquireCommand> = (0..2000)
        .map(|i| acquire_command(&format!("lock {i}"), "me", LONG))
        .collect();
    let mut round = Vec::new();
    for commands in commands.chunks(500) {
        let outcomes = store.acquire(commands, WITHIN).await.expect("an answer");
        for (command, outcome) in commands.iter().zip(outcomes) {
            let Outcome::Granted { token, .. } = outcome else {
                panic!("{outcome:?}")
            };
            round.push((
                grant_of(command, token),
                Ttl::from(Duration::from_secs(600)),
            ));
        }
    }
    let answers = store.renew(&round, WITHIN).await.expect("an answer");
    assert_eq!(answers.len(), 2000);
    assert!(answers.iter().all(|answer| answer.is_renewed()));
    let rows = list(&*store, &ListFilter::new()).await;
    let extended = |row: &LockInfo| match row.state {
        LockState::Held {
            free_in: Some(left),
        } => left > Duration::from_secs(500),
        _ => false,
    };
    assert!(rows.iter().all(extended));
}
