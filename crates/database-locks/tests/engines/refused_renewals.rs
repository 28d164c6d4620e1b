//! Renewals that the database refuses: one row, several, all, for a while, on one connection.
#![cfg(all(feature = "postgres", feature = "mysql"))]

use std::time::Duration;

use database_locks::{Error, LockGuard, Locks, LostReason};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// From now on each change of a row is refused for which that holds; `NEW` is the row.
fn refuse(db: &TestDb, condition: &str) {
    db.sql(&match db.engine {
        "postgres" => format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF {condition} THEN RAISE EXCEPTION 'the row is poisoned'; END IF; \
               RETURN NEW; \
             END $$; \
             CREATE TRIGGER refuse BEFORE UPDATE ON database_locks_lock \
               FOR EACH ROW EXECUTE FUNCTION refuse()"
        ),
        _ => format!(
            "DELIMITER //\n\
             CREATE TRIGGER refuse BEFORE UPDATE ON database_locks_lock FOR EACH ROW BEGIN \
               IF {condition} THEN \
                 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the row is poisoned'; \
               END IF; \
             END//\n\
             DELIMITER ;"
        ),
    });
}

fn refuse_no_more(db: &TestDb) {
    db.sql(match db.engine {
        "postgres" => "DROP TRIGGER refuse ON database_locks_lock; DROP FUNCTION refuse()",
        _ => "DROP TRIGGER refuse",
    });
}

async fn hold(locks: &Locks, names: impl Iterator<Item = String>, ttl: Duration) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for name in names {
        guards.push(in_time(locks.lock(name).ttl(ttl).acquire()).await.unwrap());
    }
    guards
}

/// Those that are held for so long, and those that are lost within it.
async fn after(guards: Vec<LockGuard>, time: Duration) -> (Vec<LockGuard>, Vec<LockGuard>) {
    let began = now();
    while began.elapsed() < time {
        tokio::time::sleep(ms(50)).await;
    }
    guards.into_iter().partition(LockGuard::is_held)
}

/// Waits until a renewal got through that was sent from now on.
async fn is_renewed(guard: &LockGuard, ttl: Duration) {
    let began = now();
    while guard.trusted_for() + began.elapsed() <= ttl {
        assert!(guard.is_held(), "{:?}: {:?}", began.elapsed(), guard.loss());
        tokio::time::sleep(ms(50)).await;
    }
}

fn names(guards: &[LockGuard]) -> Vec<&str> {
    guards.iter().map(|guard| guard.name().as_str()).collect()
}

fn is_refused(guard: &LockGuard, by: &str) {
    let loss = guard.loss().unwrap();
    assert_eq!(loss.reason(), LostReason::Refused, "{loss}");
    assert!(loss.last_answer().unwrap().contains(by), "{loss}");
    let shown = loss.to_string();
    assert!(shown.contains("refused") && shown.contains(by), "{shown}");
    assert_eq!(loss.now_held_by(), None, "{loss}");
}

async fn a_row_that_is_refused_loses_no_other_lease(db: &TestDb) {
    let locks = db.locks().await;
    let all = (0..11).map(|i| format!("job {i}"));
    let guards = hold(&locks, all, ms(7000)).await;
    refuse(db, "NEW.name = 'job 4'");
    in_time(guards[4].lost()).await;
    // Those that were refused with it would be lost by then.
    let (held, lost) = after(guards, ms(3000)).await;
    assert_eq!((held.len(), names(&lost)), (10, vec!["job 4"]));
    is_refused(&lost[0], "the row is poisoned");
    // Trust ended; the row is as it was.
    let error = in_time(lost.into_iter().next().unwrap().release()).await;
    let Err(Error::Lost { reason, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(reason, LostReason::Refused);
    promise("P6", db.engine);
    promise("P17", db.engine);
}

async fn several_rows_that_are_refused_lose_no_other_lease(db: &TestDb) {
    let locks = db.locks().await;
    let all = (0..300).map(|i| format!("job {i}"));
    let guards = hold(&locks, all, ms(9000)).await;
    refuse(db, "NEW.name LIKE 'job 1_7'");
    for i in (107..200).step_by(10) {
        in_time(guards[i].lost()).await;
    }
    // Those that were refused with them would be lost by then.
    let (held, lost) = after(guards, ms(4000)).await;
    assert_eq!((held.len(), lost.len()), (290, 10), "{:?}", names(&lost));
    assert!(names(&lost).iter().all(|name| name.ends_with('7')));
    // Renewed again from then on, if the database lets it be.
    refuse_no_more(db);
    let (held, lost) = after(held, ms(1000)).await;
    assert_eq!((held.len(), lost.len()), (290, 0));
}

async fn a_refusal_that_passes_costs_no_lease(db: &TestDb) {
    let locks = db.locks().await;
    let ttl = ms(15_000);
    let mut guards = Vec::new();
    for i in 0..3 {
        // Several renewals are due while the table is away.
        let lock = locks.lock(format!("job {i}")).ttl(ttl);
        let lock = lock.renew_every(ms(1_500));
        guards.push(in_time(lock.acquire()).await.unwrap());
    }
    let away = "ALTER TABLE database_locks_lock RENAME TO away";
    db.sql(away);
    let (held, lost) = after(guards, ms(4500)).await;
    assert_eq!((held.len(), lost.len()), (3, 0), "still trusted");
    db.sql("ALTER TABLE away RENAME TO database_locks_lock");
    for guard in &held {
        is_renewed(guard, ttl).await;
    }
    // A refusal that lasts loses all locks, with the message of the database.
    db.sql(away);
    for guard in &held {
        in_time(guard.lost()).await;
        is_refused(guard, "database_locks_lock");
    }
    promise("P6", db.engine);
}

async fn a_refused_renewal_is_tried_again_on_a_new_connection(db: &TestDb) {
    let locks = db.locks().await;
    let ttl = ms(9000);
    let guards = hold(&locks, std::iter::once("job".into()), ttl).await;
    // So that all connections are there.
    is_renewed(&guards[0], ttl).await;
    let (ask, this) = match db.engine {
        "postgres" => (
            "SELECT string_agg(pid::text, ', ') FROM pg_stat_activity \
              WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "pg_backend_pid()",
        ),
        _ => (
            "SELECT GROUP_CONCAT(id SEPARATOR ', ') FROM information_schema.processlist \
              WHERE db = DATABASE() AND id <> CONNECTION_ID()",
            "CONNECTION_ID()",
        ),
    };
    let connections = db.sql(ask);
    refuse(db, &format!("{this} IN ({})", connections.trim()));
    is_renewed(&guards[0], ttl).await;
    promise("P6", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_row_that_is_refused_loses_no_other_lease,
            several_rows_that_are_refused_lose_no_other_lease,
            a_refusal_that_passes_costs_no_lease,
            a_refused_renewal_is_tried_again_on_a_new_connection,
        );
    )* };
}
on!(postgres, mariadb, mysql);
