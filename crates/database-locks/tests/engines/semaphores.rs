//! Semaphores as users of the library see them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::{Error, LostReason, Token};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Six tasks of each of two processes' worth of connections wait for three permits in turn: never
/// more than three are in, and each slot has one holder.
async fn waiters_get_permits_as_they_are_released(db: &TestDb) {
    let clients = [db.locks().await, db.locks().await];
    let inside: Arc<Mutex<BTreeMap<u16, Token>>> = Arc::default();
    let mut tasks = Vec::new();
    for task in 0..12 {
        let (locks, inside) = (clients[task % 2].clone(), Arc::clone(&inside));
        tasks.push(tokio::spawn(async move {
            for _ in 0..4 {
                let guard = locks.semaphore("api", 3).wait(TIMEOUT).acquire().await;
                let guard = guard.unwrap();
                let slot = guard.slot().expect("a permit");
                {
                    let mut inside = inside.lock().unwrap();
                    let other = inside.insert(slot, guard.token());
                    assert_eq!(other, None, "slot {slot} has two holders");
                    assert!(inside.len() <= 3, "{inside:?}");
                }
                tokio::time::sleep(ms(5)).await;
                inside.lock().unwrap().remove(&slot);
                guard.release().await.unwrap();
            }
        }));
    }
    for task in tasks {
        tokio::time::timeout(2 * TIMEOUT, task)
            .await
            .unwrap()
            .unwrap();
    }
    promise("P1", db.engine);
    promise("P12", db.engine);
}

/// A crowd of waiters is dropped while requests of it are under way: whatever they were granted is
/// released, and the next caller gets a permit at once.
async fn a_crowd_that_is_dropped_leaves_no_permit_behind(db: &TestDb) {
    let locks = db.locks().await;
    // At first the permits have no rows, which takes a statement each.
    for lasting in [5, 10, 20, 40, 200] {
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let lock = locks.semaphore("api", 10);
            crowd.spawn(async move {
                loop {
                    let guard = lock.acquire().await.unwrap();
                    guard.release().await.unwrap();
                }
            });
        }
        tokio::time::sleep(ms(lasting)).await;
        crowd.shutdown().await;
        locks.drain().await;
        let left = locks.show_semaphore("api").await.unwrap();
        assert_eq!(left.held(), 0, "{left:?}");
    }
    promise("P7", db.engine);
}

/// A permit that another process releases is granted to a waiter soon.
async fn a_waiter_gets_the_permit_that_another_process_releases(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let held = [
        a.semaphore("api", 2).acquire().await.unwrap(),
        a.semaphore("api", 2).acquire().await.unwrap(),
    ];
    let waits = {
        let b = b.clone();
        tokio::spawn(async move { b.semaphore("api", 2).wait(TIMEOUT).acquire().await })
    };
    tokio::time::sleep(ms(300)).await;
    assert!(!waits.is_finished());
    let [first, second] = held;
    let (slot, token) = (first.slot(), first.token());
    let began = now();
    first.release().await.unwrap();
    let next = waits.await.unwrap().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(next.slot(), slot);
    assert!(next.token() > token);
    assert!(second.is_held() && next.is_held());
    promise("P12", db.engine);
}

async fn a_wait_for_a_permit_keeps_to_its_limit_and_says_why(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let held = a
        .semaphore("api", 1)
        .holder("web-1")
        .acquire()
        .await
        .unwrap();
    assert!(b.semaphore("api", 1).try_acquire().await.unwrap().is_none());
    for wait in [ms(0), ms(2_000)] {
        let error = b
            .semaphore("api", 1)
            .wait(wait)
            .acquire()
            .await
            .unwrap_err();
        let Error::TimedOut {
            holder, permits, ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((holder.as_deref(), *permits), (Some("web-1"), Some(1)));
        let message = error.to_string();
        assert!(message.contains("its one permit is held"), "{message}");
    }
    a.set_limit("api", Some(0)).await.unwrap();
    let error = b
        .semaphore("api", 9)
        .wait(ms(2_000))
        .acquire()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it is paused"), "{error}");
    held.release().await.unwrap();
    promise("P12", db.engine);
}

/// A waiter goes on when an operator raises the limit.
async fn a_waiter_goes_on_when_the_limit_is_raised(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    a.set_limit("api", Some(0)).await.unwrap();
    let waits = tokio::spawn({
        let b = b.clone();
        async move { b.semaphore("api", 1).wait(TIMEOUT).acquire().await }
    });
    tokio::time::sleep(ms(200)).await;
    assert!(!waits.is_finished());
    a.set_limit("api", Some(1)).await.unwrap();
    let guard = tokio::time::timeout(TIMEOUT, waits).await.unwrap();
    let semaphore = a.show_semaphore("api").await.unwrap();
    assert_eq!(
        (semaphore.held(), semaphore.effective_limit()),
        (1, Some(1))
    );
    guard.unwrap().unwrap().release().await.unwrap();
}

/// Ten waiters of one process go in together when an operator allows ten.
async fn no_waiter_waits_for_another_one_beside_free_permits(db: &TestDb) {
    let locks = db.locks().await;
    locks.set_limit("api", Some(0)).await.unwrap();
    let waits = (0..10).map(|_| {
        let lock = locks.semaphore("api", 10).wait(TIMEOUT);
        tokio::spawn(async move { lock.acquire().await.unwrap() })
    });
    let waits: Vec<_> = waits.collect();
    tokio::time::sleep(ms(300)).await;
    let began = now();
    locks.set_limit("api", Some(10)).await.unwrap();
    let mut guards = Vec::new();
    for wait in waits {
        guards.push(wait.await.unwrap());
    }
    let took = began.elapsed();
    assert!(took < ms(15_000), "{took:?}");
    assert_eq!(locks.show_semaphore("api").await.unwrap().held(), 10);
    promise("P12", db.engine);
}

/// A permit is renewed for as long as its guard lives, a loss is told, and a ticket hands it over.
async fn a_permit_is_a_grant_like_any_other(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let short = a.semaphore("api", 2).ttl(ms(4_500));
    let (kept, forced) = (
        short.acquire().await.unwrap(),
        short.acquire().await.unwrap(),
    );
    tokio::time::sleep(ms(5_500)).await;
    assert!(kept.is_held() && forced.is_held(), "both were renewed");
    assert!(b.semaphore("api", 2).try_acquire().await.unwrap().is_none());
    let slot = forced.slot().expect("a permit");
    assert!(b.force_release_permit("api", slot).await.unwrap().is_some());
    let loss = tokio::time::timeout(TIMEOUT, forced.lost()).await.unwrap();
    assert_eq!(loss.reason(), LostReason::Forced);
    kept.check().await.unwrap();
    kept.extend(Duration::from_secs(20)).await.unwrap();
    let (slot, token) = (kept.slot(), kept.token());
    let ticket = kept.into_ticket().unwrap().to_string();
    let resumed = b.resume(&ticket.parse().unwrap()).await.unwrap();
    assert_eq!((resumed.slot(), resumed.token()), (slot, token));
    resumed.release().await.unwrap();
    let listed = a.list().await.unwrap();
    let slots: Vec<_> = listed.iter().map(|row| row.slot).collect();
    assert_eq!(slots, [Some(0), Some(1)]);
    promise("P3", db.engine);
}

/// An acquire of a permit that is dropped leaves nothing held.
async fn a_dropped_acquire_of_a_permit_leaves_nothing_held(db: &TestDb) {
    let locks = db.locks().await;
    for polls in 0..30_u64 {
        let lock = locks.semaphore("api", 2);
        let _ = tokio::time::timeout(Duration::from_micros(polls * 150), lock.acquire()).await;
        drop(lock);
    }
    locks.drain().await;
    let end = now() + TIMEOUT;
    while locks.show_semaphore("api").await.unwrap().held() > 0 {
        assert!(now() < end, "a permit stays held");
        tokio::time::sleep(ms(20)).await;
    }
    promise("P7", db.engine);
}

async fn bad_settings_of_a_semaphore_are_refused(db: &TestDb) {
    let locks = db.locks().await;
    for permits in [0, 65_537] {
        let error = locks.semaphore("api", permits).acquire().await.unwrap_err();
        assert!(error.to_string().contains("must be 1 to 65,536"), "{error}");
    }
    let preempts = locks.semaphore("api", 1).holder("me").preempt(true);
    assert!(matches!(
        preempts.acquire().await,
        Err(Error::Config { .. })
    ));
    let error = locks.set_limit("api", Some(65_537)).await.unwrap_err();
    assert!(error.to_string().contains("0 to 65,536"), "{error}");
    assert_eq!(locks.list().await.unwrap(), []);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            waiters_get_permits_as_they_are_released,
            a_crowd_that_is_dropped_leaves_no_permit_behind,
            a_waiter_gets_the_permit_that_another_process_releases,
            a_wait_for_a_permit_keeps_to_its_limit_and_says_why,
            a_waiter_goes_on_when_the_limit_is_raised,
            no_waiter_waits_for_another_one_beside_free_permits,
            a_permit_is_a_grant_like_any_other,
            a_dropped_acquire_of_a_permit_leaves_nothing_held,
            bad_settings_of_a_semaphore_are_refused,
        );
    )* };
}
on!(memory, sqlite, postgres, mariadb, mysql);
