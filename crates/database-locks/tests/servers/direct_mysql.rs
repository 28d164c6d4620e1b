//! The direct connection of MySQL and MariaDB: faults of it, and the calls on it.

use std::future::poll_fn;
use std::slice::from_ref;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use database_locks::Ttl;
use database_locks::seam::{
    AcquireCommand, DirectConnection, Grant, Outcome, ReleaseCommand, Released, Store, StoreError,
    Table, open,
};
use testkit::contract::{acquire_command, granted, info};
use testkit::time::wait_until;
use testkit::{MariaDb, MySql, MySqlServer as Server, Proxy, SqlSession};
use tokio::runtime::{Builder, Runtime};

const TIMEOUT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(25);

macro_rules! on_servers {
    ($($test:ident),+ $(,)?) => {
        on_servers!(mariadb, MariaDb: $($test),+);
        on_servers!(mysql, MySql: $($test),+);
    };
    ($engine:ident, $kind:ident: $($test:ident),+) => {
        mod $engine {
            use super::*;
            $(
                #[test]
                fn $test() {
                    if let Some(server) = $kind::shared() {
                        super::$test(&Database::of(server));
                    }
                }
            )+
        }
    };
}

on_servers!(
    a_lock_is_taken_and_released_on_one_connection,
    a_runtime_that_has_ended_leaves_the_direct_connection_to_the_next,
    a_runtime_that_ends_during_a_call_leaves_the_direct_connection_to_the_next,
    a_connection_that_was_killed_between_two_calls_costs_no_call,
    a_connection_that_is_killed_during_a_call_costs_no_call,
    a_call_that_was_late_takes_its_connection_with_it,
    a_future_that_is_not_polled_any_more_keeps_no_call_from_the_direct_connection,
    a_connect_that_callers_gave_up_completes,
    a_connection_that_is_refused_is_asked_for_again,
    renewals_go_over_the_direct_connection_while_the_background_has_no_connection,
    the_background_connects_once_a_renewal_is_due_soon,
    a_renewal_goes_before_the_acquires_that_wait,
    with_a_single_connection_leases_are_renewed,
);

/// One for one test.
struct Database {
    server: &'static Server,
    name: String,
    /// Open all along: what a new one would ask for may be over before it is connected.
    admin: Mutex<SqlSession>,
}

impl Database {
    fn of(server: &'static Server) -> Self {
        let url = server.fresh_database();
        let name = url.rsplit('/').next().unwrap().to_owned();
        let admin = Mutex::new(server.sql_session("mysql"));
        let this = Self {
            server,
            name,
            admin,
        };
        let made = this.store();
        runtime().block_on(async {
            made.connect(TIMEOUT).await.unwrap();
            made.install(TIMEOUT).await.unwrap();
        });
        drop(made);
        assert!(wait_until(TIMEOUT, || this.connections().is_empty()));
        this
    }

    /// Without a first attempt with TLS, so that connections can be counted.
    fn url(&self) -> String {
        let url = self.server.locker_url(&self.server.url_of(&self.name));
        format!("{url}?sslmode=disable")
    }

    fn store(&self) -> Arc<dyn Store> {
        open(&self.url(), &Table::default()).unwrap()
    }

    fn direct(&self) -> Arc<dyn DirectConnection> {
        self.store().direct().unwrap()
    }

    /// Those of the library in this database that do what is asked for.
    fn processes(&self, which: &str) -> Vec<String> {
        let list = format!(
            "SELECT id FROM information_schema.processlist WHERE user = 'locker' AND db = '{}' AND {which}",
            self.name
        );
        let mut admin = self.admin.lock().unwrap();
        admin.run(&list).unwrap()
    }

    fn connections(&self) -> Vec<String> {
        self.processes("TRUE")
    }

    /// Closes the table to all statements until that is dropped.
    fn close(&self) -> SqlSession {
        let mut session = self.server.sql_session(&self.name);
        session
            .run("LOCK TABLES database_locks_lock WRITE")
            .unwrap();
        session
    }

    /// Until a statement waits for the table.
    async fn is_waited_for(&self) {
        let waits = async {
            while self.processes("state LIKE 'Waiting for table%'").is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time(waits).await;
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn threads() -> Runtime {
    let mut threads = Builder::new_multi_thread();
    threads.worker_threads(2).enable_all().build().unwrap()
}

fn want(lock: &str) -> AcquireCommand {
    acquire_command(lock, "me", LONG)
}

async fn in_time<T>(answer: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(TIMEOUT, answer).await;
    answer.expect("no answer")
}

async fn acquired(direct: &dyn DirectConnection, command: &AcquireCommand) -> Grant {
    match in_time(direct.acquire(from_ref(command))).await.as_deref() {
        Ok([Outcome::Granted { token, .. }]) => Grant {
            slot: Default::default(),
            name: command.name.clone(),
            token: *token,
            id: command.grant,
            holder: Arc::clone(&command.holder),
            confirmed_by: None,
        },
        other => panic!("not granted: {other:?}"),
    }
}

async fn release(direct: &dyn DirectConnection, grant: &Grant) -> Result<Released, StoreError> {
    let what = ReleaseCommand::of(grant, Ttl::from(LONG));
    Ok(in_time(direct.release(&[what])).await?.remove(0))
}

fn a_lock_is_taken_and_released_on_one_connection(database: &Database) {
    let direct = database.direct();
    runtime().block_on(async {
        for _ in 0..3 {
            let grant = acquired(&*direct, &want("job")).await;
            assert_eq!(release(&*direct, &grant).await.unwrap(), Released::Freed);
            assert_eq!(release(&*direct, &grant).await.unwrap(), Released::NotHeld);
        }
        assert_eq!(database.connections().len(), 1);
    });
    drop(direct);
    let closed = || database.connections().is_empty();
    assert!(wait_until(TIMEOUT, closed), "the connection stays open");
}

fn a_runtime_that_has_ended_leaves_the_direct_connection_to_the_next(database: &Database) {
    let direct = database.direct();
    for first in [runtime(), threads()] {
        let grant = first.block_on(acquired(&*direct, &want("job")));
        drop(first);
        let released = runtime().block_on(release(&*direct, &grant));
        assert_eq!(released.unwrap(), Released::Freed);
    }
    let one = || database.connections().len() == 1;
    assert!(wait_until(TIMEOUT, one), "{:?}", database.connections());
}

fn a_runtime_that_ends_during_a_call_leaves_the_direct_connection_to_the_next(database: &Database) {
    let direct = database.direct();
    for first in [runtime(), threads()] {
        let command = want("job");
        first.block_on(direct.connect()).unwrap();
        let closed = database.close();
        let (calling, asked) = (Arc::clone(&direct), command.clone());
        let call = first.spawn(async move { calling.acquire(&[asked]).await.map(drop) });
        first.block_on(database.is_waited_for());
        drop(first);
        closed.close();
        let next = runtime();
        assert!(next.block_on(call).unwrap_err().is_cancelled());
        // It may have been carried out.
        let grant = next.block_on(acquired(&*direct, &command));
        let released = next.block_on(release(&*direct, &grant));
        assert_eq!(released.unwrap(), Released::Freed);
    }
}

fn kill(database: &Database) {
    let connections = database.connections();
    for id in &connections {
        database
            .server
            .query("mysql", &format!("KILL {id}"))
            .unwrap();
    }
    let gone = || {
        let left = database.connections();
        connections.iter().all(|id| !left.contains(id))
    };
    assert!(wait_until(TIMEOUT, gone), "still there");
}

fn a_connection_that_was_killed_between_two_calls_costs_no_call(database: &Database) {
    let direct = database.direct();
    runtime().block_on(async {
        direct.connect().await.unwrap();
        for lock in ["a", "b"] {
            kill(database);
            let grant = acquired(&*direct, &want(lock)).await;
            kill(database);
            assert_eq!(release(&*direct, &grant).await.unwrap(), Released::Freed);
        }
    });
}

fn a_connection_that_is_killed_during_a_call_costs_no_call(database: &Database) {
    let (store, direct) = (database.store(), database.direct());
    let runtime = threads();
    runtime.block_on(direct.connect()).unwrap();
    let command = want("job");

    let closed = database.close();
    let (calling, asked) = (Arc::clone(&direct), command.clone());
    let call = runtime.spawn(async move { acquired(&*calling, &asked).await });
    runtime.block_on(database.is_waited_for());
    kill(database);
    closed.close();
    let grant = runtime.block_on(call).unwrap();

    let closed = database.close();
    let (calling, held) = (Arc::clone(&direct), grant.clone());
    let call = runtime.spawn(async move { release(&*calling, &held).await });
    runtime.block_on(database.is_waited_for());
    kill(database);
    closed.close();
    // If the first was executed, the second cannot know.
    let released = runtime.block_on(call).unwrap();
    assert!(
        matches!(
            released,
            Ok(Released::Freed) | Err(StoreError::Unavailable(_))
        ),
        "{released:?}"
    );
    let row = runtime.block_on(info(&*store, "job")).unwrap();
    let freed = row.grant.is_none() || released.is_err();
    assert!(freed, "said to be released, and held by {:?}", row.grant);
}

fn a_call_that_was_late_takes_its_connection_with_it(database: &Database) {
    let direct = database.direct();
    runtime().block_on(async {
        direct.connect().await.unwrap();
        let before = database.connections();
        let command = want("job");
        let closed = database.close();
        // The server answers after a second, and that answer must not come first.
        let is_late = tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(200)) => true,
            _ = direct.acquire(from_ref(&command)) => false,
        };
        assert!(is_late, "the table was locked");
        direct.give_up();
        closed.close();
        let grant = acquired(&*direct, &command).await;
        let gone = || {
            let now = database.connections();
            now.len() == 1 && now != before
        };
        assert!(wait_until(TIMEOUT, gone), "{:?}", database.connections());
        assert_eq!(release(&*direct, &grant).await.unwrap(), Released::Freed);
    });
}

fn a_future_that_is_not_polled_any_more_keeps_no_call_from_the_direct_connection(
    database: &Database,
) {
    let direct = database.direct();
    runtime().block_on(async {
        direct.connect().await.unwrap();
        let commands = [want("first")];
        let mut stuck = direct.acquire(&commands);
        let once = poll_fn(|context| Poll::Ready(stuck.as_mut().poll(context).is_pending()));
        assert!(once.await);
        let command = want("second");
        let waits = tokio::time::timeout(
            Duration::from_millis(100),
            direct.acquire(from_ref(&command)),
        );
        assert!(waits.await.is_err(), "two calls at once on one connection");
        direct.give_up();
        let grant = acquired(&*direct, &command).await;
        assert_eq!(release(&*direct, &grant).await.unwrap(), Released::Freed);
        let first = stuck.await.unwrap();
        assert!(matches!(first[0], Outcome::Granted { .. }), "{first:?}");
    });
    let one = || database.connections().len() == 1;
    assert!(wait_until(TIMEOUT, one), "{:?}", database.connections());
}

fn a_connect_that_callers_gave_up_completes(database: &Database) {
    let proxy = Proxy::to_url(&database.url());
    let store = open(&proxy.url(&database.url()), &Table::default()).unwrap();
    let direct = store.direct().unwrap();
    runtime().block_on(async {
        proxy.stall();
        for _ in 0..3 {
            let hasty = tokio::time::timeout(Duration::from_millis(50), direct.connect());
            assert!(hasty.await.is_err());
            direct.give_up();
        }
        proxy.resume();
        in_time(direct.connect()).await.unwrap();
        assert_eq!(proxy.counts().connections, 1, "each caller made one");
    });
}

fn a_connection_that_is_refused_is_asked_for_again(database: &Database) {
    let proxy = Proxy::to_url(&database.url());
    let store = open(&proxy.url(&database.url()), &Table::default()).unwrap();
    let direct = store.direct().unwrap();
    runtime().block_on(async {
        proxy.refuse(true);
        for _ in 0..3 {
            let refused = direct.acquire(&[want("job")]).await.unwrap_err();
            assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
        }
        proxy.refuse(false);
        // Not at once: the last refusal counts for a moment.
        let granted = async {
            while direct.connect().await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            acquired(&*direct, &want("job")).await
        };
        in_time(granted).await;
    });
}

fn renewals_go_over_the_direct_connection_while_the_background_has_no_connection(
    database: &Database,
) {
    let proxy = Proxy::to_url(&database.url());
    let store = open(&proxy.url(&database.url()), &Table::default()).unwrap();
    let direct = store.direct().unwrap();
    let home = threads();
    let grant = home.block_on(acquired(&*direct, &want("job")));
    let renews = || {
        let grants = [(grant.clone(), Ttl::from(LONG))];
        let renewal = runtime().block_on(store.renew(&grants, TIMEOUT));
        renewal.map(|renewals| renewals[0].clone())
    };
    proxy.refuse(true);
    assert!(renews().unwrap().is_renewed());
    assert_eq!(proxy.open_connections(), 1);
    drop(home);
    renews().expect_err("no runtime drives the connection");
    proxy.refuse(false);
    let again = || renews().is_ok_and(|renewal| renewal.is_renewed());
    assert!(wait_until(TIMEOUT, again));
}

fn the_background_connects_once_a_renewal_is_due_soon(database: &Database) {
    let store = database.store();
    let direct = store.direct().unwrap();
    let (home, background) = (runtime(), threads());
    home.block_on(acquired(&*direct, &want("job")));
    assert_eq!(database.connections().len(), 1);
    for _ in 0..3 {
        background.block_on(async { store.prepare_to_renew() });
        let two = || database.connections().len() == 2;
        assert!(wait_until(TIMEOUT, two), "{:?}", database.connections());
    }
}

/// All of them go one after another, on the one connection of the background.
fn a_renewal_goes_before_the_acquires_that_wait(database: &Database) {
    const CROWD: usize = 20;
    let store = database.store();
    threads().block_on(async {
        let grant = granted(&*store, "job", "me", LONG).await;
        let closed = database.close();
        let crowd: Vec<_> = (0..CROWD)
            .map(|i| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let commands = [want(&format!("lock {i}"))];
                    let _ = store.acquire(&commands, TIMEOUT).await;
                })
            })
            .collect();
        database.is_waited_for().await;
        let grants = [(grant, Ttl::from(LONG))];
        let mut renewal = store.renew(&grants, TIMEOUT);
        // It is queued once it is polled.
        let queued = tokio::time::timeout(Duration::from_millis(50), &mut renewal).await;
        assert!(queued.is_err(), "{queued:?}");
        closed.close();
        assert!(renewal.await.unwrap()[0].is_renewed());
        for task in crowd {
            task.await.unwrap();
        }
        // By the server: this thread may see the renewal's answer late.
        let [all, before] = ["true", "l.acquired_at < job.renewed_at"].map(|which| {
            let count = format!(
                "SELECT COUNT(*) FROM {0}.database_locks_lock l, {0}.database_locks_lock job
                  WHERE l.name LIKE 'lock %' AND job.name = 'job' AND {which}",
                database.name
            );
            let count = database.admin.lock().unwrap().run(&count).unwrap();
            count[0].parse::<usize>().unwrap()
        });
        assert!(before < all / 2, "behind {before} of {all} acquires");
    });
}

/// The direct connection is the only connection that the server allows, and no thread blocks on its
/// runtime.
fn with_a_single_connection_leases_are_renewed(database: &Database) {
    let user = format!("alone_{}", database.name);
    for sql in [
        format!("CREATE USER {user} IDENTIFIED BY 'x' WITH MAX_USER_CONNECTIONS 1"),
        format!("GRANT ALL ON {}.* TO {user}", database.name),
    ] {
        database.server.query("mysql", &sql).unwrap();
    }
    let url = database.server.url_of(&database.name);
    let host = url.rsplit_once('@').unwrap().1;
    let url = format!("mysql://{user}:x@{host}?sslmode=disable");
    let locks = database_locks::blocking::Locks::builder(url);
    let locks = locks.connect_lazy().unwrap();
    let lock = locks.lock("kept").ttl(Duration::from_secs(6));
    let guard = lock.acquire().unwrap();
    let lost = wait_until(Duration::from_secs(8), || !guard.is_held());
    assert!(!lost, "{guard:?}");
    guard.release().unwrap();
}
