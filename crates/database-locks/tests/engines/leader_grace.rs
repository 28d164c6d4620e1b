//! The grace of a leader's body, on every engine.

use std::time::Duration;

use database_locks::__testing::lose;
use database_locks::{Error, Leader, Term};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests};
use tokio::task::JoinHandle;

const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// How a body with a grace ended: whether it did so by itself.
struct Stopped(tokio::sync::mpsc::UnboundedSender<bool>, bool);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

/// A body that stops in an orderly way within `cleanup` after the end of its term.
fn cleaning(
    leader: Leader,
    cleanup: Duration,
) -> (
    JoinHandle<Result<(), Error>>,
    tokio::sync::mpsc::UnboundedReceiver<Term>,
    tokio::sync::mpsc::UnboundedReceiver<bool>,
) {
    let (terms, began) = tokio::sync::mpsc::unbounded_channel();
    let (stopped, ends) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(leader.run(move |term| {
        let (terms, stopped) = (terms.clone(), Stopped(stopped.clone(), false));
        async move {
            let mut stopped = stopped;
            terms.send(term.clone()).unwrap();
            term.ended().await;
            assert!(!term.is_leader());
            tokio::time::sleep(cleanup).await;
            stopped.1 = true;
        }
    }));
    (task, began, ends)
}

async fn a_body_with_a_grace_stops_by_itself_or_is_dropped_at_its_end(db: &TestDb) {
    let locks = db.locks().await;
    let leader = locks.leader("job").ttl(ms(100_000)).margin(ms(8_000));
    let leader = leader.grace(ms(5_000));

    let (task, mut began, mut ends) = cleaning(leader.clone(), ms(100));
    in_time(began.recv()).await.unwrap().resign();
    assert_eq!(in_time(ends.recv()).await, Some(true));
    // The output of such a body is dropped, and the next term begins.
    in_time(began.recv()).await.unwrap();
    task.abort();
    let _ = task.await;

    let (task, mut began, mut ends) = cleaning(leader.clone(), TIMEOUT * 2);
    in_time(began.recv()).await.unwrap().resign();
    let resigned = now();
    assert_eq!(in_time(ends.recv()).await, Some(false));
    let took = resigned.elapsed();
    assert!((ms(4_900)..ms(20_000)).contains(&took), "{took:?}");
    task.abort();
    let _ = task.await;

    // Another process may lead already.
    let (task, mut began, mut ends) = cleaning(leader, TIMEOUT * 2);
    in_time(began.recv()).await.unwrap();
    let forced = now();
    assert!(lose(&locks, "job").await.unwrap());
    assert_eq!(in_time(ends.recv()).await, Some(false));
    assert!(forced.elapsed() < ms(4_000), "{:?}", forced.elapsed());
    task.abort();
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_body_with_a_grace_stops_by_itself_or_is_dropped_at_its_end,
        );
    )* };
}
on!(memory, sqlite, postgres, pgbouncer, mariadb, mysql);
