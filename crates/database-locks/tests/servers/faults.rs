//! A database that hangs, is cut off, loses replies, or is restarted.
//!
//! Each test asserts that its fault was hit: a fault that missed proves nothing.

use std::time::Duration;

use database_locks::{Error, LockState, LostReason, Ttl};
use testkit::contract;
use testkit::time::{ms, now};
use testkit::{Proxy, TestDb, db_tests, promise};

const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// The call hangs; the loss comes when trust ends all the same, and `is_held` never blocks.
async fn a_database_that_never_answers_delays_no_loss(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    let other = db.locks().await;
    let guard = locks
        .lock("job")
        .ttl(ms(9000))
        .margin(ms(4400))
        .acquire()
        .await
        .unwrap();
    let trusted = guard.trusted_for();
    proxy.watch_for(guard.grant_id());
    proxy.stall();
    let began = now();
    let lost = tokio::spawn(guard.lost());
    loop {
        let asked = now();
        let (after, held) = (began.elapsed(), guard.is_held());
        let _ = guard.trusted_for();
        // For an answer it would wait until the end of trust.
        assert!(asked.elapsed() < ms(3000), "asking waited");
        if !held {
            break;
        }
        assert!(after < trusted + ms(500), "trusted for too long");
        tokio::time::sleep(ms(10)).await;
    }
    assert_eq!(
        in_time(lost).await.unwrap().reason(),
        LostReason::Unreachable
    );
    let loss = guard.loss().expect("it is lost");
    assert_eq!(loss.now_held_by(), None, "no answer");
    assert!(
        loss.held_for().is_some_and(|held| held < ms(9000)),
        "{loss}"
    );
    // Trust ended first: the row still has this grant.
    let row = other.show("job").await.unwrap().expect("a row");
    assert!(matches!(row.state, LockState::Held { .. }), "{row:?}");
    let next = in_time(other.lock("job").acquire()).await.unwrap();

    let release = guard.release().await.unwrap_err();
    assert!(
        matches!(
            release,
            Error::Lost {
                reason: LostReason::Unreachable,
                ..
            }
        ),
        "{release}"
    );
    assert!(
        proxy.counts().chunks_up > 0 && proxy.faults_hit() > 0,
        "nothing hung"
    );
    proxy.resume();
    in_time(locks.drain()).await;
    next.check().await.expect("what came late touched nothing");
    for id in ["P3", "P4", "P6", "P8"] {
        promise(id, db.engine);
    }
}

/// A wait has its own limit, whatever the database does.
async fn a_wait_ends_in_time_without_an_answer(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    proxy.stall();
    let began = now();
    let error = locks.lock("job").wait(ms(700)).acquire().await.unwrap_err();
    let took = began.elapsed();
    assert!(took >= ms(700) && took < ms(4500), "{took:?}");
    assert!(
        matches!(error, Error::Unavailable { .. }),
        "{}",
        error.chain()
    );
    proxy.wait_for_fault();
    proxy.resume();
    in_time(locks.lock("job").acquire())
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    promise("P12", db.engine);
}

/// The database renewed it, and its answer was lost: that harms nothing.
async fn a_lost_reply_to_a_renewal_loses_nothing(db: &TestDb) {
    for ttl in [Ttl::from(ms(6000)), Ttl::Infinite] {
        let proxy = Proxy::to_url(&db.url);
        let locks = db.locks_at(&proxy.url(&db.url)).await;
        let lock = locks.lock("job").ttl(ttl).renew_every(ms(500));
        let guard = in_time(lock.acquire()).await.unwrap();
        proxy.lose_next_reply(guard.grant_id());
        let began = now();
        while began.elapsed() < ms(6500) {
            assert!(guard.is_held(), "{ttl}: lost after {:?}", began.elapsed());
            tokio::time::sleep(ms(20)).await;
        }
        assert_eq!(proxy.faults_hit(), 1, "{ttl}");
        in_time(guard.release()).await.unwrap();
    }
    promise("P3", db.engine);
    promise("P6", db.engine);
}

/// The rule of the guide: an outage costs the lock soonest when it begins just before a renewal,
/// and then after `ttl - margin - renew_every`. One that is two seconds shorter, the longest pause
/// between two tries to connect, costs nothing.
async fn an_outage_just_before_a_renewal_costs_the_lock_when_the_rule_says_so(db: &TestDb) {
    let (ttl, margin, renew_every) = (ms(6000), ms(600), ms(2000));
    let survived = ttl - margin - renew_every;
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    let guard = in_time(locks.lock("job").ttl(ttl).acquire()).await.unwrap();
    proxy.watch_for(guard.grant_id());
    let renewals = || proxy.count(guard.grant_id());
    let cut_off = async || {
        loop {
            let before = renewals();
            while renewals() == before {
                tokio::time::sleep(ms(5)).await;
            }
            let after = renewals();
            tokio::time::sleep(renew_every - ms(300)).await;
            let began = now();
            proxy.refuse(true);
            proxy.cut();
            if renewals() == after {
                return began;
            }
            // This machine was busy, and a renewal got through: on to the next.
            proxy.refuse(false);
        }
    };
    let began = in_time(cut_off()).await;
    // And half a second, for what this machine takes to connect and renew.
    let shorter = survived - ms(2500);
    tokio::time::sleep(shorter.saturating_sub(began.elapsed())).await;
    proxy.refuse(false);
    let began = in_time(cut_off()).await;
    assert_eq!(
        in_time(guard.lost()).await.reason(),
        LostReason::Unreachable
    );
    let took = began.elapsed();
    assert!(took >= survived, "after {took:?}");
    assert!(took < survived + Duration::from_secs(6), "after {took:?}");
    promise("P4", db.engine);
    promise("P6", db.engine);
}

/// What a slow answer takes is not trusted on top: the lease began before it came.
async fn a_slow_answer_to_an_acquire_lengthens_no_trust(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    proxy.stall_replies();
    let lock = locks.lock("job").ttl(Duration::from_secs(20));
    let acquire = tokio::spawn(async move { lock.acquire().await });
    // From when the answer was held back, not from when the task was started.
    proxy.wait_for_fault();
    tokio::time::sleep(ms(1300)).await;
    proxy.resume();
    let guard = in_time(acquire).await.unwrap().unwrap();
    // 20 s, less the margin of 2 s, less what the answer took.
    assert!(
        guard.trusted_for() < ms(16_800),
        "{:?}",
        guard.trusted_for()
    );
    guard.release().await.unwrap();
    promise("P4", db.engine);
}

/// The database granted it, and its answer was lost: a waiter asks again and gets that very grant;
/// a try-once gives it back; nothing is held for longer than 30 s.
async fn a_lost_reply_to_an_acquire_leaves_nothing_held(db: &TestDb) {
    let other = db.locks().await;
    for (i, ttl) in [Ttl::from(Duration::from_secs(20)), Ttl::Infinite]
        .into_iter()
        .enumerate()
    {
        let proxy = Proxy::to_url(&db.url);
        let locks = db.locks_at(&proxy.url(&db.url)).await;
        let name = format!("waited for {i}");
        // The row is there, so that the request that is lost is the grant.
        other
            .lock(&name)
            .acquire()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();

        proxy.lose_next_reply(&name);
        let began = now();
        let guard = in_time(locks.lock(&name).ttl(ttl).acquire()).await.unwrap();
        assert_eq!(proxy.faults_hit(), 1);
        // Another would have had to wait for the end of the first one.
        assert!(began.elapsed() < ms(15_000), "the same grant, not another");
        guard.check().await.unwrap();
        guard.release().await.unwrap();

        proxy.lose_next_reply(&name);
        match locks.lock(&name).ttl(ttl).try_acquire().await {
            Err(Error::Unavailable { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(proxy.faults_hit(), 2);
        if let LockState::Held { free_in } = other.show(&name).await.unwrap().unwrap().state {
            assert!(
                free_in.is_some_and(|left| left <= Duration::from_secs(30)),
                "{free_in:?}"
            );
        }
        let began = now();
        other
            .lock(&name)
            .wait(TIMEOUT)
            .acquire()
            .await
            .expect("given back")
            .release()
            .await
            .unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "given back, not outwaited"
        );
    }
    promise("P7", db.engine);
}

/// The database freed it, and its answer was lost: that is a release all the same.
async fn a_lost_reply_to_a_release_is_a_release(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    let guard = locks.lock("job").acquire().await.unwrap();
    proxy.lose_next_reply(guard.grant_id());
    in_time(guard.release()).await.expect("released");
    assert_eq!(proxy.faults_hit(), 1);
    let next = locks.lock("job").try_acquire().await.unwrap();
    next.expect("free").release().await.unwrap();
    promise("P7", db.engine);
}

/// Connections that are cut are made anew, under a holder and under a waiter.
async fn cut_connections_are_made_anew(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let (locks, other) = (db.locks_at(&proxy.url(&db.url)).await, db.locks().await);
    let lock = locks.lock("held").ttl(ms(9000)).renew_every(ms(800));
    let guard = lock.acquire().await.unwrap();
    let blocker = other.lock("waited for").acquire().await.unwrap();
    let waiter = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.lock("waited for").acquire().await })
    };
    for _ in 0..4 {
        tokio::time::sleep(ms(800)).await;
        proxy.cut();
        assert!(guard.is_held());
    }
    assert!(proxy.counts().connections >= 4, "{:?}", proxy.counts());
    blocker.release().await.unwrap();
    in_time(waiter)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    guard.release().await.unwrap();
    promise("P6", db.engine);
    promise("P12", db.engine);
}

/// One round trip for a lock that is free, one for its release; a losing try leaves the row as it
/// is.
async fn an_uncontended_acquire_is_one_round_trip(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    // The first acquire makes the row, the third one connects directly, and each prepares its
    // statements.
    for _ in 0..3 {
        let guard = locks.lock("job").acquire().await.unwrap();
        guard.release().await.unwrap();
    }
    let quiet = async {
        let mut before = proxy.counts();
        loop {
            tokio::time::sleep(ms(500)).await;
            let counts = proxy.counts();
            if counts.chunks_up == before.chunks_up {
                break;
            }
            before = counts;
        }
    };
    in_time(quiet).await;
    // A connection that was idle for so long is asked first whether it is still there.
    let guard = locks.lock("job").acquire().await.unwrap();
    guard.release().await.unwrap();
    // Too short for its process to listen for a release by force.
    let lock = locks.lock("job").ttl(Duration::from_secs(15));
    let mut rounds = Vec::new();
    for _ in 0..20 {
        proxy.reset_counts();
        let guard = lock.acquire().await.unwrap();
        let to_acquire = proxy.counts().chunks_up;
        guard.release().await.unwrap();
        rounds.push((to_acquire, proxy.counts().chunks_up));
    }
    // On a busy machine, some are idle for so long in between that the connection is asked first.
    let least = rounds.iter().min();
    assert_eq!(least, Some(&(1, 2)), "to acquire, and to release too");
    promise("P1", db.engine);
}

/// `poll` is the longest pause between two polls of a lock that another client has.
async fn a_waiter_polls_at_its_interval(db: &TestDb) {
    // With notifications a waiter hardly polls at all.
    let pooled = match db.engine {
        "postgres" => TestDb::pgbouncer(),
        _ => None,
    };
    let db = pooled.as_ref().unwrap_or(db);
    let proxy = Proxy::to_url(&db.url);
    let (locks, other) = (db.locks_at(&proxy.url(&db.url)).await, db.locks().await);
    let held = other.lock("job").acquire().await.unwrap();
    let mut looks = Vec::new();
    for longest in [ms(5), ms(2500)] {
        let lock = locks.lock("job").poll(longest);
        proxy.reset_counts();
        lock.wait(ms(4000)).acquire().await.unwrap_err();
        looks.push(proxy.counts().chunks_up);
    }
    // 5 ms at most, against 150 to 250 in the end.
    assert!(looks[0] > 2 * looks[1] && looks[1] > 4, "{looks:?}");
    held.release().await.unwrap();
    promise("P12", db.engine);
}

/// No error shows a secret.
async fn a_password_is_never_shown(db: &TestDb) {
    let secret = "hunter2-s3cret";
    let proxy = Proxy::to_url(&db.url);
    let rest = db.url.split_once('@').map_or("", |(_, rest)| rest);
    let scheme = db.url.split_once(':').map_or("", |(scheme, _)| scheme);
    let good_host = format!("{scheme}://locker:{secret}@{rest}");
    let refused = database_locks::Locks::connect(&good_host)
        .await
        .expect_err("a wrong password");
    assert!(matches!(refused, Error::Rejected { .. }), "{refused:?}");
    proxy.refuse(true);
    let cut = database_locks::Locks::connect(&proxy.url(&good_host))
        .await
        .expect_err("refused");
    assert!(matches!(cut, Error::Unavailable { .. }), "{cut:?}");
    let nobody = format!(
        "{scheme}://locker:{secret}@127.0.0.1:{}/db",
        testkit::server::free_port()
    );
    let nobody = database_locks::Locks::connect(&nobody)
        .await
        .expect_err("no server");
    assert!(
        nobody.chain().contains("127.0.0.1"),
        "says where: {}",
        nobody.chain()
    );
    for error in [&refused, &cut, &nobody] {
        for shown in [error.to_string(), error.chain(), format!("{error:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
    let locks = db.locks().await;
    let guard = locks.lock("job").acquire().await.unwrap();
    let metadata = locks
        .show("job")
        .await
        .unwrap()
        .expect("a row")
        .metadata
        .unwrap_or_default();
    assert!(
        metadata.contains("\"pid\"") && !metadata.contains("://"),
        "{metadata}"
    );
    let shown = format!("{locks:?} {guard:?} {:?}", locks.lock("job"));
    assert!(!shown.contains("://") && !shown.contains(secret), "{shown}");
    promise("P14", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_database_that_never_answers_delays_no_loss,
            a_wait_ends_in_time_without_an_answer,
            a_slow_answer_to_an_acquire_lengthens_no_trust,
            a_lost_reply_to_a_renewal_loses_nothing,
        an_outage_just_before_a_renewal_costs_the_lock_when_the_rule_says_so,
            a_lost_reply_to_an_acquire_leaves_nothing_held,
            a_lost_reply_to_a_release_is_a_release,
            cut_connections_are_made_anew,
            an_uncontended_acquire_is_one_round_trip,
            a_waiter_polls_at_its_interval,
            a_password_is_never_shown,
        );
    )* };
}
on!(postgres, mariadb, mysql);

/// A server for one test.
trait Restart {
    fn engine(&self) -> &'static str;
    fn fresh_url(&self) -> String;
    fn stop(&mut self);
    fn restart(&mut self);
}

impl Restart for testkit::Postgres {
    fn engine(&self) -> &'static str {
        "postgres"
    }
    fn fresh_url(&self) -> String {
        self.fresh_database()
    }
    fn stop(&mut self) {
        self.stop();
    }
    fn restart(&mut self) {
        self.restart();
    }
}

impl Restart for testkit::MySqlServer {
    fn engine(&self) -> &'static str {
        self.flavor().engine()
    }
    fn fresh_url(&self) -> String {
        self.fresh_database()
    }
    fn stop(&mut self) {
        self.stop();
    }
    fn restart(&mut self) {
        self.restart();
    }
}

/// The database is restarted while ten locks are held and five waiters wait.
async fn restarted<S: Restart + Send + 'static>(server: Option<S>) {
    let Some(mut server) = server else { return };
    let (engine, url) = (server.engine(), server.fresh_url());
    let locks = database_locks::Locks::connect(&url).await.unwrap();
    locks.migrate().await.unwrap();
    let mut guards = Vec::new();
    for i in 0..10 {
        let lock = locks
            .lock(format!("lock {i}"))
            .ttl(Duration::from_secs(120));
        guards.push(lock.renew_every(ms(500)).acquire().await.unwrap());
    }
    let others = database_locks::Locks::connect(&url).await.unwrap();
    let waiters: Vec<_> = (0..5)
        .map(|i| {
            let lock = others.lock(format!("lock {i}"));
            tokio::spawn(async move { lock.acquire().await })
        })
        .collect();
    let bounded = others.lock("lock 9").wait(ms(1500));
    let bounded = tokio::spawn(async move {
        let began = now();
        (bounded.acquire().await, began.elapsed())
    });
    tokio::time::sleep(ms(300)).await;
    let server = tokio::task::spawn_blocking(move || {
        server.stop();
        testkit::time::sleep(ms(2500));
        server.restart();
        server
    })
    .await
    .unwrap();
    let (ended, took) = bounded.await.unwrap();
    assert!(
        ended.is_err() && took < ms(6000),
        "a bounded wait keeps its limit: {took:?}"
    );
    tokio::time::sleep(ms(3000)).await;
    for guard in &guards {
        assert!(guard.is_held(), "{guard:?}");
        in_time(guard.check())
            .await
            .expect("held in the database too");
    }
    assert!(
        waiters.iter().all(|waiter| !waiter.is_finished()),
        "no client gets it early"
    );
    for guard in guards {
        in_time(guard.release()).await.unwrap();
    }
    for waiter in waiters {
        in_time(waiter)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    drop(server);
    promise("P6", engine);
    promise("P12", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_restarted_under_holders_and_waiters() {
    restarted(testkit::Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_restarted_under_holders_and_waiters() {
    restarted(testkit::MariaDb::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_is_restarted_under_holders_and_waiters() {
    restarted(testkit::MySql::start()).await;
}

/// A wait begins while the server is down, and gets the lock once it is up.
async fn wait_before_the_start<S: Restart + Send + 'static>(server: Option<S>) {
    let Some(mut server) = server else { return };
    let (engine, url) = (server.engine(), server.fresh_url());
    let before = database_locks::Locks::connect(&url).await.unwrap();
    before.migrate().await.unwrap();
    drop(before);
    server.stop();

    let locks = database_locks::Locks::builder(&url).connect_lazy().unwrap();
    let (once, began) = (locks.lock("job").try_acquire().await, now());
    let message = once.unwrap_err();
    assert!(matches!(message, Error::Unavailable { .. }), "{message}");
    let bounded = locks.lock("job").wait(ms(700)).acquire().await;
    let (message, took) = (bounded.unwrap_err(), began.elapsed());
    assert!(matches!(message, Error::Unavailable { .. }), "{message}");
    assert!(took >= ms(700) && took < ms(5000), "{took:?}");
    let waiter = locks.lock("job").wait(4 * TIMEOUT);
    let waiter = tokio::spawn(async move { waiter.acquire().await });
    tokio::time::sleep(ms(1500)).await;
    assert!(!waiter.is_finished(), "no server can have answered");
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let _server = server.await.unwrap();
    let guard = in_time(waiter).await.unwrap().unwrap();
    in_time(guard.release()).await.unwrap();
    promise("P12", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_may_begin_before_postgres_has_started() {
    wait_before_the_start(testkit::Postgres::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_may_begin_before_mariadb_has_started() {
    wait_before_the_start(testkit::MariaDb::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_may_begin_before_mysql_has_started() {
    wait_before_the_start(testkit::MySql::start()).await;
}

#[test]
fn a_lazy_connect_checks_url_and_table_only() {
    use database_locks::blocking::Locks;
    let refused = |url, table| {
        let builder = Locks::builder(url).table(table);
        builder.connect_lazy().unwrap_err().to_string()
    };
    assert!(refused("redis://h/", "locks").starts_with("`url` has "));
    assert!(refused("memory:", "a b").starts_with("`table` is "));
    assert!(refused("postgres://h/d?sslmode=always", "locks").starts_with("`url` has "));
    let nowhere = Locks::builder("postgres://203.0.113.1/d")
        .table("app.locks")
        .connect_lazy()
        .unwrap();
    assert!(format!("{nowhere:?}").contains("app.locks"));
}

/// The server's own time zone, and its sessions', change nothing.
async fn odd_zone(engine: &'static str, url: String) {
    let fixture = || contract::StoreFixture::new(engine, url.clone());
    contract::the_first_token_is_the_time_of_the_database(&fixture()).await;
    let locks = database_locks::Locks::connect(&url).await.unwrap();
    locks.force_release("job").await.unwrap();
    contract::an_expired_lock_is_free(&fixture()).await;
    locks.force_release("job").await.unwrap();
    contract::a_held_lock_names_its_holder(&fixture()).await;
    let row = locks.show("job").await.unwrap().expect("a row");
    #[allow(clippy::disallowed_methods, reason = "the zone is what is tested")]
    let wall = std::time::SystemTime::now();
    let at = row.acquired_at.expect("a time");
    let off = wall
        .duration_since(at)
        .unwrap_or_else(|early| early.duration());
    assert!(off < Duration::from_secs(60), "shown {off:?} off");
    promise("P5", engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_may_be_in_another_time_zone() {
    let server = testkit::Postgres::options()
        .time_zone("Asia/Kathmandu")
        .start();
    if let Some(server) = server {
        odd_zone("postgres", server.fresh_database()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_may_be_in_another_time_zone() {
    if let Some(server) = testkit::MariaDb::options().time_zone("+05:45").start() {
        odd_zone("mariadb", server.fresh_database()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_may_be_in_another_time_zone() {
    if let Some(server) = testkit::MySql::options().time_zone("+05:45").start() {
        odd_zone("mysql", server.fresh_database()).await;
    }
}
