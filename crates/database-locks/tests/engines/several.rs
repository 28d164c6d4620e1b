//! Several locks at once, as a program acquires, holds, fences and loses them, on every engine.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use database_locks::{Error, LockSet, Locks, LostReason};
use mysql_async::{Conn, Opts, TxOpts};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};
use tokio_postgres::NoTls;

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

async fn held(locks: &Locks, names: &[&str]) -> LockSet {
    let set = locks.all(names).wait(TIMEOUT).acquire().await;
    set.unwrap_or_else(|error| panic!("{}", error.chain()))
}

async fn is_free(locks: &Locks, name: &str) -> bool {
    let row = locks.show(name).await.unwrap();
    row.is_none_or(|row| !row.is_held())
}

fn config(done: Result<Option<LockSet>, Error>) -> String {
    match done {
        Err(error @ Error::Config { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn several_are_held_together_or_not_at_all(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let set = a.all(["stock", "orders", "stock"]).holder("me").acquire();
    let set = set.await.unwrap();
    let names: Vec<&str> = set.names().map(|name| name.as_str()).collect();
    assert_eq!(names, ["orders", "stock"], "in order, and each once");
    assert!(set.is_held() && set.trusted_for() > ms(10_000) && set.loss().is_none());
    assert!(set.guard("other").is_none());
    for name in ["orders", "stock"] {
        let row = b.show(name).await.unwrap().expect("a row");
        assert_eq!(row.holder.as_deref(), Some("me"));
        assert_eq!(row.token, set.guard(name).expect("one of them").token());
        assert!(b.lock(name).try_acquire().await.unwrap().is_none());
    }
    assert!(
        b.all(["other", "stock"])
            .try_acquire()
            .await
            .unwrap()
            .is_none()
    );
    assert!(is_free(&b, "other").await);
    set.check().await.unwrap();
    set.extend(Duration::from_secs(120)).await.unwrap();
    assert!(set.trusted_for() > Duration::from_secs(60));
    set.release().await.unwrap();
    let again = b.all(["other", "orders", "stock"]).try_acquire().await;
    let again = again.unwrap().expect("all of them are free");
    drop(again);
    for name in ["orders", "stock", "other"] {
        drop(b.lock(name).wait(TIMEOUT).acquire().await.unwrap());
    }
    promise("P1", db.engine);
    promise("P7", db.engine);
}

async fn a_set_out_of_bounds_is_refused_before_any_request(db: &TestDb) {
    let locks = db.locks().await;
    let none: [&str; 0] = [];
    assert_eq!(
        config(locks.all(none).try_acquire().await),
        "`names` is empty, must be 1 to 100 names of locks to acquire at once"
    );
    let names: Vec<String> = (0..101).map(|n| format!("name {n:03}")).collect();
    assert!(config(locks.all(&names).try_acquire().await).contains("a list of 101"));
    let bad = config(locks.all(["good", ""]).try_acquire().await);
    assert!(bad.starts_with("`name` is"), "{bad}");
    assert!(locks.list().await.unwrap().is_empty());
    let most = locks.all(&names[..100]).ttl(Duration::from_secs(60));
    let most = most.acquire().await.unwrap();
    assert!(
        most.trusted_for() > Duration::from_secs(40),
        "confirmed by a renewal"
    );
    most.release().await.unwrap();
}

/// While it waits for one lock, another client gets and gives back the free one.
async fn nothing_is_held_while_a_set_waits(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let [first, second] = ["first", "second"].map(|name| a.lock(name).acquire());
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    // Where a release is notified, a poll would be 15 s away.
    let waiting = b.all(["second", "free", "first"]).wait(TIMEOUT);
    let waiting = waiting.poll(Duration::from_secs(60));
    let waiting = tokio::spawn(waiting.acquire());
    tokio::time::sleep(ms(300)).await;
    let free = a.lock("free").try_acquire().await.unwrap();
    free.expect("the wait does not hold it")
        .release()
        .await
        .unwrap();
    first.release().await.unwrap();
    tokio::time::sleep(ms(300)).await;
    assert!(!waiting.is_finished());
    let first = a.lock("first").wait(TIMEOUT).acquire().await.unwrap();
    second.release().await.unwrap();
    tokio::time::sleep(ms(300)).await;
    assert!(!waiting.is_finished());
    let released = now();
    first.release().await.unwrap();
    let set = in_time(waiting).await.unwrap().unwrap();
    let took = released.elapsed();
    assert!(took < ms(10_000), "it heard or polled at once: {took:?}");
    assert!(set.is_held());
    promise("P12", db.engine);
}

async fn a_wait_that_is_over_names_the_lock_and_its_holder(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let busy = a.lock("busy").holder("the holder").acquire().await.unwrap();
    for wait in [Duration::ZERO, ms(2_000)] {
        let error = b.all(["a", "busy", "c"]).wait(wait).acquire().await;
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("lock `busy` not acquired"), "{error}");
        assert!(error.contains(": held by the holder"), "{error}");
    }
    assert!(is_free(&a, "a").await && is_free(&a, "c").await);
    drop(busy);
}

/// Sets in random and opposite orders, and callers that want one of the locks alone: each lock has
/// one holder at a time, and every caller is served.
async fn overlapping_sets_and_single_locks_exclude_each_other(db: &TestDb) {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let inside: Arc<[AtomicBool; 4]> = Arc::default();
    let mut tasks = Vec::new();
    for client in 0..4 {
        let locks = db.locks().await;
        for task in 0..3 {
            let (locks, inside) = (locks.clone(), Arc::clone(&inside));
            tasks.push(tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(10 * client + task);
                for _ in 0..5 {
                    let size = if task == 0 { 1 } else { random.usize(2..=3) };
                    let mut chosen = random.choose_multiple(0..4, size);
                    random.shuffle(&mut chosen);
                    let names = chosen.iter().map(|at| NAMES[*at]);
                    let set = match size {
                        1 => None,
                        _ => Some(locks.all(names).wait(TIMEOUT).acquire().await.unwrap()),
                    };
                    let one = match set {
                        None => Some(locks.lock(NAMES[chosen[0]]).acquire().await.unwrap()),
                        Some(_) => None,
                    };
                    for at in &chosen {
                        let taken = inside[*at].swap(true, Ordering::SeqCst);
                        assert!(!taken, "two hold {}", NAMES[*at]);
                    }
                    tokio::time::sleep(ms(random.u64(0..3))).await;
                    for at in &chosen {
                        inside[*at].store(false, Ordering::SeqCst);
                    }
                    match (set, one) {
                        (Some(set), _) => set.release().await.unwrap(),
                        (_, Some(one)) => one.release().await.unwrap(),
                        _ => unreachable!(),
                    }
                }
            }));
        }
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(90), task)
            .await
            .expect("in time")
            .unwrap();
    }
    promise("P1", db.engine);
    promise("P15", db.engine);
}

async fn two_sets_in_opposite_orders_take_turns(db: &TestDb) {
    let rounds = |locks: Locks, names: [&'static str; 2]| async move {
        for _ in 0..20 {
            held(&locks, &names).await.release().await.unwrap();
        }
    };
    let one = tokio::spawn(rounds(db.locks().await, ["left", "right"]));
    let other = tokio::spawn(rounds(db.locks().await, ["right", "left"]));
    in_time(one).await.unwrap();
    in_time(other).await.unwrap();
    promise("P15", db.engine);
}

/// Callers of one process keep six locks busy without a pause: a set of them all gets its turn.
async fn a_set_is_not_starved_by_single_locks_of_its_process(db: &TestDb) {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let locks = db.locks().await;
    let (stop, grants) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let busy = |name: &'static str| {
        let (locks, stop, grants) = (locks.clone(), Arc::clone(&stop), Arc::clone(&grants));
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let guard = locks.lock(name).acquire().await.unwrap();
                tokio::time::sleep(ms(fastrand::u64(150..300))).await;
                grants.fetch_add(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        })
    };
    let twice = NAMES.into_iter().flat_map(|name| [busy(name), busy(name)]);
    let tasks: Vec<_> = twice.collect();
    tokio::time::sleep(ms(200)).await;
    let before = grants.load(Ordering::SeqCst);
    let set = locks.all(NAMES).wait(TIMEOUT).acquire().await;
    let set = set.unwrap_or_else(|error| panic!("{}", error.chain()));
    let meanwhile = grants.load(Ordering::SeqCst) - before;
    assert!(meanwhile > 6, "the others were served: {meanwhile}");
    stop.store(true, Ordering::SeqCst);
    set.release().await.unwrap();
    for task in tasks {
        in_time(task).await.unwrap();
    }
    promise("P12", db.engine);
}

/// The set is lost at once; its other locks stay held until its work has ended.
async fn one_that_is_forced_loses_the_set(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let set = a
        .all(["a", "b", "c"])
        .ttl(ms(4_500))
        .acquire()
        .await
        .unwrap();
    let (told, mut called) = tokio::sync::mpsc::unbounded_channel();
    set.on_lost(move |name, loss| told.send((name, loss)).expect("the test waits"));
    let forced = b.force_release("b").await.unwrap();
    forced.expect("it was held");
    let (name, loss) = in_time(set.lost()).await;
    assert_eq!((name.as_str(), loss.reason()), ("b", LostReason::Forced));
    assert!(!set.is_held() && set.trusted_for().is_zero());
    assert_eq!(set.loss().expect("lost").0.as_str(), "b");
    assert_eq!(
        in_time(called.recv()).await.expect("called").0.as_str(),
        "b"
    );
    assert!(
        set.check()
            .await
            .unwrap_err()
            .to_string()
            .starts_with("lock `b` lost")
    );
    // The work has to end first: what is left is renewed meanwhile.
    tokio::time::sleep(ms(5_000)).await;
    assert!(!is_free(&b, "a").await && !is_free(&b, "c").await);
    let lost = set.release().await.unwrap_err();
    assert!(
        matches!(&lost, Error::Lost { name, .. } if name.as_str() == "b"),
        "{lost}"
    );
    held(&b, &["a", "b", "c"]).await.release().await.unwrap();
    let work = async {
        b.force_release("c").await.unwrap();
        std::future::pending::<()>().await;
    };
    let set = a.all(["a", "b", "c"]).ttl(ms(4_500)).wait(TIMEOUT);
    let stopped = in_time(set.run(work)).await.unwrap_err();
    assert!(
        matches!(&stopped, Error::Lost { name, .. } if name.as_str() == "c"),
        "{stopped}"
    );
    assert!(called.recv().await.is_none(), "once");
    promise("P4", db.engine);
}

/// Whenever the caller stops waiting, in the middle of a request too.
async fn a_dropped_acquire_of_several_leaves_nothing_held(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    for pause in [0, 1, 2, 3, 5, 8, 20] {
        let acquiring = a.all(["a", "b"]).wait(TIMEOUT).acquire();
        {
            let mut acquiring = pin!(acquiring);
            let polled = poll_fn(|context| {
                let _ = acquiring.as_mut().poll(context);
                Poll::Ready(())
            });
            polled.await;
            tokio::time::sleep(ms(pause)).await;
        }
        in_time(a.drain()).await;
        let both = b.all(["a", "b"]).wait(TIMEOUT).acquire().await.unwrap();
        // And one that waits, when the locks become free.
        let waiting = a.all(["b", "a"]).wait(ms(50)).acquire();
        assert!(waiting.await.is_err());
        both.release().await.unwrap();
    }
    in_time(a.drain()).await;
    assert!(is_free(&b, "a").await && is_free(&b, "b").await);
    promise("P7", db.engine);
}

/// A transaction that passed the fence of all keeps other clients from each of the locks; a holder
/// that lost one of them does not pass.
async fn a_fence_over_all_refuses_a_holder_that_lost_one(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let set = a.all(["x", "y"]).acquire().await.unwrap();
    macro_rules! fences {
        ($begin:expr) => {{
            let mut tx = $begin;
            let open = set.fence(&mut tx).await.unwrap();
            tx.commit().await.unwrap();
            drop(open);
            b.force_release("y").await.unwrap();
            let next = b.lock("y").wait(TIMEOUT).acquire().await.unwrap();
            let mut tx = $begin;
            let error = set.fence(&mut tx).await.unwrap_err();
            assert!(matches!(&error, Error::Lost { name, .. } if name.as_str() == "y"), "{error}");
            tx.rollback().await.unwrap();
            next.release().await.unwrap();
        }};
    }
    match db.engine {
        "postgres" | "pgbouncer" => {
            let (mut client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
            tokio::spawn(connection);
            fences!(client.transaction().await.unwrap());
        }
        "mariadb" | "mysql" => {
            let mut conn = Conn::new(Opts::from_url(&db.url).unwrap()).await.unwrap();
            fences!(conn.start_transaction(TxOpts::default()).await.unwrap());
        }
        _ => {
            let mut file = rusqlite::Connection::open_in_memory().unwrap();
            let mut tx = file.transaction().unwrap();
            let open = set.fence(&mut tx).await.unwrap();
            let other = b.lock("x").ttl(ms(500)).try_acquire().await.unwrap();
            assert!(other.is_none());
            tx.commit().unwrap();
            drop(open);
            b.force_release("y").await.unwrap();
            let mut tx = file.transaction().unwrap();
            let error = set.fence(&mut tx).await.unwrap_err();
            assert!(
                matches!(&error, Error::Lost { name, .. } if name.as_str() == "y"),
                "{error}"
            );
        }
    }
    let lost = set.release().await.unwrap_err();
    assert!(
        matches!(&lost, Error::Lost { name, .. } if name.as_str() == "y"),
        "{lost}"
    );
    assert!(is_free(&b, "x").await);
    promise("P9", db.engine);
}

/// While a fence over all is open, the end of a lease lets no client have one of the locks.
async fn no_client_takes_over_one_of_a_fenced_set(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    macro_rules! outlasts {
        ($begin:expr) => {{
            // Last, since the fence must open within its lease.
            let set = a.all(["x", "y"]).ttl(ms(4_000)).auto_renew(false);
            let set = set.acquire().await.unwrap();
            let mut tx = $begin;
            let open = set.fence(&mut tx).await.unwrap();
            for (name, wait) in [("x", 4_500), ("y", 500)] {
                let taken = b.lock(name).wait(ms(wait)).acquire().await;
                assert!(taken.is_err(), "{name} is fenced");
            }
            tx.commit().await.unwrap();
            drop(open);
        }};
    }
    match db.engine {
        "postgres" | "pgbouncer" => {
            let (mut client, connection) = tokio_postgres::connect(&db.url, NoTls).await.unwrap();
            tokio::spawn(connection);
            outlasts!(client.transaction().await.unwrap());
        }
        _ => {
            let mut conn = Conn::new(Opts::from_url(&db.url).unwrap()).await.unwrap();
            outlasts!(conn.start_transaction(TxOpts::default()).await.unwrap());
        }
    }
    held(&b, &["x", "y"]).await.release().await.unwrap();
    promise("P9", db.engine);
}

macro_rules! tests {
    ($($engine:ident $([$($also:ident),*])?;)*) => {
        $(db_tests!(
            $engine: several_are_held_together_or_not_at_all,
            a_set_out_of_bounds_is_refused_before_any_request,
            nothing_is_held_while_a_set_waits,
            a_wait_that_is_over_names_the_lock_and_its_holder,
            overlapping_sets_and_single_locks_exclude_each_other,
            two_sets_in_opposite_orders_take_turns,
            a_set_is_not_starved_by_single_locks_of_its_process,
            one_that_is_forced_loses_the_set,
            a_dropped_acquire_of_several_leaves_nothing_held,
            a_fence_over_all_refuses_a_holder_that_lost_one,
            $($($also),*)?
        );)*
    };
}

tests! {
    memory;
    sqlite;
    postgres[no_client_takes_over_one_of_a_fenced_set];
    pgbouncer[no_client_takes_over_one_of_a_fenced_set];
    mariadb[no_client_takes_over_one_of_a_fenced_set];
    mysql[no_client_takes_over_one_of_a_fenced_set];
}
