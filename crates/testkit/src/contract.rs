//! What every engine has to do, clause by clause, at the seam: an engine is done when it passes.
//!
//! Each clause is an `async fn` of a [`Bench`]; [`contract_tests!`](crate::contract_tests) makes one
//! named test of each for an engine. The database's own clock runs, with short leases; times that
//! are waited for are bounds with room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use database_locks::seam::{
    Ask, Force, Grant, GrantId, Outcome, Released, Renewal, Return, Store, Table, TakeUp, open,
};
use database_locks::{LockInfo, LockName, LockState, LostReason, Token, Ttl};

use crate::promise::promise;

mod same_holder;

pub use same_holder::{
    nothing_but_what_was_seen_is_taken_over, over, take_over, the_same_holder_takes_over,
    what_nobody_has_is_not_taken_over,
};

/// A lease that does not end while a test runs.
const LONG: Duration = Duration::from_secs(25);
/// A lease that the test outwaits; long enough for a few round trips on a busy machine.
const SHORT: Duration = Duration::from_millis(400);
/// How long a call may take before a clause fails.
const WITHIN: Duration = Duration::from_secs(20);

/// A table of its own in some database, and how to connect to it.
#[derive(Clone, Debug)]
pub struct Bench {
    /// As it is called in promises: `memory`, `sqlite`, `postgres`, `mariadb`.
    pub engine: &'static str,
    /// Where the database is.
    pub url: String,
    /// The table, if it is not the usual one.
    pub table: Table,
}

impl Bench {
    /// The usual table at `url`.
    pub fn new(engine: &'static str, url: impl Into<String>) -> Self {
        Self {
            engine,
            url: url.into(),
            table: Table::default(),
        }
    }

    /// Another client: a connection of its own.
    pub fn store(&self) -> Arc<dyn Store> {
        open(&self.url, &self.table).expect("a good URL")
    }

    /// A client of a table that is there.
    pub async fn ready(&self) -> Arc<dyn Store> {
        let store = self.store();
        store.connect(WITHIN).await.expect("connects");
        store.install(WITHIN).await.expect("installs");
        store
    }
}

/// A name that is good.
pub fn name(text: &str) -> LockName {
    LockName::new(text).expect("a good name")
}

/// A request for `name` that nobody else makes.
pub fn ask(lock: &str, holder: &str, length: Duration) -> Ask {
    Ask {
        name: name(lock),
        grant: GrantId::random().expect("randomness"),
        holder: holder.into(),
        length,
        metadata: "{}".into(),
    }
}

/// Ask once; conflicts of the engine that are not about this lock are tried again.
pub async fn try_once(store: &dyn Store, ask: &Ask) -> Outcome {
    for _ in 0..200 {
        match store.acquire(std::slice::from_ref(ask), WITHIN).await {
            Ok(outcomes) => return outcomes[0].clone(),
            Err(database_locks::seam::StoreError::Contention(_)) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("contention without end")
}

fn grant_of(ask: &Ask, token: Token) -> Grant {
    Grant {
        name: ask.name.clone(),
        token,
        id: ask.grant,
        holder: Arc::clone(&ask.holder),
    }
}

/// A grant, made now.
pub async fn granted(store: &dyn Store, lock: &str, holder: &str, length: Duration) -> Grant {
    let ask = ask(lock, holder, length);
    for _ in 0..100 {
        match try_once(store, &ask).await {
            Outcome::Granted { token, .. } => return grant_of(&ask, token),
            Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
            other => panic!("{lock} not granted: {other:?}"),
        }
    }
    panic!("{lock} stayed busy")
}

/// Renew one grant.
pub async fn renew(store: &dyn Store, grant: &Grant, ttl: impl Into<Ttl>) -> Renewal {
    store
        .renew(&[(grant.clone(), ttl.into())], WITHIN)
        .await
        .expect("an answer")[0]
}

/// Release one grant.
pub async fn release(store: &dyn Store, grant: &Grant) -> Released {
    let what = Return::of(grant, Ttl::from(LONG));
    store.release(&[what], WITHIN).await.expect("an answer")[0]
}

/// What the table says.
pub async fn info(store: &dyn Store, lock: &str) -> Option<LockInfo> {
    store
        .read(Some(&[name(lock)]), WITHIN)
        .await
        .expect("an answer")
        .pop()
}

async fn holder_of(store: &dyn Store, lock: &str) -> Option<String> {
    let info = info(store, lock).await?;
    matches!(info.state, LockState::Held { .. }).then_some(info.holder)?
}

async fn outlived(length: Duration) {
    tokio::time::sleep(length + Duration::from_millis(100)).await;
}

/// A lock that nobody has is granted; one that somebody has names who, since when and for how long.
pub async fn a_held_lock_names_its_holder(bench: &Bench) {
    let store = bench.ready().await;
    granted(&*store, "job", "first", LONG).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let Outcome::Held(by) = try_once(&*bench.store(), &ask("job", "second", LONG)).await else {
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
    promise("P1", bench.engine);
}

/// A lease that has run out is anybody's, by the database's clock.
pub async fn expired_is_free(bench: &Bench) {
    let store = bench.ready().await;
    let old = granted(&*store, "job", "first", SHORT).await;
    assert!(matches!(
        try_once(&*store, &ask("job", "second", LONG)).await,
        Outcome::Held(_)
    ));
    outlived(SHORT).await;
    let new = granted(&*store, "job", "second", LONG).await;
    assert!(new.token > old.token);
    assert_eq!(holder_of(&*store, "job").await.as_deref(), Some("second"));
    promise("P5", bench.engine);
}

/// A lock that was released is anybody's at once.
pub async fn released_is_free(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "first", LONG).await;
    assert_eq!(release(&*store, &grant).await, Released::Freed);
    let row = info(&*store, "job").await.expect("the row stays");
    assert_eq!((row.state, row.grant), (LockState::Free, None));
    granted(&*bench.store(), "job", "second", LONG).await;
}

/// Each grant has a greater token than all before, whichever way the one before ended.
pub async fn tokens_grow(bench: &Bench) {
    let store = bench.ready().await;
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
    store.force(&last.name, WITHIN).await.expect("an answer");
    assert!(granted(&*store, "job", "me", LONG).await.token > last.token);
    promise("P2", bench.engine);
}

/// The first token of a row is the database's clock in ms since 1970: so a row that was deleted and
/// made again goes on above what it was.
pub async fn the_first_token_is_the_clock(bench: &Bench) {
    let store = bench.ready().await;
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

/// A request that is made again, since its reply was lost, gets the grant that it had.
pub async fn a_repeated_acquire_recognises_its_own_grant(bench: &Bench) {
    let store = bench.ready().await;
    let ask = ask("job", "me", LONG);
    let Outcome::Granted { token: first, .. } = try_once(&*store, &ask).await else {
        panic!("not granted")
    };
    let Outcome::Granted { token, length } = try_once(&*bench.store(), &ask).await else {
        panic!("not recognised")
    };
    assert_eq!(token, first);
    assert!(
        length <= LONG && length > LONG / 2,
        "what is left, not the whole: {length:?}"
    );
    promise("P7", bench.engine);
}

/// Renewing lengthens.
pub async fn renewed_leases_outlive_their_first_length(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "me", SHORT).await;
    assert_eq!(renew(&*store, &grant, LONG).await, Renewal::Renewed);
    outlived(SHORT).await;
    assert!(matches!(
        try_once(&*store, &ask("job", "other", LONG)).await,
        Outcome::Held(_)
    ));
}

/// Renewing never shortens.
pub async fn a_renewal_shortens_nothing(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    assert_eq!(renew(&*store, &grant, SHORT).await, Renewal::Renewed);
    outlived(SHORT).await;
    assert_eq!(holder_of(&*store, "job").await.as_deref(), Some("me"));
    assert_eq!(renew(&*store, &grant, Ttl::Endless).await, Renewal::Renewed);
    assert_eq!(renew(&*store, &grant, LONG).await, Renewal::Renewed);
    let state = info(&*store, "job").await.expect("a row").state;
    assert_eq!(
        state,
        LockState::Held { free_in: None },
        "without end it stays"
    );
}

/// A renewal that is repeated, since its reply was lost, does no harm.
pub async fn a_renewal_may_be_repeated(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    for _ in 0..3 {
        assert_eq!(renew(&*store, &grant, LONG).await, Renewal::Renewed);
    }
    let twice = store
        .renew(&[(grant.clone(), LONG.into())], WITHIN)
        .await
        .expect("an answer");
    assert_eq!(twice, [Renewal::Renewed]);
    assert_eq!(release(&*store, &grant).await, Released::Freed);
}

/// A lease without end never ends, until it is released.
pub async fn endless_ends_only_by_release(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "me", SHORT).await;
    assert_eq!(renew(&*store, &grant, Ttl::Endless).await, Renewal::Renewed);
    outlived(SHORT).await;
    let Outcome::Held(by) = try_once(&*store, &ask("job", "other", LONG)).await else {
        panic!("given away")
    };
    assert_eq!(by.free_in, None);
    let row = info(&*store, "job").await.expect("a row");
    assert_eq!(
        (row.state, row.expires_at),
        (LockState::Held { free_in: None }, None)
    );
    let what = Return::of(&grant, Ttl::Endless);
    assert_eq!(
        store.release(&[what], WITHIN).await.expect("an answer"),
        [Released::Freed]
    );
    granted(&*store, "job", "other", LONG).await;
}

/// After a take-over the old holder's late calls change nothing.
pub async fn a_stale_grant_can_neither_renew_nor_release(bench: &Bench) {
    let store = bench.ready().await;
    let old = granted(&*store, "job", "first", SHORT).await;
    outlived(SHORT).await;
    let new = granted(&*store, "job", "second", LONG).await;
    let before = info(&*store, "job").await;

    assert_eq!(
        renew(&*store, &old, LONG).await,
        Renewal::Lost(LostReason::TakenOver)
    );
    assert_eq!(release(&*store, &old).await, Released::NotOurs);
    let after = info(&*store, "job").await.expect("a row");
    assert_eq!(after.token, new.token);
    assert_eq!(after.expires_at, before.and_then(|row| row.expires_at));
    promise("P3", bench.engine);
}

/// Nor where the same holder took it again: the grant counts, not the name.
pub async fn the_same_holder_is_another_grant(bench: &Bench) {
    let store = bench.ready().await;
    let old = granted(&*store, "job", "me", SHORT).await;
    outlived(SHORT).await;
    let new = granted(&*store, "job", "me", LONG).await;
    assert!(matches!(renew(&*store, &old, LONG).await, Renewal::Lost(_)));
    assert_eq!(release(&*store, &old).await, Released::NotOurs);
    assert_eq!(renew(&*store, &new, LONG).await, Renewal::Renewed);
}

/// A renewal that comes after the release, or after the end, revives nothing.
pub async fn a_late_renewal_revives_nothing(bench: &Bench) {
    let store = bench.ready().await;
    let released = granted(&*store, "released", "me", LONG).await;
    release(&*store, &released).await;
    let expired = granted(&*store, "expired", "me", SHORT).await;
    outlived(SHORT).await;

    assert_eq!(
        renew(&*store, &released, LONG).await,
        Renewal::Lost(LostReason::Released)
    );
    assert_eq!(
        renew(&*store, &expired, LONG).await,
        Renewal::Lost(LostReason::Expired)
    );
    assert_eq!(holder_of(&*store, "released").await, None);
    assert_eq!(holder_of(&*store, "expired").await, None);
    let never = Grant {
        name: name("never made"),
        ..expired
    };
    assert_eq!(
        renew(&*store, &never, LONG).await,
        Renewal::Lost(LostReason::RowGone)
    );
    assert_eq!(
        info(&*store, "never made").await,
        None,
        "renewing makes no row"
    );
    promise("P3", bench.engine);
}

/// Token, grant id and holder must all be right.
pub async fn each_part_of_a_grant_counts(bench: &Bench) {
    let store = bench.ready().await;
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
            Released::NotOurs,
            "{wrong:?}"
        );
    }
    assert_eq!(renew(&*store, &grant, LONG).await, Renewal::Renewed);
}

/// A release by force frees, tells the holder so, and lets the tokens grow.
pub async fn a_release_by_force_is_told_to_the_holder(bench: &Bench) {
    let store = bench.ready().await;
    assert_eq!(
        store.force(&name("job"), WITHIN).await.expect("an answer"),
        Force::WasFree
    );
    let grant = granted(&*store, "job", "me", LONG).await;
    let Force::Freed(from) = store.force(&name("job"), WITHIN).await.expect("an answer") else {
        panic!("not freed")
    };
    assert_eq!(from.holder.as_deref(), Some("me"));
    assert_eq!(
        renew(&*store, &grant, LONG).await,
        Renewal::Lost(LostReason::Forced)
    );
    assert_eq!(release(&*store, &grant).await, Released::NotOurs);
    assert_eq!(
        store.force(&name("job"), WITHIN).await.expect("an answer"),
        Force::WasFree
    );
    assert!(granted(&*store, "job", "you", LONG).await.token > grant.token);
    assert!(matches!(
        renew(&*store, &grant, LONG).await,
        Renewal::Lost(_)
    ));
    promise("P6", bench.engine);
}

/// An acquire whose reply was lost is given back by its grant id alone.
pub async fn a_grant_whose_token_is_unknown_can_be_given_back(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let what = Return {
        token: None,
        ..Return::of(&grant, Ttl::from(LONG))
    };
    let stranger = Return {
        grant: GrantId::random().expect("randomness"),
        ..what.clone()
    };
    let done = store
        .release(&[stranger, what], WITHIN)
        .await
        .expect("an answer");
    assert_eq!(done, [Released::NotOurs, Released::Freed]);
    granted(&*store, "job", "other", LONG).await;
}

fn handed_to(grant: &Grant, holder: &str) -> TakeUp {
    let metadata = format!("{{\"from\":\"{}\"}}", grant.id).into();
    let to = Ask {
        metadata,
        ..ask(grant.name.as_str(), holder, LONG)
    };
    TakeUp {
        token: grant.token,
        from: grant.id,
        to,
    }
}

async fn take_up(store: &dyn Store, what: &TakeUp) -> Renewal {
    store.take_up(what, WITHIN).await.expect("an answer")
}

/// A lock that is taken up has the same token and another grant; its giver can do no more to it.
pub async fn a_ticket_is_taken_up_once(bench: &Bench) {
    let store = bench.ready().await;
    let given = granted(&*store, "job", "giver", SHORT).await;
    let (what, again) = (handed_to(&given, "taker"), handed_to(&given, "another"));
    assert_eq!(take_up(&*store, &what).await, Renewal::Renewed);
    assert_eq!(
        take_up(&*bench.store(), &what).await,
        Renewal::Renewed,
        "its reply may be lost"
    );
    outlived(SHORT).await;

    let row = info(&*store, "job").await.expect("a row");
    assert_eq!(
        (row.token, row.holder.as_deref()),
        (given.token, Some("taker"))
    );
    assert_eq!(
        take_up(&*store, &again).await,
        Renewal::Lost(LostReason::TakenUp)
    );
    assert_eq!(
        renew(&*store, &given, LONG).await,
        Renewal::Lost(LostReason::TakenUp)
    );
    assert_eq!(release(&*store, &given).await, Released::NotOurs);
    let taken = Grant {
        id: what.to.grant,
        holder: "taker".into(),
        ..given
    };
    assert_eq!(renew(&*store, &taken, LONG).await, Renewal::Renewed);
    assert_eq!(release(&*store, &taken).await, Released::Freed);
    assert_eq!(
        take_up(&*store, &again).await,
        Renewal::Lost(LostReason::Released)
    );
    promise("P3", bench.engine);
}

/// A ticket whose lease has ended is dead, whether or not somebody else came.
pub async fn a_dead_ticket_revives_nothing(bench: &Bench) {
    let store = bench.ready().await;
    let given = granted(&*store, "job", "giver", SHORT).await;
    outlived(SHORT).await;
    let late = handed_to(&given, "late");
    assert_eq!(
        take_up(&*store, &late).await,
        Renewal::Lost(LostReason::Expired)
    );
    let next = granted(&*store, "job", "next", LONG).await;
    assert_eq!(
        take_up(&*store, &late).await,
        Renewal::Lost(LostReason::TakenOver)
    );
    assert_eq!(renew(&*store, &next, LONG).await, Renewal::Renewed);
    let nowhere = TakeUp {
        to: ask("no row", "late", LONG),
        ..late
    };
    assert_eq!(
        take_up(&*store, &nowhere).await,
        Renewal::Lost(LostReason::RowGone)
    );
}

/// Only what nobody has had for long is deleted, and the tokens of its name go on growing.
pub async fn pruning_deletes_what_is_long_free(bench: &Bench) {
    let store = bench.ready().await;
    granted(&*store, "held", "me", LONG).await;
    let endless = granted(&*store, "endless", "me", LONG).await;
    assert_eq!(
        renew(&*store, &endless, Ttl::Endless).await,
        Renewal::Renewed
    );
    let released = granted(&*store, "released", "me", LONG).await;
    release(&*store, &released).await;
    granted(&*store, "expired", "me", SHORT).await;
    let prune = async |idle| store.prune(idle, false, WITHIN).await.expect("an answer");
    outlived(SHORT).await;
    assert_eq!(prune(Duration::from_secs(3600)).await, 0, "not long enough");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(prune(Duration::from_secs(1)).await, 2);
    let rows = store.read(None, WITHIN).await.expect("an answer");
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["endless", "held"]);
    assert!(granted(&*store, "released", "me", LONG).await.token > released.token);
    promise("P2", bench.engine);
}

/// Names that look alike are different locks.
pub async fn distinct_names_are_distinct_locks(bench: &Bench) {
    let store = bench.ready().await;
    let longest = "x".repeat(255);
    let almost = format!("{}y", "x".repeat(254));
    let wide = "𝄞".repeat(255);
    let names = [
        "Job",
        "job",
        "JOB",
        "job ",
        " job",
        "job\t",
        "jöb",
        "jo\u{308}b",
        "jób",
        "ꓙob",
        "ß",
        "ss",
        "SS",
        "'",
        "''",
        "\"",
        "`",
        "*/",
        "/* job",
        "--",
        "; drop table x",
        "\\",
        "\\'",
        "%",
        "_",
        "job%",
        "null",
        "NULL",
        "0",
        "00",
        "𝄞",
        "🔒",
        "\u{200b}job",
        "\u{feff}",
        " ",
        "  ",
        "\n",
        "a.b",
        "æ",
        "ae",
        &longest,
        &almost,
        &wide,
    ];
    for (i, lock) in names.iter().enumerate() {
        granted(&*store, lock, &format!("holder {i}"), LONG).await;
    }
    for (i, lock) in names.iter().enumerate() {
        let holder = holder_of(&*store, lock).await;
        assert_eq!(holder, Some(format!("holder {i}")), "{lock:?}");
    }
    let all = store.read(None, WITHIN).await.expect("an answer");
    let listed: BTreeSet<&str> = all.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(listed, names.into_iter().collect());
    promise("P10", bench.engine);
}

/// Of several locks that are asked for at once each has its own answer.
pub async fn a_batch_of_acquires_is_answered_one_by_one(bench: &Bench) {
    let store = bench.ready().await;
    granted(&*store, "held", "other", LONG).await;
    let free = granted(&*store, "free", "other", LONG).await;
    release(&*store, &free).await;
    let locks = ["new b", "held", "free", "new a"];
    let asks: Vec<Ask> = locks.iter().map(|lock| ask(lock, "me", LONG)).collect();
    let outcomes = store.acquire(&asks, WITHIN).await.expect("an answer");
    let mine: Vec<bool> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::Granted { .. }))
        .collect();
    assert_eq!(mine, [true, false, true, true], "{outcomes:?}");
    for (ask, outcome) in asks.iter().zip(outcomes) {
        if let Outcome::Granted { token, .. } = outcome {
            assert_eq!(
                renew(&*store, &grant_of(ask, token), LONG).await,
                Renewal::Renewed
            );
        }
    }
}

/// Of several that are renewed at once each has its own answer and its own length.
pub async fn a_batch_of_renewals_is_answered_one_by_one(bench: &Bench) {
    let store = bench.ready().await;
    let kept = granted(&*store, "kept", "me", SHORT).await;
    let gone = granted(&*store, "gone", "me", LONG).await;
    release(&*store, &gone).await;
    let endless = granted(&*store, "endless", "me", SHORT).await;
    let round = [
        (gone, LONG.into()),
        (kept.clone(), LONG.into()),
        (
            Grant {
                name: name("no row"),
                ..kept
            },
            LONG.into(),
        ),
        (endless, Ttl::Endless),
    ];
    let answers = store.renew(&round, WITHIN).await.expect("an answer");
    let lost = Renewal::Lost;
    assert_eq!(
        answers,
        [
            lost(LostReason::Released),
            Renewal::Renewed,
            lost(LostReason::RowGone),
            Renewal::Renewed
        ]
    );
    outlived(SHORT).await;
    let state = |row: Option<LockInfo>| row.expect("a row").state;
    assert_eq!(
        state(info(&*store, "endless").await),
        LockState::Held { free_in: None }
    );
    assert_eq!(holder_of(&*store, "kept").await.as_deref(), Some("me"));
}

/// Two thousand leases are renewed by one call, and none of them is forgotten.
pub async fn two_thousand_leases_are_renewed_by_one_call(bench: &Bench) {
    let store = bench.ready().await;
    let asks: Vec<Ask> = (0..2000)
        .map(|i| ask(&format!("lock {i}"), "me", LONG))
        .collect();
    let mut round = Vec::new();
    for asks in asks.chunks(500) {
        let outcomes = store.acquire(asks, WITHIN).await.expect("an answer");
        for (ask, outcome) in asks.iter().zip(outcomes) {
            let Outcome::Granted { token, .. } = outcome else {
                panic!("{outcome:?}")
            };
            round.push((grant_of(ask, token), Ttl::from(Duration::from_secs(600))));
        }
    }
    let answers = store.renew(&round, WITHIN).await.expect("an answer");
    assert_eq!(answers.len(), 2000);
    assert!(answers.iter().all(|answer| *answer == Renewal::Renewed));
    let rows = store.read(None, WITHIN).await.expect("an answer");
    let extended = |row: &LockInfo| match row.state {
        LockState::Held {
            free_in: Some(left),
        } => left > Duration::from_secs(500),
        _ => false,
    };
    assert!(rows.iter().all(extended));
}

/// Twenty clients that use a name for the first time at once: one of them gets it.
pub async fn first_use_by_twenty_at_once_has_one_winner(bench: &Bench) {
    bench.ready().await;
    let winners = race(bench, "never seen", 20).await;
    assert_eq!(winners.len(), 1);
    promise("P1", bench.engine);
    promise("P15", bench.engine);
}

/// So of twenty that wait for an expired lease.
pub async fn an_expired_lease_has_one_successor(bench: &Bench) {
    let store = bench.ready().await;
    let old = granted(&*store, "job", "first", SHORT).await;
    outlived(SHORT).await;
    let winners = race(bench, "job", 20).await;
    assert_eq!(winners.len(), 1);
    assert!(winners[0] > old.token);
}

async fn race(bench: &Bench, lock: &str, clients: usize) -> Vec<Token> {
    let start = Arc::new(tokio::sync::Barrier::new(clients));
    let tasks: Vec<_> = (0..clients)
        .map(|i| {
            let (start, store) = (Arc::clone(&start), bench.store());
            let ask = ask(lock, &format!("client {i}"), LONG);
            tokio::spawn(async move {
                while store.connect(WITHIN).await.is_err() {}
                start.wait().await;
                // Busy is no answer: somebody is just taking it.
                for _ in 0..500 {
                    match try_once(&*store, &ask).await {
                        Outcome::Granted { token, .. } => return Some(token),
                        Outcome::Held(_) => return None,
                        Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
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

/// What a reader is told is what was written.
pub async fn a_reader_sees_what_the_holder_wrote(bench: &Bench) {
    let store = bench.ready().await;
    assert_eq!(info(&*store, "job").await, None);
    let metadata: Arc<str> = r#"{"program":"x","meta":{"why":"\"quoted\" \\ 'ä' 🔒"}}"#.into();
    let ask = Ask {
        metadata: Arc::clone(&metadata),
        ..ask("job", "it's \"me\" \\ ä", LONG)
    };
    let Outcome::Granted { token, .. } = try_once(&*store, &ask).await else {
        panic!("not granted")
    };
    let row = info(&*bench.store(), "job").await.expect("a row");
    assert_eq!(row.holder.as_deref(), Some(&*ask.holder));
    assert_eq!(
        (row.token, row.grant.as_deref()),
        (token, Some(ask.grant.as_str()))
    );
    assert_eq!(row.metadata.as_deref(), Some(&*metadata));
    assert!(row.held_for.is_some_and(|age| age < LONG));
    assert_eq!(row.acquired_at, row.renewed_at);
    let ends = row
        .expires_at
        .expect("an end")
        .duration_since(row.acquired_at.expect("a beginning"));
    let length = ends.expect("after the beginning");
    assert!(
        length.abs_diff(LONG) <= Duration::from_millis(2),
        "{length:?}"
    );
}

/// Making the table again changes nothing, and disturbs nobody who holds a lock.
pub async fn installing_twice_changes_nothing(bench: &Bench) {
    let store = bench.ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let before = info(&*store, "job").await;
    for client in [&store, &bench.store()] {
        client.install(WITHIN).await.expect("installs");
    }
    assert_eq!(
        info(&*store, "job").await.map(|row| row.token),
        before.map(|row| row.token)
    );
    assert_eq!(renew(&*store, &grant, LONG).await, Renewal::Renewed);
}

/// Make one test of each clause: `contract_tests!(memory, Lab::memory())`, where the expression is
/// an `Option<Lab>`, and `None` skips.
#[macro_export]
macro_rules! contract_tests {
    ($engine:ident, $lab:expr) => {
        $crate::contract_tests!($engine, $lab,
            a_held_lock_names_its_holder,
            expired_is_free,
            released_is_free,
            tokens_grow,
            the_first_token_is_the_clock,
            a_repeated_acquire_recognises_its_own_grant,
            renewed_leases_outlive_their_first_length,
            a_renewal_shortens_nothing,
            a_renewal_may_be_repeated,
            endless_ends_only_by_release,
            a_stale_grant_can_neither_renew_nor_release,
            the_same_holder_is_another_grant,
            a_late_renewal_revives_nothing,
            each_part_of_a_grant_counts,
            a_release_by_force_is_told_to_the_holder,
            a_grant_whose_token_is_unknown_can_be_given_back,
            a_ticket_is_taken_up_once,
            a_dead_ticket_revives_nothing,
            pruning_deletes_what_is_long_free,
            distinct_names_are_distinct_locks,
            a_batch_of_acquires_is_answered_one_by_one,
            a_batch_of_renewals_is_answered_one_by_one,
            two_thousand_leases_are_renewed_by_one_call,
            first_use_by_twenty_at_once_has_one_winner,
            an_expired_lease_has_one_successor,
            a_reader_sees_what_the_holder_wrote,
            installing_twice_changes_nothing,
            the_same_holder_takes_over,
            nothing_but_what_was_seen_is_taken_over,
            what_nobody_has_is_not_taken_over,
        );
    };
    ($engine:ident, $lab:expr, $($clause:ident),* $(,)?) => {
        mod $engine {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $clause() {
                    if let Some(lab) = $lab {
                        $crate::contract::$clause(&lab.bench()).await;
                    }
                }
            )*
        }
    };
}
