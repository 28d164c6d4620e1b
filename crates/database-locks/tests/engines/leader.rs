//! Leader election, on every engine: one leader at a time, and terms that are lost and resigned.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use database_locks::__testing::lose;
use database_locks::{Error, Leader, Term, blocking};
use testkit::time::{ms, now};
use testkit::{TestDb, db_tests, promise};
use tokio::task::JoinHandle;

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// What the bodies of all candidates of a test report.
#[derive(Clone, Default)]
struct Log(Arc<Inner>);

#[derive(Default)]
struct Inner {
    inside: AtomicUsize,
    /// The bodies that began while another one was running.
    violations: AtomicUsize,
    /// Each term that began: the candidate and the token.
    terms: Mutex<Vec<(String, i64)>>,
}

impl Log {
    /// A body has begun. It has ended when the value is dropped.
    fn enter(&self, term: &Term) -> Inside {
        if self.0.inside.fetch_add(1, Ordering::SeqCst) > 0 {
            self.0.violations.fetch_add(1, Ordering::SeqCst);
        }
        let terms = self.0.terms.lock();
        let mut terms = terms.unwrap_or_else(PoisonError::into_inner);
        terms.push((term.holder().to_owned(), term.token().get()));
        Inside(self.clone())
    }

    fn terms(&self) -> Vec<(String, i64)> {
        self.0.terms.lock().unwrap().clone()
    }

    async fn wait_for_terms(&self, count: usize) -> Vec<(String, i64)> {
        in_time(async {
            while self.terms().len() < count {
                tokio::time::sleep(ms(5)).await;
            }
        })
        .await;
        self.terms()
    }

    /// Asserts that no two bodies ran at a time, and that each term had a greater token.
    fn assert_one_at_a_time(&self) {
        assert_eq!(self.0.violations.load(Ordering::SeqCst), 0);
        let terms = self.terms();
        let grows = terms.windows(2).all(|pair| pair[0].1 < pair[1].1);
        assert!(grows, "{terms:?}");
    }
}

struct Inside(Log);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A candidate whose body runs until it is stopped.
fn candidate(leader: Leader, log: &Log) -> JoinHandle<Result<(), Error>> {
    let log = log.clone();
    tokio::spawn(leader.run(move |term| {
        let log = log.clone();
        async move {
            let _inside = log.enter(&term);
            std::future::pending::<()>().await;
        }
    }))
}

async fn one_process_leads_at_a_time_and_each_term_has_a_greater_token(db: &TestDb) {
    let (log, mut candidates) = (Log::default(), Vec::new());
    for number in 0..4 {
        let leader = db.locks().await.leader("job").holder(number.to_string());
        let log = log.clone();
        candidates.push(tokio::spawn(async move {
            for _ in 0..5 {
                let led = leader.run(|term| {
                    let log = log.clone();
                    async move {
                        let _inside = log.enter(&term);
                        assert!(term.is_leader());
                        tokio::time::sleep(ms(3)).await;
                    }
                });
                led.await.unwrap();
            }
        }));
    }
    for candidate in candidates {
        tokio::time::timeout(TIMEOUT * 2, candidate)
            .await
            .expect("in time")
            .unwrap();
    }
    assert_eq!(log.terms().len(), 20);
    log.assert_one_at_a_time();
    promise("P1", db.engine);
    promise("P2", db.engine);
}

async fn a_leader_that_loses_its_term_stops_and_campaigns_again(db: &TestDb) {
    let (locks, log) = (db.locks().await, Log::default());
    let task = candidate(locks.leader("job").holder("a"), &log);
    log.wait_for_terms(1).await;
    assert!(lose(&locks, "job").await.unwrap());
    log.wait_for_terms(2).await;
    log.assert_one_at_a_time();
    task.abort();
    let free = locks.lock("job").wait(TIMEOUT).acquire().await.unwrap();
    free.release().await.unwrap();
}

async fn a_leader_that_resigns_lets_another_candidate_lead(db: &TestDb) {
    let log = Log::default();
    let (first, second) = (db.locks().await, db.locks().await);
    let (terms, mut resigning) = tokio::sync::mpsc::unbounded_channel();
    let a = {
        // After a resignation it stays away for twice as long as its longest pause.
        let leader = first.leader("job").holder("a").poll(ms(2_000));
        let log = log.clone();
        tokio::spawn(leader.run(move |term| {
            let (log, terms) = (log.clone(), terms.clone());
            async move {
                let _inside = log.enter(&term);
                terms.send(term).unwrap();
                std::future::pending::<()>().await;
            }
        }))
    };
    let term = in_time(resigning.recv()).await.unwrap();
    let b = candidate(second.leader("job").holder("b"), &log);
    // It waits by then.
    tokio::time::sleep(ms(500)).await;
    let ended = tokio::spawn(term.ended());
    term.resign();
    assert!(!term.is_leader());
    in_time(ended).await.unwrap();
    let terms = log.wait_for_terms(2).await;
    assert_eq!(terms[1].0, "b");
    log.assert_one_at_a_time();
    // It campaigns again, and leads when the other has gone.
    b.abort();
    assert_eq!(log.wait_for_terms(3).await[2].0, "a");
    log.assert_one_at_a_time();
    assert!(!term.is_leader(), "a term that is over stays over");
    a.abort();
}

async fn a_leader_that_resigns_leads_again_if_it_is_alone(db: &TestDb) {
    let (log, began) = (Log::default(), now());
    let leader = db.locks().await.leader("job");
    let led = in_time(leader.run(|term| {
        let log = log.clone();
        async move {
            let _inside = log.enter(&term);
            if log.terms().len() == 1 {
                term.resign();
                std::future::pending::<()>().await;
            }
            log.terms().len()
        }
    }));
    assert_eq!(led.await.unwrap(), 2);
    assert!(began.elapsed() >= ms(1000), "others go first");
    log.assert_one_at_a_time();
}

async fn every_end_of_the_body_frees_the_leadership(db: &TestDb) {
    let (locks, other) = (db.locks().await, db.locks().await);
    let leader = locks.leader("job").ttl(Duration::from_secs(600));
    let is_free = async || {
        let got = other.lock("job").wait(TIMEOUT).acquire().await.unwrap();
        got.release().await.unwrap();
    };

    assert_eq!(leader.run(|_| async { 42 }).await.unwrap(), 42);
    is_free().await;

    let failed: Result<(), &str> = leader.run(|_| async { Err("went wrong") }).await.unwrap();
    assert_eq!(
        failed,
        Err("went wrong"),
        "an error of the body is its output"
    );
    is_free().await;

    // A handle of the term that lives on keeps nothing.
    let kept = Arc::new(Mutex::new(None));
    let panics = {
        let (leader, kept) = (leader.clone(), Arc::clone(&kept));
        tokio::spawn(async move {
            let panicking = leader.run(|term| {
                *kept.lock().unwrap() = Some(term);
                async { panic!("in the body") }
            });
            panicking.await
        })
    };
    assert!(panics.await.unwrap_err().is_panic());
    is_free().await;
    let term: Term = kept.lock().unwrap().take().unwrap();
    assert!(!term.is_leader());
    in_time(term.ended()).await;

    let log = Log::default();
    let task = candidate(leader, &log);
    log.wait_for_terms(1).await;
    task.abort();
    is_free().await;
    promise("P7", db.engine);
}

async fn bad_settings_are_refused_before_anything_happens(db: &TestDb) {
    let locks = db.locks().await;
    let leader = locks.leader("job");
    let refused = async |leader: Leader, what: &str| {
        let error = in_time(leader.run(async |_| ())).await.unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{}", error.chain());
        assert!(error.chain().contains(what), "{}", error.chain());
    };
    refused(leader.clone().ttl(ms(1)), "`ttl` is 1ms").await;
    refused(leader.clone().holder(""), "`holder`").await;
    refused(leader.clone().poll(ms(0)), "`poll`").await;
    refused(
        leader.clone().grace(ms(3000)),
        "`grace` is 3s, must be shorter than the margin of 3s",
    )
    .await;
    refused(locks.leader(""), "`name` is empty").await;
    let error = in_time(locks.leader("").observe().next())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{}", error.chain());
    assert!(locks.show("job").await.unwrap().is_none(), "no I/O");
}

async fn the_blocking_api_leads_and_observes(db: &TestDb) {
    let (locks, other) = (db.locks().await, blocking::Locks::from(db.locks().await));
    let blocking_locks = blocking::Locks::from(locks.clone());
    let (began, mut led) = std::sync::mpsc::channel();
    let leads = std::thread::spawn(move || {
        let mut terms = Vec::new();
        let leader = blocking_locks.leader("job").holder("a");
        let last = leader.run(|term| {
            terms.push(term.token());
            began.send(()).unwrap();
            term.check().unwrap();
            match terms.len() {
                // Lost by force.
                1 => assert!(term.ended_within(TIMEOUT).unwrap()),
                2 => term.resign(),
                _ => assert!(!term.ended_within(ms(1)).unwrap()),
            }
            assert_eq!(term.is_leader(), terms.len() == 3);
            terms.len()
        });
        assert_eq!(last.unwrap(), 3);
        assert!(terms.windows(2).all(|pair| pair[0] < pair[1]), "{terms:?}");
    });
    led = tokio::task::spawn_blocking(move || {
        led.recv_timeout(TIMEOUT).unwrap();
        let mut observer = other.leader("job").observe();
        let first = observer.next().unwrap().unwrap().expect("it leads");
        assert_eq!(first.holder.as_deref(), Some("a"));
        assert!(observer.next_within(ms(100)).is_none());
        assert!(other.leader("job").current().unwrap().is_some());
        led
    })
    .await
    .unwrap();
    assert!(lose(&locks, "job").await.unwrap());
    tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            led.recv_timeout(TIMEOUT).unwrap();
        }
        leads.join().unwrap();
    })
    .await
    .unwrap();
}

/// The row stays locked, so renewals fail until trust ends.
async fn a_term_ends_with_its_body_before_another_process_leads(db: &TestDb) {
    let log = Log::default();
    let (first, second) = (db.locks().await, db.locks().await);
    let settings = |leader: Leader| leader.ttl(ms(6000));
    let a = candidate(settings(first.leader("job").holder("a")), &log);
    log.wait_for_terms(1).await;
    let open = db.lock_row("job");
    let b = candidate(settings(second.leader("job").holder("b")), &log);
    in_time(async {
        while log.0.inside.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await;
    assert_eq!(log.terms().len(), 1, "no process leads yet");
    a.abort();
    open.rollback();
    assert_eq!(log.wait_for_terms(2).await[1].0, "b");
    log.assert_one_at_a_time();
    b.abort();
    promise("P1", db.engine);
    promise("P4", db.engine);
}

/// A process that was frozen has lost its term when it goes on.
async fn a_body_is_not_polled_after_the_end_of_trust(db: &TestDb) {
    let leader = db.locks().await.leader("job").ttl(ms(1000));
    let mut polls = 0;
    let open = std::cell::Cell::new(None);
    let body = leader.run(|term| {
        if open.take().is_none() {
            open.set(Some(db.lock_row("job")));
        }
        std::future::poll_fn(move |context| {
            // The second poll is due at once, and comes after this one has blocked for too long.
            context.waker().wake_by_ref();
            polls += 1;
            assert!(term.is_leader(), "poll {polls}");
            let until = now();
            while until.elapsed() < ms(1500) {
                std::thread::yield_now();
            }
            std::task::Poll::<()>::Pending
        })
    });
    let stopped = tokio::time::timeout(ms(4000), body).await;
    assert!(stopped.is_err(), "it campaigns while the row is locked");
    promise("P4", db.engine);
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            one_process_leads_at_a_time_and_each_term_has_a_greater_token,
            a_leader_that_loses_its_term_stops_and_campaigns_again,
            a_leader_that_resigns_lets_another_candidate_lead,
            a_leader_that_resigns_leads_again_if_it_is_alone,
            every_end_of_the_body_frees_the_leadership,
            bad_settings_are_refused_before_anything_happens,
            the_blocking_api_leads_and_observes,
        );
    )* };
}
on!(memory, sqlite, postgres, pgbouncer, mariadb, mysql);

mod rows {
    //! Tests that need a table whose rows another client can lock.
    use super::*;
    db_tests!(sqlite:
        a_term_ends_with_its_body_before_another_process_leads,
        a_body_is_not_polled_after_the_end_of_trust,
    );
    db_tests!(postgres:
        a_term_ends_with_its_body_before_another_process_leads,
        a_body_is_not_polled_after_the_end_of_trust,
    );
    db_tests!(mariadb: a_term_ends_with_its_body_before_another_process_leads);
    db_tests!(mysql: a_term_ends_with_its_body_before_another_process_leads);
}
