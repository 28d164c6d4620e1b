//! Releases: by the holder, and by force.

use database_locks::seam::{Force, ReleaseCommand, Released, Renewal, Slot, random_grant_id};
use database_locks::{LostReason, Ttl};

use super::fixture::{LONG, StoreFixture, WITHIN, granted, holder_of, name, release, renew};
use crate::promise::promise;

/// A release by force frees the lock, notifies the holder, and keeps tokens growing.
pub async fn a_release_by_force_is_a_loss_for_the_holder(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    assert_eq!(
        store
            .force(&name("job"), Slot::Lock, WITHIN)
            .await
            .expect("an answer"),
        Force::WasFree
    );
    let grant = granted(&*store, "job", "me", LONG).await;
    let Force::Freed(from) = store
        .force(&name("job"), Slot::Lock, WITHIN)
        .await
        .expect("an answer")
    else {
        panic!("not freed")
    };
    assert_eq!(from.holder.as_deref(), Some("me"));
    assert_eq!(
        renew(&*store, &grant, LONG).await.lost(),
        Some(LostReason::Forced)
    );
    assert_eq!(release(&*store, &grant).await, Released::NotHeld);
    assert_eq!(
        store
            .force(&name("job"), Slot::Lock, WITHIN)
            .await
            .expect("an answer"),
        Force::WasFree
    );
    assert!(granted(&*store, "job", "you", LONG).await.token > grant.token);
    assert!(matches!(
        renew(&*store, &grant, LONG).await,
        Renewal::Lost(_)
    ));
    promise("P6", fixture.engine);
}

/// A grant whose reply was lost is released by its grant id alone.
pub async fn a_grant_whose_token_is_unknown_can_be_released(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let what = ReleaseCommand {
        token: None,
        ..ReleaseCommand::of(&grant, Ttl::from(LONG))
    };
    let other_grant = ReleaseCommand {
        grant: random_grant_id().expect("randomness"),
        ..what.clone()
    };
    let done = store
        .release(&[other_grant, what], WITHIN)
        .await
        .expect("an answer");
    assert_eq!(done, [Released::NotHeld, Released::Freed]);
    granted(&*store, "job", "other", LONG).await;
}

/// Each release of a batch has its own answer.
pub async fn a_batch_of_releases_is_answered_one_by_one(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let mut returns = Vec::new();
    for lock in ["a", "forced", "b", "lost", "c"] {
        let grant = granted(&*store, lock, "me", LONG).await;
        returns.push(ReleaseCommand::of(&grant, Ttl::from(LONG)));
    }
    for lock in ["forced", "lost"] {
        let forced = store
            .force(&name(lock), Slot::Lock, WITHIN)
            .await
            .expect("an answer");
        assert!(matches!(forced, Force::Freed(_)), "{forced:?}");
    }
    granted(&*store, "lost", "other", LONG).await;
    let of_no_row = ReleaseCommand {
        slot: Default::default(),
        name: name("no row"),
        ..returns[0].clone()
    };
    returns.push(of_no_row);
    let done = store.release(&returns, WITHIN).await.expect("an answer");
    let (freed, not_ours) = (Released::Freed, Released::NotHeld);
    assert_eq!(done, [freed, not_ours, freed, not_ours, freed, not_ours]);
    let again = store.release(&returns, WITHIN).await.expect("an answer");
    assert_eq!(again, [not_ours; 6]);
    assert_eq!(holder_of(&*store, "a").await, None);
    assert_eq!(holder_of(&*store, "lost").await.as_deref(), Some("other"));
}
