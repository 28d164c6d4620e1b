//! Callbacks of losses, and log subscribers, that block: they cost no other lease.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::sync::{Mutex, Once, mpsc};
use std::time::Duration;

use database_locks::blocking;
use testkit::promise;
use testkit::time::{ms, now};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

const TIMEOUT: Duration = Duration::from_secs(20);

fn locks(name: &str) -> blocking::Locks {
    blocking::Locks::connect(format!("memory:callbacks-{name}")).unwrap()
}

/// Renewed often, so that a release by force is noticed soon.
fn held(locks: &blocking::Locks, name: &str) -> blocking::LockGuard {
    let lock = locks.lock(name).ttl(TIMEOUT).renew_every(ms(50));
    lock.acquire().unwrap()
}

#[test]
fn a_blocking_guard_may_be_dropped_in_a_callback() {
    let locks = locks("dropped");
    let (guard, spare) = (held(&locks, "job"), held(&locks, "spare"));
    let (sender, receiver) = mpsc::channel();
    guard.on_lost(move |_| {
        drop(spare);
        sender.send(()).unwrap();
    });
    locks.force_release("job").unwrap();
    receiver.recv_timeout(TIMEOUT).unwrap();
    let freed = locks.lock("spare").try_acquire().unwrap();
    assert!(freed.is_some(), "the drop waits for the release");
    promise("P17", "memory");
}

#[test]
fn a_callback_may_acquire_and_wait() {
    let locks = locks("acquires");
    let guard = held(&locks, "job");
    let (sender, receiver) = mpsc::channel();
    let again = locks.clone();
    guard.on_lost(move |_| {
        let next = again.lock("job").wait(TIMEOUT).acquire().unwrap();
        sender.send(next.token()).unwrap();
        next.release().unwrap();
    });
    locks.force_release("job").unwrap();
    assert!(receiver.recv_timeout(TIMEOUT).unwrap() > guard.token());
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "the test has a thread of its own"
)]
fn a_slow_callback_delays_no_renewal() {
    let locks = locks("slow");
    let guard = held(&locks, "job");
    let ttl = ms(6000);
    let short = locks.lock("short").ttl(ttl).acquire().unwrap();
    let (sender, receiver) = mpsc::channel();
    let (finish, finished) = mpsc::channel();
    guard.on_lost(move |_| {
        sender.send(()).unwrap();
        finished.recv().unwrap();
    });
    locks.force_release("job").unwrap();
    receiver.recv_timeout(TIMEOUT).unwrap();
    let began = now();
    while began.elapsed() < ttl + ms(2000) {
        assert!(short.is_held(), "lost after {:?}", began.elapsed());
        std::thread::sleep(ms(10));
    }
    finish.send(()).expect("the callback still runs");
    promise("P4", "memory");
}

#[test]
fn a_callback_that_never_returns_blocks_no_other_callback() {
    let locks = locks("stuck");
    let (sender, receiver) = mpsc::channel();
    let stuck: Vec<_> = (0..5)
        .map(|i| {
            let (guard, sender) = (held(&locks, &format!("stuck {i}")), sender.clone());
            guard.on_lost(move |_| {
                sender.send(()).unwrap();
                loop {
                    std::thread::park();
                }
            });
            guard
        })
        .collect();
    for guard in &stuck {
        locks.force_release(guard.name().as_str()).unwrap();
        receiver.recv_timeout(TIMEOUT).unwrap();
    }
    let guard = held(&locks, "job");
    guard.on_lost(move |_| sender.send(()).unwrap());
    locks.force_release("job").unwrap();
    receiver.recv_timeout(TIMEOUT).unwrap();
}

/// A subscriber that makes blocking calls on the thread that logs a loss.
struct Blocks;

type Asks = Option<(blocking::Locks, blocking::LockGuard, mpsc::Sender<String>)>;
static ASKS: Mutex<Asks> = Mutex::new(None);

impl<S: Subscriber> Layer<S> for Blocks {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() != tracing::Level::WARN {
            return;
        }
        let asks = ASKS.try_lock().ok().and_then(|mut asks| asks.take());
        if let Some((locks, spare, sender)) = asks {
            let refused = locks.lock("another").acquire().map(drop);
            drop(spare);
            sender.send(refused.unwrap_err().to_string()).unwrap();
        }
    }
}

#[test]
fn a_blocking_call_on_the_background_thread_is_an_error_and_a_drop_releases_in_the_background() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::registry().with(Blocks).init());
    let locks = locks("nested");
    let (guard, spare) = (held(&locks, "job"), held(&locks, "spare"));
    let (sender, receiver) = mpsc::channel();
    *ASKS.lock().unwrap() = Some((locks.clone(), spare, sender));
    locks.force_release("job").unwrap();
    let message = receiver.recv_timeout(TIMEOUT).unwrap();
    assert!(
        message.contains("must be made on another thread"),
        "{message}"
    );
    drop(guard);
    let freed = locks.lock("spare").wait(TIMEOUT).acquire();
    freed
        .expect("released in the background")
        .release()
        .unwrap();
    promise("P17", "memory");
}
