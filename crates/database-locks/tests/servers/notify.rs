//! Waiting on PostgreSQL: a waiter is woken by a release, and by nothing else.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, Locks};
use testkit::time::{ms, now};
use testkit::{PgBouncer, Postgres, Proxy, TestDb, promise};
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, NoTls};

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The pause of a waiter that polls. Behind notifications it is 15 s at least.
const POLL: Duration = Duration::from_secs(600);
/// A lease that does not end while a test runs.
const TTL: Duration = Duration::from_secs(600);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// A lock for which a poll comes too late.
fn slow(locks: &Locks, name: &str) -> Lock {
    locks.lock(name).ttl(TTL).poll(POLL)
}

fn waits(lock: Lock) -> JoinHandle<Result<LockGuard, Error>> {
    tokio::spawn(async move { lock.acquire().await })
}

/// Waits until the row records a waiter.
async fn wait_for_waiter(db: &TestDb, name: &str) {
    let asked = format!(
        "SELECT count(*) FROM database_locks_lock WHERE name = '{name}'
            AND waiting_until > clock_timestamp()"
    );
    until(|| db.sql(&asked).trim() == "1").await;
}

async fn until(mut what: impl FnMut() -> bool) {
    let began = now();
    while !what() {
        assert!(began.elapsed() < TIMEOUT, "it never came");
        tokio::time::sleep(ms(20)).await;
    }
}

/// A client that is not of this library listens, and counts.
struct Listener {
    count: Arc<AtomicU64>,
    client: tokio_postgres::Client,
}

impl Listener {
    async fn at(db: &TestDb) -> Self {
        let (client, mut connection) = tokio_postgres::connect(&db.direct_url(), NoTls)
            .await
            .unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let number = client
            .query_one("SELECT 'database_locks_lock'::regclass::oid", &[])
            .await
            .unwrap()
            .get::<_, u32>(0);
        let listen = format!("LISTEN database_locks_{number}");
        client.batch_execute(&listen).await.unwrap();
        Self { count, client }
    }

    /// The number of notifications so far, all of them delivered.
    async fn notifications(&self) -> u64 {
        self.client.batch_execute("SELECT 1").await.unwrap();
        tokio::time::sleep(ms(200)).await;
        self.client.batch_execute("SELECT 1").await.unwrap();
        self.count.load(Ordering::SeqCst)
    }
}

/// No poll is in time for this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_wakes_a_waiter_of_another_process() {
    let Some(db) = TestDb::postgres() else { return };
    let (here, there) = (db.locks().await, db.locks().await);
    // In the second round the process listens already, the third is with a name of all bytes.
    for name in ["job", "job", "ünï 'q' \"d\" \\ %"] {
        let guard = slow(&here, name).acquire().await.unwrap();
        let waiting = waits(slow(&there, name));
        wait_for_waiter(&db, &name.replace('\'', "''")).await;
        let began = now();
        guard.release().await.unwrap();
        let next = in_time(waiting).await.unwrap().unwrap();
        assert!(began.elapsed() < ms(12_000), "{:?}", began.elapsed());
        next.release().await.unwrap();
    }
    promise("P12", db.engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_by_force_a_drop_and_a_batch_wake_waiters() {
    let Some(db) = TestDb::postgres() else { return };
    let (here, there) = (db.locks().await, db.locks().await);
    for how in ["force", "drop", "ticket"] {
        let guard = slow(&here, how).acquire().await.unwrap();
        let waiting = waits(slow(&there, how));
        wait_for_waiter(&db, how).await;
        let began = now();
        match how {
            "force" => drop(here.force_release(how).await.unwrap().unwrap()),
            "drop" => drop(guard),
            _ => {
                let ticket = guard.into_ticket().unwrap();
                here.resume(&ticket).await.unwrap().release().await.unwrap();
            }
        }
        in_time(waiting)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
        assert!(began.elapsed() < ms(12_000), "{how}: {:?}", began.elapsed());
    }
    // Many at once go out as one statement.
    let names: Vec<String> = (0..20).map(|n| format!("of many {n}")).collect();
    let mut guards = Vec::new();
    for name in &names {
        guards.push(slow(&here, name).acquire().await.unwrap());
    }
    let waiting: Vec<_> = names.iter().map(|name| waits(slow(&there, name))).collect();
    for name in &names {
        wait_for_waiter(&db, name).await;
    }
    drop(guards);
    for waiting in waiting {
        in_time(waiting)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

/// A NOTIFY makes the server carry out one commit after the other: none is sent in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_without_waiters_sends_no_notification() {
    let Some(db) = TestDb::postgres() else { return };
    let (here, there) = (db.locks().await, db.locks().await);
    let listener = Listener::at(&db).await;
    for _ in 0..20 {
        let guard = slow(&here, "job").acquire().await.unwrap();
        // A try is not a wait.
        assert!(there.lock("job").try_acquire().await.unwrap().is_none());
        guard.release().await.unwrap();
    }
    assert_eq!(listener.notifications().await, 0);
    // But a release by force notifies the holder.
    let guard = slow(&here, "job").acquire().await.unwrap();
    here.force_release("job").await.unwrap();
    drop(guard);
    assert_eq!(listener.notifications().await, 1);
    // The control: the listener does get notifications.
    let guard = in_time(slow(&here, "job").acquire()).await.unwrap();
    let waiting = waits(slow(&there, "job"));
    wait_for_waiter(&db, "job").await;
    guard.release().await.unwrap();
    let next = in_time(waiting).await.unwrap().unwrap();
    assert_eq!(listener.notifications().await, 2);
    // What was waited for once notifies in vain until then, and no longer.
    db.sql("UPDATE database_locks_lock SET waiting_until = clock_timestamp() - interval '1s'");
    next.release().await.unwrap();
    assert_eq!(listener.notifications().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_to_a_local_waiter_sends_no_notification_and_no_acquire_fails() {
    let Some(db) = TestDb::postgres() else { return };
    drop(db.locks().await);
    let ear = Listener::at(&db).await;
    let proxy = Proxy::to_url(&db.url);
    let locks = Locks::connect(proxy.url(&db.url)).await.unwrap();
    proxy.watch_for("of the queue");
    // Not longer than a grant lasts without a renewal right after it.
    let ttl = Duration::from_secs(30);
    let lock = slow(&locks, "job").ttl(ttl).holder("of the queue");
    let guard = lock.acquire().await.unwrap();
    let mut waiting = (0..50).map(|_| {
        let lock = lock.clone();
        tokio::spawn(async move { lock.acquire().await.unwrap().release().await.unwrap() })
    });
    // A caller that comes when there is a queue joins it.
    let mut queue = vec![waiting.next().unwrap()];
    until(|| proxy.count("of the queue") >= 2).await;
    tokio::time::sleep(ms(300)).await;
    queue.extend(waiting);
    tokio::time::sleep(ms(300)).await;
    guard.release().await.unwrap();
    for next in queue {
        in_time(next).await.unwrap();
    }
    assert_eq!(ear.notifications().await, 0);
    // An acquire and a release each, and the tries of the first in the queue. If each caller tried
    // for itself, there would be fifty more.
    let statements = proxy.count("of the queue");
    assert!((102..=130).contains(&statements), "{statements} statements");
}

/// An announcement lasts for seconds, in which each release notifies and lets other processes go
/// first. None is made for a grant of this process, whether its guard exists or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_one_process_that_begins_and_is_cancelled_announces_nothing() {
    const ROUNDS: usize = 30;
    let Some(db) = TestDb::postgres() else { return };
    let locks = db.locks().await;
    // The process listens, so that an announcement would succeed.
    let other = slow(&db.locks().await, "elsewhere").acquire().await;
    let waiting = waits(slow(&locks, "elsewhere"));
    wait_for_waiter(&db, "elsewhere").await;
    for round in 0..ROUNDS {
        let mut crowd = tokio::task::JoinSet::new();
        for task in 0..40 {
            let lock = locks.lock(format!("job {}", task % 4));
            crowd.spawn(async move {
                loop {
                    let guard = lock.acquire().await.unwrap();
                    if task % 3 == 0 {
                        guard.release().await.unwrap();
                    }
                }
            });
        }
        tokio::time::sleep(ms(20 + round as u64)).await;
        crowd.shutdown().await;
        in_time(locks.drain()).await;
    }
    let announced = "SELECT string_agg(name, ', ') FROM database_locks_lock
                      WHERE name LIKE 'job %' AND waiting_until IS NOT NULL";
    assert_eq!(db.sql(announced).trim(), "");
    // The control: it does announce itself for a lock of another process.
    drop(other);
    drop(in_time(waiting).await.unwrap().unwrap());
}

/// Many local waiters do not keep out a waiter of another process: a release that notified lets
/// that one try first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_of_another_process_is_served_before_many_local_waiters() {
    const CROWD: u32 = 400;
    let Some(db) = TestDb::postgres() else { return };
    let (here, there) = (db.locks().await, db.locks().await);
    let guard = slow(&here, "job").acquire().await.unwrap();
    let had = Arc::new(AtomicU32::new(0));
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let (lock, had) = (slow(&here, "job"), Arc::clone(&had));
        crowd.push(tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            had.fetch_add(1, Ordering::SeqCst);
            guard.release().await.unwrap();
        }));
    }
    let distant = waits(slow(&there, "job"));
    wait_for_waiter(&db, "job").await;
    guard.release().await.unwrap();
    let distant = in_time(distant).await.unwrap().unwrap();
    let before = had.load(Ordering::SeqCst);
    // On a busy machine it may miss some head starts. Without any it would be the last.
    assert!(before < CROWD / 2, "{before} had it before it");
    distant.release().await.unwrap();
    for one in crowd {
        in_time(one).await.unwrap();
    }
    promise("P12", db.engine);
}

/// The next waiter within the process goes away at the moment of the release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_local_waiter_delays_no_other_process() {
    let Some(db) = TestDb::postgres() else { return };
    let (here, there) = (db.locks().await, db.locks().await);
    for round in 0..20 {
        let guard = slow(&here, "job").acquire().await.unwrap();
        let fickle = waits(slow(&here, "job"));
        let distant = waits(slow(&there, "job"));
        wait_for_waiter(&db, "job").await;
        tokio::time::sleep(ms(20)).await;
        let began = now();
        let releasing = tokio::spawn(guard.release());
        tokio::time::sleep(Duration::from_micros(100 * round)).await;
        fickle.abort();
        drop(fickle);
        in_time(releasing).await.unwrap().unwrap();
        let distant = in_time(distant).await.unwrap().unwrap();
        // A poll would be 15 s away.
        assert!(began.elapsed() < ms(10_000), "{:?}", began.elapsed());
        distant.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_without_a_notification_is_noticed_by_the_next_slow_poll() {
    let Some(db) = TestDb::postgres() else { return };
    let (here, there) = (db.locks().await, db.locks().await);
    let guard = here.lock("job").ttl(TTL).acquire().await.unwrap();
    let waiting = waits(there.lock("job").ttl(TTL));
    wait_for_waiter(&db, "job").await;
    let began = now();
    db.sql(
        "UPDATE database_locks_lock SET expires_at = NULL, granted_until = NULL,
                grant_id = NULL WHERE name = 'job'",
    );
    let next = in_time(waiting).await.unwrap().unwrap();
    // 5 s at most, and room for a busy machine.
    assert!(began.elapsed() < ms(15_000), "{:?}", began.elapsed());
    drop(guard);
    next.release().await.unwrap();
    promise("P12", db.engine);
}

/// The connection is cut and cannot be made again: notifications meanwhile are missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missed_notification_does_not_prolong_a_wait() {
    let Some(db) = TestDb::postgres() else { return };
    let proxy = Proxy::to_url(&db.url);
    let (here, there) = (db.locks().await, db.locks_at(&proxy.url(&db.url)).await);
    let guard = slow(&here, "job").acquire().await.unwrap();
    let waiting = waits(slow(&there, "job"));
    wait_for_waiter(&db, "job").await;
    proxy.refuse(true);
    proxy.cut();
    until(|| proxy.open_connections() == 0).await;
    guard.release().await.unwrap();
    tokio::time::sleep(ms(500)).await;
    assert!(!waiting.is_finished(), "it was cut off");
    proxy.refuse(false);
    in_time(waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();

    // Cut only for a moment: it listens again and is notified.
    let guard = slow(&here, "job").acquire().await.unwrap();
    let waiting = waits(slow(&there, "job"));
    wait_for_waiter(&db, "job").await;
    proxy.watch_for("LISTEN database_locks_");
    proxy.cut();
    until(|| proxy.count("LISTEN database_locks_") >= 1).await;
    guard.release().await.unwrap();
    let next = in_time(waiting).await.unwrap().unwrap();
    next.release().await.unwrap();
    promise("P12", db.engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_listens_again_after_a_restart_of_the_server() {
    let Some(mut server) = Postgres::start() else {
        return;
    };
    let url = server.fresh_database();
    let (here, there) = (Locks::connect(&url).await, Locks::connect(&url).await);
    let (here, there) = (here.unwrap(), there.unwrap());
    here.migrate().await.unwrap();
    let listens = |server: &Postgres| {
        let listening = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                          AND (query LIKE 'LISTEN %' OR query LIKE '%waiting_until = GREATEST%')";
        server.query(&url, listening).is_ok_and(|n| n.trim() != "0")
    };
    let guard = slow(&here, "job").acquire().await.unwrap();
    let waiting = waits(slow(&there, "job"));
    for kill in [false, true] {
        if kill {
            server.kill();
        }
        let server = tokio::task::block_in_place(|| {
            server.restart();
            &server
        });
        until(|| listens(server)).await;
    }
    assert!(!waiting.is_finished());
    assert!(guard.is_held(), "its lease is long");
    in_time(guard.release()).await.unwrap();
    let next = in_time(waiting).await.unwrap().unwrap();
    next.release().await.unwrap();
    promise("P12", "postgres");
}

/// Every waiter is served, and of each process one is woken: not fifty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_wakes_one_waiter_of_each_process() {
    const PROCESSES: u32 = 4;
    const WAITERS: u32 = 50;
    // A grant takes its time to commit: a waiter that comes meanwhile must not ask again and again.
    let server = Postgres::options()
        .fsync(true)
        .set("commit_delay=5000")
        .set("commit_siblings=0")
        .start();
    let Some(server) = server else { return };
    let url = server.fresh_database();
    let keeper = Locks::connect(&url).await.unwrap();
    keeper.migrate().await.unwrap();
    let guard = slow(&keeper, "job").acquire().await.unwrap();
    let served = Arc::new(AtomicU32::new(0));
    let (mut processes, mut waiters) = (Vec::new(), Vec::new());
    for _ in 0..PROCESSES {
        let proxy = Proxy::to_url(&url);
        // A connection, and so a process to all that the database can see.
        let locks = Locks::connect(&proxy.url(&url)).await.unwrap();
        proxy.watch_for("of the crowd");
        for _ in 0..WAITERS {
            let ttl = Duration::from_secs(30);
            let lock = slow(&locks, "job").ttl(ttl).holder("of the crowd");
            let served = Arc::clone(&served);
            waiters.push(tokio::spawn(async move {
                let guard = lock.acquire().await.unwrap();
                served.fetch_add(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }));
        }
        processes.push((proxy, locks));
    }
    tokio::time::sleep(ms(1000)).await;
    assert_eq!(served.load(Ordering::SeqCst), 0);
    guard.release().await.unwrap();
    for waiter in waiters {
        // Two hundred grants, each of which waits for the disk.
        let served = tokio::time::timeout(4 * TIMEOUT, waiter).await;
        served.expect("in time").unwrap();
    }
    let all = u64::from(PROCESSES * WAITERS);
    assert_eq!(u64::from(served.load(Ordering::SeqCst)), all);
    // Its acquires, renewals and releases, in which the holder is named.
    let statements: u64 = processes
        .iter()
        .map(|(proxy, _)| proxy.count("of the crowd"))
        .sum();
    // Two for each grant, and what the first waiters of the other processes try in vain.
    let most = 8 * all;
    assert!(statements >= 2 * all, "{statements} were counted");
    assert!(
        statements <= most,
        "{statements} statements for {all} grants"
    );
    promise("P12", "postgres");
}

/// A client cannot listen on the connections of a pooler: waiters poll, and often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_pooler_waiters_poll() {
    let Some(db) = TestDb::pgbouncer() else {
        return;
    };
    let proxy = Proxy::to_url(&db.url);
    proxy.watch_for("LISTEN");
    let (here, there) = (db.locks().await, db.locks_at(&proxy.url(&db.url)).await);
    let mut quickest = TIMEOUT;
    for _ in 0..3 {
        let guard = here.lock("job").ttl(TTL).acquire().await.unwrap();
        let waiting = waits(there.lock("job").ttl(TTL));
        tokio::time::sleep(ms(700)).await;
        let began = now();
        guard.release().await.unwrap();
        let next = in_time(waiting).await.unwrap().unwrap();
        quickest = quickest.min(began.elapsed());
        next.release().await.unwrap();
    }
    // A poll behind notifications comes 2.5 s after the one before, at the earliest.
    assert!(quickest < ms(1500), "{quickest:?}");
    assert_eq!(proxy.count("LISTEN"), 0);
    promise("P12", db.engine);
}

/// A pooler that dies takes no lock along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_is_killed_and_started_again_loses_nothing() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    // One connection for all, and what a session has set is gone after each transaction.
    let settings = ["server_reset_query_always = 1", "default_pool_size = 1"];
    let Some(mut pooler) = PgBouncer::start(server, &settings) else {
        return;
    };
    let url = pooler.url(&server.fresh_database());
    let (here, there) = (Locks::connect(&url).await, Locks::connect(&url).await);
    let (here, there) = (here.unwrap(), there.unwrap());
    let other = Locks::connect(&url).await.unwrap();
    here.migrate().await.unwrap();
    let ttl = Duration::from_secs(20);
    let lock = here.lock("job").ttl(ttl).renew_every(ms(300));
    let guard = lock.acquire().await.unwrap();
    let waiting = [there.lock("job"), other.lock("job")].map(|lock| {
        tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        })
    });
    for _ in 0..2 {
        tokio::time::sleep(ms(500)).await;
        tokio::task::block_in_place(|| {
            pooler.kill();
            testkit::time::sleep(ms(500));
            pooler.restart();
        });
        assert!(guard.is_held());
        in_time(guard.check()).await.expect("still held");
    }
    assert!(!waiting.iter().any(JoinHandle::is_finished));
    in_time(guard.release()).await.unwrap();
    let mut tokens = Vec::new();
    for waiting in waiting {
        tokens.push(in_time(waiting).await.unwrap());
    }
    assert_ne!(tokens[0], tokens[1]);
    for id in ["P3", "P6", "P12"] {
        promise(id, "pgbouncer");
    }
}
