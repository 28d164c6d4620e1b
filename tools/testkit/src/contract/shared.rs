//! Shared grants: many holders at once, and never one beside an exclusive grant that has seen no
//! shared ones left.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use database_locks::seam::{
    AcquireCommand, Force, Grant, GrantId, Kind, ListFilter, Outcome, ReleaseCommand, Released,
    ResumeCommand, Rows, Slot, Store, StoreError, Version,
};
use database_locks::{LostReason, Token};
use tokio::sync::Barrier;

use super::fixture::{
    BRIEF, CONTEND, LONG, SHORT, StoreFixture, WITHIN, acquire_command, decided, expired_version,
    grant_of, granted, name, outlived, release, renew, try_once,
};
use crate::promise::promise;
use crate::time::now;

fn shared_command(lock: &str, beside: Option<GrantId>, length: Duration) -> AcquireCommand {
    AcquireCommand {
        kind: Kind::Shared { beside },
        ..acquire_command(lock, "a reader", length)
    }
}

fn shared_grant(command: &AcquireCommand, outcome: Outcome) -> Grant {
    match outcome {
        Outcome::Granted { slot, token, .. } => {
            assert_eq!(slot, Slot::of_shared(command.grant));
            command.granted(slot, token, None)
        }
        other => panic!("not shared: {other:?}"),
    }
}

/// A shared grant, made now.
async fn share(store: &dyn Store, lock: &str, length: Duration) -> Grant {
    let command = shared_command(lock, None, length);
    let outcome = decided(store, &command).await;
    shared_grant(&command, outcome)
}

/// The number of shared grants that are left, after the dead ones were deleted.
async fn left(store: &dyn Store, lock: &str, expired: &[(Slot, Version)]) -> u32 {
    for _ in 0..2_000 {
        match store.readers(&name(lock), expired, WITHIN).await {
            Ok(holder) => {
                return holder.map_or(0, |it| it.readers.expect("of shared grants").held);
            }
            Err(StoreError::Contention(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("contention without end")
}

/// An exclusive grant, made now, which has to look for shared ones.
async fn exclusive(store: &dyn Store, lock: &str, length: Duration) -> Grant {
    let command = acquire_command(lock, "a writer", length);
    match decided(store, &command).await {
        Outcome::Granted {
            token,
            is_shared: true,
            ..
        } => grant_of(&command, token),
        other => panic!("not a lock that was shared: {other:?}"),
    }
}

async fn is_held(store: &dyn Store, lock: &str) -> bool {
    match decided(store, &shared_command(lock, None, LONG)).await {
        Outcome::Held(holder) => holder.holder.as_deref() == Some("a writer"),
        Outcome::Granted { .. } => false,
        other => panic!("{other:?}"),
    }
}

/// Two readers are in; a writer keeps a third one out, and has to wait for the two.
pub async fn shared_holders_come_together_and_an_exclusive_one_alone(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let one = share(&*store, "list", LONG).await;
    let two = share(&*fixture.store(), "list", LONG).await;
    assert_eq!(one.token, two.token, "of one phase");
    assert_ne!(one.slot, two.slot);
    let writer = exclusive(&*store, "list", LONG).await;
    assert!(writer.token > one.token);
    assert_eq!(left(&*store, "list", &[]).await, 2);
    assert!(is_held(&*fixture.store(), "list").await);
    assert!(renew(&*store, &one, LONG).await.is_renewed());
    assert!(release(&*store, &one).await != Released::NotHeld);
    assert_eq!(left(&*fixture.store(), "list", &[]).await, 1);
    assert!(release(&*store, &two).await != Released::NotHeld);
    assert_eq!(left(&*store, "list", &[]).await, 0, "alone now");
    assert!(is_held(&*fixture.store(), "list").await);
    assert!(release(&*store, &writer).await != Released::NotHeld);
    let next = share(&*store, "list", LONG).await;
    assert!(next.token > writer.token);
    promise("P1", fixture.engine);
}

/// An exclusive grant of another lock need not look for shared ones; one of many is told apart.
pub async fn a_lock_that_was_never_shared_is_known_as_such(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let reader = share(&*store, "shared", LONG).await;
    let plain = acquire_command("plain", "a writer", LONG);
    let first = decided(&*store, &plain).await;
    assert!(
        matches!(
            first,
            Outcome::Granted {
                is_shared: false,
                ..
            }
        ),
        "{first:?}"
    );
    release(&*store, &reader).await;
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "shared"];
    for _ in 0..2 {
        let commands = names.map(|lock| acquire_command(lock, "a writer", LONG));
        let outcomes = store.acquire(&commands, WITHIN).await.expect("an answer");
        for (command, outcome) in commands.iter().zip(outcomes) {
            let Outcome::Granted {
                token, is_shared, ..
            } = outcome
            else {
                panic!("{outcome:?}")
            };
            assert_eq!(is_shared, command.name == reader.name);
            assert!(!is_shared || token > reader.token);
            release(&*store, &grant_of(command, token)).await;
        }
    }
}

/// A release by force is a loss.
pub async fn a_shared_grant_is_renewed_and_lost_like_a_lock(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let (kept, lost) = (
        share(&*store, "list", BRIEF).await,
        share(&*store, "list", LONG).await,
    );
    assert!(renew(&*store, &kept, LONG).await.is_renewed());
    outlived(BRIEF).await;
    assert_eq!(
        left(&*store, "list", &[]).await,
        2,
        "it outlives its first length"
    );
    let forced = store.force(&lost.name, lost.slot, WITHIN).await;
    let Force::Freed(from) = forced.expect("an answer") else {
        panic!("it was held")
    };
    assert_eq!(from.holder.as_deref(), Some("a reader"));
    assert_eq!(
        renew(&*store, &lost, LONG).await.lost(),
        Some(LostReason::Forced)
    );
    assert_eq!(left(&*store, "list", &[]).await, 1);
    assert_eq!(release(&*store, &lost).await, Released::NotHeld);
    let wrong = Grant {
        id: lost.id,
        ..kept.clone()
    };
    assert_eq!(release(&*store, &wrong).await, Released::NotHeld);
    assert!(renew(&*store, &kept, LONG).await.is_renewed());
    promise("P3", fixture.engine);
}

/// On a cluster the end of its lease is observed.
pub async fn a_dead_shared_holder_does_not_keep_an_exclusive_one_out(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let dead = share(&*store, "list", BRIEF).await;
    exclusive(&*store, "list", LONG).await;
    let first = store.readers(&name("list"), &[], WITHIN).await;
    let readers = first.expect("an answer").and_then(|first| first.readers);
    let readers = readers.expect("one is left");
    let observed = readers.observed.first();
    let expired: Vec<(Slot, Version)> = observed
        .map(|(slot, of)| (*slot, of.version.clone()))
        .into_iter()
        .collect();
    assert_eq!(expired.len(), usize::from(fixture.is_cluster()));
    outlived(BRIEF).await;
    if fixture.is_cluster() {
        assert_eq!(
            left(&*store, "list", &[]).await,
            1,
            "no clock of a node decides"
        );
    }
    assert_eq!(left(&*store, "list", &expired).await, 0);
    assert_eq!(
        renew(&*store, &dead, LONG).await.lost(),
        Some(LostReason::RowGone)
    );
    assert_eq!(release(&*store, &dead).await, Released::NotHeld);
    promise("P3", fixture.engine);
}

/// The late exclusive holder changes nothing.
pub async fn a_dead_exclusive_holder_does_not_keep_shared_ones_out(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    share(&*store, "list", SHORT).await;
    let dead = exclusive(&*store, "list", SHORT).await;
    outlived(SHORT).await;
    let command = AcquireCommand {
        expired_version: expired_version(fixture, "list").await,
        ..shared_command("list", None, LONG)
    };
    let reader = shared_grant(&command, decided(&*store, &command).await);
    assert!(reader.token > dead.token);
    assert_eq!(
        renew(&*store, &dead, LONG).await.lost(),
        Some(LostReason::Expired)
    );
    assert_eq!(release(&*store, &dead).await, Released::NotHeld);
    assert!(!is_held(&*store, "list").await);
    assert!(renew(&*store, &reader, LONG).await.is_renewed());
    promise("P3", fixture.engine);
}

/// A request whose reply was lost is repeated without a second grant, and a grant whose token never
/// arrived can be released.
pub async fn a_repeated_shared_acquire_recognises_its_own_grant(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = shared_command("list", None, LONG);
    let first = shared_grant(&command, decided(&*store, &command).await);
    let again = shared_grant(&command, decided(&*fixture.store(), &command).await);
    assert_eq!(first, again);
    exclusive(&*store, "list", LONG).await;
    assert_eq!(left(&*store, "list", &[]).await, 1);
    let unknown = ReleaseCommand {
        name: name("list"),
        slot: Slot::of_shared(command.grant),
        token: None,
        grant: command.grant,
        holder: command.holder.clone(),
        durable: false,
        rest: Duration::ZERO,
    };
    let released = store.release(&[unknown], WITHIN).await.expect("an answer");
    assert!(released[0] != Released::NotHeld, "{released:?}");
    assert_eq!(left(&*store, "list", &[]).await, 0);
    promise("P7", fixture.engine);
}

/// Once; the grant keeps its row.
pub async fn a_ticket_resumes_a_shared_grant(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let (other, given) = (
        share(&*store, "list", LONG).await,
        share(&*store, "list", LONG).await,
    );
    let resume = ResumeCommand {
        slot: given.slot,
        token: given.token,
        from: given.id,
        to: acquire_command("list", "taker", LONG),
    };
    let resumed = store.resume(&resume, WITHIN).await.expect("an answer");
    assert!(resumed.is_renewed(), "{resumed:?}");
    let taken = resume.granted(None);
    assert!(renew(&*store, &other, LONG).await.is_renewed());
    assert!(renew(&*store, &given, LONG).await.lost().is_some());
    assert!(renew(&*store, &taken, LONG).await.is_renewed());
    exclusive(&*store, "list", LONG).await;
    assert_eq!(left(&*store, "list", &[]).await, 2);
    assert!(release(&*store, &taken).await != Released::NotHeld);
    assert_eq!(left(&*store, "list", &[]).await, 1);
}

/// The writer makes its shared grant first, and then releases the exclusive one.
pub async fn an_exclusive_grant_becomes_a_shared_one_with_no_other_in_between(
    fixture: &StoreFixture,
) {
    let store = fixture.ready().await;
    let writer = granted(&*store, "list", "a writer", LONG).await;
    let command = shared_command("list", Some(writer.id), LONG);
    let own = shared_grant(&command, decided(&*store, &command).await);
    assert!(
        is_held(&*fixture.store(), "list").await,
        "its exclusive grant is there still"
    );
    let stranger = shared_command("list", Some(own.id), LONG);
    let refused = decided(&*store, &stranger).await;
    assert!(matches!(refused, Outcome::Held(_)), "{refused:?}");
    assert!(release(&*store, &writer).await != Released::NotHeld);
    // Another writer may have been there since.
    let late = shared_command("list", Some(writer.id), LONG);
    let refused = decided(&*fixture.store(), &late).await;
    assert!(matches!(refused, Outcome::Held(_)), "{refused:?}");
    let other = share(&*store, "list", LONG).await;
    let next = exclusive(&*store, "list", LONG).await;
    assert_eq!(left(&*store, "list", &[]).await, 2);
    assert!(next.token > own.token && own.token > writer.token);
    release(&*store, &own).await;
    release(&*store, &other).await;
    assert_eq!(left(&*store, "list", &[]).await, 0);
    promise("P1", fixture.engine);
}

/// Without the mark in the row of its lock, an exclusive grant would not look for shared ones.
pub async fn shared_grants_are_listed_and_the_mark_of_their_lock_is_not_pruned(
    fixture: &StoreFixture,
) {
    let store = fixture.ready().await;
    let readers = [
        share(&*store, "list", LONG).await,
        share(&*store, "list", LONG).await,
    ];
    let shared = store
        .shared(&name("list"), WITHIN)
        .await
        .expect("an answer");
    let slots: BTreeSet<Slot> = shared.iter().map(|row| row.row_slot()).collect();
    assert_eq!(slots, readers.iter().map(|grant| grant.slot).collect());
    assert!(shared.iter().all(|row| row.is_shared() && row.is_held()));
    let page = store
        .page(Rows::Permits, &ListFilter::new(), None, WITHIN)
        .await;
    assert_eq!(page.expect("an answer").rows.len(), 2);
    let semaphore = store.semaphore(&name("list"), WITHIN).await;
    assert!(
        semaphore.expect("an answer").permits.is_empty(),
        "no permits"
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    store
        .prune(Rows::Locks, Duration::ZERO, true, None, WITHIN)
        .await
        .expect("an answer");
    store
        .prune(Rows::Permits, Duration::ZERO, false, None, WITHIN)
        .await
        .expect("an answer");
    exclusive(&*store, "list", LONG).await;
    assert_eq!(left(&*store, "list", &[]).await, 2);
    promise("P1", fixture.engine);
}

/// Who is in, according to the holders themselves.
#[derive(Debug, Default)]
struct Ledger {
    readers: BTreeSet<usize>,
    writers: BTreeSet<usize>,
    latest_writer: Option<Token>,
    most_readers: usize,
    grants: [usize; 2],
    violations: Vec<String>,
}

impl Ledger {
    fn enter(&mut self, client: usize, token: Token, writes: bool) {
        if writes {
            self.writers.insert(client);
            if self.latest_writer.replace(token) >= Some(token) {
                self.violations.push(format!("{token} is not greater"));
            }
        } else {
            self.readers.insert(client);
            if Some(token) <= self.latest_writer {
                self.violations
                    .push(format!("{token} of a reader is not greater"));
            }
        }
        self.most_readers = self.most_readers.max(self.readers.len());
        self.grants[usize::from(writes)] += 1;
        let (readers, writers) = (self.readers.len(), self.writers.len());
        if writers > 1 || writers * readers > 0 {
            self.violations
                .push(format!("{writers} writers and {readers} readers"));
        }
    }

    fn leave(&mut self, client: usize) {
        self.readers.remove(&client);
        self.writers.remove(&client);
    }

    /// Whether all has happened that has to.
    fn is_complete(&self) -> bool {
        let [reads, writes] = self.grants;
        reads > 5 && writes > 2 && self.most_readers > 1
    }
}

/// Whether clients that began then go on.
fn goes_on(began: Instant, ledger: &Mutex<Ledger>) -> bool {
    let [least, most] = CONTEND;
    let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    began.elapsed() < least || began.elapsed() < most && !ledger.is_complete()
}

/// Nine readers and three writers. No writer is in together with another client, readers are in
/// together, and both get in.
pub async fn contending_clients_share_or_exclude(fixture: &StoreFixture) {
    fixture.ready().await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let connected = Arc::new(Barrier::new(12));
    let tasks: Vec<_> = (0..12)
        .map(|client| {
            let (store, ledger) = (fixture.store(), Arc::clone(&ledger));
            let connected = Arc::clone(&connected);
            tokio::spawn(async move {
                while store.connect(WITHIN).await.is_err() {}
                connected.wait().await;
                let began = now();
                while goes_on(began, &ledger) {
                    contend(&*store, &ledger, client, client % 4 == 0).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(ledger.violations.is_empty(), "{:?}", ledger.violations);
    let [reads, writes] = ledger.grants;
    assert!(reads > 5 && writes > 2, "{reads} reads, {writes} writes");
    assert!(ledger.most_readers > 1, "readers were in together");
    promise("P1", fixture.engine);
}

async fn contend(store: &dyn Store, ledger: &Mutex<Ledger>, client: usize, writes: bool) {
    let command = match writes {
        true => acquire_command("list", "a writer", LONG),
        false => shared_command("list", None, LONG),
    };
    let Outcome::Granted {
        slot,
        token,
        is_shared,
        ..
    } = try_once(store, &command).await
    else {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..8))).await;
        return;
    };
    while is_shared && left(store, "list", &[]).await > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let ledger_of = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    ledger_of().enter(client, token, writes);
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..6))).await;
    ledger_of().leave(client);
    let grant = command.granted(slot, token, None);
    let commands = [ReleaseCommand::of(&grant, LONG.into())];
    loop {
        match store.release(&commands, WITHIN).await.map(|done| done[0]) {
            Ok(Released::NotHeld) => panic!("{grant:?} was lost"),
            Ok(Released::Freed | Released::Awaited) => break,
            Ok(Released::Busy) | Err(StoreError::Contention(_)) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Others have to get a chance.
    tokio::time::sleep(Duration::from_millis(fastrand::u64(5..25))).await;
}
