use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::store::{self, Reply, Table};
use crate::token::{GrantId, Token};

const LONG: Duration = Duration::from_secs(20);

/// Grants what it is asked for, after a moment or never.
#[derive(Debug, Default)]
struct Server {
    hangs: bool,
    /// How long an answer takes.
    takes: Duration,
    asked: AtomicUsize,
    answered: AtomicUsize,
    given_up: AtomicUsize,
}

impl Server {
    async fn answer<T>(&self, answer: T) -> Result<T, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.hangs {
            pending::<()>().await;
        }
        tokio::time::sleep(self.takes).await;
        self.answered.fetch_add(1, Ordering::SeqCst);
        Ok(answer)
    }
}

impl Lane for Server {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask]) -> Reply<'a, Vec<Outcome>> {
        let granted = |ask: &Ask| Outcome::Granted {
            token: Token::from_db(1),
            length: ask.length,
        };
        Box::pin(self.answer(asks.iter().map(granted).collect()))
    }

    fn release<'a>(&'a self, returns: &'a [Return]) -> Reply<'a, Vec<Released>> {
        Box::pin(self.answer(vec![Released::Freed; returns.len()]))
    }

    fn give_up(&self) {
        self.given_up.fetch_add(1, Ordering::SeqCst);
    }
}

fn path(server: &Arc<Server>) -> Arc<DirectPath> {
    let (store, engine) =
        store::open_given(&store::Given::url("memory:"), &Table::default()).unwrap();
    let store = Observed::new(store, engine);
    Arc::new(DirectPath::new(&store, Arc::clone(server) as Arc<dyn Lane>).unwrap())
}

fn served(server: Server) -> (Arc<Server>, Arc<DirectPath>) {
    let server = Arc::new(server);
    let path = path(&server);
    (server, path)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn ask() -> Ask {
    Ask {
        name: crate::name::LockName::new("job").unwrap(),
        grant: GrantId::random().unwrap(),
        holder: "me".into(),
        length: LONG,
        metadata: "{}".into(),
        lapsed: None,
    }
}

/// Call until this runtime is the home.
async fn settled(path: &DirectPath) -> Handle {
    for _ in 0..1_000 {
        if let Some(home) = path.here() {
            return home;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it does not become the home");
}

async fn acquire(
    path: &Arc<DirectPath>,
    patience: Duration,
) -> Option<Result<Outcome, StoreError>> {
    let home = settled(path).await;
    path.acquire(home, ask(), patience, oneshot::channel().0)
        .await
}

#[test]
fn a_runtime_is_the_home_from_its_third_call_on_until_it_ends() {
    let (_, path) = served(Server::default());
    let (first, second) = (runtime(), runtime());
    first.block_on(async {
        for _ in 0..CALLS {
            assert!(path.here().is_none(), "its calls go by the background");
        }
        settled(&path).await;
    });
    second.block_on(async {
        for _ in 0..10 * CALLS {
            assert!(path.here().is_none(), "another is the home");
        }
    });
    drop(first);
    second.block_on(settled(&path));
}

#[test]
fn threads_that_block_share_a_home_from_the_first_call_on() {
    let (_, path) = served(Server::default());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let acquired = crate::runtime::block_on(async {
                        let home = path.here().unwrap();
                        path.acquire(home, ask(), LONG, oneshot::channel().0).await
                    });
                    assert!(matches!(
                        acquired.unwrap().unwrap().unwrap(),
                        Outcome::Granted { .. }
                    ));
                }
            });
        }
    });
}

#[test]
fn a_thread_that_waits_outside_its_runtime_and_one_without_a_runtime_go_by_the_background() {
    let (_, path) = served(Server::default());
    assert!(path.here().is_none());
    runtime().block_on(async {
        settled(&path).await;
        // A blocking call in a task: its runtime stands still until it returns.
        let here = crate::runtime::block_on(async { path.here().is_some() });
        assert!(!here.unwrap());
        assert!(path.here().is_some());
    });
}

#[test]
fn a_late_call_ends_with_its_connection_and_the_second_one_in_a_row_ends_the_home() {
    let (server, path) = served(Server {
        hangs: true,
        ..Server::default()
    });
    runtime().block_on(async {
        settled(&path).await;
        let before = server.given_up.load(Ordering::SeqCst);
        for late_calls in [1, 2] {
            // Longer than calls of one moment count as one.
            let late = acquire(&path, TICK + Duration::from_millis(50)).await;
            assert!(late.is_none(), "{late:?}");
            assert_eq!(server.given_up.load(Ordering::SeqCst), before + late_calls);
            assert_eq!(path.here().is_some(), late_calls == 1);
        }
    });
}

#[test]
fn a_call_in_a_runtime_that_stands_still_is_late_all_the_same() {
    let (_, path) = served(Server {
        takes: Duration::from_millis(1),
        ..Server::default()
    });
    runtime().block_on(async {
        settled(&path).await;
        // No timer of this runtime fires before this returns.
        let late = pollster::block_on(acquire(&path, Duration::from_millis(50)));
        assert!(late.is_none(), "{late:?}");
    });
}

#[test]
fn a_call_that_is_dropped_is_carried_through_and_then_says_so() {
    let (server, path) = served(Server {
        takes: Duration::from_millis(20),
        ..Server::default()
    });
    runtime().block_on(async {
        let home = settled(&path).await;
        let (done, under_way) = oneshot::channel();
        let call = path.acquire(home, ask(), LONG, done);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), call)
                .await
                .is_err()
        );
        assert_eq!(server.answered.load(Ordering::SeqCst), 0);
        let _ = tokio::time::timeout(LONG, under_way)
            .await
            .expect("it is carried through");
        assert_eq!(server.answered.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_runtime_that_ends_with_a_call_under_way_says_so() {
    let (server, path) = served(Server {
        hangs: true,
        ..Server::default()
    });
    let (done, under_way) = oneshot::channel();
    let home = runtime();
    let calling = {
        let path = Arc::clone(&path);
        home.spawn(async move {
            let home = settled(&path).await;
            path.acquire(home, ask(), LONG, done).await
        })
    };
    home.block_on(async {
        while server.asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    drop(home);
    assert!(pollster::block_on(calling).unwrap_err().is_cancelled());
    assert!(pollster::block_on(under_way).is_err(), "dropped");
}

#[test]
fn a_runtime_without_timers_is_no_home() {
    let (_, path) = served(Server::default());
    let bare = Builder::new_current_thread().build().unwrap();
    bare.block_on(async {
        for _ in 0..10 * CALLS {
            assert!(path.here().is_none());
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn calls_of_a_crowd_travel_together() {
    let (server, path) = served(Server {
        takes: Duration::from_millis(5),
        ..Server::default()
    });
    runtime().block_on(async {
        settled(&path).await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let path = Arc::clone(&path);
            calls.spawn(async move { acquire(&path, LONG).await.unwrap().unwrap() });
        }
        assert_eq!(calls.join_all().await.len(), 100);
    });
    assert!(server.asked.load(Ordering::SeqCst) <= 10);
}
