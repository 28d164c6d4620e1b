//! Delivery of losses: to callbacks and subscribers, which may call the library, drop guards and
//! panic.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, mpsc};
use std::time::Duration;

use database_locks::{Error, LockGuard, Locks, LostReason};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

const TIMEOUT: Duration = Duration::from_secs(20);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// Waits for what a callback sends, without blocking the test's runtime.
async fn receive<T: Send + 'static>(losses: mpsc::Receiver<T>) -> T {
    tokio::task::spawn_blocking(move || losses.recv_timeout(TIMEOUT).expect("in time"))
        .await
        .unwrap()
}

/// Renewed often, so that a release by force is noticed soon. Not more often: a renewal gives a connection
/// up after its period, with what other requests run on it.
async fn held(locks: &Locks, name: &str) -> LockGuard {
    let lock = locks.lock(name).ttl(Duration::from_secs(20));
    in_time(lock.renew_every(ms(1_000)).acquire())
        .await
        .unwrap()
}

/// Without renewals, and too short for its process to listen for a release by force: until the caller
/// asks, its process does not know that another client took the lock.
async fn unwatched(locks: &Locks, name: &str) -> LockGuard {
    let lock = locks.lock(name).ttl(ms(15_000)).auto_renew(false);
    in_time(lock.acquire()).await.unwrap()
}

/// The scheduler is there, and does its work: a loss is noticed.
async fn losses_are_still_noticed(locks: &Locks) {
    let guard = held(locks, "another").await;
    in_time(locks.force_release("another")).await.unwrap();
    assert_eq!(in_time(guard.lost()).await.reason(), LostReason::Forced);
}

async fn on_lost_is_called_once_and_in_the_background(db: &TestDb) {
    let locks = db.locks().await;
    let guard = held(&locks, "job").await;
    let (sender, losses) = mpsc::channel();
    for call in 0..3 {
        let sender = sender.clone();
        guard.on_lost(move |loss| {
            let thread = std::thread::current().name().map(str::to_owned);
            sender.send((call, loss.reason(), thread)).unwrap();
        });
    }
    drop(sender);
    locks.force_release("job").await.unwrap();
    let all = tokio::task::spawn_blocking(move || losses.iter().collect::<Vec<_>>());
    let all = in_time(all).await.unwrap();
    for (i, (call, reason, thread)) in all.iter().enumerate() {
        assert_eq!((*call, *reason), (i, LostReason::Forced));
        assert_eq!(thread.as_deref(), Some("locks-callbacks"));
    }
    assert_eq!(all.len(), 3);
    assert!(!guard.is_held());
    promise("P4", db.engine);
}

async fn on_lost_is_called_at_once_for_a_lock_that_is_already_lost(db: &TestDb) {
    let locks = db.locks().await;
    let guard = held(&locks, "job").await;
    locks.force_release("job").await.unwrap();
    in_time(guard.lost()).await;
    let (sender, losses) = mpsc::channel();
    let here = std::thread::current().id();
    guard.on_lost(move |loss| {
        sender
            .send((loss.reason(), std::thread::current().id()))
            .unwrap();
    });
    assert_eq!(losses.try_recv().unwrap(), (LostReason::Forced, here));
}

/// A caller that finds a loss by `check` has it delivered in the background too.
async fn a_loss_found_by_check_is_delivered_to_callbacks(db: &TestDb) {
    let locks = db.locks().await;
    let guard = in_time(locks.lock("job").ttl(TIMEOUT).acquire())
        .await
        .unwrap();
    let (sender, losses) = mpsc::channel();
    guard.on_lost(move |loss| {
        let thread = std::thread::current().name().map(str::to_owned);
        sender.send((loss.reason(), thread)).unwrap();
    });
    locks.force_release("job").await.unwrap();
    guard.check().await.unwrap_err();
    let (reason, thread) = receive(losses).await;
    assert_eq!(reason, LostReason::Forced);
    assert_eq!(thread.as_deref(), Some("locks-callbacks"));
}

/// All receivers get the same: why, since when, and the new holder.
async fn a_loss_names_the_new_holder(db: &TestDb) {
    let (locks, others) = (db.locks().await, db.locks().await);
    for by_release in [false, true] {
        let began = now();
        let guard = unwatched(&locks, "job").await;
        assert_eq!(guard.loss(), None);
        let (sender, losses) = mpsc::channel();
        if !by_release {
            guard.on_lost(move |loss| sender.send(loss).unwrap());
        }
        in_time(others.force_release("job")).await.unwrap();
        let lock = others.lock("job").holder("the successor");
        let next = in_time(lock.acquire()).await.unwrap();

        let error = if by_release {
            in_time(guard.release()).await.unwrap_err()
        } else {
            let error = in_time(guard.check()).await.unwrap_err();
            assert_eq!(guard.loss(), Some(receive(losses).await));
            error
        };
        let words = error.to_string();
        let Error::Lost { reason, loss, .. } = error else {
            panic!("{words}")
        };
        assert_eq!((reason, loss.reason()), (LostReason::Preempted, reason));
        let held = loss.held_for().unwrap();
        assert!(held <= began.elapsed() && loss.elapsed() <= began.elapsed());
        let by = loss.now_held_by().unwrap();
        assert_eq!(by.holder.as_deref(), Some("the successor"));
        assert_eq!(by.token, Some(next.token()));
        assert!(by.held_for.is_some_and(|age| age < TIMEOUT), "{by}");
        for part in [
            "lock `job` lost ",
            " after ",
            ": preempted by another holder (now held by the successor for ",
            &format!(", token {})", next.token()),
        ] {
            assert!(words.contains(part), "{part:?} in {words}");
        }
        in_time(next.release()).await.unwrap();
    }
    promise("P6", db.engine);
}

async fn a_loss_by_force_names_no_new_holder(db: &TestDb) {
    let locks = db.locks().await;
    let guard = held(&locks, "job").await;
    locks.force_release("job").await.unwrap();
    in_time(guard.lost()).await;
    let loss = guard.loss().unwrap();
    assert_eq!(
        (loss.reason(), loss.now_held_by()),
        (LostReason::Forced, None)
    );
    assert!(loss.to_string().ends_with(": released by force"), "{loss}");
}

/// Without an answer the loss names no new holder: trust ended by the clock alone.
async fn a_loss_without_an_answer_says_since_when(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks.lock("job").ttl(ms(1000)).auto_renew(false);
    let guard = in_time(lock.acquire()).await.unwrap();
    in_time(guard.lost()).await;
    let next = in_time(locks.lock("job").acquire()).await.unwrap();
    tokio::time::sleep(ms(1100)).await;
    let loss = guard.loss().unwrap();
    assert_eq!(
        (loss.reason(), loss.now_held_by()),
        (LostReason::Expired, None)
    );
    assert!(loss.held_for().unwrap() <= ms(1000), "to the end of trust");
    assert!(loss.elapsed() >= ms(1100));
    let words = loss.to_string();
    assert!(
        words.contains("s ago, after ") && !words.contains("now"),
        "{words}"
    );
    next.release().await.unwrap();
}

async fn on_lost_is_dropped_with_a_release(db: &TestDb) {
    let locks = db.locks().await;
    let called = Arc::new(AtomicUsize::new(0));
    let listen = |guard: &LockGuard| {
        let called = Arc::clone(&called);
        guard.on_lost(move |_| {
            called.fetch_add(1, Ordering::SeqCst);
        });
    };
    let guard = held(&locks, "released").await;
    listen(&guard);
    guard.release().await.unwrap();
    assert_eq!(Arc::strong_count(&called), 1);

    let guard = held(&locks, "handed over").await;
    listen(&guard);
    let ticket = guard.into_ticket().unwrap();
    assert_eq!(Arc::strong_count(&called), 1);
    in_time(locks.release(&ticket)).await.unwrap();

    let guard = held(&locks, "dropped").await;
    listen(&guard);
    drop(guard);
    assert_eq!(Arc::strong_count(&called), 1);

    // A loss that the release is the first to find: its error says so.
    let (unaware, others) = (db.locks().await, db.locks().await);
    let guard = unwatched(&unaware, "gone").await;
    listen(&guard);
    others.force_release("gone").await.unwrap();
    guard.release().await.unwrap_err();
    in_time(unaware.drain()).await;
    in_time(locks.drain()).await;
    assert_eq!(called.load(Ordering::SeqCst), 0);
    promise("P7", db.engine);
}

/// What is called may use the library, drop guards, and panic.
async fn a_callback_that_panics_or_calls_the_library_ends_no_renewal(db: &TestDb) {
    let locks = db.locks().await;
    let (guard, spare) = (held(&locks, "job").await, held(&locks, "spare").await);
    let (sender, losses) = mpsc::channel();
    guard.on_lost(|_| panic!("on purpose"));
    let again = locks.clone();
    guard.on_lost(move |_| {
        drop(spare);
        drop(again.lock("never polled").acquire());
        sender.send(()).unwrap();
    });
    struct Dropped(Option<LockGuard>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            drop(self.0.take());
        }
    }
    // Dropped with the callback that it belongs to.
    let kept = Dropped(Some(held(&locks, "kept").await));
    let other = held(&locks, "other").await;
    other.on_lost(move |_| drop(kept));
    drop(other);
    in_time(locks.force_release("job")).await.unwrap();
    receive(losses).await;
    losses_are_still_noticed(&locks).await;
    for name in ["spare", "kept"] {
        let freed = locks.lock(name).wait(TIMEOUT).acquire().await;
        freed.expect("freed").release().await.unwrap();
    }
    promise("P7", db.engine);
}

async fn the_blocking_api_has_on_lost_too(db: &TestDb) {
    let (url, locks) = (db.url.clone(), db.locks().await);
    let work = move || {
        let blocking = database_locks::blocking::Locks::connect(&url).unwrap();
        let lock = blocking.lock("job").ttl(TIMEOUT).renew_every(ms(1_000));
        let guard = lock.acquire().unwrap();
        let (sender, losses) = mpsc::channel();
        guard.on_lost(move |loss| sender.send(loss.reason()).unwrap());
        blocking.force_release("job").unwrap();
        assert_eq!(losses.recv_timeout(TIMEOUT).unwrap(), LostReason::Forced);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    drop(locks);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            on_lost_is_called_once_and_in_the_background,
            on_lost_is_called_at_once_for_a_lock_that_is_already_lost,
            a_loss_found_by_check_is_delivered_to_callbacks,
            a_loss_names_the_new_holder,
            a_loss_by_force_names_no_new_holder,
            a_loss_without_an_answer_says_since_when,
            on_lost_is_dropped_with_a_release,
            a_callback_that_panics_or_calls_the_library_ends_no_renewal,
            the_blocking_api_has_on_lost_too,
        );
    )* };
}
on!(memory, sqlite, postgres, mariadb, mysql);

/// A subscriber that drops a guard on a given event, and then panics.
struct DroppingSubscriber;

static DROP_ON: Mutex<Vec<(&str, LockGuard)>> = Mutex::new(Vec::new());

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

impl<S: Subscriber> Layer<S> for DroppingSubscriber {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let mut waiting = DROP_ON.lock().unwrap();
        let at = waiting
            .iter()
            .position(|(what, _)| message.0.contains(what));
        let found = at.map(|at| waiting.remove(at));
        drop(waiting);
        if let Some((_, guard)) = found {
            drop(guard);
            panic!("on purpose");
        }
    }
}

/// Waits until the subscriber has got the event and dropped its guard.
async fn dropped_on(what: &str) {
    let waits = || {
        let waiting = DROP_ON.lock().unwrap();
        waiting.iter().any(|(waits_for, _)| *waits_for == what)
    };
    in_time(async {
        while waits() {
            tokio::time::sleep(ms(10)).await;
        }
    })
    .await;
}

fn install_subscriber() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::registry()
            .with(DroppingSubscriber)
            .init()
    });
}

/// Have a guard dropped when that is logged.
async fn drop_guard_on(locks: &Locks, what: &'static str) {
    let spare = held(locks, &format!("spare: {what}")).await;
    DROP_ON.lock().unwrap().push((what, spare));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_may_drop_guards_and_panic() {
    let db = TestDb::sqlite().unwrap();
    install_subscriber();
    let locks = db.locks().await;
    // Lost because its trust ended.
    let lock = locks.lock("short").ttl(ms(5000)).auto_renew(false);
    let short = in_time(lock.acquire()).await.unwrap();
    drop_guard_on(&locks, "lock lost").await;
    in_time(short.lost()).await;
    dropped_on("lock lost").await;
    losses_are_still_noticed(&locks).await;

    // Lost because the answer to a renewal says so.
    let forced = held(&locks, "forced").await;
    drop_guard_on(&locks, "lock lost").await;
    locks.force_release("forced").await.unwrap();
    in_time(forced.lost()).await;
    dropped_on("lock lost").await;
    losses_are_still_noticed(&locks).await;

    // Renewals fail, and get through again.
    let guard = held(&locks, "job").await;
    drop_guard_on(&locks, "renewals fail").await;
    drop_guard_on(&locks, "renewals get through again").await;
    let file = db.begin_with("");
    dropped_on("renewals fail").await;
    file.rollback();
    dropped_on("renewals get through again").await;
    losses_are_still_noticed(&locks).await;
    assert!(guard.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_may_drop_a_guard_when_a_row_is_busy() {
    let Some(db) = TestDb::postgres() else { return };
    install_subscriber();
    let locks = db.locks().await;
    let guard = held(&locks, "busy").await;
    drop_guard_on(&locks, "another transaction has its row locked").await;
    let row = db.lock_row("busy");
    dropped_on("another transaction has its row locked").await;
    row.rollback();
    losses_are_still_noticed(&locks).await;
    assert!(guard.is_held());
}
