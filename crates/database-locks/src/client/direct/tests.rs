use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;
use std::thread;

use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::store::{
    self,
    api::{Reply, StoreError},
    connect::table::Table,
};
use protocol::{AcquireCommand, Outcome, ReleaseCommand, Released, Token};

use crate::client::grant_id::random_grant_id;

const LONG: Duration = Duration::from_secs(20);

/// A direct connection that grants every request, after a delay or never.
#[derive(Debug, Default)]
struct Server {
    hangs: bool,
    /// Delay of an answer.
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

impl DirectConnection for Server {
    fn connect(&self) -> Reply<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn acquire<'a>(&'a self, acquires: &'a [AcquireCommand]) -> Reply<'a, Vec<Outcome>> {
        let granted = |command: &AcquireCommand| Outcome::Granted {
            slot: protocol::Slot::Lock,
            token: Token::from_db(1),
            length: command.length,
            is_shared: false,
            confirmed_by: None,
        };
        Box::pin(self.answer(acquires.iter().map(granted).collect()))
    }

    fn release<'a>(&'a self, releases: &'a [ReleaseCommand]) -> Reply<'a, Vec<Released>> {
        Box::pin(self.answer(vec![Released::Freed; releases.len()]))
    }

    fn give_up(&self) {
        self.given_up.fetch_add(1, Ordering::SeqCst);
    }
}

fn served(server: Server) -> (Arc<Server>, Arc<DirectClient>) {
    let server = Arc::new(server);
    let (store, engine) =
        store::open_given(&store::ConnectOptions::url("memory:"), &Table::default()).unwrap();
    let direct = Arc::clone(&server) as Arc<dyn DirectConnection>;
    let client = DirectClient::new(&Measured::new(store, engine), direct).unwrap();
    (server, client)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn ask() -> AcquireCommand {
    AcquireCommand {
        name: protocol::LockName::new("job").unwrap(),
        grant: random_grant_id().unwrap(),
        holder: "me".into(),
        length: LONG,
        not_within: None,
        metadata: "{}".into(),
        expired_version: None,
        kind: protocol::Kind::Exclusive,
    }
}

/// Call until this runtime is the owner.
async fn owned(client: &Arc<DirectClient>) -> Permit {
    for _ in 0..1_000 {
        if let Some(permit) = client.enter() {
            return permit;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("this runtime does not become the owner");
}

async fn acquire(
    client: &Arc<DirectClient>,
    wait: Option<Duration>,
) -> Option<Result<Outcome, StoreError>> {
    let permit = owned(client).await;
    permit.acquire(ask(), wait, oneshot::channel().0).await
}

#[test]
fn a_runtime_owns_the_direct_connection_from_its_third_call_on_until_it_ends() {
    let (_, client) = served(Server::default());
    let (first, second) = (runtime(), runtime());
    first.block_on(async {
        for _ in 0..CALLS_TO_OWN {
            assert!(
                client.enter().is_none(),
                "its calls go through the background"
            );
        }
        owned(&client).await;
    });
    second.block_on(async {
        for _ in 0..10 * CALLS_TO_OWN {
            assert!(client.enter().is_none(), "another is the owner");
        }
    });
    drop(first);
    second.block_on(owned(&client));
}

#[test]
fn threads_that_block_share_an_owner_from_the_first_call_on() {
    let (_, client) = served(Server::default());
    let granted = || {
        crate::runtime::block_on(async {
            let answer = client.enter()?.acquire(ask(), None, oneshot::channel().0);
            answer.await
        })
    };
    assert!(granted().unwrap().unwrap().is_ok());
    let all = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let granted = (0..100).filter(|_| granted().unwrap().is_some());
                all.fetch_add(granted.count(), Ordering::SeqCst);
            });
        }
    });
    assert!(all.into_inner() > 0);
}

#[test]
fn the_direct_connection_serves_one_call_at_a_time_and_concurrent_calls_go_through_the_background()
{
    let (_, client) = served(Server::default());
    runtime().block_on(async {
        let permit = owned(&client).await;
        assert!(client.enter().is_none());
        drop(permit);
        let permit = client.enter().unwrap();
        permit.acquire(ask(), None, oneshot::channel().0).await;
        assert!(client.enter().is_some());
    });
}

#[test]
fn a_thread_that_waits_outside_its_runtime_and_one_without_a_runtime_go_through_the_background() {
    let (_, client) = served(Server::default());
    assert!(client.enter().is_none());
    runtime().block_on(async {
        owned(&client).await;
        // A blocking call in a task stops its runtime until it returns.
        let here = crate::runtime::block_on(async { client.enter().is_some() });
        assert!(!here.unwrap());
        assert!(client.enter().is_some());
    });
}

#[test]
fn a_late_call_ends_with_its_connection_and_with_its_owner_for_a_while() {
    let (server, client) = served(Server {
        hangs: true,
        ..Server::default()
    });
    runtime().block_on(async {
        owned(&client).await;
        let before = server.given_up.load(Ordering::SeqCst);
        let late = acquire(&client, None).await;
        assert!(late.is_none(), "{late:?}");
        assert_eq!(server.given_up.load(Ordering::SeqCst), before + 1);
        assert!(client.enter().is_none(), "it is disabled");
    });
    let mut state = State::default();
    for backoff in [5, 10, 20, 40, 60, 60] {
        state.disable();
        assert_eq!(state.backoff, Duration::from_secs(backoff));
    }
}

#[test]
fn a_call_in_a_runtime_that_is_blocked_is_still_found_to_be_late() {
    let (_, client) = served(Server {
        takes: Duration::from_millis(1),
        ..Server::default()
    });
    runtime().block_on(async {
        owned(&client).await;
        // No timer of this runtime fires before this returns.
        let late = pollster::block_on(acquire(&client, None));
        assert!(late.is_none(), "{late:?}");
    });
}

/// A caller may keep such a future without polling it, as in `select!` with `&mut`.
#[test]
fn a_call_that_is_polled_no_more_leaves_the_direct_connection_to_others_once_it_is_late() {
    let (_, client) = served(Server {
        takes: Duration::from_millis(1),
        ..Server::default()
    });
    runtime().block_on(async {
        let permit = owned(&client).await;
        let mut kept = Box::pin(permit.acquire(ask(), None, oneshot::channel().0));
        let mut context = Context::from_waker(Waker::noop());
        assert!(kept.as_mut().poll(&mut context).is_pending());
        assert!(client.enter().is_none(), "it is in use");
        let until = clock::now() + LONG;
        while client.state().call.is_some() {
            assert!(clock::now() < until, "it is never found to be late");
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        drop(kept);
    });
}

/// A free lock is acquired in one round trip, so a wait may be as short as that.
#[test]
fn a_wait_that_ends_before_the_answer_gives_up_no_connection() {
    let (server, client) = served(Server {
        takes: DIRECT_TIMEOUT * 2 / 5,
        ..Server::default()
    });
    runtime().block_on(async {
        let before = {
            owned(&client).await;
            server.given_up.load(Ordering::SeqCst)
        };
        let ended = acquire(&client, Some(Duration::from_millis(20))).await;
        assert!(ended.is_none(), "{ended:?}");
        assert!(client.enter().is_none(), "it is completed");
        owned(&client).await;
        assert_eq!(server.answered.load(Ordering::SeqCst), 1);
        let answer = acquire(&client, Some(LONG)).await;
        assert!(answer.unwrap().is_ok());
        assert_eq!(server.given_up.load(Ordering::SeqCst), before);
    });
}

#[test]
fn a_call_that_is_dropped_is_completed_and_then_reports_its_end() {
    let (server, client) = served(Server {
        takes: Duration::from_millis(500),
        ..Server::default()
    });
    runtime().block_on(async {
        let permit = owned(&client).await;
        let (done, under_way) = oneshot::channel();
        let call = permit.acquire(ask(), None, done);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), call)
                .await
                .is_err()
        );
        assert_eq!(server.answered.load(Ordering::SeqCst), 0);
        let _ = tokio::time::timeout(LONG, under_way)
            .await
            .expect("it is completed");
        assert_eq!(server.answered.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_runtime_that_ends_with_a_call_under_way_reports_its_end() {
    let (server, client) = served(Server {
        hangs: true,
        ..Server::default()
    });
    let (done, under_way) = oneshot::channel();
    let owner = runtime();
    let calling = {
        let client = Arc::clone(&client);
        owner.spawn(async move {
            let permit = owned(&client).await;
            permit.acquire(ask(), None, done).await
        })
    };
    owner.block_on(async {
        while server.asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    drop(owner);
    assert!(pollster::block_on(calling).unwrap_err().is_cancelled());
    assert!(pollster::block_on(under_way).is_err(), "dropped");
    assert!(client.state().call.is_none(), "others may call");
}

#[test]
fn a_runtime_without_timers_never_owns_the_direct_connection() {
    let (_, client) = served(Server::default());
    let bare = Builder::new_current_thread().build().unwrap();
    bare.block_on(async {
        for _ in 0..10 * CALLS_TO_OWN {
            assert!(client.enter().is_none());
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(client.state().unsupported.len(), 1, "tokio is asked once");
}
