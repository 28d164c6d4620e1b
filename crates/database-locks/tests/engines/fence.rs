//! Fenced writes as a program does them, with the drivers of each engine.

use std::path::PathBuf;
use std::time::Duration;

use crate::fence_user::{User, client, connection};
use database_locks::seam::{Outcome, TakeOverCommand};
use database_locks::{Error, LockGuard, Locks, LostReason, Prune};
use mysql_async::TxOpts;
use mysql_async::prelude::Queryable;
use testkit::contract::{acquire_command, take_over};
use testkit::time::{ms, now};
use testkit::{Postgres, TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(20);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

async fn held(locks: &Locks, ttl: Duration) -> LockGuard {
    let lock = locks.lock("job").ttl(ttl).wait(TIMEOUT);
    lock.acquire().await.unwrap()
}

/// While a fence is open no client takes over an expired lease; afterwards one does at once.
async fn no_client_takes_over_while_a_fence_is_open(db: &TestDb) {
    let (locks, other, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    let nineteen: Vec<LockGuard> = {
        let mut all = Vec::new();
        for n in 0..19 {
            let lock = other.lock(format!("other {n}")).ttl(ms(6000));
            all.push(lock.acquire().await.unwrap());
        }
        all
    };
    let store = db.fixture().ready().await;
    // Last, since the fence must open within its lease.
    let lock = locks.lock("job").ttl(ms(4000)).auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    let (token, ticket) = (guard.token(), guard.ticket());
    let waiting = other.lock("job").wait(3 * TIMEOUT);
    let waiter = tokio::spawn(async move { waiting.acquire().await.map(|guard| (now(), guard)) });
    let committed = user
        .under(&guard, None, async |_| {
            let again = TakeOverCommand {
                to: acquire_command("job", guard.holder(), TIMEOUT),
                token,
                grant: Some(guard.grant_id().to_owned()),
            };
            let over = take_over(&*store, &again).await;
            assert!(!matches!(over, Outcome::Granted { .. }), "by the same");
            let resumed = tokio::time::timeout(ms(300), other.resume(&ticket)).await;
            assert!(!matches!(resumed, Ok(Ok(_))), "resumed");
            // Longer than every lease: those of the others are renewed meanwhile.
            let began = now();
            while began.elapsed() < ms(6500) {
                let asked = now();
                let locks = db.locks().await;
                assert!(locks.lock("job").try_acquire().await.unwrap().is_none());
                assert_eq!(
                    locks
                        .prune(Prune::older_than(Duration::ZERO).include_legacy())
                        .await
                        .unwrap(),
                    0
                );
                assert!(asked.elapsed() < ms(5000), "it waited");
                tokio::time::sleep(ms(50)).await;
            }
            for guard in &nineteen {
                assert!(guard.is_held(), "{} was held up", guard.name());
            }
            assert!(!waiter.is_finished());
            now()
        })
        .await
        .unwrap();
    let (got, next) = in_time(waiter).await.unwrap().unwrap();
    assert!(got >= committed && got.duration_since(committed) < ms(15_000));
    assert!(next.token() > token);
    let refused = user.under(&guard, None, async |_| ()).await.unwrap_err();
    assert!(matches!(refused, Error::Lost { .. }), "{}", refused.chain());
    promise("P9", db.engine);
}

/// A holder that believes in its lease, and whose grant is gone.
async fn a_grant_that_is_gone_is_not_fenced(db: &TestDb) {
    let (locks, other, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    // Too short for its process to listen for a release by force.
    let lock = locks.lock("job").ttl(ms(15_000)).auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    other.force_release("job").await.unwrap().expect("held");
    let next = held(&other, TIMEOUT).await;
    assert!(guard.is_held(), "it has not heard of it yet");
    let refused = user.under(&guard, None, async |_| ()).await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Lost {
                reason: LostReason::Preempted,
                ..
            }
        ),
        "{}",
        refused.chain()
    );
    assert!(!guard.is_held(), "it has heard of it now");
    next.check().await.unwrap();
    user.under(&next, None, async |_| ()).await.unwrap();
    promise("P9", db.engine);
}

/// Longer than the ttl, and held all along.
async fn renewals_go_on_under_an_open_fence(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    let guard = held(&locks, ms(5000)).await;
    let began = now();
    let through = user.under(&guard, None, async |_| {
        while began.elapsed() < ms(6000) {
            assert!(guard.is_held(), "after {:?}", began.elapsed());
            tokio::time::sleep(ms(20)).await;
        }
        guard.check().await.unwrap();
    });
    through.await.unwrap();
    guard.release().await.unwrap();
    promise("P9", db.engine);
}

/// No renewal gets past it: the guard is neither held nor lost, and held again afterwards.
async fn a_guard_whose_trust_ends_under_a_fence_is_suspended(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    let lock = locks.lock("job").ttl(ms(9000)).margin(ms(4400));
    let guard = lock.acquire().await.unwrap();
    let (began, lost) = (now(), tokio::spawn(guard.lost()));
    let through = user.under(&guard, None, async |_| {
        loop {
            let asked = began.elapsed();
            if !guard.is_held() {
                break;
            }
            assert!(asked < ms(4700), "an open fence lengthens no trust");
            tokio::time::sleep(ms(5)).await;
        }
        assert!(began.elapsed() > ms(4000));
        assert_eq!(guard.trusted_for(), Duration::ZERO);
        assert!(!lost.is_finished(), "no loss during the fence");
        for refused in [
            guard.open_fence(None).await.map(drop),
            guard.fence_statement().map(drop),
            guard.check().await,
        ] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
        }
    });
    through.await.unwrap();
    loop {
        let asked = began.elapsed();
        if guard.is_held() {
            break;
        }
        assert!(asked < ms(8900), "not decided");
        tokio::time::sleep(ms(5)).await;
    }
    assert!(!lost.is_finished());
    guard.check().await.unwrap();
    guard.extend(TIMEOUT).await.unwrap();
    user.under(&guard, None, async |_| ()).await.unwrap();
    guard.release().await.unwrap();
    promise("P9", db.engine);
}

/// If the lease ends while a fence is open, the loss is reported, with its reason, when the fence
/// closes.
async fn a_lease_that_ends_under_a_fence_is_lost_when_the_fence_closes(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    let guard = held(&locks, ms(4000)).await;
    let lost = tokio::spawn(guard.lost());
    let through = user.under(&guard, None, async |_| {
        tokio::time::sleep(ms(4500)).await;
        assert!(!guard.is_held() && !lost.is_finished());
    });
    through.await.unwrap();
    assert_eq!(in_time(lost).await.unwrap().reason(), LostReason::Expired);
    let refused = guard.release().await.unwrap_err();
    assert!(matches!(refused, Error::Lost { .. }), "{refused}");
    drop(held(&locks, TIMEOUT).await);
    promise("P9", db.engine);
}

/// A guard whose trust has run out under its fence can be released all the same.
async fn a_suspended_guard_can_be_released(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    let lock = locks.lock("job").ttl(ms(9000)).margin(ms(4400));
    let guard = lock.acquire().await.unwrap();
    let mut release = None;
    user.under(&guard, None, async |_| {
        while guard.is_held() {
            tokio::time::sleep(ms(20)).await;
        }
        release = Some(());
    })
    .await
    .unwrap();
    assert!(release.is_some());
    in_time(guard.release()).await.unwrap();
    let next = locks.lock("job").try_acquire().await.unwrap();
    next.expect("free").release().await.unwrap();
}

/// If the caller says how long the transaction lasts, the lease is first renewed to that length.
async fn a_long_transaction_is_covered(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    let guard = held(&locks, ms(4000)).await;
    let began = now();
    let through = user.under(&guard, Some(ms(15_000)), async |_| {
        while began.elapsed() < ms(5000) {
            assert!(guard.is_held(), "after {:?}", began.elapsed());
            tokio::time::sleep(ms(20)).await;
        }
    });
    through.await.unwrap();
    assert!(guard.is_held());
    guard.check().await.unwrap();
    let too_long = Duration::from_secs(20 * 365 * 86_400);
    let refused = user.under(&guard, Some(too_long), async |_| ()).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Config {
                setting: "lasting",
                ..
            }
        ),
        "{refused}"
    );
    guard.release().await.unwrap();
    promise("P9", db.engine);
}

/// It waits a moment, and the error says why it failed.
async fn a_release_by_force_never_overtakes_an_open_fence(db: &TestDb) {
    let (locks, other, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    let guard = held(&locks, TIMEOUT).await;
    user.under(&guard, None, async |_| {
        let began = now();
        let error = other.force_release("job").await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{}", error.chain());
        assert!(
            error.chain().contains("its row is locked"),
            "{}",
            error.chain()
        );
        assert!(began.elapsed() >= ms(1900) && began.elapsed() < TIMEOUT);
    })
    .await
    .unwrap();
    guard.check().await.unwrap();
    other.force_release("job").await.unwrap().expect("freed");
    promise("P9", db.engine);
}

/// A guard that is released under its own fence does not wait for it, however long the lease is.
async fn a_release_under_its_own_fence_is_done_when_the_transaction_ends(db: &TestDb) {
    let (locks, other, mut user) = (
        db.locks().await,
        db.locks().await,
        connection(&db.url).await,
    );
    for (ttl, longer) in [(TIMEOUT * 3, ms(2000)), (ms(6000), ms(6500))] {
        let guard = held(&locks, ttl).await;
        let mut tx = user.start_transaction(TxOpts::default()).await.unwrap();
        let open = guard.fence(&mut tx).await.unwrap();
        let began = now();
        guard.release().await.unwrap();
        assert!(began.elapsed() < ms(5000), "it waited for itself");
        tokio::time::sleep(longer).await;
        let taken = other.lock("job").try_acquire().await.unwrap();
        assert!(taken.is_none(), "while the transaction is open");
        tx.commit().await.unwrap();
        drop(open);
        drop(held(&other, TIMEOUT).await);
        other.drain().await;
    }
}

/// A release by ticket, or by force, in the process that has the fence open.
async fn a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends(
    db: &TestDb,
) {
    let (locks, other, mut user) = (db.locks().await, db.locks().await, User::of(db).await);
    for by_force in [false, true] {
        let guard = held(&locks, TIMEOUT * 3).await;
        user.under(&guard, None, async |_| {
            let began = now();
            if by_force {
                let from = locks.force_release("job").await.unwrap();
                assert_eq!(from.unwrap().holder.as_deref(), Some(guard.holder()));
            } else {
                locks.release(&guard.ticket()).await.unwrap();
            }
            assert!(began.elapsed() < ms(10_000), "it waited for itself");
            let taken = other.lock("job").try_acquire().await.unwrap();
            assert!(taken.is_none(), "while the transaction is open");
        })
        .await
        .unwrap();
        drop(held(&other, TIMEOUT).await);
        other.drain().await;
        assert!(matches!(guard.check().await, Err(Error::Lost { .. })));
    }
    promise("P9", db.engine);
}

/// Two of them at once, where that goes; and a release under one frees the lock only for
/// afterwards.
async fn fences_of_one_guard_may_overlap(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    let (mut first, mut second) = (User::of(db).await, User::of(db).await);
    let guard = held(&locks, TIMEOUT).await;
    first
        .under(&guard, None, async |_| {
            second.under(&guard, None, async |_| ()).await.unwrap();
            assert!(other.lock("job").try_acquire().await.unwrap().is_none());
        })
        .await
        .unwrap();
    first
        .under(&guard, None, async |_| {
            guard.check().await.unwrap();
            locks.release(&guard.ticket()).await.unwrap();
            let taken = other.lock("job").try_acquire().await.unwrap();
            assert!(taken.is_none(), "while the transaction is open");
        })
        .await
        .unwrap();
    drop(held(&other, TIMEOUT).await);
    promise("P9", db.engine);
}

/// Where the transaction is somewhere else, the fence would fence nothing.
async fn a_transaction_in_another_database_is_refused(db: &TestDb) {
    let (locks, mut own) = (db.locks().await, User::of(db).await);
    let guard = held(&locks, TIMEOUT).await;
    let mut refusals = Vec::new();
    if db.engine == "sqlite" {
        if let Some(server) = Postgres::shared() {
            let mut user = User::Postgres(client(&server.fresh_database()).await);
            refusals.push(user.under(&guard, None, async |_| ()).await);
        }
    } else {
        let another = match db.engine {
            "postgres" => TestDb::postgres(),
            "mysql" => TestDb::mysql(),
            _ => TestDb::mariadb(),
        };
        let another = another.unwrap();
        let mut user = User::of(&another).await;
        // Without a table of locks, with one, and with another lock of that name in it.
        refusals.push(user.under(&guard, None, async |_| ()).await);
        let theirs = another.locks().await;
        refusals.push(user.under(&guard, None, async |_| ()).await);
        let _held = held(&theirs, TIMEOUT).await;
        refusals.push(user.under(&guard, None, async |_| ()).await);
        let mut user = User::Sqlite(rusqlite::Connection::open_in_memory().unwrap());
        refusals.push(user.under(&guard, None, async |_| ()).await);
    }
    for refused in refusals {
        let refused = refused.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::Config {
                    setting: "fence",
                    ..
                }
            ),
            "{}",
            refused.chain()
        );
    }
    assert!(guard.is_held());
    own.under(&guard, None, async |_| ()).await.unwrap();
    promise("P9", db.engine);
}

/// A conflict that has nothing to do with the grant is the transaction's own.
async fn a_conflict_of_the_transaction_is_no_loss(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    let guard = held(&locks, TIMEOUT).await;
    let (sql, patience) = match db.engine {
        "postgres" => ("FOR UPDATE", "SET lock_timeout = '100ms'"),
        _ => ("FOR UPDATE", "SET innodb_lock_wait_timeout = 1"),
    };
    match &mut user {
        User::Postgres(client) => client.batch_execute(patience).await.unwrap(),
        User::Mysql(conn) => conn.query_drop(patience).await.unwrap(),
        _ => unreachable!(),
    }
    let hold = db.begin_with(&format!(
        "SELECT id FROM database_locks_lock WHERE name = 'job' {sql}"
    ));
    let refused = user.under(&guard, None, async |_| ()).await.unwrap_err();
    assert!(
        matches!(refused, Error::Conflict { .. }),
        "{}",
        refused.chain()
    );
    assert!(refused.chain().contains("try the transaction again"));
    hold.rollback();
    assert!(guard.is_held());
    user.under(&guard, None, async |_| ()).await.unwrap();
    promise("P9", db.engine);
}

/// What it has read may be older than what the holder before has written.
async fn a_transaction_that_read_before_the_grant_is_refused(db: &TestDb) {
    let locks = db.locks().await;
    held(&locks, TIMEOUT).await.release().await.unwrap();
    let mut conn = connection(&db.url).await;
    let mut tx = conn.start_transaction(TxOpts::default()).await.unwrap();
    let _: Option<i64> = tx
        .query_first("SELECT count(*) FROM database_locks_lock")
        .await
        .unwrap();
    let guard = held(&locks, TIMEOUT).await;
    let refused = guard.fence(&mut tx).await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Config {
                setting: "fence",
                ..
            }
        ),
        "{}",
        refused.chain()
    );
    tx.rollback().await.unwrap();
    let mut tx = conn.start_transaction(TxOpts::default()).await.unwrap();
    drop(guard.fence(&mut tx).await.unwrap());
    tx.commit().await.unwrap();
    promise("P9", db.engine);
}

/// It takes no other right than those that the locks themselves take.
async fn select_and_update_are_the_only_privileges_required(db: &TestDb) {
    let locks = db.locks().await;
    let guard = held(&locks, TIMEOUT).await;
    let database = db.url.rsplit('/').next().unwrap();
    let grant = format!("GRANT SELECT, UPDATE ON database_locks_lock TO fencer_{database}");
    let (at, rest) = (db.url.find("//").unwrap() + 2, db.url.find('@').unwrap());
    let url = format!("{}fencer_{database}{}", &db.url[..at], &db.url[rest..]);
    let mut user = match db.engine {
        "postgres" => {
            db.sql(&format!("CREATE ROLE fencer_{database} LOGIN"));
            db.sql(&grant);
            User::Postgres(client(&url).await)
        }
        _ => {
            db.sql(&format!("CREATE USER fencer_{database}"));
            db.sql(&grant);
            User::Mysql(connection(&url).await)
        }
    };
    user.under(&guard, None, async |_| ()).await.unwrap();
    guard.release().await.unwrap();
}

/// Statement by statement there is nothing that the fence could hold.
async fn outside_of_a_transaction_nothing_is_fenced(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    let guard = held(&locks, TIMEOUT).await;
    let mut client = client(&db.url).await;
    let refused = guard.fence(&mut client).await.unwrap_err();
    assert!(refused.to_string().contains("outside"), "{refused}");
    client.batch_execute("BEGIN").await.unwrap();
    let open = guard.fence(&mut client).await.unwrap();
    let error = other.force_release("job").await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }));
    client.batch_execute("COMMIT").await.unwrap();
    drop(open);
    locks.force_release("job").await.unwrap().expect("freed");
}

/// A fence leaves nothing behind when it is closed.
async fn a_closed_fence_leaves_no_file_behind(db: &TestDb) {
    let (locks, mut user) = (db.locks().await, User::of(db).await);
    for n in 0..50 {
        let guard = locks.lock(format!("job {n}")).acquire().await.unwrap();
        user.under(&guard, None, async |_| ()).await.unwrap();
    }
    let path = PathBuf::from(format!(
        "{}-fences",
        db.url.strip_prefix("sqlite://").unwrap()
    ));
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
}

db_tests!(memory: no_client_takes_over_while_a_fence_is_open, a_grant_that_is_gone_is_not_fenced,
    renewals_go_on_under_an_open_fence, a_long_transaction_is_covered,
    a_release_by_force_never_overtakes_an_open_fence,
    a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends, fences_of_one_guard_may_overlap);
db_tests!(sqlite: no_client_takes_over_while_a_fence_is_open, a_grant_that_is_gone_is_not_fenced,
    renewals_go_on_under_an_open_fence, a_long_transaction_is_covered,
    a_release_by_force_never_overtakes_an_open_fence,
    a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends, fences_of_one_guard_may_overlap,
    a_transaction_in_another_database_is_refused, a_closed_fence_leaves_no_file_behind);
db_tests!(postgres: no_client_takes_over_while_a_fence_is_open, a_grant_that_is_gone_is_not_fenced,
    renewals_go_on_under_an_open_fence, a_long_transaction_is_covered,
    a_release_by_force_never_overtakes_an_open_fence,
    a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends, fences_of_one_guard_may_overlap,
    a_transaction_in_another_database_is_refused, a_conflict_of_the_transaction_is_no_loss,
    outside_of_a_transaction_nothing_is_fenced, select_and_update_are_the_only_privileges_required);
db_tests!(pgbouncer: no_client_takes_over_while_a_fence_is_open, a_grant_that_is_gone_is_not_fenced,
    renewals_go_on_under_an_open_fence, a_long_transaction_is_covered,
    a_release_by_force_never_overtakes_an_open_fence,
    a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends, fences_of_one_guard_may_overlap,
    a_transaction_in_another_database_is_refused);
db_tests!(mariadb: no_client_takes_over_while_a_fence_is_open, a_grant_that_is_gone_is_not_fenced,
    a_guard_whose_trust_ends_under_a_fence_is_suspended,
    a_lease_that_ends_under_a_fence_is_lost_when_the_fence_closes,
    a_suspended_guard_can_be_released, a_long_transaction_is_covered,
    a_release_by_force_never_overtakes_an_open_fence,
    a_release_under_its_own_fence_is_done_when_the_transaction_ends,
    a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends,
    a_transaction_in_another_database_is_refused, a_conflict_of_the_transaction_is_no_loss,
    a_transaction_that_read_before_the_grant_is_refused, select_and_update_are_the_only_privileges_required);
db_tests!(mysql: no_client_takes_over_while_a_fence_is_open, a_grant_that_is_gone_is_not_fenced,
    a_guard_whose_trust_ends_under_a_fence_is_suspended,
    a_lease_that_ends_under_a_fence_is_lost_when_the_fence_closes,
    a_suspended_guard_can_be_released, a_long_transaction_is_covered,
    a_release_by_force_never_overtakes_an_open_fence,
    a_release_under_its_own_fence_is_done_when_the_transaction_ends,
    a_release_by_force_or_ticket_under_its_own_fence_is_done_when_the_transaction_ends,
    a_transaction_in_another_database_is_refused, a_conflict_of_the_transaction_is_no_loss,
    a_transaction_that_read_before_the_grant_is_refused, select_and_update_are_the_only_privileges_required);
