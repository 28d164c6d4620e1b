//! Acquires of a lock that is free, held, expired or unknown.

use std::sync::Arc;
use std::time::Duration;

use database_locks::seam::{AcquireCommand, Outcome, Released, Slot, Version, random_grant_id};
use database_locks::{LockState, Token};

use super::fixture::{
    BRIEF, LONG, SHORT, StoreFixture, WITHIN, acquire_command, decided, expired_version, grant_of,
    granted, holder_of, info, name, outlived, release, renew, try_once,
};
use crate::promise::promise;
use crate::time::now;

/// A free lock is granted; a held lock answers its holder, since when, and for how long.
pub async fn a_held_lock_names_its_holder(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    granted(&*store, "job", "first", LONG).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let Outcome::Held(by) =
        try_once(&*fixture.store(), &acquire_command("job", "second", LONG)).await
    else {
        panic!("granted twice")
    };
    assert_eq!(by.holder.as_deref(), Some("first"));
    let held_for = by.held_for.expect("since when");
    assert!(
        held_for >= Duration::from_millis(40) && held_for < LONG,
        "{held_for:?}"
    );
    let free_in = by.free_in.expect("for how long");
    assert!(free_in > LONG / 2 && free_in <= LONG, "{free_in:?}");
    promise("P1", fixture.engine);
}

/// An expired lease is granted to another client, by the clock of the database.
pub async fn an_expired_lock_is_free(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let old = granted(&*store, "job", "first", BRIEF).await;
    assert!(matches!(
        try_once(&*store, &acquire_command("job", "second", LONG)).await,
        Outcome::Held(_)
    ));
    outlived(BRIEF).await;
    let new = granted(&*store, "job", "second", LONG).await;
    assert!(new.token > old.token);
    assert_eq!(holder_of(&*store, "job").await.as_deref(), Some("second"));
    promise("P5", fixture.engine);
}

/// A lock that was released can be acquired at once.
pub async fn a_released_lock_is_free(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let grant = granted(&*store, "job", "first", LONG).await;
    assert_eq!(release(&*store, &grant).await, Released::Freed);
    let row = info(&*store, "job").await.expect("the row stays");
    assert_eq!((row.state, row.grant), (LockState::Free, None));
    granted(&*fixture.store(), "job", "second", LONG).await;
}

/// Each grant has a greater token than all before, however the one before ended.
pub async fn tokens_grow(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let mut last = granted(&*store, "job", "me", LONG).await;
    for _ in 0..20 {
        release(&*store, &last).await;
        let next = granted(&*store, "job", "me", LONG).await;
        assert!(
            next.token > last.token,
            "{} after {}",
            next.token,
            last.token
        );
        last = next;
    }
    store
        .force(&last.name, Slot::Lock, WITHIN)
        .await
        .expect("an answer");
    assert!(granted(&*store, "job", "me", LONG).await.token > last.token);
    promise("P2", fixture.engine);
}

/// The first token of a row is the database's clock in ms since 1970. So a row that was deleted and
/// made again has greater tokens than before.
pub async fn the_first_token_is_the_time_of_the_database(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let token = granted(&*store, "job", "me", LONG).await.token.get();
    let row = info(&*store, "job").await.expect("a row");
    let at = row
        .acquired_at
        .expect("a time")
        .duration_since(std::time::UNIX_EPOCH)
        .expect("past");
    let off = token.abs_diff(i64::try_from(at.as_millis()).expect("fits"));
    assert!(
        off <= 1,
        "token {token} is {off} ms off the time of the grant"
    );
}

/// A request that is repeated, since its reply was lost, gets the grant of the first.
pub async fn a_repeated_acquire_recognises_its_own_grant(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = acquire_command("job", "me", LONG);
    let Outcome::Granted { token: first, .. } = try_once(&*store, &command).await else {
        panic!("not granted")
    };
    let Outcome::Granted { token, length, .. } = decided(&*fixture.store(), &command).await else {
        panic!("not recognised")
    };
    assert_eq!(token, first);
    assert!(
        length <= LONG && length > LONG / 2,
        "what is left, not the whole: {length:?}"
    );
    // Among others too: no holder may trust more than the database has.
    tokio::time::sleep(SHORT).await;
    let (sent, other) = (now(), self::acquire_command("other", "me", LONG));
    let outcomes = store
        .acquire(&[command, other], WITHIN)
        .await
        .expect("an answer");
    let Outcome::Granted { token, length, .. } = outcomes[0] else {
        panic!("not recognised: {outcomes:?}")
    };
    let row = info(&*store, "job").await.expect("a row");
    let LockState::Held {
        free_in: Some(left),
    } = row.state
    else {
        panic!("not held: {row:?}")
    };
    assert_eq!(token, first);
    // Lengths on SQLite are differences of whole milliseconds; either may be off by one.
    let rounding = Duration::from_millis(if fixture.engine == "sqlite" { 2 } else { 0 });
    assert!(
        left + sent.elapsed() + rounding >= length,
        "{left:?} of {length:?}"
    );
    promise("P7", fixture.engine);
}

/// Each acquire of a batch has its own answer.
pub async fn a_batch_of_acquires_is_answered_one_by_one(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    granted(&*store, "held", "other", LONG).await;
    let free = granted(&*store, "free", "other", LONG).await;
    release(&*store, &free).await;
    let locks = ["new b", "held", "free", "new a"];
    let commands: Vec<AcquireCommand> = locks
        .iter()
        .map(|lock| acquire_command(lock, "me", LONG))
        .collect();
    let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
    let mine: Vec<bool> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::Granted { .. }))
        .collect();
    assert_eq!(mine, [true, false, true, true], "{outcomes:?}");
    for (command, outcome) in commands.iter().zip(outcomes) {
        if let Outcome::Granted { token, .. } = outcome {
            assert!(
                renew(&*store, &grant_of(command, token), LONG)
                    .await
                    .is_renewed()
            );
        }
    }
}

/// Two tasks of a process request the same lock in one batch: it is granted once, with or without a
/// row.
pub async fn a_batch_that_asks_for_a_lock_twice_gets_it_once(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let free = granted(&*store, "free", "other", LONG).await;
    release(&*store, &free).await;
    let commands = ["free", "new", "free", "new"].map(|lock| acquire_command(lock, "me", LONG));
    let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
    for lock in ["free", "new"] {
        let mine = commands.iter().zip(&outcomes).filter(|(command, outcome)| {
            command.name == name(lock) && matches!(outcome, Outcome::Granted { .. })
        });
        let mine: Vec<_> = mine.map(|(command, _)| command.grant).collect();
        assert_eq!(mine.len(), 1, "{lock}: {outcomes:?}");
        let again = commands.iter().find(|command| command.grant == mine[0]);
        let again = try_once(&*store, again.expect("one of them")).await;
        assert!(matches!(again, Outcome::Granted { .. }), "{again:?}");
    }
    promise("P1", fixture.engine);
}

/// Each row has the values of its own request, with any characters.
pub async fn a_batch_writes_for_each_what_it_asked_for(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let message = r#"{"meta":{"why":"\"quoted\", a \\ and an é 🔒"}}"#;
    let mut commands = ["one", "two"].map(|lock| acquire_command(lock, "me \"\\ é 🔒", LONG));
    commands[1].metadata = message.into();
    // First as new rows, then as existing ones.
    for _ in 0..2 {
        let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
        for (command, outcome) in commands.iter().zip(&outcomes) {
            let Outcome::Granted { token, .. } = outcome else {
                panic!("{outcomes:?}")
            };
            let row = info(&*store, command.name.as_str()).await.expect("a row");
            assert_eq!(row.token, *token);
            assert_eq!(row.holder.as_deref(), Some(&*command.holder));
            assert_eq!(row.metadata.as_deref(), Some(&*command.metadata));
            release(&*store, &grant_of(command, *token)).await;
        }
        for command in &mut commands {
            command.grant = random_grant_id().expect("randomness");
        }
    }
}

/// Of twenty clients that use a new name at the same time, one gets the lock.
pub async fn first_use_by_twenty_at_once_has_one_winner(fixture: &StoreFixture) {
    let _first = fixture.ready().await;
    let winners = race(fixture, "never seen", None, 20).await;
    assert_eq!(winners.len(), 1);
    promise("P1", fixture.engine);
    promise("P15", fixture.engine);
}

/// Of twenty clients that wait for an expired lease, one gets the lock.
pub async fn an_expired_lease_has_one_successor(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let old = granted(&*store, "job", "first", SHORT).await;
    outlived(SHORT).await;
    let seen = expired_version(fixture, "job").await;
    let winners = race(fixture, "job", seen.as_ref(), 20).await;
    assert_eq!(winners.len(), 1);
    assert!(winners[0] > old.token);
}

async fn race(
    fixture: &StoreFixture,
    lock: &str,
    seen: Option<&Version>,
    clients: usize,
) -> Vec<Token> {
    let start = Arc::new(tokio::sync::Barrier::new(clients));
    let tasks: Vec<_> = (0..clients)
        .map(|i| {
            let (start, store) = (Arc::clone(&start), fixture.store());
            let command = AcquireCommand {
                expired_version: seen.cloned(),
                ..acquire_command(lock, &format!("client {i}"), LONG)
            };
            tokio::spawn(async move {
                while store.connect(WITHIN).await.is_err() {}
                start.wait().await;
                // Another client is taking it just now.
                for _ in 0..2_000 {
                    match try_once(&*store, &command).await {
                        Outcome::Granted { token, .. } => return Some(token),
                        Outcome::Held(_) => return None,
                        Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
                        other => panic!("{other:?}"),
                    }
                }
                panic!("busy without end")
            })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        winners.extend(task.await.expect("no panic"));
    }
    winners
}
