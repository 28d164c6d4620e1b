//! Many locks in one call: each is answered as if it were alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::seam::{
    AcquireCommand, Force, Grant, Outcome, ReleaseCommand, Released, Renewal, Slot, Store,
    StoreError, random_grant_id,
};
use database_locks::{LockInfo, LockName, LockState, Ttl};

use super::fixture::{
    LONG, StoreFixture, WITHIN, acquire_command, grant_of, granted, name, release, try_once,
};
use crate::promise::promise;

/// More locks than one statement of any engine takes.
const CROWD: usize = 300;

fn crowd() -> Vec<AcquireCommand> {
    let one = |i: usize| {
        let mut command = acquire_command(&format!("lock {i} é"), &format!("me {i} \"\\ 🔒"), LONG);
        command.metadata = format!(r#"{{"meta":{{"number":{i}}}}}"#).into();
        command
    };
    (0..CROWD).map(one).collect()
}

async fn all(store: &dyn Store, commands: &[AcquireCommand]) -> HashMap<LockName, LockInfo> {
    let names: Vec<LockName> = commands
        .iter()
        .map(|command| command.name.clone())
        .collect();
    let rows = store.read(&names, WITHIN).await.expect("an answer");
    rows.into_iter()
        .map(|row| (row.name.clone(), row))
        .collect()
}

async fn give_back(
    store: &dyn Store,
    commands: &[AcquireCommand],
    outcomes: &[Outcome],
) -> Vec<ReleaseCommand> {
    let returns: Vec<ReleaseCommand> = commands
        .iter()
        .zip(outcomes)
        .map(|(command, outcome)| match outcome {
            Outcome::Granted { token, .. } => {
                ReleaseCommand::of(&grant_of(command, *token), Ttl::from(LONG))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let done = store.release(&returns, WITHIN).await.expect("an answer");
    assert_eq!(done, vec![Released::Freed; returns.len()]);
    returns
}

/// Each lock of a large batch is acquired as if it were alone: new names, free locks, held ones, a
/// name that occurs twice and one with another lease.
pub async fn a_large_batch_of_acquires_is_answered_one_by_one(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let mut commands = crowd();
    commands.truncate(CROWD - 10);
    let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
    give_back(&*store, &commands, &outcomes).await;
    let first = all(&*store, &commands).await;
    // First existing and free rows, then a batch in which some are held.
    for held in [Vec::new(), (0..CROWD - 10).step_by(37).collect()] {
        let others: Vec<AcquireCommand> = held
            .iter()
            .map(|i| acquire_command(commands[*i].name.as_str(), "other", LONG))
            .collect();
        let theirs = store.acquire(&others, WITHIN).await.expect("an answer");
        let mut commands = crowd();
        if held.is_empty() {
            commands.truncate(CROWD - 10);
        } else {
            commands[40].length = LONG - Duration::from_secs(1);
            let again = acquire_command(commands[41].name.as_str(), "me again", LONG);
            commands.push(again);
        }
        let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
        let rows = all(&*store, &commands).await;
        let (mut mine, mut granted) = (Vec::new(), Vec::new());
        for (i, (command, outcome)) in commands.iter().zip(&outcomes).enumerate() {
            let row = &rows[&command.name];
            let Outcome::Granted { token, length, .. } = outcome else {
                assert!(
                    held.contains(&i) || i >= CROWD || i == 41,
                    "{i}: {outcome:?}"
                );
                continue;
            };
            assert!(!held.contains(&i), "{i}: {outcome:?}");
            assert_eq!((row.token, *length), (*token, command.length), "{i}");
            assert_eq!(row.holder.as_deref(), Some(&*command.holder));
            assert_eq!(row.metadata.as_deref(), Some(&*command.metadata));
            if let Some(before) = first.get(&command.name) {
                assert!(*token > before.token, "{i}: {token:?} after {before:?}");
            }
            mine.push(command.clone());
            granted.push(outcome.clone());
        }
        let expected = match held.is_empty() {
            true => CROWD - 10,
            false => CROWD - held.len(),
        };
        assert_eq!(mine.len(), expected);
        // Asked for again they are found to be granted already.
        let again = store.acquire(&mine, WITHIN).await.expect("an answer");
        for (outcome, before) in again.iter().zip(&granted) {
            let tokens = [outcome, before].map(|outcome| match outcome {
                Outcome::Granted { token, .. } => *token,
                other => panic!("{other:?}"),
            });
            assert_eq!(tokens[0], tokens[1]);
        }
        give_back(&*store, &mine, &granted).await;
        give_back(&*store, &others, &theirs).await;
    }
}

/// Each lock of a large batch is released as if it were alone: a grant that was lost, one whose
/// token is unknown, one of another holder, one without a row; and no lock is freed twice.
pub async fn a_large_batch_of_releases_is_answered_one_by_one(fixture: &StoreFixture) {
    for size in [24, CROWD] {
        releases(fixture, size).await;
    }
}

async fn releases(fixture: &StoreFixture, size: usize) {
    let store = fixture.ready().await;
    let mut commands = crowd();
    commands.truncate(size);
    let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
    let mut returns: Vec<ReleaseCommand> = commands
        .iter()
        .zip(&outcomes)
        .map(|(command, outcome)| match outcome {
            Outcome::Granted { token, .. } => {
                ReleaseCommand::of(&grant_of(command, *token), Ttl::from(LONG))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let mut expected = vec![Released::Freed; size];
    for i in [3, 20] {
        let name = returns[i].name.clone();
        let forced = store
            .force(&name, Slot::Lock, WITHIN)
            .await
            .expect("an answer");
        assert!(matches!(forced, Force::Freed(_)), "{forced:?}");
        expected[i] = Released::NotHeld;
    }
    let theirs = granted(&*store, returns[3].name.as_str(), "other", LONG).await;
    // Of a grant whose token is not known the few are released in another way, too.
    if size == CROWD {
        returns[290].token = None;
    }
    returns[5].holder = "another".into();
    returns[6].grant = random_grant_id().expect("randomness");
    returns[7].name = name("no row");
    for i in [5, 6, 7] {
        expected[i] = Released::NotHeld;
    }
    let done = store.release(&returns, WITHIN).await.expect("an answer");
    assert_eq!(done, expected);
    let again = store.release(&returns, WITHIN).await.expect("an answer");
    assert_eq!(again, vec![Released::NotHeld; size]);
    let rows = all(&*store, &commands).await;
    for (i, command) in commands.iter().enumerate() {
        let free = rows[&command.name].state == LockState::Free;
        assert_eq!(
            !free,
            [3, 5, 6, 7].contains(&i),
            "{i}: {:?}",
            rows[&command.name]
        );
    }
    assert_eq!(release(&*store, &theirs).await, Released::Freed);
    for i in [5, 6, 7] {
        let forced = store
            .force(&commands[i].name, Slot::Lock, WITHIN)
            .await
            .expect("an answer");
        assert!(matches!(forced, Force::Freed(_)), "{forced:?}");
    }
}

/// Clients that contend for two locks, and renew what they hold, hold each lock one at a time; each
/// grant has a greater token than all before it.
pub async fn contending_clients_hold_a_lock_one_at_a_time(fixture: &StoreFixture) {
    const CLIENTS: usize = 12;
    const GRANTS: usize = 10;
    // The last client of a table in memory drops it, with its tokens.
    let _first = fixture.ready().await;
    // Whether it is held, and the latest token; changed by the holder alone.
    let seen: Arc<[Mutex<(bool, i64)>; 2]> = Arc::default();
    let clients = (0..CLIENTS).map(|client| {
        let (store, seen) = (fixture.store(), Arc::clone(&seen));
        tokio::spawn(async move {
            for i in client..client + GRANTS {
                let seen = &seen[i % 2];
                let grant = contended(&*store, ["even", "odd"][i % 2], client).await;
                let token = grant.token.get();
                let (held, before) =
                    std::mem::replace(&mut *seen.lock().expect("no panic"), (true, token));
                assert!(!held, "client {client} is not alone");
                assert!(token > before, "{token} after {before}");
                let renewed = store
                    .renew(&[(grant.clone(), Ttl::from(LONG))], WITHIN)
                    .await;
                match renewed.as_deref() {
                    Ok([Renewal::Renewed { .. } | Renewal::Busy])
                    | Err(StoreError::Contention(_)) => {}
                    other => panic!("{other:?}"),
                }
                seen.lock().expect("no panic").0 = false;
                let what = [ReleaseCommand::of(&grant, Ttl::from(LONG))];
                loop {
                    match store.release(&what, WITHIN).await.as_deref() {
                        Ok([Released::Freed | Released::Awaited]) => break,
                        Ok([Released::Busy]) | Err(StoreError::Contention(_)) => pause().await,
                        other => panic!("{other:?}"),
                    }
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no panic");
    }
    for promised in ["P1", "P2", "P15"] {
        promise(promised, fixture.engine);
    }
}

async fn contended(store: &dyn Store, lock: &str, client: usize) -> Grant {
    let command = acquire_command(lock, &format!("client {client}"), LONG);
    for _ in 0..50_000 {
        match try_once(store, &command).await {
            Outcome::Granted { token, .. } => return grant_of(&command, token),
            Outcome::Held(_) | Outcome::Busy => pause().await,
            other => panic!("{other:?}"),
        }
    }
    panic!("{lock} is not to be had")
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
