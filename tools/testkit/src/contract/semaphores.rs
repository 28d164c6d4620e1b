//! Semaphores: as many holders as there are permits, each with a slot of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use database_locks::seam::{
    AcquireCommand, Force, Grant, Kind, ListFilter, Outcome, Permits, ReleaseCommand, Released,
    ResumeCommand, Rows, Slot, Store, StoreError,
};
use database_locks::{LostReason, Token};
use tokio::sync::Barrier;

use super::fixture::{
    BRIEF, CONTEND, LONG, SHORT, StoreFixture, WITHIN, acquire_command, granted, name, outlived,
    release, renew, try_once,
};
use crate::promise::promise;
use crate::time::now;

fn permit_command(semaphore: &str, limit: u32, holder: &str, length: Duration) -> AcquireCommand {
    AcquireCommand {
        kind: Kind::Permit {
            limit,
            expired: Vec::new(),
        },
        ..acquire_command(semaphore, holder, length)
    }
}

/// Sends a request until the answer is clear. Another client may have a row locked for a moment.
async fn decided(store: &dyn Store, command: &AcquireCommand) -> Outcome {
    for _ in 0..2_000 {
        match try_once(store, command).await {
            Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
            outcome => return outcome,
        }
    }
    panic!("busy without end")
}

/// The grant of a permit, made now.
async fn permit(store: &dyn Store, semaphore: &str, limit: u32, length: Duration) -> Grant {
    let command = permit_command(semaphore, limit, "a holder", length);
    match decided(store, &command).await {
        Outcome::Granted { slot, token, .. } => command.granted(slot, token, None),
        other => panic!("no permit of {semaphore}: {other:?}"),
    }
}

/// The permits that keep a caller out.
async fn refused(store: &dyn Store, semaphore: &str, limit: u32) -> Permits {
    match decided(store, &permit_command(semaphore, limit, "another", LONG)).await {
        Outcome::Held(holder) => holder.permits.expect("of a semaphore"),
        other => panic!("{semaphore}: {other:?}"),
    }
}

/// Three callers get a permit each, a fourth is told who is in, and gets the first that is released.
pub async fn as_many_permits_are_granted_as_the_limit_says(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let mut grants = Vec::new();
    for _ in 0..3 {
        grants.push(permit(&*fixture.store(), "api", 3, LONG).await);
    }
    let slots: BTreeSet<_> = grants.iter().map(|grant| grant.slot).collect();
    assert_eq!(slots, (0..3).map(Slot::Permit).collect(), "each its own");
    let full = refused(&*store, "api", 3).await;
    assert_eq!((full.limit, full.held), (3, 3));
    let ended = grants.swap_remove(1);
    assert!(release(&*store, &ended).await != Released::NotHeld);
    let next = permit(&*store, "api", 3, LONG).await;
    assert_eq!(next.slot, ended.slot);
    assert!(next.token > ended.token);
    assert_eq!(release(&*store, &ended).await, Released::NotHeld);
    promise("P1", fixture.engine);
}

/// The answers to a batch, each repeated until it is clear.
async fn batch(store: &dyn Store, commands: &[AcquireCommand]) -> Vec<Outcome> {
    let mut outcomes = store.acquire(commands, WITHIN).await.expect("an answer");
    for (command, outcome) in commands.iter().zip(&mut outcomes) {
        if *outcome == Outcome::Busy {
            *outcome = decided(store, command).await;
        }
    }
    outcomes
}

/// The grants of a batch. All others must have been told that the semaphore is full.
fn grants_of(commands: &[AcquireCommand], outcomes: &[Outcome]) -> Vec<Grant> {
    let grant = |(command, outcome): (&AcquireCommand, &Outcome)| match outcome {
        Outcome::Granted { slot, token, .. } => Some(command.granted(*slot, *token, None)),
        Outcome::Held(holder) => {
            let full = holder.permits.as_ref().expect("of a semaphore");
            assert!(full.held >= full.limit, "{full:?}");
            None
        }
        other => panic!("{other:?}"),
    };
    commands.iter().zip(outcomes).filter_map(grant).collect()
}

/// Of many callers in one batch as many get a permit as there are, each another one, beside those of
/// another semaphore and a lock. A batch that is repeated gets the same ones, and a batch of releases
/// frees each that is still held.
pub async fn a_batch_of_permits_is_answered_one_by_one(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let set_limit = async |limit| {
        let set = store.set_limit(&name("api"), limit, WITHIN).await;
        set.expect("an answer");
    };
    let mut before = BTreeMap::new();
    // In the first round the permits have no row, in the third one of them is held.
    for (round, limit) in [(0, None), (1, None), (2, None), (3, Some(2))] {
        set_limit(limit).await;
        let held = match round {
            2 => Some(permit(&*store, "api", 4, LONG).await),
            _ => None,
        };
        let mut commands: Vec<AcquireCommand> = (0..6)
            .map(|caller| permit_command("api", 4, &format!("caller {caller}"), LONG))
            .collect();
        commands.insert(2, acquire_command(&format!("a lock {round}"), "me", LONG));
        commands.extend((0..2).map(|_| permit_command("other", 1, "me", LONG)));
        let outcomes = batch(&*store, &commands).await;
        let grants = grants_of(&commands, &outcomes);
        let of_api = || grants.iter().filter(|grant| grant.name == name("api"));
        let mut slots: BTreeSet<Slot> = of_api().map(|grant| grant.slot).collect();
        assert_eq!(slots.len(), of_api().count(), "each its own: {grants:?}");
        slots.extend(held.iter().map(|grant| grant.slot));
        let expected = 0..u16::try_from(limit.unwrap_or(4)).expect("small");
        assert_eq!(slots, expected.map(Slot::Permit).collect());
        assert_eq!(grants.len(), slots.len() + 2 - usize::from(held.is_some()));
        for grant in of_api() {
            let token = before.insert(grant.slot, grant.token);
            assert!(token.is_none_or(|token| token < grant.token), "{grant:?}");
        }
        let again = grants_of(&commands, &batch(&*store, &commands).await);
        assert_eq!(again, grants, "no second permit");
        let lost = grants[0].clone();
        release(&*store, &lost).await;
        let releases: Vec<ReleaseCommand> = (grants.iter().chain(&held))
            .map(|grant| ReleaseCommand::of(grant, LONG.into()))
            .collect();
        let released = store.release(&releases, WITHIN).await.expect("an answer");
        assert_eq!(released[0], Released::NotHeld);
        assert!(!released[1..].contains(&Released::NotHeld), "{released:?}");
        let left = store.semaphore(&name("api"), WITHIN).await;
        assert_eq!(left.expect("an answer").held(), 0);
    }
    // A batch of permits only, of which one was released before.
    set_limit(None).await;
    let commands: Vec<_> = (0..3)
        .map(|_| permit_command("api", 4, "me", LONG))
        .collect();
    let grants = grants_of(&commands, &batch(&*store, &commands).await);
    release(&*store, &grants[1]).await;
    let releases: Vec<_> = (grants.iter())
        .map(|grant| ReleaseCommand::of(grant, LONG.into()))
        .collect();
    let released = store.release(&releases, WITHIN).await.expect("an answer");
    let gone = released.iter().map(|done| *done == Released::NotHeld);
    assert_eq!(gone.collect::<Vec<_>>(), [false, true, false]);
    promise("P1", fixture.engine);
}

/// A permit is renewed, lost and released like a lock. A release by force is a loss.
pub async fn a_permit_is_renewed_and_lost_like_a_lock(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let (kept, lost) = (
        permit(&*store, "api", 2, BRIEF).await,
        permit(&*store, "api", 2, LONG).await,
    );
    assert!(renew(&*store, &kept, LONG).await.is_renewed());
    outlived(BRIEF).await;
    assert_eq!(
        refused(&*store, "api", 2).await.held,
        2,
        "it outlives its first length"
    );
    let forced = store.force(&lost.name, lost.slot, WITHIN).await;
    let Force::Freed(from) = forced.expect("an answer") else {
        panic!("it was held")
    };
    assert_eq!(from.holder.as_deref(), Some("a holder"));
    let renewals = [(kept.clone(), LONG.into()), (lost.clone(), LONG.into())];
    let renewals = store.renew(&renewals, WITHIN).await.expect("an answer");
    assert!(renewals[0].is_renewed(), "the other is not affected");
    assert_eq!(renewals[1].lost(), Some(LostReason::Forced));
    let again = store.force(&lost.name, lost.slot, WITHIN).await;
    assert_eq!(again.expect("an answer"), Force::WasFree);
    promise("P3", fixture.engine);
}

/// The permit of a holder that died is granted again, with a greater token, and the former grant
/// changes nothing. On a cluster the expiry is observed.
pub async fn the_permit_of_a_dead_holder_is_granted_again(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let dead = permit(&*store, "api", 1, SHORT).await;
    let mut command = permit_command("api", 1, "next", LONG);
    if fixture.is_cluster() {
        let observed = refused(&*store, "api", 1).await.observed;
        let [(slot, of)] = &observed[..] else {
            panic!("{observed:?}")
        };
        tokio::time::sleep(of.length + Duration::from_millis(10)).await;
        command.kind = Kind::Permit {
            limit: 1,
            expired: vec![(*slot, of.version.clone())],
        };
    }
    outlived(SHORT).await;
    let outcome = decided(&*store, &command).await;
    let Outcome::Granted { slot, token, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(slot, dead.slot);
    assert!(token > dead.token);
    assert_eq!(
        renew(&*store, &dead, LONG).await.lost(),
        Some(LostReason::Preempted)
    );
    assert_eq!(release(&*store, &dead).await, Released::NotHeld);
    promise("P3", fixture.engine);
}

/// The operator's limit counts for the next try of every caller; holders above it stay.
pub async fn an_operators_limit_takes_precedence(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let limit = async |limit| {
        let set = store.set_limit(&name("api"), limit, WITHIN).await;
        set.expect("an answer");
    };
    limit(Some(1)).await;
    let first = permit(&*store, "api", 5, LONG).await;
    assert_eq!(refused(&*store, "api", 5).await.limit, 1);
    limit(Some(3)).await;
    let more = [
        permit(&*store, "api", 1, LONG).await,
        permit(&*store, "api", 1, LONG).await,
    ];
    limit(Some(0)).await;
    let paused = refused(&*store, "api", 5).await;
    assert_eq!((paused.limit, paused.held), (0, 3), "holders stay");
    assert!(renew(&*store, &first, LONG).await.is_renewed());
    for grant in more.iter().chain([&first]) {
        release(&*store, grant).await;
    }
    assert_eq!(refused(&*store, "api", 5).await.limit, 0, "still paused");
    let semaphore = store.semaphore(&name("api"), WITHIN).await;
    assert_eq!(semaphore.expect("an answer").limit, Some(0));
    limit(None).await;
    permit(&*store, "api", 1, LONG).await;
    promise("P1", fixture.engine);
}

/// A request whose reply was lost is repeated without a second permit, and a grant whose slot and
/// token never arrived can be released.
pub async fn a_repeated_acquire_of_a_permit_recognises_its_own_grant(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let command = permit_command("api", 3, "a holder", LONG);
    let first = decided(&*store, &command).await;
    let Outcome::Granted { slot, token, .. } = first else {
        panic!("{first:?}")
    };
    for _ in 0..5 {
        let again = decided(&*fixture.store(), &command).await;
        assert!(matches!(again, Outcome::Granted { .. }), "{again:?}");
        let mine = store.semaphore(&name("api"), WITHIN).await;
        let mine = mine.expect("an answer");
        assert_eq!(mine.held(), 1, "one permit a request");
        assert!(
            matches!(again, Outcome::Granted { slot: same, token: as_before, .. }
                if same == slot && as_before == token),
            "{again:?}"
        );
    }
    let unknown = ReleaseCommand {
        name: name("api"),
        slot: Slot::AnyPermit,
        token: None,
        grant: command.grant,
        holder: command.holder.clone(),
        durable: false,
        rest: Duration::ZERO,
    };
    let released = store.release(&[unknown], WITHIN).await.expect("an answer");
    assert!(released[0] != Released::NotHeld, "{released:?}");
    let free = store.semaphore(&name("api"), WITHIN).await;
    assert_eq!(free.expect("an answer").held(), 0);
    promise("P7", fixture.engine);
}

/// A semaphore and a lock of one name are two things.
pub async fn a_semaphore_and_a_lock_of_one_name_are_independent(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let lock = granted(&*store, "api", "a holder", LONG).await;
    let one = permit(&*store, "api", 1, LONG).await;
    let both = [(lock.clone(), LONG.into()), (one.clone(), LONG.into())];
    let renewals = store.renew(&both, WITHIN).await.expect("an answer");
    assert!(renewals.iter().all(|it| it.is_renewed()), "{renewals:?}");
    release(&*store, &lock).await;
    assert_eq!(refused(&*store, "api", 1).await.held, 1);
    release(&*store, &one).await;
    promise("P10", fixture.engine);
}

/// A ticket resumes a permit, once.
pub async fn a_ticket_resumes_a_permit(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    let (other, given) = (
        permit(&*store, "api", 2, LONG).await,
        permit(&*store, "api", 2, LONG).await,
    );
    let resume = ResumeCommand {
        slot: given.slot,
        token: given.token,
        from: given.id,
        to: acquire_command("api", "taker", LONG),
    };
    let resumed = store.resume(&resume, WITHIN).await.expect("an answer");
    assert!(resumed.is_renewed(), "{resumed:?}");
    assert!(renew(&*store, &other, LONG).await.is_renewed());
    assert!(renew(&*store, &given, LONG).await.lost().is_some());
    assert!(
        renew(&*store, &resume.granted(None), LONG)
            .await
            .is_renewed()
    );
}

/// Permits are listed apart from locks, and pruned when they have been free for long. The operator's
/// limit stays.
pub async fn permits_are_listed_and_pruned(fixture: &StoreFixture) {
    let store = fixture.ready().await;
    store
        .set_limit(&name("api"), Some(5), WITHIN)
        .await
        .expect("an answer");
    let (held, freed) = (
        permit(&*store, "api", 2, LONG).await,
        permit(&*store, "api", 2, LONG).await,
    );
    release(&*store, &freed).await;
    let page = |filter: ListFilter| {
        let store = fixture.store();
        async move {
            let page = store.page(Rows::Permits, &filter, None, WITHIN).await;
            page.expect("an answer").rows
        }
    };
    assert_eq!(page(ListFilter::new()).await.len(), 2);
    let removed = name("other");
    for limit in [Some(0), None] {
        let set = store.set_limit(&removed, limit, WITHIN).await;
        set.expect("an answer");
        let mut limits = store.limits(WITHIN).await.expect("an answer");
        limits.sort();
        let both = [
            Some((name("api"), 5)),
            limit.map(|it| (removed.clone(), it)),
        ];
        assert_eq!(limits, both.into_iter().flatten().collect::<Vec<_>>());
    }
    let in_use = page(ListFilter::new().not_free().prefix("ap")).await;
    let [row] = &in_use[..] else {
        panic!("{in_use:?}")
    };
    assert_eq!((row.slot, row.token), (held.slot.number(), held.token));
    // The caller's limit, and not the operator's.
    assert_eq!(row.permits, Some(2));
    assert!(page(ListFilter::new().prefix("b")).await.is_empty());
    let locks = store
        .page(Rows::Locks, &ListFilter::new(), None, WITHIN)
        .await;
    assert!(locks.expect("an answer").rows.is_empty());
    if fixture.is_cluster() {
        // Rows that are younger than a day stay.
        return;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut deleted = 0;
    let mut after = None;
    loop {
        let page = store
            .prune(Rows::Permits, Duration::ZERO, false, after, WITHIN)
            .await;
        let page = page.expect("an answer");
        deleted += page.deleted;
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    assert_eq!(deleted, 1);
    let left = store
        .semaphore(&name("api"), WITHIN)
        .await
        .expect("an answer");
    assert_eq!((left.limit, left.permits.len()), (Some(5), 1));
}

/// Who is in, according to the holders themselves.
#[derive(Debug, Default)]
struct Ledger {
    inside: BTreeMap<Slot, usize>,
    tokens: BTreeMap<Slot, Token>,
    most: usize,
    grants: usize,
    violations: Vec<String>,
}

impl Ledger {
    fn enter(&mut self, client: usize, slot: Slot, token: Token, limit: usize) {
        if let Some(other) = self.inside.insert(slot, client) {
            self.violations
                .push(format!("{slot:?} for {client} and {other}"));
        }
        if self
            .tokens
            .insert(slot, token)
            .is_some_and(|last| last >= token)
        {
            self.violations
                .push(format!("{slot:?}: {token} is not greater"));
        }
        (self.most, self.grants) = (self.most.max(self.inside.len()), self.grants + 1);
        if self.inside.len() > limit {
            self.violations
                .push(format!("{} are in", self.inside.len()));
        }
    }

    /// Whether all has happened that has to.
    fn is_complete(&self, limit: usize) -> bool {
        self.grants > 20 && self.most == limit && self.tokens.len() == limit
    }
}

/// Whether clients that began then go on.
fn goes_on(began: Instant, ledger: &Mutex<Ledger>, limit: usize) -> bool {
    let [least, most] = CONTEND;
    let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    began.elapsed() < least || began.elapsed() < most && !ledger.is_complete(limit)
}

/// Twelve clients take and release the permits of a semaphore of three, some of them without a
/// release. No slot has two holders, no more than three are in, and all are used.
pub async fn contending_clients_never_exceed_the_limit(fixture: &StoreFixture) {
    const LIMIT: usize = 3;
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
                while goes_on(began, &ledger, LIMIT) {
                    contend(&*store, &ledger, client, LIMIT).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(ledger.violations.is_empty(), "{:?}", ledger.violations);
    assert!(ledger.grants > 20, "{} grants", ledger.grants);
    assert_eq!(ledger.most, LIMIT, "all permits were in use at once");
    assert_eq!(ledger.tokens.len(), LIMIT, "{:?}", ledger.tokens);
    promise("P1", fixture.engine);
}

async fn contend(store: &dyn Store, ledger: &Mutex<Ledger>, client: usize, limit: usize) {
    let command = permit_command("api", limit as u32, "a holder", LONG);
    let outcome = match store.acquire(std::slice::from_ref(&command), WITHIN).await {
        Ok(mut outcomes) => outcomes.remove(0),
        Err(StoreError::Contention(_)) => Outcome::Busy,
        Err(error) => panic!("{error}"),
    };
    let Outcome::Granted { slot, token, .. } = outcome else {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..8))).await;
        return;
    };
    let ledger_of = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    ledger_of().enter(client, slot, token, limit);
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..6))).await;
    ledger_of().inside.remove(&slot);
    let commands = [ReleaseCommand::of(
        &command.granted(slot, token, None),
        LONG.into(),
    )];
    for _ in 0..10_000 {
        match store.release(&commands, WITHIN).await {
            Ok(done) if done[0] == Released::NotHeld => panic!("{commands:?} was lost"),
            Ok(done) if done[0] != Released::Busy => return,
            Ok(_) | Err(StoreError::Contention(_)) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("busy without end")
}
