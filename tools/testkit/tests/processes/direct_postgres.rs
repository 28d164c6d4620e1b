//! The direct connection of PostgreSQL: its runtime may end, and it may be killed, refused or late.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use database_locks::Token;
use database_locks::blocking::Locks;
use database_locks::seam::{
    AcquireCommand, DirectConnection, Notice, Outcome, ReleaseCommand, Released, Store, StoreError,
    Table,
};
use testkit::contract::{acquire_command, granted, name};
use testkit::sql::SqlSession;
use testkit::{Postgres, Proxy, promise, time};
use tokio::runtime::{Builder, Runtime};

/// Longer than anything that a test waits for should take.
const TIMEOUT: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(600);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, work).await.expect("in time")
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn threads() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// A store with its direct connection, in a database of its own; the store's own connection lives
/// on a runtime of its own, as it does in the background.
struct Client {
    store: Arc<dyn Store>,
    direct: Arc<dyn DirectConnection>,
    background: Runtime,
}

impl Client {
    fn of(url: &str) -> Self {
        let store = database_locks::seam::open(url, &Table::default()).unwrap();
        let (direct, background) = (store.direct().unwrap(), threads());
        background.block_on(async {
            store.connect(TIMEOUT).await.unwrap();
            store.install(TIMEOUT).await.unwrap();
        });
        Self {
            store,
            direct,
            background,
        }
    }

    async fn acquire(&self, lock: &str) -> Result<ReleaseCommand, StoreError> {
        acquire(&*self.direct, lock).await
    }

    async fn release(&self, command: &ReleaseCommand) -> Result<Released, StoreError> {
        Ok(in_time(self.direct.release(std::slice::from_ref(command))).await?[0])
    }

    /// A cycle on the direct connection, in any state before.
    async fn cycle(&self) {
        let command = self.acquire("cycle").await.unwrap();
        assert_eq!(self.release(&command).await.unwrap(), Released::Freed);
    }
}

async fn acquire(direct: &dyn DirectConnection, lock: &str) -> Result<ReleaseCommand, StoreError> {
    let command = acquire_command(lock, "me", TTL);
    let Outcome::Granted { token, .. } =
        in_time(direct.acquire(std::slice::from_ref(&command))).await?[0]
    else {
        panic!("{lock} is not free")
    };
    Ok(back(&command, Some(token)))
}

fn back(command: &AcquireCommand, token: Option<Token>) -> ReleaseCommand {
    ReleaseCommand {
        slot: Default::default(),
        rest: Duration::ZERO,
        name: command.name.clone(),
        token,
        grant: command.grant,
        holder: Arc::clone(&command.holder),
        durable: false,
    }
}

/// The pids of the connections of a database that are not `but`, the oldest first.
fn sessions(admin: &mut SqlSession, but: &[i32]) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                AND application_name = 'database-locks' ORDER BY backend_start";
    let pids = admin.run(sql).unwrap().into_iter();
    let pids = pids.map(|pid| pid.parse().unwrap());
    pids.filter(|pid| !but.contains(pid)).collect()
}

/// Waits until so many sessions wait for a lock.
fn hang(admin: &mut SqlSession, count: usize) {
    let sql = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let done = time::wait_until(TIMEOUT, || {
        admin.run(sql).unwrap().remove(0).parse() == Ok(count)
    });
    assert!(done, "not {count} that hang");
}

/// Lock the table as a whole, until it is left.
fn whole_table(server: &Postgres, url: &str) -> SqlSession {
    let mut holder = server.sql_session(url);
    holder.run("BEGIN").unwrap();
    holder
        .run("LOCK TABLE database_locks_lock IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    holder
}

#[test]
fn the_direct_connection_moves_to_another_runtime_when_its_own_has_ended() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let client = Client::of(&url);
    let mut admin = server.sql_session(&url);
    let background = sessions(&mut admin, &[]);
    for home in [one_thread, threads] {
        let first = home();
        let held = first.block_on(client.acquire("job")).unwrap();
        // That of the round before ends a moment later.
        let mut before = Vec::new();
        let is_one = time::wait_until(TIMEOUT, || {
            before = sessions(&mut admin, &background);
            before.len() == 1
        });
        assert!(is_one, "one connection more: {before:?}");
        drop(first);
        let second = home();
        let freed = second.block_on(client.release(&held)).unwrap();
        assert_eq!(freed, Released::Freed);
        let gone = || {
            sessions(&mut admin, &background)
                .iter()
                .all(|it| *it != before[0])
        };
        assert!(
            time::wait_until(TIMEOUT, gone),
            "the first one is left open"
        );
        second.block_on(client.cycle());
    }
    promise("P17", "postgres");
}

#[test]
fn a_call_whose_runtime_ends_leaves_no_statement_behind() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let client = Client::of(&url);
    let mut admin = server.sql_session(&url);
    for (home, lock) in [one_thread, threads].into_iter().zip(["one", "two"]) {
        let first = home();
        let made = first.block_on(client.acquire(lock)).unwrap();
        first.block_on(client.release(&made)).unwrap();
        let blocker = whole_table(server, &url);
        let command = acquire_command(lock, "me", TTL);
        let (direct, commands) = (Arc::clone(&client.direct), [command.clone()]);
        first.spawn(async move { direct.acquire(&commands).await });
        first.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
        hang(&mut admin, 1);
        first.shutdown_background();
        blocker.close();
        let second = home();
        second.block_on(client.cycle());
        // It may have been carried out, or may yet be: its grant id gives it back, on the other
        // connection.
        let unknown = [back(&command, None)];
        let free = time::wait_until(TIMEOUT, || {
            let released = client.store.release(&unknown, TIMEOUT);
            client.background.block_on(released).unwrap();
            second.block_on(async {
                let made = in_time(
                    client
                        .direct
                        .acquire(&[self::acquire_command(lock, "other", TTL)]),
                )
                .await;
                matches!(made.unwrap()[0], Outcome::Granted { .. })
            })
        });
        assert!(free, "{lock} stays held");
    }
}

#[test]
fn a_connection_that_its_runtime_has_half_made_is_made_anew() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let proxy = Proxy::to_url(&url);
    let client = Client::of(&proxy.url(&url));
    proxy.stall();
    let first = threads();
    let direct = Arc::clone(&client.direct);
    first.spawn(async move { direct.connect().await });
    assert!(time::wait_until(TIMEOUT, || proxy.open_connections() == 2));
    drop(first);
    proxy.resume();
    one_thread().block_on(client.cycle());
}

#[test]
fn a_runtime_that_is_not_polled_blocks_no_other_from_connecting() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let client = Client::of(&url);
    let (left, next) = (one_thread(), one_thread());
    let direct = Arc::clone(&client.direct);
    left.spawn(async move { direct.connect().await });
    // Once: it has begun to connect.
    left.block_on(tokio::task::yield_now());
    next.block_on(client.cycle());
    // What it finds late takes the place of nothing, and is closed.
    left.block_on(look_up());
    next.block_on(client.cycle());
    let mut admin = server.sql_session(&url);
    assert!(time::wait_until(TIMEOUT, || {
        left.block_on(look_up());
        sessions(&mut admin, &[]).len() == 2
    }));
}

/// So that the driver notices what has come meanwhile, as a caller that blocks lets it.
async fn look_up() {
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_connection_that_was_killed_is_made_anew() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let client = Client::of(&url);
    let mut admin = server.sql_session(&url);
    let background = sessions(&mut admin, &[]);
    let home = one_thread();
    home.block_on(client.cycle());
    // While the connection is idle.
    let kill = |admin: &mut SqlSession| {
        let pid = sessions(admin, &background)[0];
        admin
            .run(&format!("SELECT pg_terminate_backend({pid}, 20000)"))
            .unwrap();
    };
    kill(&mut admin);
    home.block_on(async {
        look_up().await;
        client.cycle().await;
    });
    // During a call.
    let blocker = whole_table(server, &url);
    home.block_on(async {
        let direct = Arc::clone(&client.direct);
        let call = tokio::spawn(async move { acquire(&*direct, "job").await });
        look_up().await;
        tokio::task::spawn_blocking({
            let mut other = server.sql_session(&url);
            move || hang(&mut other, 1)
        })
        .await
        .unwrap();
        kill(&mut admin);
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(!error.is_undone(), "{error}");
        blocker.close();
        client.cycle().await;
    });
    promise("P17", "postgres");
}

#[test]
fn a_late_call_is_cancelled_in_the_server_and_the_next_uses_another_connection() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let client = Client::of(&url);
    let mut admin = server.sql_session(&url);
    let home = one_thread();
    home.block_on(client.cycle());
    let blocker = whole_table(server, &url);
    home.block_on(async {
        let commands = [acquire_command("late", "me", TTL)];
        let late =
            tokio::time::timeout(Duration::from_millis(200), client.direct.acquire(&commands));
        late.await.unwrap_err();
        client.direct.give_up();
        in_time(client.direct.connect()).await.unwrap();
        // While this runtime runs, which asks the server to cancel.
        let cancelled = tokio::task::spawn_blocking(move || hang(&mut admin, 0));
        cancelled.await.unwrap();
    });
    blocker.close();
    home.block_on(client.cycle());
}

#[test]
fn without_a_second_connection_a_direct_call_changes_nothing() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let user = format!("single_{}", url.rsplit_once('/').unwrap().1);
    for sql in [
        format!("CREATE ROLE {user} LOGIN PASSWORD 'x' CONNECTION LIMIT 1"),
        format!("GRANT CREATE, USAGE ON SCHEMA public TO {user}"),
    ] {
        server.query(&url, &sql).unwrap();
    }
    let (scheme, rest) = url.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let client = Client::of(&format!("{scheme}://{user}:x@{host}"));
    let home = one_thread();
    home.block_on(async {
        for _ in 0..2 {
            let refused = client.acquire("job").await.unwrap_err();
            assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
            assert!(refused.is_undone(), "{refused}");
            assert!(refused.to_string().contains("53300"), "{refused}");
        }
    });
    let grant = client
        .background
        .block_on(granted(&*client.store, "job", "me", TTL));
    assert_eq!(grant.name, name("job"));
    server
        .query(&url, &format!("ALTER ROLE {user} CONNECTION LIMIT 2"))
        .unwrap();
    home.block_on(async {
        while client.direct.connect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    home.block_on(client.cycle());
    promise("P17", "postgres");
}

/// A notification that the direct connection sends arrives on the other connection of the process,
/// and is ignored there.
#[test]
fn a_release_by_the_direct_connection_is_no_news_to_its_own_process() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let (client, other) = (Client::of(&url), Client::of(&url));
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let recorder = Arc::clone(&recorded);
    client.store.on_notified(Arc::new(move |notice| {
        if let Notice::Released(lock, _) = notice {
            recorder.lock().unwrap().push(lock.clone());
        }
    }));
    let home = one_thread();
    for (by, lock) in [(&client, "own"), (&other, "theirs")] {
        let held = home.block_on(by.acquire(lock)).unwrap();
        let (lock, store) = (name(lock), &client.store);
        // It records its waiter in the row only once it listens.
        let says = || {
            client
                .background
                .block_on(store.announce(&lock, None, TIMEOUT, false))
        };
        assert!(time::wait_until(TIMEOUT, says));
        let released = home.block_on(by.release(&held)).unwrap();
        assert_eq!(released, Released::Awaited);
    }
    let is_recorded = || !recorded.lock().unwrap().is_empty();
    assert!(time::wait_until(TIMEOUT, is_recorded));
    assert_eq!(*recorded.lock().unwrap(), [name("theirs")]);
    promise("P12", "postgres");
}

/// The server allows one connection, and the direct connection has it: it makes way for the one
/// that renews.
#[test]
fn a_single_connection_is_used_for_renewals() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let user = format!("alone_{}", url.rsplit_once('/').unwrap().1);
    drop(Client::of(&url));
    for sql in [
        format!("CREATE ROLE {user} LOGIN PASSWORD 'x' CONNECTION LIMIT 1"),
        format!("GRANT SELECT, INSERT, UPDATE ON database_locks_lock TO {user}"),
    ] {
        server.query(&url, &sql).unwrap();
    }
    let host = url.rsplit_once('@').unwrap().1;
    let builder = Locks::builder(format!("postgres://{user}:x@{host}"));
    let locks = builder.connect_lazy().unwrap();
    let guard = locks
        .lock("kept")
        .ttl(Duration::from_secs(5))
        .acquire()
        .unwrap();
    let lost = time::wait_until(Duration::from_secs(11), || !guard.is_held());
    assert!(!lost, "{guard:?}");
    guard.release().unwrap();
    promise("P17", "postgres");
}

/// Its runtime rests between two calls, and so does not see that the connection has ended.
#[test]
fn an_acquire_on_a_connection_that_was_closed_unnoticed_is_repeated() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let url = server.fresh_database();
    let mut admin = server.sql_session(&url);
    let home = one_thread();
    let locks = home.block_on(async {
        let locks = database_locks::Locks::connect(&url).await.unwrap();
        locks.migrate().await.unwrap();
        locks
    });
    let cycle = async || {
        let guard = locks.lock("job").try_acquire().await.unwrap();
        guard.expect("free").release().await.unwrap();
    };
    let moved_in = || {
        home.block_on(async {
            cycle().await;
            look_up().await;
        });
        sessions(&mut admin, &[]).len() == 2
    };
    assert!(time::wait_until(TIMEOUT, moved_in));
    home.block_on(cycle());
    let direct = sessions(&mut admin, &[])[1];
    admin
        .run(&format!("SELECT pg_terminate_backend({direct}, 5000)"))
        .unwrap();
    home.block_on(cycle());
    promise("P17", "postgres");
}
