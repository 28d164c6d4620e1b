//! Preemption of a lock by its own holder.

use database_locks::LostReason;
use database_locks::seam::{
    AcquireCommand, Grant, Outcome, Released, Store, StoreError, TakeOverCommand,
};
use database_locks::{LockState, Ttl};

use super::fixture::{
    LONG, SHORT, StoreFixture, WITHIN, acquire_command, grant_of, granted, info, name, outlived,
    release, renew,
};
use crate::promise::promise;

/// A preemption by `holder` of the grant `seen`.
pub fn over(seen: &Grant, holder: &str) -> TakeOverCommand {
    let metadata = format!("{{\"over\":\"{}\"}}", seen.id).into();
    TakeOverCommand {
        to: AcquireCommand {
            metadata,
            ..acquire_command(seen.name.as_str(), holder, LONG)
        },
        token: seen.token,
        grant: Some(seen.id.as_str().to_owned()),
    }
}

/// Sends a request once, and again after conflicts that are not about this lock.
pub async fn take_over(store: &dyn Store, command: &TakeOverCommand) -> Outcome {
    for _ in 0..2000 {
        match store.take_over(command, WITHIN).await {
            Err(StoreError::Contention(_)) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            done => return done.expect("an answer"),
        }
    }
    panic!("contention without end")
}

/// Repeats the request while the node does not have the grant yet.
async fn take_over_soon(
    fixture: &StoreFixture,
    store: &dyn Store,
    command: &TakeOverCommand,
) -> Outcome {
    let mut outcome = take_over(store, command).await;
    for _ in 0..200 {
        if !fixture.is_cluster() || matches!(outcome, Outcome::Granted { .. }) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        outcome = take_over(store, command).await;
    }
    outcome
}

/// The same holder gets a greater token at once, and its former grant can no longer change the row.
pub async fn the_same_holder_takes_over(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    for ttl in [Ttl::from(LONG), Ttl::Infinite] {
        let old = granted(&*store, "job", "me", LONG).await;
        assert!(renew(&*store, &old, ttl).await.is_renewed());
        let command = over(&old, "me");
        let other = fixture.store();
        let taken = take_over_soon(fixture, &*other, &command).await;
        let Outcome::Granted { token, length, .. } = taken else {
            panic!("{ttl}: not granted: {taken:?}")
        };
        assert!(token > old.token && length == LONG);
        let again = take_over_soon(fixture, &*store, &command).await;
        assert!(
            matches!(again, Outcome::Granted { token: same, .. } if same == token),
            "its reply may be lost: {again:?}"
        );

        let row = info(&*store, "job").await.expect("a row");
        assert_eq!(row.holder.as_deref(), Some("me"));
        assert_eq!(
            (row.token, row.grant.as_deref()),
            (token, Some(command.to.grant.as_str()))
        );
        let left = match row.state {
            LockState::Held { free_in } => free_in.expect("as long as was asked for"),
            other => panic!("{other:?}"),
        };
        assert!(left <= LONG && left > LONG / 2, "{left:?}");
        assert!(row.held_for.is_some_and(|age| age < LONG));

        let taken_over = Some(LostReason::Preempted);
        assert_eq!(renew(&*store, &old, LONG).await.lost(), taken_over);
        assert_eq!(release(&*store, &old).await, Released::NotHeld);
        let new = grant_of(&command.to, token);
        assert!(renew(&*store, &new, LONG).await.is_renewed());
        assert_eq!(release(&*store, &new).await, Released::Freed);
        assert_eq!(
            renew(&*store, &old, LONG).await.lost(),
            taken_over,
            "not by force, when the other has released it"
        );
    }
    for id in ["P2", "P3"] {
        promise(id, fixture.engine);
    }
}

/// Only the observed grant is taken over, and only by its own holder.
pub async fn only_the_observed_grant_is_taken_over(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let held = granted(&*store, "job", "me", LONG).await;
    let other = granted(&*store, "other", "me", LONG).await;
    let by_another = over(&held, "you");
    let mut another_grant = over(&held, "me");
    another_grant.grant = Some(other.id.to_string());
    let mut no_grant = over(&held, "me");
    no_grant.grant = None;
    let mut another_token = over(&held, "me");
    another_token.token = granted(&*store, "later", "me", LONG).await.token;
    let mut refused = vec![by_another, another_grant, no_grant];
    if another_token.token != held.token {
        refused.push(another_token);
    }
    let before = info(&*store, "job").await.expect("a row");
    for command in refused {
        let outcome = take_over(&*store, &command).await;
        let Outcome::Held(by) = &outcome else {
            panic!("{command:?}: {outcome:?}")
        };
        assert_eq!(
            (by.holder.as_deref(), by.token),
            (Some("me"), Some(held.token))
        );
        assert_eq!(
            (by.grant.as_deref(), by.is_legacy),
            (Some(held.id.as_str()), false)
        );
    }
    let after = info(&*store, "job").await.expect("a row");
    assert_eq!(
        (after.token, after.expires_at),
        (before.token, before.expires_at)
    );
    assert!(renew(&*store, &held, LONG).await.is_renewed());
    promise("P1", fixture.engine);
}

/// A lock that is free or expired is not preempted, and no row is made.
pub async fn a_free_lock_is_not_taken_over(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let released = granted(&*store, "released", "me", LONG).await;
    release(&*store, &released).await;
    let expired = granted(&*store, "expired", "me", SHORT).await;
    outlived(SHORT).await;
    // On a cluster no clock ends the lease: its holder keeps it until another client takes over.
    let ended = match fixture.is_cluster() {
        true => vec![released],
        false => vec![released, expired],
    };
    for old in ended {
        let outcome = take_over(&*store, &over(&old, "me")).await;
        assert_eq!(outcome, Outcome::Busy, "{old:?}");
        let row = info(&*store, old.name.as_str()).await.expect("a row");
        assert_eq!(row.token, old.token);
        let never = Grant {
            slot: Default::default(),
            name: name("never made"),
            ..old
        };
        assert_eq!(take_over(&*store, &over(&never, "me")).await, Outcome::Busy);
    }
    assert_eq!(info(&*store, "never made").await, None);
}
