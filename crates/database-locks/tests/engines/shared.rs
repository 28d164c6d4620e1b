//! Shared and exclusive locks as users of the library see them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use database_locks::{Error, LockGuard, Locks, LostReason};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

async fn shared(locks: &Locks) -> LockGuard {
    let lock = locks.lock("list").shared().wait(TIMEOUT);
    lock.acquire().await.unwrap()
}

/// Four tasks that read and two that write, in two processes' worth of connections.
async fn readers_and_writers_take_turns(db: &TestDb) {
    let clients = [db.locks().await, db.locks().await];
    let (readers, writers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for task in 0..6 {
        let locks = clients[task % 2].clone();
        let (readers, writers) = (Arc::clone(&readers), Arc::clone(&writers));
        tasks.push(tokio::spawn(async move {
            for _ in 0..4 {
                let writes = task < 2;
                let lock = locks.lock("list").wait(TIMEOUT);
                let guard = match writes {
                    true => lock.acquire().await.unwrap(),
                    false => lock.shared().acquire().await.unwrap(),
                };
                let mine = if writes { &writers } else { &readers };
                mine.fetch_add(1, Ordering::SeqCst);
                let inside = (
                    readers.load(Ordering::SeqCst),
                    writers.load(Ordering::SeqCst),
                );
                assert!(inside.1 == 0 || inside == (0, 1), "{inside:?}");
                tokio::time::sleep(ms(5)).await;
                mine.fetch_sub(1, Ordering::SeqCst);
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

/// Eight readers in a loop always overlap, and the writer gets in.
async fn readers_that_come_and_go_do_not_keep_a_writer_out(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (locks, stop) = (a.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let guard = shared(&locks).await;
                    tokio::time::sleep(ms(30)).await;
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    tokio::time::sleep(ms(200)).await;
    for _ in 0..3 {
        let guard = b.lock("list").wait(TIMEOUT).acquire().await.unwrap();
        guard.release().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    promise("P12", db.engine);
}

/// The writer that waits keeps new readers out, and those inside go on.
async fn a_waiting_writer_goes_first(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let inside = a
        .lock("list")
        .shared()
        .ttl(ms(4500))
        .acquire()
        .await
        .unwrap();
    let waits = tokio::spawn({
        let b = b.clone();
        async move { b.lock("list").ttl(ms(4500)).wait(TIMEOUT).acquire().await }
    });
    let end = now() + TIMEOUT;
    while !a.show("list").await.unwrap().unwrap().is_held() {
        assert!(now() < end, "the writer holds off new readers");
        tokio::time::sleep(ms(10)).await;
    }
    // Longer than the leases of both, which are renewed.
    let until = now() + ms(5500);
    while now() < until {
        let late = a.lock("list").shared().try_acquire().await.unwrap();
        assert!(late.is_none(), "behind a writer");
        tokio::time::sleep(ms(50)).await;
    }
    assert!(inside.is_held() && !waits.is_finished());
    inside.release().await.unwrap();
    let writer = waits.await.unwrap().unwrap();
    assert!(writer.is_held() && !writer.is_shared());
    promise("P12", db.engine);
}

async fn a_wait_for_readers_keeps_to_its_limit_and_says_why(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let lock = a.lock("list").shared().holder("web-1");
    let readers = [lock.acquire().await.unwrap(), lock.acquire().await.unwrap()];
    assert!(b.lock("list").try_acquire().await.unwrap().is_none());
    for wait in [ms(0), ms(2_000)] {
        let error = b.lock("list").wait(wait).acquire().await.unwrap_err();
        let Error::TimedOut {
            holder, shared_by, ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((holder.as_deref(), *shared_by), (Some("web-1"), Some(2)));
        let message = error.to_string();
        assert!(message.contains("2 holders share it"), "{message}");
    }
    // What gave up leaves nothing behind.
    b.drain().await;
    let third = b
        .lock("list")
        .shared()
        .wait(TIMEOUT)
        .acquire()
        .await
        .unwrap();
    assert_eq!(a.show_shared("list").await.unwrap().len(), 3);
    drop((readers, third));
    promise("P12", db.engine);
}

/// Its lease ends, and with it the wait of the writer.
async fn a_dead_reader_delays_a_writer_by_its_lease(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let lock = a.lock("list").shared().ttl(ms(1500)).auto_renew(false);
    // Its lease begins later than that.
    let began = now();
    let dead = lock.acquire().await.unwrap();
    std::mem::forget(dead);
    let writer = b.lock("list").wait(TIMEOUT).acquire().await.unwrap();
    let waited = began.elapsed();
    assert!(
        waited >= ms(1450) && waited < Duration::from_secs(15),
        "{waited:?}"
    );
    assert!(
        b.show_shared("list").await.unwrap().is_empty(),
        "its row is gone"
    );
    drop(writer);
    promise("P3", db.engine);
}

/// Whatever its settings: it is renewed while it waits, and its lease is a short one, so that a
/// killed waiter keeps others out for seconds. The lease that it asked for begins when it is in.
async fn a_writer_that_waits_has_a_short_lease_that_is_renewed(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let endless = b.lock("list").ttl(database_locks::Ttl::Infinite);
    let unrenewed = b.lock("list").ttl(ms(4500)).auto_renew(false);
    for (lock, longest) in [(endless, None), (unrenewed, Some(ms(4500)))] {
        let reader = shared(&a).await;
        let waits = tokio::spawn(lock.wait(TIMEOUT).acquire());
        let until = now() + ms(5500);
        let mut seen = 0;
        while now() < until {
            let row = a.show("list").await.unwrap().unwrap();
            if let database_locks::LockState::Held { free_in } = row.state {
                let left = free_in.expect("not endless");
                assert!(
                    left <= longest.unwrap_or(Duration::from_secs(30)),
                    "{left:?}"
                );
                seen += 1;
            } else {
                assert_eq!(seen, 0, "it was not renewed");
            }
            tokio::time::sleep(ms(50)).await;
        }
        assert!(seen > 0 && !waits.is_finished());
        reader.release().await.unwrap();
        let writer = tokio::time::timeout(TIMEOUT, waits)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let trusted = writer.trusted_for();
        match longest {
            None => assert_eq!(trusted, Duration::MAX),
            Some(longest) => assert!(trusted > longest / 2 && trusted < longest, "{trusted:?}"),
        }
        writer.release().await.unwrap();
    }
    promise("P7", db.engine);
}

async fn a_shared_guard_is_a_grant_like_any_other(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let (lost, kept) = (shared(&a).await, shared(&b).await);
    assert!(lost.is_shared() && lost.slot().is_none());
    assert_eq!(lost.token(), kept.token());
    kept.extend(Duration::from_secs(20)).await.unwrap();
    kept.check().await.unwrap();
    let ticket = kept.into_ticket().unwrap().to_string();
    let resumed = a.resume(&ticket.parse().unwrap()).await.unwrap();
    assert!(resumed.is_shared());
    a.renew(&resumed.ticket(), Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(
        b.list()
            .await
            .unwrap()
            .iter()
            .filter(|row| row.is_shared())
            .count(),
        2
    );
    assert_eq!(b.force_release_shared("list").await.unwrap().len(), 2);
    for guard in [lost, resumed] {
        let Err(Error::Lost { reason, .. }) = guard.check().await else {
            panic!("it was released by force")
        };
        assert_eq!(reason, LostReason::Forced);
    }
    b.lock("list")
        .wait(TIMEOUT)
        .acquire()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    promise("P3", db.engine);
}

async fn a_dropped_shared_acquire_leaves_nothing_held(db: &TestDb) {
    let locks = db.locks().await;
    shared(&locks).await.release().await.unwrap();
    for polls in 0..40_u64 {
        let lock = locks.lock("list").shared();
        let _ = tokio::time::timeout(Duration::from_micros(polls * 150), lock.acquire()).await;
        let lock = locks.lock("list");
        let _ = tokio::time::timeout(Duration::from_micros(polls * 150), lock.acquire()).await;
    }
    locks.drain().await;
    let end = now() + TIMEOUT;
    while !locks.show_shared("list").await.unwrap().is_empty()
        || locks.show("list").await.unwrap().unwrap().is_held()
    {
        assert!(now() < end, "something stays held");
        tokio::time::sleep(ms(20)).await;
    }
    promise("P7", db.engine);
}

/// No other writer gets in between, and other readers do afterwards.
async fn a_writer_becomes_a_reader(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let lock = a.lock("list").ttl(ms(4500)).metadata("job", "prices");
    let mut guard = lock.acquire().await.unwrap();
    let (before, first) = (guard.token(), guard.ticket());
    let next = tokio::spawn({
        let b = b.clone();
        async move { b.lock("list").wait(TIMEOUT).acquire().await }
    });
    guard.downgrade().await.unwrap();
    assert!(guard.is_shared() && guard.is_held() && guard.token() > before);
    assert!(
        matches!(a.resume(&first).await, Err(Error::Lost { .. })),
        "that grant is over"
    );
    let rows = b.show_shared("list").await.unwrap();
    assert_eq!(rows[0].description(), "job=prices");
    tokio::time::sleep(ms(5500)).await;
    guard.check().await.unwrap();
    assert!(!next.is_finished(), "it waits for the reader");
    let refused = guard.downgrade().await.unwrap_err();
    assert!(matches!(refused, Error::Config { .. }), "{refused}");
    guard.release().await.unwrap();
    next.await.unwrap().unwrap().release().await.unwrap();
    let mut lost = a.lock("list").acquire().await.unwrap();
    b.force_release("list").await.unwrap();
    let error = lost.downgrade().await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    promise("P1", db.engine);
}

/// All or none, and nothing held while readers are in.
async fn several_locks_wait_for_the_readers_of_each(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let reader = shared(&a).await;
    let both = b.all(["list", "other"]);
    assert!(both.try_acquire().await.unwrap().is_none());
    let waits = tokio::spawn(b.all(["list", "other"]).wait(TIMEOUT).acquire());
    tokio::time::sleep(ms(300)).await;
    let other = a.lock("other").wait(TIMEOUT).acquire().await.unwrap();
    other.release().await.unwrap();
    assert!(!waits.is_finished());
    reader.release().await.unwrap();
    let set = tokio::time::timeout(TIMEOUT, waits)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        a.lock("list")
            .shared()
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    set.release().await.unwrap();
    promise("P1", db.engine);
}

/// It begins when the writer is in, and a downgrade ends it.
async fn a_minimum_hold_counts_from_when_the_writer_is_in(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let reader = shared(&a).await;
    let lock = b.lock("list").at_least(ms(2000)).wait(TIMEOUT);
    let waits = tokio::spawn(lock.acquire());
    tokio::time::sleep(ms(2500)).await;
    // Before the writer is in.
    let began = now();
    reader.release().await.unwrap();
    let writer = waits.await.unwrap().unwrap();
    writer.release().await.unwrap();
    let next = a.lock("list").wait(TIMEOUT).acquire().await.unwrap();
    assert!(began.elapsed() > ms(1900), "{:?}", began.elapsed());
    next.release().await.unwrap();
    let lock = b.lock("list").at_least(ms(25_000)).wait(TIMEOUT);
    let mut guard = lock.acquire().await.unwrap();
    guard.downgrade().await.unwrap();
    let began = now();
    shared(&a).await.release().await.unwrap();
    assert!(began.elapsed() < ms(10_000), "{:?}", began.elapsed());
    guard.release().await.unwrap();
}

/// A writer that gave up has run nothing, and counts for nothing.
async fn a_lock_that_is_shared_is_refused_once_per_period_whatever_was_tried_before(db: &TestDb) {
    let locks = db.locks().await;
    let reader = shared(&locks).await;
    assert!(locks.lock("list").try_acquire().await.unwrap().is_none());
    reader.release().await.unwrap();
    let once = locks.lock("list").once_per(Duration::from_secs(3600));
    for _ in 0..2 {
        let error = once.acquire().await.unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
}

/// While readers are in, no lock of the set is held, not even for moments.
async fn a_set_that_waits_for_readers_leaves_the_other_locks_alone(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let reader = shared(&a).await;
    let set = b.all(["list", "other"]);
    assert!(set.try_acquire().await.unwrap().is_none());
    let other = b.lock("other").try_acquire().await.unwrap();
    other
        .expect("given back before the answer")
        .release()
        .await
        .unwrap();
    let before = a.show("other").await.unwrap().unwrap().token;
    let waits = tokio::spawn(set.wait(TIMEOUT).acquire());
    // Its first try is granted all of them, finds the reader, and gives them back.
    let end = now() + TIMEOUT;
    loop {
        let row = a.show("other").await.unwrap().unwrap();
        if row.token > before && !row.is_held() {
            break;
        }
        assert!(now() < end, "it does not try: {row:?}");
        tokio::time::sleep(ms(10)).await;
    }
    for _ in 0..50 {
        let other = a.lock("other").try_acquire().await.unwrap();
        other.expect("free").release().await.unwrap();
        tokio::time::sleep(ms(10)).await;
    }
    reader.release().await.unwrap();
    let set = tokio::time::timeout(TIMEOUT, waits).await;
    set.unwrap().unwrap().unwrap().release().await.unwrap();
}

async fn settings_that_do_not_go_with_sharing_are_refused(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks.lock("list").shared();
    for (refused, setting) in [
        (lock.clone().holder("me").preempt(true), "preempt"),
        (lock.clone().at_least(ms(1000)), "at_least"),
        (lock.clone().once_per(ms(1000)), "once_per"),
        (locks.semaphore("list", 3).shared(), "permits"),
    ] {
        let error = refused.acquire().await.unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(error.to_string().contains(setting), "{error}");
    }
    assert_eq!(locks.list().await.unwrap(), [], "before any I/O");
    shared(&locks).await.release().await.unwrap();
    let error = locks
        .lock("list")
        .once_per(ms(1000))
        .acquire()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("which was shared before"),
        "{error}"
    );
    locks.drain().await;
    shared(&locks).await.release().await.unwrap();
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            readers_and_writers_take_turns,
            readers_that_come_and_go_do_not_keep_a_writer_out,
            a_waiting_writer_goes_first,
            a_wait_for_readers_keeps_to_its_limit_and_says_why,
            a_dead_reader_delays_a_writer_by_its_lease,
            a_writer_that_waits_has_a_short_lease_that_is_renewed,
            a_shared_guard_is_a_grant_like_any_other,
            a_dropped_shared_acquire_leaves_nothing_held,
            a_writer_becomes_a_reader,
            several_locks_wait_for_the_readers_of_each,
            a_minimum_hold_counts_from_when_the_writer_is_in,
            a_lock_that_is_shared_is_refused_once_per_period_whatever_was_tried_before,
            a_set_that_waits_for_readers_leaves_the_other_locks_alone,
            settings_that_do_not_go_with_sharing_are_refused,
        );
    )* };
}
on!(memory, sqlite, postgres, mariadb, mysql);
