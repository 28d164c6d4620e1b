//! Replies that arrive after trust has ended: what an acquire hands out is held, and two bodies
//! never run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use database_locks::seam::{Table, open};
use database_locks::{Error, Lock, LockGuard, Locks, LostReason, blocking};
use testkit::contract::granted;
use testkit::time::{now, wait_until};
use testkit::{Proxy, TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(3);
/// For how long replies are held back: longer than a lease of `TTL` lasts, and not as long as a
/// request may take.
const DELAY: Duration = Duration::from_millis(3_500);

async fn through(proxy: &Proxy, db: &TestDb) -> Locks {
    Locks::connect(proxy.url(&db.url)).await.unwrap()
}

fn short(locks: &Locks, name: &str) -> Lock {
    locks.lock(name).ttl(TTL)
}

/// Holds back replies from now on, until `DELAY` after the first.
fn delay_replies(proxy: &Arc<Proxy>) -> tokio::task::JoinHandle<()> {
    let before = proxy.faults_hit();
    proxy.stall_replies();
    let (proxy, began) = (Arc::clone(proxy), now());
    tokio::spawn(async move {
        while proxy.faults_hit() == before {
            assert!(began.elapsed() < TIMEOUT, "nothing was held back");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(DELAY).await;
        proxy.resume();
    })
}

/// Work under a guard for a moment, alone.
async fn body(guard: LockGuard, inside: &AtomicI32) {
    assert_eq!(
        inside.fetch_add(1, Ordering::SeqCst),
        0,
        "two bodies at once"
    );
    tokio::time::sleep(Duration::from_millis(700)).await;
    inside.fetch_sub(1, Ordering::SeqCst);
    guard.release().await.unwrap();
}

/// The reply to the first request comes when its lease is over and another client works under the
/// lock.
async fn a_grant_whose_reply_is_late_is_not_handed_out_and_the_wait_goes_on(db: &TestDb) {
    let proxy = Arc::new(Proxy::to_url(&db.url));
    let (slow, other) = (through(&proxy, db).await, db.locks().await);
    // So that connections are up and statements prepared.
    for _ in 0..3 {
        slow.lock("job")
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let inside = Arc::new(AtomicI32::new(0));
    let delayed = delay_replies(&proxy);
    let first = {
        let (lock, inside) = (short(&slow, "job").wait(TIMEOUT), Arc::clone(&inside));
        tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            assert!(guard.is_held(), "handed out, and not held");
            body(guard, &inside).await;
        })
    };
    // Until it is granted, as far as the database is concerned.
    let began = now();
    while !other.show("job").await.unwrap().unwrap().is_held() {
        assert!(began.elapsed() < TIMEOUT, "it is not granted");
    }
    assert!(other.lock("job").try_acquire().await.unwrap().is_none());
    let second = other
        .lock("job")
        .ttl(TIMEOUT)
        .wait(TIMEOUT)
        .acquire()
        .await
        .unwrap();
    body(second, &inside).await;
    delayed.await.unwrap();
    first.await.unwrap();
    promise("P1", db.engine);
    promise("P4", db.engine);
}

/// The same for several locks. Another client has one of them when the reply comes: none of the
/// grants is handed out, and in the end all are held under new ones.
async fn a_set_whose_reply_is_late_is_not_handed_out_and_the_wait_goes_on(db: &TestDb) {
    let proxy = Arc::new(Proxy::to_url(&db.url));
    let (slow, other) = (through(&proxy, db).await, db.locks().await);
    let set = || slow.all(["a", "b"]).ttl(TTL).wait(TIMEOUT);
    for _ in 0..3 {
        set().acquire().await.unwrap().release().await.unwrap();
    }
    let inside = Arc::new(AtomicI32::new(0));
    let delayed = delay_replies(&proxy);
    let acquiring = tokio::spawn(set().acquire());
    let began = now();
    let mut row = other.show("b").await.unwrap().unwrap();
    while !row.is_held() {
        assert!(began.elapsed() < TIMEOUT, "it is not granted");
        row = other.show("b").await.unwrap().unwrap();
    }
    let second = other.lock("b").ttl(TIMEOUT).wait(TIMEOUT).acquire();
    body(second.await.unwrap(), &inside).await;
    delayed.await.unwrap();
    let set = acquiring.await.unwrap().unwrap();
    assert!(set.is_held(), "handed out, and not held");
    assert!(set.guard("b").unwrap().token() > row.token, "granted anew");
    set.check().await.unwrap();
    set.release().await.unwrap();
    promise("P1", db.engine);
    promise("P4", db.engine);
}

/// A try-once whose reply is late learns that it is lost, and what it got is given back.
async fn a_try_with_a_late_reply_fails_and_leaves_nothing_held(db: &TestDb) {
    let proxy = Arc::new(Proxy::to_url(&db.url));
    let (slow, other) = (through(&proxy, db).await, db.locks().await);
    for _ in 0..3 {
        slow.lock("once")
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let delayed = delay_replies(&proxy);
    let tried = short(&slow, "once").try_acquire().await;
    match tried {
        Err(Error::Lost { reason, .. }) => assert_eq!(reason, LostReason::Expired),
        // Where the reply took so long that the connection was given up …
        Err(Error::Unavailable { .. }) => {}
        // … and the try that was made once more came when replies did.
        Ok(Some(guard)) => assert!(guard.is_held(), "handed out, and not held"),
        other => panic!("{other:?}"),
    }
    delayed.await.unwrap();
    let began = now();
    drop(other.lock("once").wait(TIMEOUT).acquire().await.unwrap());
    assert!(began.elapsed() < TIMEOUT / 2, "{:?}", began.elapsed());
    promise("P7", db.engine);
}

/// A late reply to a resumption by ticket, and to a take-over by the same holder.
async fn a_lock_taken_over_or_resumed_too_late_is_not_handed_out(db: &TestDb) {
    let proxy = Arc::new(Proxy::to_url(&db.url));
    let (slow, other) = (through(&proxy, db).await, db.locks().await);
    for name in ["ticket", "mine"] {
        slow.lock(name)
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let ticket = short(&other, "ticket")
        .ttl(TIMEOUT)
        .acquire()
        .await
        .unwrap()
        .into_ticket()
        .unwrap();
    let delayed = delay_replies(&proxy);
    let taken = short(&slow, "ticket").resume(&ticket).await;
    delayed.await.unwrap();
    match taken {
        Ok(guard) => assert!(guard.is_held(), "handed out, and not held"),
        Err(Error::Lost { .. } | Error::Unavailable { .. } | Error::Conflict { .. }) => {}
        Err(other) => panic!("{}", other.chain()),
    }

    let mine = |locks: &Locks| {
        short(locks, "mine")
            .holder("me")
            .preempt(true)
            .wait(TIMEOUT)
    };
    // As another process of the same holder would.
    let store = open(&db.url, &Table::default()).unwrap();
    let before = granted(&*store, "mine", "me", TIMEOUT).await;
    let delayed = delay_replies(&proxy);
    let after = mine(&slow).acquire().await.unwrap();
    assert!(after.is_held(), "handed out, and not held");
    delayed.await.unwrap();
    assert!(after.token() > before.token);
    promise("P4", db.engine);
}

/// The grant is there in time, and the caller's own thread is too busy to take it. No renewal keeps
/// it alive.
async fn a_late_caller_is_handed_no_lost_lock(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    let ttl = Duration::from_secs(3);
    let lock = locks.lock("late").ttl(ttl).auto_renew(false);
    // So that there is a row.
    let _ = lock.acquire().await.unwrap().release().await;

    let mut before = token(&other).await;
    let mut trying = Box::pin(lock.try_acquire());
    while let Some(answered) = futures_poll(trying.as_mut()) {
        // The thread that asks the database was faster.
        let _ = answered.unwrap().unwrap().release().await;
        before = token(&other).await;
        trying = Box::pin(lock.try_acquire());
    }
    let granted = busy(db, before, ttl);
    match trying.await {
        Err(Error::Lost { reason, .. }) => assert_eq!(reason, LostReason::Expired),
        // What the caller's own runtime has to send is sent when that goes on.
        Ok(Some(guard)) if !granted => assert!(guard.is_held(), "handed out, and not held"),
        other => panic!("granted: {granted}, {other:?}"),
    }

    let lock = lock.wait(TIMEOUT);
    before = token(&other).await;
    let mut waiting = Box::pin(lock.acquire());
    while let Some(answered) = futures_poll(waiting.as_mut()) {
        let _ = answered.unwrap().release().await;
        before = token(&other).await;
        waiting = Box::pin(lock.acquire());
    }
    busy(db, before, ttl);
    let guard = waiting.await.unwrap();
    assert!(guard.is_held(), "handed out, and not held");
    drop(guard);
    drop(other.lock("late").wait(TIMEOUT).acquire().await.unwrap());
    promise("P4", db.engine);
}

async fn token(locks: &Locks) -> i64 {
    locks.show("late").await.unwrap().unwrap().token.get()
}

/// Blocks this thread until the lock is granted, after the grant of that token, and the lease is
/// over; or for two seconds. Whether it was granted.
fn busy(db: &TestDb, before: i64, ttl: Duration) -> bool {
    let url = db.url.clone();
    let work = move || {
        let locks = blocking::Locks::connect(url).unwrap();
        let token = || locks.show("late").unwrap().unwrap().token.get();
        let granted = wait_until(Duration::from_secs(2), || token() > before);
        testkit::time::sleep(ttl);
        granted
    };
    std::thread::spawn(work).join().unwrap()
}

/// Poll it once; what it answered, if it did.
fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut context) {
        std::task::Poll::Ready(done) => Some(done),
        std::task::Poll::Pending => None,
    }
}

macro_rules! on {
    ($($engine:ident),*) => { $( db_tests!($engine:
        a_grant_whose_reply_is_late_is_not_handed_out_and_the_wait_goes_on,
            a_set_whose_reply_is_late_is_not_handed_out_and_the_wait_goes_on,
        a_try_with_a_late_reply_fails_and_leaves_nothing_held,
        a_lock_taken_over_or_resumed_too_late_is_not_handed_out,
        a_late_caller_is_handed_no_lost_lock,
    ); )* };
}
on!(postgres, mariadb, mysql);

mod embedded {
    use super::a_late_caller_is_handed_no_lost_lock;
    testkit::db_tests!(memory: a_late_caller_is_handed_no_lost_lock);
    testkit::db_tests!(sqlite: a_late_caller_is_handed_no_lost_lock);
}
