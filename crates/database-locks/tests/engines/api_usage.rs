//! The shapes of everyday asynchronous code: futures that are selected on, joined and spawned as
//! they are, without a binding for the lock; and the small conversions that such code needs.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use database_locks::{Error, LockName, Locks, LostReason, Prune, Token, blocking};
use testkit::{TestDb, db_tests};
use tokio::task::JoinSet;

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(20);

async fn memory(name: &str) -> Locks {
    Locks::connect(format!("memory:shapes-{name}"))
        .await
        .unwrap()
}

/// What `futures::future::join_all` asks of its futures.
async fn join_all<F: Future>(all: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut done = Vec::new();
    for one in all.into_iter().collect::<Vec<_>>() {
        done.push(one.await);
    }
    done
}

#[tokio::test]
async fn an_acquire_is_selected_on_joined_and_timed_without_a_binding() {
    let locks = memory("select").await;
    let guard = tokio::select! {
        guard = locks.lock("a").acquire() => guard.unwrap(),
        () = tokio::time::sleep(TIMEOUT) => panic!("not in time"),
    };
    let (b, c) = tokio::join!(locks.lock("b").acquire(), locks.lock("c").try_acquire());
    assert!(b.unwrap().is_held() && c.unwrap().unwrap().is_held());
    let (d, e) = tokio::try_join!(locks.lock("d").acquire(), locks.lock("e").acquire()).unwrap();
    let late = tokio::time::timeout(Duration::from_millis(50), locks.lock("a").acquire());
    assert!(late.await.is_err(), "it is held");
    drop((guard, d, e));
    let again = tokio::time::timeout(TIMEOUT, locks.lock("a").acquire());
    again.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acquires_of_many_names_are_joined_and_spawned_from_a_closure() {
    let locks = memory("many").await;
    let names = ["a", "b", "c"].map(String::from);
    let guards = join_all(names.iter().map(|name| locks.lock(name).acquire())).await;
    assert!(guards.iter().all(|guard| guard.as_ref().unwrap().is_held()));
    drop(guards);

    let mut set: JoinSet<_> = names
        .into_iter()
        .map(|name| locks.lock(&name).acquire())
        .collect();
    let mut acquired = HashSet::new();
    while let Some(done) = set.join_next().await {
        acquired.insert(done.unwrap().unwrap().name().clone());
    }
    assert_eq!(acquired.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_under_a_lock_can_be_spawned() {
    let locks = memory("run").await;
    let sum = tokio::spawn(locks.lock("a").run(async { 1 + 1 }));
    assert_eq!(sum.await.unwrap().unwrap(), 2);
    let guard = tokio::spawn(locks.lock("a").acquire()).await;
    let ticket = guard.unwrap().unwrap().into_ticket().unwrap();
    let lock = locks.lock("a");
    let guard = tokio::spawn(lock.resume(&ticket));
    drop((lock, ticket));
    guard.await.unwrap().unwrap().release().await.unwrap();
}

/// None of them borrows the locks, the ticket or the name.
#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_locks_can_be_spawned() {
    let url = String::from("memory:shapes-all");
    let connecting = Locks::connect(&url);
    drop(url);
    let locks = tokio::spawn(connecting).await.unwrap().unwrap();
    tokio::spawn(locks.migrate()).await.unwrap().unwrap();
    let ticket = locks.lock("a").acquire().await.unwrap().into_ticket();
    let ticket = ticket.unwrap();
    let name = ticket.name().to_string();
    let (show, force) = (locks.show(&name), locks.force_release(&name));
    drop(name);
    let (renew, resume) = (
        locks.renew(&ticket, Duration::from_secs(40)),
        locks.resume(&ticket),
    );
    let release = locks.release(&ticket);
    drop(ticket);
    let (list, prune) = (
        locks.list(),
        locks.prune(Prune::older_than(Duration::from_secs(86_400))),
    );
    let (doctor, drain) = (locks.doctor(), locks.drain());
    drop(locks);
    assert!(
        tokio::spawn(show)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .is_held()
    );
    tokio::spawn(renew).await.unwrap().unwrap();
    let guard = tokio::spawn(resume).await.unwrap().unwrap();
    assert!(guard.is_held());
    let dead = tokio::spawn(release).await.unwrap();
    assert!(matches!(dead, Err(Error::Lost { .. })), "{dead:?}");
    assert_eq!(tokio::spawn(list).await.unwrap().unwrap().len(), 1);
    assert_eq!(tokio::spawn(prune).await.unwrap().unwrap(), 0);
    drop(tokio::spawn(doctor).await.unwrap());
    assert!(tokio::spawn(force).await.unwrap().unwrap().is_some());
    tokio::spawn(drain).await.unwrap();
}

#[tokio::test]
async fn a_future_that_is_not_awaited_does_nothing() {
    let locks = memory("lazy").await;
    let mut ran = false;
    drop(locks.lock("a").acquire());
    drop(locks.lock("a").run(async { ran = true }));
    assert!(!ran);
    assert!(locks.list().await.unwrap().is_empty());
    // A bad setting is found when it is awaited, and before anything happens.
    let bad = locks.lock("").acquire();
    assert!(matches!(bad.await, Err(Error::Config { .. })));
}

#[derive(Debug)]
enum Failed {
    Work(&'static str),
    Lock(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Lock(error)
    }
}

#[tokio::test]
async fn work_that_fails_needs_one_question_mark_and_frees_the_lock() {
    let locks = memory("try").await;
    let lock = locks.lock("a").wait(Duration::ZERO);
    let fails = lock.try_run(async { Err::<(), _>(Failed::Work("no")) });
    assert!(matches!(fails.await, Err(Failed::Work("no"))));
    let works = lock.try_run(async { Ok::<_, Failed>(17) });
    assert_eq!(works.await.unwrap(), 17);
    let lost = lock.try_run(async {
        locks.force_release("a").await?;
        Ok::<_, Failed>(())
    });
    let Err(Failed::Lock(Error::Lost { loss, .. })) = lost.await else {
        panic!("no loss");
    };
    assert_eq!(loss.reason(), LostReason::Forced);
    // One error type for both, and spawned.
    let own = tokio::spawn(lock.try_run(async { Ok::<_, Error>(1) }));
    assert_eq!(own.await.unwrap().unwrap(), 1);
    let locks = blocking::Locks::from(locks);
    let lock = locks.lock("a").wait(Duration::ZERO);
    let fails = lock.try_run(|| Err::<(), _>(Failed::Work("no")));
    assert!(matches!(fails, Err(Failed::Work("no"))));
    assert_eq!(lock.try_run(|| Ok::<_, Failed>(17)).unwrap(), 17);
}

#[tokio::test]
async fn names_and_tokens_convert_to_strings_and_integers() {
    let locks = memory("convert").await;
    let guard = locks.lock("nightly report").acquire().await.unwrap();
    let info = locks.show(guard.name()).await.unwrap().unwrap();
    assert!(info.is_held() && info.name == "nightly report" && "x" != info.name);
    let same = locks.lock(&info.name);
    assert_eq!(same.name(), info.name.as_str());
    let parsed: LockName = "nightly report".parse().unwrap();
    assert_eq!(parsed, info.name);
    assert_eq!(String::from(parsed), "nightly report");
    let token: i64 = guard.token().into();
    assert_eq!(token.to_string(), guard.token().to_string());
    assert!(guard.token() >= info.token && Token::cmp(&info.token, &guard.token()).is_eq());
    guard.release().await.unwrap();
    assert!(!locks.show(&info.name).await.unwrap().unwrap().is_held());
}

/// One line, without a password, a statement, a row or the id of a grant.
async fn debug_output_is_short_and_shows_no_secret(db: &TestDb) {
    let locks = db.locks().await;
    let lock = locks
        .lock("🔒\n".repeat(127))
        .holder("h".repeat(255))
        .wait(TIMEOUT)
        .metadata("note", "n".repeat(2000));
    let guard = lock.acquire().await.unwrap();
    let ticket = guard.ticket();
    let builder = Locks::builder(&db.url).table("database_locks_lock");
    let shown = [
        format!("{builder:?}"),
        format!("{locks:?}"),
        format!("{lock:?}"),
        format!("{guard:?}"),
        format!("{ticket:?}"),
        format!("{:?}", blocking::Locks::from(locks.clone())),
        format!("{:?}", blocking::Lock::from(lock.clone())),
    ];
    for shown in shown {
        assert!(shown.chars().count() < 300, "{shown}");
        for hidden in [guard.grant_id(), "SELECT", "secret", "://", "\n"] {
            assert!(!shown.contains(hidden), "{hidden} in {shown}");
        }
    }
    assert!(format!("{locks:?}").contains(locks.engine()));
    guard.release().await.unwrap();
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine: debug_output_is_short_and_shows_no_secret);
    )* };
}
on!(memory, sqlite, postgres, mariadb, mysql);
