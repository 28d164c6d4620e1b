//! Holding, waiting, losing and giving back, as a program does it, on every engine.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use database_locks::{Error, LockState, Locks, LostReason, Ttl};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(20);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// Asserts that the lock is free within `bound`: another client gets it.
async fn free_within(locks: &Locks, name: &str, bound: Duration) {
    let got = locks.lock(name).wait(bound).acquire().await;
    got.unwrap_or_else(|error| panic!("{}", error.chain()))
        .release()
        .await
        .expect("releases");
}

async fn one_holder_at_a_time(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let guard = a.lock("job").try_acquire().await.unwrap().expect("free");
    assert!(guard.is_held() && guard.trusted_for() > ms(10_000));
    assert!(b.lock("job").try_acquire().await.unwrap().is_none());
    assert!(
        a.lock("job").try_acquire().await.unwrap().is_none(),
        "within a process too"
    );
    guard.check().await.unwrap();
    guard.release().await.unwrap();
    let again = b
        .lock("job")
        .try_acquire()
        .await
        .unwrap()
        .expect("free again");
    assert!(again.is_held());
    promise("P1", db.engine);
}

async fn counted_increments_are_not_lost(db: &TestDb) {
    let (mut tasks, total) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    let inside: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
    for client in 0..4 {
        let (locks, total) = (db.locks().await, Arc::clone(&total));
        for _ in 0..5 {
            let (locks, total) = (locks.clone(), Arc::clone(&total));
            tasks.push(tokio::spawn(async move {
                for _ in 0..4 {
                    let guard = locks.lock("counter").acquire().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "client {client}");
                    let seen = total.load(Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    total.store(seen + 1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    guard.release().await.unwrap();
                }
            }));
        }
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task)
            .await
            .expect("in time")
            .unwrap();
    }
    assert_eq!(total.load(Ordering::SeqCst), 80);
    promise("P1", db.engine);
    promise("P15", db.engine);
}

async fn a_lease_outlives_its_ttl_while_it_is_held(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let guard = a.lock("job").ttl(ms(4500)).acquire().await.unwrap();
    for _ in 0..12 {
        tokio::time::sleep(ms(500)).await;
        assert!(guard.is_held());
        assert!(b.lock("job").try_acquire().await.unwrap().is_none());
    }
    guard.release().await.unwrap();
}

/// The order of a loss: the holder knows first, and only later can another client have the lock.
async fn trust_ends_before_the_lease(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let lock = a
        .lock("job")
        .ttl(ms(10_000))
        .margin(ms(4900))
        .auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    assert!(guard.trusted_for() <= ms(5100));
    assert_eq!(in_time(guard.lost()).await.reason(), LostReason::Expired);
    assert!(!guard.is_held());
    let row = b.show("job").await.unwrap().expect("a row");
    assert!(
        matches!(row.state, LockState::Held { .. }),
        "still held in the database: {row:?}"
    );
    // Without the guard's release, which frees earlier than that, it would be free at its end.
    std::mem::forget(guard);
    free_within(&b, "job", TIMEOUT).await;
    promise("P4", db.engine);
}

async fn a_long_lease_begins_with_its_whole_length(db: &TestDb) {
    let locks = db.locks().await;
    let hour = locks
        .lock("hour")
        .ttl(Duration::from_secs(3600))
        .acquire()
        .await
        .unwrap();
    assert!(hour.trusted_for() > Duration::from_secs(3000));
    let endless = locks
        .lock("endless")
        .ttl(Ttl::Infinite)
        .acquire()
        .await
        .unwrap();
    assert_eq!(endless.trusted_for(), Duration::MAX);
    let row = locks.show("endless").await.unwrap().expect("a row");
    assert_eq!(row.state, LockState::Held { free_in: None });
    endless.release().await.unwrap();
    assert_eq!(
        locks.show("endless").await.unwrap().expect("a row").state,
        LockState::Free
    );
}

async fn extend_lengthens_at_once(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks
        .lock("job")
        .ttl(Duration::from_secs(5))
        .acquire()
        .await
        .unwrap();
    in_time(guard.extend(Duration::from_secs(600)))
        .await
        .unwrap();
    assert!(guard.trusted_for() > Duration::from_secs(500));
    let refused = guard.extend(ms(1)).await.unwrap_err();
    assert!(
        matches!(refused, Error::Config { setting: "ttl", .. }),
        "{refused}"
    );
    assert!(guard.is_held(), "a refused setting changes nothing");
}

async fn a_release_by_force_is_noticed_and_explained(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let guard = a
        .lock("job")
        .ttl(ms(6000))
        .holder("me")
        .acquire()
        .await
        .unwrap();
    let from = b.force_release("job").await.unwrap().expect("it was held");
    assert_eq!(from.holder.as_deref(), Some("me"));
    assert_eq!(in_time(guard.lost()).await.reason(), LostReason::Forced);
    let lost = guard.release().await.unwrap_err();
    assert!(
        matches!(
            lost,
            Error::Lost {
                reason: LostReason::Forced,
                ..
            }
        ),
        "{lost}"
    );
    assert_eq!(b.force_release("job").await.unwrap(), None);
    promise("P6", db.engine);
}

async fn check_notices_at_once(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    // Too short for its process to listen for a release by force.
    let lock = a.lock("job").ttl(ms(15_000)).auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    b.force_release("job").await.unwrap();
    let next = b.lock("job").acquire().await.unwrap();
    let lost = guard.check().await.unwrap_err();
    assert!(
        matches!(
            lost,
            Error::Lost {
                reason: LostReason::Preempted,
                ..
            }
        ),
        "{lost}"
    );
    assert!(!guard.is_held() && next.is_held());
    drop(guard);
    a.drain().await;
    next.check()
        .await
        .expect("the old guard's end touched nothing");
    promise("P3", db.engine);
}

async fn a_deleted_row_is_a_loss_and_is_not_made_again(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").ttl(ms(6000)).acquire().await.unwrap();
    let token = guard.token();
    db.sql("DELETE FROM database_locks_lock");
    assert_eq!(in_time(guard.lost()).await.reason(), LostReason::RowGone);
    drop(guard);
    locks.drain().await;
    assert_eq!(locks.show("job").await.unwrap(), None);
    assert!(
        locks.lock("job").acquire().await.unwrap().token() > token,
        "tokens grow all the same"
    );
    promise("P2", db.engine);
    promise("P6", db.engine);
}

/// Return, error, panic, cancellation, the end of the runtime: each frees the lock.
async fn every_end_of_the_body_frees_the_lock(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    let lock = locks.lock("job").ttl(Duration::from_secs(600));

    assert_eq!(lock.run(async { 42 }).await.unwrap(), 42);
    free_within(&other, "job", TIMEOUT).await;

    let failed: Result<(), &str> = lock.run(async { Err("went wrong") }).await.unwrap();
    assert_eq!(failed, Err("went wrong"));
    free_within(&other, "job", TIMEOUT).await;

    let panics = {
        let lock = lock.clone();
        tokio::spawn(async move { lock.run(async { panic!("in the body") }).await })
    };
    assert!(panics.await.unwrap_err().is_panic());
    free_within(&other, "job", TIMEOUT).await;

    let task = {
        let lock = lock.clone();
        tokio::spawn(async move { lock.run(std::future::pending::<()>()).await })
    };
    while other.show("job").await.unwrap().expect("a row").state == LockState::Free {
        tokio::time::sleep(ms(5)).await;
    }
    task.abort();
    free_within(&other, "job", TIMEOUT).await;

    let of_its_own = lock.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let guard = runtime.block_on(of_its_own.acquire()).unwrap();
        runtime.spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        runtime.shutdown_background();
    })
    .join()
    .unwrap();
    free_within(&other, "job", TIMEOUT).await;
    promise("P7", db.engine);
}

/// Polled exactly n times and dropped, for every n until it is ready: nothing stays held.
async fn an_acquire_dropped_after_any_poll_leaves_nothing(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    let mut ready = false;
    // The last ones are for a server that stands still.
    for polls in (0..60).chain([200, 1_000, 10_000]) {
        if ready {
            break;
        }
        for ttl in [Ttl::from(Duration::from_secs(20)), Ttl::Infinite] {
            let lock = locks.lock("job").ttl(ttl).wait(TIMEOUT);
            let mut acquire = pin!(lock.acquire());
            for _ in 0..polls {
                let once = poll_fn(|cx| Poll::Ready(acquire.as_mut().poll(cx)));
                if let Poll::Ready(guard) = once.await {
                    ready = true;
                    guard.unwrap().release().await.unwrap();
                    break;
                }
                tokio::time::sleep(ms(1)).await;
            }
        }
        free_within(&other, "job", TIMEOUT).await;
        locks.drain().await;
        let row = other.show("job").await.unwrap().expect("a row");
        assert_eq!(row.state, LockState::Free, "after {polls} polls");
    }
    assert!(ready, "all polls were not enough for one acquire");
    promise("P7", db.engine);
}

async fn a_waiter_that_gives_up_leaves_the_queue(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.unwrap();
    let lock = locks.lock("job");
    let gives_up = tokio::time::timeout(ms(150), lock.acquire());
    let waits = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("job").acquire().await })
    };
    assert!(gives_up.await.is_err());
    guard.release().await.unwrap();
    in_time(waits)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    promise("P12", db.engine);
}

async fn a_wait_keeps_to_its_limit_and_names_the_holder(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let _guard = a
        .lock("job")
        .holder("the other one")
        .acquire()
        .await
        .unwrap();
    for limit in [ms(1), ms(15), ms(3_000)] {
        let began = now();
        let error = b.lock("job").wait(limit).acquire().await.unwrap_err();
        let took = began.elapsed();
        assert!(
            took >= limit && took < limit + Duration::from_secs(5),
            "{limit:?}: {took:?}: {}",
            error.chain()
        );
        match error {
            Error::TimedOut { holder, .. } if limit > ms(100) => {
                assert_eq!(holder.as_deref(), Some("the other one"));
            }
            Error::TimedOut { .. } | Error::Unavailable { .. } => {}
            other => panic!("{}", other.chain()),
        }
    }
    let once = b
        .lock("job")
        .wait(Duration::ZERO)
        .acquire()
        .await
        .unwrap_err();
    let Error::TimedOut {
        holder, held_for, ..
    } = once
    else {
        panic!("{once}")
    };
    assert_eq!(holder.as_deref(), Some("the other one"));
    assert!(held_for.is_some());
    promise("P12", db.engine);
}

async fn a_waiter_gets_the_lock_when_it_is_first_in_the_queue(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let guard = a.lock("job").acquire().await.unwrap();
    let waiter = tokio::spawn(async move { b.lock("job").acquire().await });
    tokio::time::sleep(ms(1200)).await;
    assert!(!waiter.is_finished());
    guard.release().await.unwrap();
    in_time(waiter)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();

    // A crashed holder's lease runs out.
    let crashed = a
        .lock("job")
        .ttl(ms(800))
        .auto_renew(false)
        .acquire()
        .await
        .unwrap();
    std::mem::forget(crashed);
    let next = in_time(db.locks().await.lock("job").acquire())
        .await
        .unwrap();
    assert!(next.is_held());
    promise("P12", db.engine);
}

async fn waiters_of_one_process_are_served_in_order(db: &TestDb) {
    let locks = db.locks().await;
    let first = locks.lock("job").acquire().await.unwrap();
    let (came, mut waiters) = (Arc::new(std::sync::Mutex::new(Vec::new())), Vec::new());
    for i in 0..8 {
        let (locks, came) = (locks.clone(), Arc::clone(&came));
        waiters.push(tokio::spawn(async move {
            let guard = locks.lock("job").acquire().await.unwrap();
            came.lock().unwrap().push(i);
            guard.release().await.unwrap();
        }));
        tokio::time::sleep(ms(250)).await;
    }
    first.release().await.unwrap();
    for waiter in waiters {
        in_time(waiter).await.unwrap();
    }
    assert_eq!(*came.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// `is_held` reads memory only, however many tasks call it and whatever else is under way.
async fn asking_whether_it_is_held_costs_nothing(db: &TestDb) {
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.unwrap();
    let began = now();
    for _ in 0..500_000 {
        assert!(guard.is_held());
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    promise("P8", db.engine);
}

async fn bad_settings_are_refused_before_anything_happens(db: &TestDb) {
    let locks = db.locks().await;
    let refused = [
        (locks.lock(""), "name"),
        (locks.lock("x".repeat(256)), "name"),
        (locks.lock("a\0b"), "name"),
        (locks.lock("job").ttl(ms(99)), "ttl"),
        (locks.lock("job").ttl(ms(1000)).margin(ms(500)), "margin"),
        (
            locks.lock("job").ttl(ms(1000)).renew_every(ms(600)),
            "renew_every",
        ),
        (locks.lock("job").holder(""), "holder"),
        (locks.lock("job").poll(Duration::from_micros(999)), "poll"),
        (
            locks.lock("job").metadata("big", "x".repeat(5000)),
            "metadata",
        ),
    ];
    for (lock, bad) in refused {
        let error = lock.try_acquire().await.unwrap_err();
        assert!(
            matches!(error, Error::Config { setting, .. } if setting == bad),
            "{error}"
        );
    }
    assert!(locks.list().await.unwrap().is_empty());
}

async fn the_blocking_api_does_the_same(db: &TestDb) {
    let url = db.url.clone();
    let other = db.locks().await;
    let work = move || {
        let locks = database_locks::blocking::Locks::connect(&url).unwrap();
        let guard = locks.lock("job").acquire().unwrap();
        guard.check().unwrap();
        guard.extend(Duration::from_secs(60)).unwrap();
        assert!(locks.lock("job").try_acquire().unwrap().is_none());
        guard.release().unwrap();
        drop(locks.lock("job").try_acquire().unwrap().expect("free"));
        // Its drop waits, so it is free by now.
        let row = locks.show("job").unwrap().expect("a row");
        assert_eq!(row.state, LockState::Free);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    free_within(&other, "job", TIMEOUT).await;
}

/// The runtime of threads that block is driven by no thread once none blocks.
async fn dropped_locks_leave_no_connection_open(db: &TestDb) {
    let count = match db.is_mysql_like() {
        true => {
            "SELECT count(*) FROM information_schema.processlist
              WHERE db = database() AND id <> connection_id()"
        }
        false => {
            "SELECT count(*) FROM pg_stat_activity
              WHERE datname = current_database() AND pid <> pg_backend_pid()"
        }
    };
    let url = db.url.clone();
    let work = move || {
        let locks = database_locks::blocking::Locks::connect(url).unwrap();
        locks.migrate().unwrap();
        for _ in 0..5 {
            locks.lock("job").acquire().unwrap().release().unwrap();
        }
        locks
    };
    // A thread of no runtime.
    let locks = std::thread::spawn(work).join().unwrap();
    // One of them may be made in the background.
    let two = || db.sql(count).parse::<u32>().unwrap() >= 2;
    assert!(testkit::time::wait_until(TIMEOUT, two), "{}", db.sql(count));
    drop(locks);
    let gone = || db.sql(count) == "0";
    assert!(
        testkit::time::wait_until(TIMEOUT, gone),
        "{}",
        db.sql(count)
    );
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            one_holder_at_a_time,
            counted_increments_are_not_lost,
            a_lease_outlives_its_ttl_while_it_is_held,
            trust_ends_before_the_lease,
            a_long_lease_begins_with_its_whole_length,
            extend_lengthens_at_once,
            a_release_by_force_is_noticed_and_explained,
            check_notices_at_once,
            every_end_of_the_body_frees_the_lock,
            an_acquire_dropped_after_any_poll_leaves_nothing,
            a_waiter_that_gives_up_leaves_the_queue,
            a_wait_keeps_to_its_limit_and_names_the_holder,
            a_waiter_gets_the_lock_when_it_is_first_in_the_queue,
            waiters_of_one_process_are_served_in_order,
            asking_whether_it_is_held_costs_nothing,
            bad_settings_are_refused_before_anything_happens,
            the_blocking_api_does_the_same,
        );
    )* };
}
on!(memory, sqlite, postgres, mariadb, mysql);

mod rows {
    //! Tests that need a table to which another client can write.
    use super::*;
    db_tests!(sqlite: a_deleted_row_is_a_loss_and_is_not_made_again);
    db_tests!(postgres:
        a_deleted_row_is_a_loss_and_is_not_made_again,
        dropped_locks_leave_no_connection_open,
    );
    db_tests!(mariadb:
        a_deleted_row_is_a_loss_and_is_not_made_again,
        dropped_locks_leave_no_connection_open,
    );
    db_tests!(mysql:
        a_deleted_row_is_a_loss_and_is_not_made_again,
        dropped_locks_leave_no_connection_open,
    );
}
