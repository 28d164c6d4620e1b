//! Observers of a leader, on every engine.

use std::time::Duration;

use database_locks::{LeaderObserver, LockInfo, Locks};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests};
use tokio::sync::watch;

const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

fn known(leader: Option<&LockInfo>) -> Option<(String, i64)> {
    leader.map(|row| (row.holder.clone().unwrap_or_default(), row.token.get()))
}

/// The leaders that an observer sees, each once, until it has seen `count`, and then none.
///
/// Between two leaders there may be a moment without one.
async fn leaders(
    mut observer: LeaderObserver,
    count: usize,
    tell: watch::Sender<Vec<(String, i64)>>,
) -> Vec<(String, i64)> {
    let mut seen = Vec::new();
    loop {
        match observer.next().await.unwrap() {
            Some(leader) => {
                seen.extend(known(Some(&leader)));
                tell.send_replace(seen.clone());
            }
            None if seen.len() == count => return seen,
            None => {}
        }
    }
}

async fn an_observer_sees_every_change(db: &TestDb) {
    let (a, b) = (db.locks().await, db.locks().await);
    let observed = db.locks().await.leader("job");
    assert!(in_time(observed.current()).await.unwrap().is_none());
    let mut observer = observed.observe();
    assert!(in_time(observer.next()).await.unwrap().is_none());
    let (tell, seen) = watch::channel(Vec::new());
    let observer = tokio::spawn(leaders(observer, 2, tell));

    // Each leads until the observer has seen it, and the first until the second has been started.
    let (start, started) = watch::channel(false);
    let led = |locks: Locks, who: &'static str| {
        let (seen, started) = (seen.clone(), started.clone());
        tokio::spawn(locks.leader("job").holder(who).run(move |term| {
            let (mut seen, mut started) = (seen.clone(), started.clone());
            async move {
                in_time(started.wait_for(|started| *started)).await.unwrap();
                let led = (who.to_owned(), term.token().get());
                in_time(seen.wait_for(|seen| seen.contains(&led)))
                    .await
                    .expect("the observer goes on");
                led
            }
        }))
    };
    let first = led(a.clone(), "a");
    in_time(async {
        while observed.current().await.unwrap().is_none() {
            tokio::time::sleep(ms(20)).await;
        }
    })
    .await;
    let second = led(b, "b");
    start.send_replace(true);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let seen = in_time(observer).await.unwrap();
    let led = [first.unwrap(), second.unwrap()];
    assert_eq!(seen, led);
}

async fn an_observer_sees_the_end_of_a_lease_and_costs_little(db: &TestDb) {
    let (locks, watching) = (db.locks().await, db.locks().await);
    let mut observer = watching.leader("job").observe();
    assert!(in_time(observer.next()).await.unwrap().is_none());
    let lock = locks
        .lock("job")
        .holder("a")
        .ttl(ms(8000))
        .auto_renew(false);
    let guard = lock.acquire().await.unwrap();
    let leader = in_time(observer.next()).await.unwrap().expect("it leads");
    assert_eq!(
        known(Some(&leader)),
        Some(("a".into(), guard.token().get()))
    );
    assert!(leader.acquired_at.is_some());
    // Dropped in the middle of a wait, the next call goes on.
    let cut = tokio::time::timeout(ms(300), observer.next()).await;
    assert!(cut.is_err());
    let began = now();
    assert!(in_time(observer.next()).await.unwrap().is_none());
    assert!(began.elapsed() < ms(15_000), "{:?}", began.elapsed());
    drop(guard);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            an_observer_sees_every_change,
            an_observer_sees_the_end_of_a_lease_and_costs_little,
        );
    )* };
}
on!(memory, sqlite, postgres, pgbouncer, mariadb, mysql);
