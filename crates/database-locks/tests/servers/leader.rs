//! Leader election while the database is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use database_locks::Leader;
use testkit::time::{ms, now};
use testkit::{Proxy, TestDb, db_tests, promise};
use tokio::task::JoinHandle;

const TIMEOUT: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("in time")
}

/// How often a candidate has led, and whether its body runs.
#[derive(Default)]
struct Candidate {
    terms: AtomicUsize,
    running: AtomicUsize,
}

struct Running(Arc<Candidate>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Candidate {
    fn runs(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }

    async fn leads(&self, term: usize) {
        in_time(async {
            while self.terms.load(Ordering::SeqCst) < term || !self.runs() {
                tokio::time::sleep(ms(5)).await;
            }
        })
        .await;
    }
}

fn start(leader: Leader) -> (Arc<Candidate>, JoinHandle<()>) {
    let candidate = Arc::new(Candidate::default());
    let counted = Arc::clone(&candidate);
    let task = tokio::spawn(async move {
        let leading = leader.run(|_| {
            counted.terms.fetch_add(1, Ordering::SeqCst);
            counted.running.fetch_add(1, Ordering::SeqCst);
            let running = Running(Arc::clone(&counted));
            async move {
                let _running = running;
                std::future::pending::<()>().await;
            }
        });
        leading.await.unwrap();
    });
    (candidate, task)
}

/// Cut off, a leader stops before another one leads; when it reaches the database again, it is a
/// candidate again.
async fn a_leader_that_is_cut_off_stops_before_another_leads(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let cut_off = db.locks_at(&proxy.url(&db.url)).await;
    let settings = |leader: Leader| leader.ttl(ms(12_000)).margin(ms(5900));
    let (a, a_task) = start(settings(cut_off.leader("job").holder("a")));
    a.leads(1).await;
    let (b, b_task) = start(settings(db.locks().await.leader("job").holder("b")));
    proxy.stall();
    let began = now();
    in_time(async {
        while a.runs() {
            assert!(!b.runs(), "two leaders");
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await;
    assert!(began.elapsed() < ms(9500), "{:?}", began.elapsed());
    b.leads(1).await;
    proxy.wait_for_fault();
    proxy.resume();
    b_task.abort();
    a.leads(2).await;
    a_task.abort();
    promise("P1", db.engine);
    promise("P4", db.engine);
    promise("P12", db.engine);
}

async fn a_campaign_and_an_observer_outlive_an_outage(db: &TestDb) {
    let proxy = Proxy::to_url(&db.url);
    let locks = db.locks_at(&proxy.url(&db.url)).await;
    let leader = locks.leader("job").holder("a");
    let mut observer = leader.observe();
    assert!(in_time(observer.next()).await.unwrap().is_none());
    proxy.refuse(true);
    proxy.cut();
    let (a, task) = start(leader);
    let change = tokio::time::timeout(ms(3000), observer.next()).await;
    assert!(change.is_err(), "an outage is no change: {change:?}");
    assert!(!a.runs() && !task.is_finished());
    proxy.refuse(false);
    let first = in_time(observer.next()).await.unwrap().expect("it leads");
    assert_eq!(first.holder.as_deref(), Some("a"));
    a.leads(1).await;
    task.abort();
    assert!(in_time(observer.next()).await.unwrap().is_none());
}

macro_rules! on {
    ($($engine:ident),*) => { $(
        db_tests!($engine:
            a_leader_that_is_cut_off_stops_before_another_leads,
            a_campaign_and_an_observer_outlive_an_outage,
        );
    )* };
}
on!(postgres, mariadb, mysql);
