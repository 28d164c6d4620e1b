//! Locks that rest after their release: `at_least`.

use std::time::Duration;

use database_locks::seam::{
    Force, Holder, Outcome, ReleaseCommand, Released, ResumeCommand, Rows, Slot, Store,
};
use database_locks::{ListFilter, LockInfo, LockState, LostReason, Ttl};

use super::fixture::{
    LONG, SHORT, StoreFixture, WITHIN, acquire_command, granted, info, list, name, outlived,
    release, renew, try_once,
};
use super::same_holder::{over, take_over};
use crate::promise::promise;

/// A rest that does not end during a test.
const REST: Duration = Duration::from_secs(40);

/// The release of a grant of this lock, made now, after which the lock rests.
async fn release_of(store: &dyn Store, lock: &str, rest: Duration) -> ReleaseCommand {
    let grant = granted(store, lock, "me", LONG).await;
    ReleaseCommand::of(&grant, Ttl::from(LONG)).resting(rest)
}

async fn released(store: &dyn Store, commands: &[ReleaseCommand]) -> Vec<Released> {
    store.release(commands, WITHIN).await.expect("an answer")
}

fn is_resting(row: &LockInfo) -> bool {
    matches!(row.state, LockState::Resting { free_in } if free_in > REST / 2 && free_in <= REST)
}

/// A lock that rests has no holder, and no client acquires it before the rest has ended.
pub async fn a_lock_rests_after_its_release(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = release_of(&*store, "job", REST).await;
    let acquired_at = info(&*store, "job").await.expect("a row").acquired_at;
    assert_eq!(
        released(&*store, std::slice::from_ref(&command)).await,
        [Released::Freed]
    );
    let row = info(&*store, "job").await.expect("a row");
    assert!(is_resting(&row), "{row:?}");
    assert_eq!((row.grant, row.held_for), (None, None));
    assert_eq!(
        (row.holder.as_deref(), row.acquired_at),
        (Some("me"), acquired_at)
    );
    let Outcome::Held(by) = try_once(&*store, &acquire_command("job", "you", LONG)).await else {
        panic!("not refused")
    };
    assert!(by.is_resting && by.grant.is_none(), "{by:?}");
    assert!(
        by.free_in
            .is_some_and(|left| left > REST / 2 && left <= REST)
    );
    let polled = store
        .holders(&[name("job")], WITHIN)
        .await
        .expect("an answer");
    assert!(
        matches!(
            &polled[..],
            [Some(Holder {
                is_resting: true,
                ..
            })]
        ),
        "{polled:?}"
    );
    // The grant is over for its former holder.
    let grant = database_locks::seam::Grant {
        slot: Default::default(),
        name: command.name.clone(),
        token: command.token.expect("a token"),
        id: command.grant,
        holder: command.holder.clone(),
        confirmed_by: None,
    };
    assert_eq!(
        renew(&*store, &grant, LONG).await.lost(),
        Some(LostReason::Released)
    );
    promise("P1", fixture.engine);
}

/// A release whose reply was lost is sent again with what is left of the rest then.
pub async fn a_repeated_release_makes_no_rest_longer(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = release_of(&*store, "job", REST).await;
    assert_eq!(
        released(&*store, std::slice::from_ref(&command)).await,
        [Released::Freed]
    );
    let before = info(&*store, "job").await.expect("a row").expires_at;
    assert!(before.is_some());
    for again in [
        command.clone().resting(2 * REST),
        ReleaseCommand {
            token: None,
            ..command
        },
    ] {
        assert_eq!(released(&*store, &[again]).await, [Released::NotHeld]);
    }
    assert_eq!(
        info(&*store, "job").await.expect("a row").expires_at,
        before
    );
}

/// When the rest has ended the lock is free, on a cluster by the clock of the node too.
pub async fn a_lock_is_free_after_its_rest(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = release_of(&*store, "job", SHORT).await;
    let token = command.token;
    released(&*store, &[command]).await;
    outlived(SHORT).await;
    let row = info(&*store, "job").await.expect("a row");
    assert_eq!((row.state, row.expires_at), (LockState::Free, None));
    let polled = store
        .holders(&[name("job")], WITHIN)
        .await
        .expect("an answer");
    assert_eq!(polled, [None]);
    let next = acquire_command("job", "you", LONG);
    let outcome = try_once(&*store, &next).await;
    assert!(
        matches!(outcome, Outcome::Granted { token: next, .. } if Some(next) > token),
        "at once: {outcome:?}"
    );
}

/// Force ends a rest.
pub async fn a_release_by_force_ends_a_rest(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = release_of(&*store, "job", REST).await;
    released(&*store, &[command]).await;
    let forced = store
        .force(&name("job"), Slot::Lock, WITHIN)
        .await
        .expect("an answer");
    let Force::Freed(from) = forced else {
        panic!("{forced:?}")
    };
    assert!(
        from.is_resting && from.holder.as_deref() == Some("me"),
        "{from:?}"
    );
    let again = store
        .force(&name("job"), Slot::Lock, WITHIN)
        .await
        .expect("an answer");
    assert_eq!(again, Force::WasFree);
    granted(&*store, "job", "you", LONG).await;
}

/// Neither the same holder nor a ticket ends a rest.
pub async fn a_rest_is_neither_taken_over_nor_resumed(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let command = ReleaseCommand::of(&grant, Ttl::from(LONG)).resting(REST);
    released(&*store, &[command]).await;
    let mut of_the_row = over(&grant, "me");
    of_the_row.grant = None;
    for command in [over(&grant, "me"), of_the_row] {
        let outcome = take_over(&*store, &command).await;
        assert!(
            matches!(&outcome, Outcome::Held(by) if by.is_resting),
            "{outcome:?}"
        );
    }
    let resume = ResumeCommand {
        slot: Default::default(),
        token: grant.token,
        from: grant.id,
        to: acquire_command("job", "me", LONG),
    };
    let resumed = store.resume(&resume, WITHIN).await.expect("an answer");
    assert_eq!(resumed.lost(), Some(LostReason::Released));
    assert!(is_resting(&info(&*store, "job").await.expect("a row")));
}

/// Each release of a batch has its own rest, also where a batch has a statement of its own.
pub async fn a_batch_of_releases_has_a_rest_for_each(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let mut commands = Vec::new();
    for at in 0..12 {
        let rest = if at % 3 == 0 { REST } else { Duration::ZERO };
        commands.push(release_of(&*store, &format!("lock {at}"), rest).await);
    }
    assert_eq!(released(&*store, &commands).await, [Released::Freed; 12]);
    for (at, command) in commands.iter().enumerate() {
        let row = info(&*store, command.name.as_str()).await.expect("a row");
        match at % 3 {
            0 => assert!(is_resting(&row), "{row:?}"),
            _ => assert_eq!(row.state, LockState::Free, "{at}"),
        }
    }
}

/// Neither a list nor pruning takes a lock that rests for a free one, or one whose rest has ended
/// for a held one.
pub async fn a_lock_that_rests_is_listed_and_pruned_when_its_rest_has_ended(
    fixture: &StoreFixture,
) {
    let store = fixture.ready().await;
    for (lock, rest) in [("rests", REST), ("rested", SHORT)] {
        let command = release_of(&*store, lock, rest).await;
        released(&*store, &[command]).await;
    }
    outlived(SHORT).await;
    let rows = list(&*store, &ListFilter::new()).await;
    let states: Vec<_> = rows
        .iter()
        .map(|row| (row.name.as_str(), row.state.as_str()))
        .collect();
    assert_eq!(states, [("rested", "free"), ("rests", "resting")]);
    store
        .prune(Rows::Locks, Duration::ZERO, false, None, WITHIN)
        .await
        .expect("an answer");
    assert!(info(&*store, "rests").await.is_some(), "it is not deleted");
    // On a cluster a row stays for a day after its last grant.
    if !fixture.is_cluster() {
        assert_eq!(info(&*store, "rested").await, None);
    }
}

/// An ordinary release frees a lock at once.
pub async fn a_release_without_a_rest_frees_the_lock_at_once(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    assert_eq!(release(&*store, &grant).await, Released::Freed);
    assert_eq!(
        info(&*store, "job").await.expect("a row").state,
        LockState::Free
    );
    granted(&*store, "job", "you", LONG).await;
}
