//! Other clients that write to the table, lock its rows, or are legacy.

use std::time::Duration;

use database_locks::seam::{
    AcquireCommand, Outcome, ReleaseCommand, Released, Renewal, Slot, StoreError, random_grant_id,
};
use database_locks::{Error, LockState, LostReason, Ttl};
use testkit::contract::{acquire_command, granted, info, name, release, renew, try_once};
use testkit::time::{ms, now};
use testkit::{Proxy, TestDb, db_tests, promise};

const LONG: Duration = Duration::from_secs(25);
const TIMEOUT: Duration = Duration::from_secs(20);
/// The limit for calls that do not wait for a row: a round trip or two on a busy machine. Waiting
/// for the other transaction would take until the end of the test.
const AT_ONCE: Duration = Duration::from_secs(10);

async fn at_once<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_ONCE, what)
        .await
        .expect("waits for a row")
}

/// Fills the table with rows that have nothing to do with it.
fn crowd(db: &TestDb, rows: usize) {
    for start in (0..rows).step_by(500) {
        let values: Vec<String> = (start..rows.min(start + 500))
            .map(|i| format!("('crowd {i}')"))
            .collect();
        db.sql(&format!(
            "INSERT INTO database_locks_lock (name) VALUES {}",
            values.join(",")
        ));
    }
}

/// Another client locks one row of twenty: nineteen are renewed, and that one is busy, not lost.
async fn a_locked_row_is_busy_and_delays_no_other_lock(db: &TestDb) {
    let fixture = db.fixture();
    let store = fixture.ready().await;
    for rows in [0, 5, 5_000] {
        db.sql("DELETE FROM database_locks_lock");
        crowd(db, rows);
        let mut round = Vec::new();
        for i in 0..20 {
            round.push((
                granted(&*store, &format!("lock {i}"), "me", LONG).await,
                Ttl::from(LONG),
            ));
        }
        let hold = db.lock_row("lock 7");

        let answers = at_once(store.renew(&round, TIMEOUT))
            .await
            .expect("an answer");
        for (i, answer) in answers.into_iter().enumerate() {
            let expected = match i {
                7 => answer == Renewal::Busy,
                _ => answer.is_renewed(),
            };
            assert!(
                expected,
                "lock {i} of a table of {rows} more rows: {answer:?}"
            );
        }
        let back = [
            ReleaseCommand::of(&round[7].0, LONG.into()),
            ReleaseCommand::of(&round[8].0, LONG.into()),
        ];
        let released = at_once(store.release(&back, TIMEOUT))
            .await
            .expect("an answer");
        assert_eq!(released, [Released::Busy, Released::Freed]);
        let forced = at_once(store.force(&name("lock 7"), Slot::Lock, TIMEOUT))
            .await
            .expect("an answer");
        assert_eq!(forced, database_locks::seam::Force::Busy);
        let other = at_once(try_once(&*store, &acquire_command("lock 8", "other", LONG))).await;
        assert!(matches!(other, Outcome::Granted { .. }), "{other:?}");

        hold.rollback();
        assert!(renew(&*store, &round[7].0, LONG).await.is_renewed());
        assert_eq!(release(&*store, &round[7].0).await, Released::Freed);
    }
    promise("P6", db.engine);
    promise("P15", db.engine);
}

/// In a large batch of acquires and releases, a transaction that has one of the rows locked blocks
/// that lock and no other.
async fn in_a_large_batch_only_the_locked_row_is_busy(db: &TestDb) {
    let store = db.fixture().ready().await;
    let mut commands: Vec<AcquireCommand> = (0..150)
        .map(|i| acquire_command(&format!("lock {i}"), "me", LONG))
        .collect();
    let held = store.acquire(&commands, TIMEOUT).await.expect("an answer");
    let back = |commands: &[AcquireCommand], outcomes: &[Outcome]| -> Vec<ReleaseCommand> {
        let grants = commands.iter().zip(outcomes);
        let grants = grants.filter_map(|(command, outcome)| match outcome {
            Outcome::Granted { token, .. } => Some(ReleaseCommand {
                slot: Default::default(),
                rest: Duration::ZERO,
                name: command.name.clone(),
                token: Some(*token),
                grant: command.grant,
                holder: command.holder.clone(),
                durable: false,
            }),
            _ => None,
        });
        grants.collect()
    };
    let released = store.release(&back(&commands, &held), TIMEOUT).await;
    assert_eq!(released.expect("an answer"), vec![Released::Freed; 150]);

    let hold = db.lock_row("lock 7");
    for command in &mut commands {
        command.grant = random_grant_id().expect("randomness");
    }
    let outcomes = at_once(store.acquire(&commands, TIMEOUT))
        .await
        .expect("an answer");
    for (i, outcome) in outcomes.iter().enumerate() {
        let granted = matches!(outcome, Outcome::Granted { .. });
        assert_eq!(granted, i != 7, "lock {i}: {outcome:?}");
    }
    assert_eq!(outcomes[7], Outcome::Busy);
    hold.rollback();

    let back = back(&commands, &outcomes);
    let hold = db.lock_row("lock 9");
    let (few, many) = back.split_at(20);
    let mut released = at_once(store.release(few, TIMEOUT))
        .await
        .expect("an answer");
    released.extend(
        at_once(store.release(many, TIMEOUT))
            .await
            .expect("an answer"),
    );
    for (what, released) in back.iter().zip(released) {
        let expected = match what.name == name("lock 9") {
            true => Released::Busy,
            false => Released::Freed,
        };
        assert_eq!(released, expected, "{what:?}");
    }
    hold.rollback();
    promise("P15", db.engine);
}

/// A free lock whose row is locked is granted soon after, and no request blocks on the row.
async fn a_locked_free_row_is_tried_again(db: &TestDb) {
    let locks = db.locks().await;
    locks
        .lock("job")
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let hold = db.lock_row("job");
    let tried = at_once(locks.lock("job").try_acquire()).await.unwrap();
    assert!(tried.is_none(), "its row is locked");
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("job").wait(TIMEOUT).acquire().await })
    };
    // Another lock over the same connection is not held up meanwhile.
    for _ in 0..5 {
        at_once(locks.lock("other").acquire())
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert!(!waiter.is_finished());
    hold.rollback();
    waiter.await.unwrap().unwrap().release().await.unwrap();
    promise("P15", db.engine);
}

/// A release by force never overtakes an open transaction: it waits a moment and then fails.
async fn a_release_by_force_of_a_locked_row_is_a_conflict(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.unwrap();
    let hold = db.lock_row("job");
    let error = locks.force_release("job").await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{}", error.chain());
    assert!(guard.is_held());
    hold.rollback();
    assert!(locks.force_release("job").await.unwrap().is_some());
}

/// No client holds the lock. But "it was free" would be wrong while a transaction has its row locked.
async fn a_release_by_force_that_cannot_look_for_a_transaction_says_so(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let (locks, operator) = (db.locks().await, db.locks_at(&proxy.url(&db.url)).await);
    let lock = locks.lock("job").ttl(ms(500)).auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    let hold = db.lock_row("job");
    guard.lost().await;
    tokio::time::sleep(ms(500)).await;
    operator.show("job").await.unwrap();
    proxy.refuse(true);
    let error = operator.force_release("job").await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. }),
        "{}",
        error.chain()
    );
    assert!(
        error.chain().contains("cannot be seen"),
        "{}",
        error.chain()
    );
    hold.rollback();
    proxy.refuse(false);
    assert_eq!(operator.force_release("job").await.unwrap(), None);
}

/// A row that is locked for longer than the ttl lasts: held until the end of trust, then lost.
async fn a_row_locked_past_the_ttl_is_lost_in_time(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks.lock("job").ttl(ms(6000)).renew_every(ms(500));
    let guard = lock.acquire().await.unwrap();
    let hold = db.lock_row("job");
    tokio::time::sleep(ms(900)).await;
    assert!(guard.is_held(), "busy is not lost");
    let loss = tokio::time::timeout(TIMEOUT, guard.lost())
        .await
        .expect("in time");
    // On SQLite it is the file that cannot be written, and so nothing is known of the row.
    assert!(
        matches!(loss.reason(), LostReason::Expired | LostReason::Unreachable),
        "{loss:?}"
    );
    hold.rollback();
    drop(guard);
    locks
        .lock("job")
        .wait(TIMEOUT)
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    promise("P4", db.engine);
    promise("P6", db.engine);
}

/// While that goes on, the question is answered at once.
async fn asking_waits_for_no_writer(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.unwrap();
    let hold = db.lock_row("job");
    let release = tokio::spawn(async move { (guard.is_held(), guard) });
    let (held, guard) = at_once(release).await.unwrap();
    let began = now();
    assert!((0..10_000).all(|_| guard.is_held()) && held);
    assert!(began.elapsed() < AT_ONCE);
    hold.rollback();
    guard.release().await.unwrap();
    promise("P8", db.engine);
}

/// Another client has inserted the name and not committed: the first acquire of the name does not
/// block in the database, and gets the lock once that transaction has ended, by commit or rollback.
async fn an_uncommitted_first_use_is_waited_for(db: &TestDb) {
    for commit in [false, true] {
        let locks = db.locks().await;
        db.sql("DELETE FROM database_locks_lock");
        // This row exists already: InnoDB locks the gap beside the inserted row against new ones.
        locks
            .lock("other")
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        let hold = db.begin_with("INSERT INTO database_locks_lock (name) VALUES ('job')");
        let tried = at_once(locks.lock("job").try_acquire()).await.unwrap();
        assert!(tried.is_none());
        let waiter = {
            let locks = locks.clone();
            tokio::spawn(async move { locks.lock("job").wait(TIMEOUT).acquire().await })
        };
        for _ in 0..3 {
            at_once(locks.lock("other").acquire())
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
        }
        assert!(!waiter.is_finished());
        if commit {
            hold.commit()
        } else {
            hold.rollback()
        }
        let guard = waiter
            .await
            .unwrap()
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        guard.release().await.unwrap();
    }
    promise("P1", db.engine);
    promise("P15", db.engine);
}

/// The rows of django-database-locks 0.5, which knows only the first four columns.
async fn legacy_leases_are_respected(db: &TestDb) {
    let locks = db.locks().await;
    let insert = |lock: &str, expires: &str| {
        let columns = "database_locks_lock (name, locked_by, expires_at)";
        db.sql(&format!(
            "INSERT INTO {columns} VALUES ('{lock}', 'old.17', {expires})"
        ));
    };
    insert("held", "'2999-01-01 00:00:00'");
    insert("over", "'2001-01-01 00:00:00'");
    insert("free", "NULL");

    assert!(locks.lock("held").try_acquire().await.unwrap().is_none());
    let row = locks.show("held").await.unwrap().expect("a row");
    assert_eq!(row.holder.as_deref(), Some("old.17"));
    assert_eq!(row.held_for, None, "it does not say since when");
    for lock in ["over", "free"] {
        let guard = locks.lock(lock).try_acquire().await.unwrap().expect("free");
        assert!(
            guard.token().get() > 1_700_000_000_000,
            "begins at the clock"
        );
    }

    // A legacy client takes an expired lock: the grant is lost, and its metadata is not shown.
    let lock = locks.lock("current").ttl(ms(9000)).renew_every(ms(1000));
    let guard = lock.acquire().await.unwrap();
    db.sql(
        "UPDATE database_locks_lock SET locked_by = 'old.17', expires_at = '2999-01-01 00:00:00' \
         WHERE name = 'current'",
    );
    let loss = tokio::time::timeout(TIMEOUT, guard.lost())
        .await
        .expect("in time");
    assert_eq!(loss.reason(), LostReason::Preempted);
    let row = locks.show("current").await.unwrap().expect("a row");
    assert_eq!((row.held_for, row.grant, row.metadata), (None, None, None));
    assert!(matches!(row.state, LockState::Held { .. }));
    promise("P6", db.engine);
}

async fn the_error_for_a_missing_table_names_the_fix(db: &TestDb) {
    let locks = db.locks().await;
    db.sql("DROP TABLE database_locks_lock");
    for error in [
        locks.lock("job").acquire().await.unwrap_err(),
        locks.lock("job").try_acquire().await.unwrap_err(),
        locks.list().await.unwrap_err(),
        locks.force_release("job").await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
        let message = error.chain();
        assert!(message.contains("dblock init"), "{message}");
    }
}

/// On SQLite another transaction locks the whole file: contention, and no error.
async fn a_busy_file_is_contention(db: &TestDb) {
    let store = db.fixture().ready().await;
    let grant = granted(&*store, "job", "me", LONG).await;
    let hold = db.lock_row("job");
    let round = [(grant.clone(), Ttl::from(LONG))];
    let renewal = at_once(store.renew(&round, TIMEOUT)).await;
    assert!(
        matches!(renewal, Err(StoreError::Contention(_))),
        "{renewal:?}"
    );
    let losing = at_once(try_once(&*store, &acquire_command("job", "other", LONG))).await;
    assert!(
        matches!(losing, Outcome::Held(_)),
        "a losing try needs no write lock"
    );
    let locks = db.locks_at(&db.url);
    let tried = at_once(async { locks.await.lock("new").try_acquire().await }).await;
    // Blocked is not held: no holder is known.
    let blocked = tried.expect_err("it could not be tried");
    assert!(matches!(blocked, Error::Conflict { .. }), "{blocked:?}");
    assert!(
        blocked.chain().contains("database is locked"),
        "{}",
        blocked.chain()
    );
    hold.rollback();
    assert!(info(&*store, "job").await.is_some());
    promise("P15", db.engine);
}

macro_rules! on_servers {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_locked_row_is_busy_and_delays_no_other_lock,
            in_a_large_batch_only_the_locked_row_is_busy,
            a_locked_free_row_is_tried_again,
            a_release_by_force_of_a_locked_row_is_a_conflict,
            a_release_by_force_that_cannot_look_for_a_transaction_says_so,
            a_row_locked_past_the_ttl_is_lost_in_time,
            asking_waits_for_no_writer,
            an_uncommitted_first_use_is_waited_for,
            legacy_leases_are_respected,
            the_error_for_a_missing_table_names_the_fix,
        );
    )* };
}
on_servers!(postgres, mariadb, mysql);
db_tests!(sqlite:
    a_release_by_force_of_a_locked_row_is_a_conflict,
    a_row_locked_past_the_ttl_is_lost_in_time,
    asking_waits_for_no_writer,
    legacy_leases_are_respected,
    the_error_for_a_missing_table_names_the_fix,
    a_busy_file_is_contention,
);
