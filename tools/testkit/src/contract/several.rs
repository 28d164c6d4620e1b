//! Several locks in one request: all of them or none.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::seam::{
    AcquireCommand, AllOutcome, Force, Grant, Holder, Outcome, ReleaseCommand, Released, Slot,
    Store, StoreError,
};
use database_locks::{Token, Ttl};

use super::fixture::{
    LONG, SHORT, StoreFixture, WITHIN, acquire_command, expired_version, grant_of, granted,
    holder_of, info, name, outlived, release, try_once,
};
use crate::promise::promise;

/// A request for each of these locks, in the order of their names.
fn commands(locks: &[&str], holder: &str) -> Vec<AcquireCommand> {
    let one = |lock: &&str| acquire_command(lock, holder, LONG);
    locks.iter().map(one).collect()
}

/// Sends a request once, and again after conflicts.
async fn try_all(store: &dyn Store, commands: &[AcquireCommand]) -> AllOutcome {
    for _ in 0..2_000 {
        match store.acquire_all(commands, WITHIN).await {
            Ok(AllOutcome::NotGranted(holders)) if holders.iter().all(Option::is_none) => {}
            Ok(outcome) => return outcome,
            Err(StoreError::Contention(_)) => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("contention without end")
}

async fn all_granted(store: &dyn Store, commands: &[AcquireCommand]) -> Vec<Grant> {
    match try_all(store, commands).await {
        AllOutcome::Granted { tokens, .. } => grants(commands, &tokens),
        other => panic!("{other:?}"),
    }
}

fn grants(commands: &[AcquireCommand], tokens: &[Token]) -> Vec<Grant> {
    assert_eq!(commands.len(), tokens.len());
    let all = commands.iter().zip(tokens);
    all.map(|(command, token)| grant_of(command, *token))
        .collect()
}

async fn holders(store: &dyn Store, commands: &[AcquireCommand]) -> Vec<Option<Holder>> {
    match try_all(store, commands).await {
        AllOutcome::NotGranted(holders) => holders,
        other => panic!("{other:?}"),
    }
}

fn names(holders: Vec<Option<Holder>>) -> Vec<Option<String>> {
    let holders = holders.into_iter();
    holders.map(|holder| holder?.holder).collect()
}

/// New names and known ones are granted together; if one is held, no row is written, and the answer
/// says which.
pub async fn several_locks_are_granted_all_or_none(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let lone = granted(&*store, "b", "before", LONG).await;
    release(&*store, &lone).await;
    let set = commands(&["a", "b", "c é"], "the set \"\\ 🔒");
    let held = all_granted(&*store, &set).await;
    for grant in &held {
        let row = info(&*store, grant.name.as_str()).await.expect("a row");
        assert_eq!(
            (row.token, row.holder.as_deref()),
            (grant.token, Some(&*grant.holder))
        );
        assert_eq!(row.grant.as_deref(), Some(grant.id.as_str()));
    }
    assert!(held[1].token > lone.token);
    let other = commands(&["a", "b", "d", "e"], "another");
    let refused = names(holders(&*store, &other).await);
    let by = || Some("the set \"\\ 🔒".to_owned());
    assert_eq!(refused, [by(), by(), None, None]);
    for free in ["d", "e"] {
        assert_eq!(holder_of(&*store, free).await, None);
    }
    for grant in &held[..2] {
        assert!(matches!(
            release(&*store, grant).await,
            Released::Freed | Released::Awaited
        ));
    }
    let after = all_granted(&*store, &other).await;
    assert!(after[0].token > held[0].token && after[1].token > held[1].token);
    assert_eq!(holder_of(&*store, "c é").await, by());
    // An ordinary acquire of one of them is refused by the set.
    let one = try_once(&*store, &acquire_command("d", "third", LONG)).await;
    assert!(matches!(one, Outcome::Held(_)), "{one:?}");
    let one = all_granted(&*store, &commands(&["alone"], "one of one")).await;
    assert_eq!(one.len(), 1);
    promise("P1", fixture.engine);
}

/// A request that is repeated, since its reply was lost, has the grants of the first one; unless
/// one of them was taken away since. Then it has none, and sees what is left of its own.
pub async fn several_grants_are_recognised_when_the_request_is_repeated(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let set = commands(&["a", "b"], "me");
    let held = all_granted(&*store, &set).await;
    let again = fixture.store();
    let mut repeated = try_all(&*again, &set).await;
    // A node may apply the grants a moment later.
    for _ in 0..200 {
        if matches!(repeated, AllOutcome::Granted { .. }) {
            break;
        }
        repeated = try_all(&*again, &set).await;
    }
    let AllOutcome::Granted { tokens, length, .. } = repeated else {
        panic!("{repeated:?}")
    };
    assert_eq!(grants(&set, &tokens), held);
    assert!(length <= LONG && length > LONG / 2, "{length:?}");
    let forced = loop {
        match store.force(&name("b"), Slot::Lock, WITHIN).await {
            Ok(Force::Busy) | Err(StoreError::Contention(_)) => {}
            done => break done.expect("an answer"),
        }
    };
    assert!(matches!(forced, Force::Freed(_)), "{forced:?}");
    let left = holders(&*store, &set).await;
    let own = left[0].as_ref().and_then(|holder| holder.grant.clone());
    assert_eq!(own.as_deref(), Some(set[0].grant.as_str()));
    assert_eq!(left[1], None);
    assert_eq!(holder_of(&*store, "b").await, None);
    // As its release must be able to: by the grant id alone.
    let what = ReleaseCommand {
        token: None,
        ..ReleaseCommand::of(&held[0], Ttl::from(LONG))
    };
    let freed = store.release(&[what], WITHIN).await.expect("an answer");
    assert!(matches!(freed[0], Released::Freed | Released::Awaited));
    promise("P7", fixture.engine);
}

/// A lease that has ended is as good as a free lock; on a cluster once its end was observed.
pub async fn an_expired_lease_is_taken_along_with_others(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let dead = granted(&*store, "b", "dead", SHORT).await;
    let mut set = commands(&["a", "b", "c"], "me");
    outlived(SHORT).await;
    if fixture.is_cluster() {
        let early = names(holders(&*store, &set).await);
        assert_eq!(early[1].as_deref(), Some("dead"), "no clock decides");
    }
    set[1].expired_version = expired_version(fixture, "b").await;
    let held = all_granted(&*store, &set).await;
    assert!(held[1].token > dead.token);
    assert_eq!(holder_of(&*store, "c").await.as_deref(), Some("me"));
}

/// Clients want random sets of six names, two to five at a time, in one process each: no two hold a
/// name at once, a set that is not granted holds no part of itself, and every client gets its
/// turns. At first no name has a row.
pub async fn overlapping_sets_exclude_each_other_and_all_are_served(fixture: &StoreFixture) {
    const CLIENTS: usize = 8;
    const GRANTS: usize = 6;
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let _first = fixture.ready().await;
    // Whether it is held, and the latest token; changed by the holder alone.
    let seen: Arc<[Mutex<(bool, Token)>; 6]> =
        Arc::new(NAMES.map(|_| Mutex::new((false, Token::from_db(0)))));
    let clients = (0..CLIENTS).map(|client| {
        let (store, seen) = (fixture.store(), Arc::clone(&seen));
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(client as u64);
            for _ in 0..GRANTS {
                let mut chosen = random.choose_multiple(0..6, 2 + client % 4);
                chosen.sort_unstable();
                let locks: Vec<&str> = chosen.iter().map(|at| NAMES[*at]).collect();
                let set = commands(&locks, &format!("client {client}"));
                let held = contended(&*store, &set).await;
                for (at, grant) in chosen.iter().zip(&held) {
                    let now = (true, grant.token);
                    let (taken, before) =
                        std::mem::replace(&mut *seen[*at].lock().expect("no panic"), now);
                    assert!(!taken, "client {client} is not alone with {}", grant.name);
                    assert!(grant.token > before, "{:?} after {before:?}", grant.token);
                }
                tokio::time::sleep(Duration::from_millis(random.u64(0..4))).await;
                for at in &chosen {
                    seen[*at].lock().expect("no panic").0 = false;
                }
                free(&*store, &held).await;
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

/// Tries until the set is granted. After each try that was not, none of its grants is in a row.
async fn contended(store: &dyn Store, set: &[AcquireCommand]) -> Vec<Grant> {
    let names: Vec<_> = set.iter().map(|command| command.name.clone()).collect();
    for _ in 0..50_000 {
        match store.acquire_all(set, WITHIN).await {
            Ok(AllOutcome::Granted { tokens, .. }) => return grants(set, &tokens),
            Ok(AllOutcome::NotGranted(_)) => {
                let rows = store.read(&names, WITHIN).await.expect("an answer");
                let own = rows.iter().find(|row| {
                    let granted = |command: &&AcquireCommand| {
                        row.grant.as_deref() == Some(command.grant.as_str())
                    };
                    set.iter().any(|command| granted(&command))
                });
                assert!(own.is_none(), "a part is held: {own:?}");
            }
            Err(StoreError::Contention(_)) => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the set is not to be had")
}

async fn free(store: &dyn Store, held: &[Grant]) {
    let release = |grant: &Grant| ReleaseCommand::of(grant, Ttl::from(LONG));
    let mut left: Vec<ReleaseCommand> = held.iter().map(release).collect();
    while !left.is_empty() {
        match store.release(&left, WITHIN).await {
            Ok(done) => {
                assert!(!done.contains(&Released::NotHeld), "{done:?}");
                let busy = left.into_iter().zip(done);
                left = busy
                    .filter(|(_, done)| *done == Released::Busy)
                    .map(|(command, _)| command)
                    .collect();
            }
            Err(StoreError::Contention(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
