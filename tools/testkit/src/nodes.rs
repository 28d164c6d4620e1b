//! The parts that all clusters share: servers with the same data, each with a clock of its own.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::faketime;
use crate::mysql::{self, MySqlServer};
use crate::sql::{LOCKER_PASSWORD, SqlError, SqlSession, database_of, percent_encode};
use crate::time;

/// The number of nodes: a majority remains without one of them.
pub const NODES: usize = 3;

/// How long a node may take to catch up with the others: ten times as long as on an idle machine.
const SYNCED_WITHIN: Duration = Duration::from_secs(90);

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// After how many seconds a node reads the file of its clock again.
const CLOCK_EVERY: u32 = 1;

/// Servers, numbered from 0, that hold the same data.
///
/// The users are those of [`MySqlServer`]. The faults of a cluster are methods of
/// [`Galera`](crate::Galera) and [`Group`](crate::Group).
#[derive(Debug)]
pub struct Nodes {
    pub(crate) servers: Vec<MySqlServer>,
    /// How many seconds each clock was last set ahead.
    pub(crate) clocks: [i64; NODES],
    made: AtomicU32,
}

/// How to start a cluster `C`.
#[derive(Debug)]
pub struct Options<C> {
    pub(crate) clocks: [Option<i64>; NODES],
    pub(crate) node: mysql::Options,
    cluster: PhantomData<C>,
}

impl<C> Options<C> {
    pub(crate) fn new(node: mysql::Options) -> Self {
        Self {
            clocks: [None; NODES],
            node,
            cluster: PhantomData,
        }
    }

    /// Gives a node a wall clock of its own, so many seconds ahead of the machine's, or behind it
    /// if that is negative; [`Nodes::set_clock`] changes it. Timeouts of the node are not affected.
    #[must_use]
    pub fn clock(mut self, node: usize, ahead: i64) -> Self {
        self.clocks[node] = Some(ahead);
        self
    }

    /// Any setting of each node, as in `wsrep-sync-wait=1`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.node = self.node.set(setting);
        self
    }

    pub(crate) fn has_clocks(&self) -> bool {
        self.clocks.iter().any(Option::is_some)
    }
}

impl Nodes {
    pub(crate) fn new(servers: Vec<MySqlServer>, clocks: [Option<i64>; NODES]) -> Self {
        Self {
            servers,
            clocks: clocks.map(Option::unwrap_or_default),
            made: AtomicU32::new(0),
        }
    }

    /// One of the servers.
    pub fn node(&self, node: usize) -> &MySqlServer {
        &self.servers[node]
    }

    /// The URL of a database, given by name or URL, at one node, as the superuser.
    pub fn url_at(&self, node: usize, database: &str) -> String {
        self.servers[node].url_of(database_of(database))
    }

    /// The URL of a database at several nodes, which are to be tried in that order.
    pub fn url_of(&self, nodes: &[usize], database: &str) -> String {
        format!(
            "mysql://root@{}/{}",
            self.hosts(nodes),
            database_of(database)
        )
    }

    /// Like [`url_of`](Self::url_of), as the user `locker`.
    pub fn locker_url(&self, nodes: &[usize], database: &str) -> String {
        format!(
            "mysql://locker:{}@{}/{}",
            percent_encode(LOCKER_PASSWORD),
            self.hosts(nodes),
            database_of(database)
        )
    }

    fn hosts(&self, nodes: &[usize]) -> String {
        let hosts = nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", self.servers[*node].port()));
        hosts.collect::<Vec<_>>().join(",")
    }

    /// Makes an empty database, which `locker` may use, through the first of `nodes`, and waits
    /// until all of them have it: its URL at the first node of the cluster.
    pub(crate) fn make_database(&self, nodes: &[usize]) -> String {
        let name = format!("t_{}", self.made.fetch_add(1, Ordering::Relaxed));
        let first = *nodes.first().expect("a node serves");
        self.query(first, "mysql", &format!("CREATE DATABASE {name}"))
            .expect("a running server makes a database");
        for node in nodes {
            self.wait_for(*node, &format!("the owner of the database {name}"), || {
                let there = format!("SHOW DATABASES LIKE '{}'", name.replace('_', "\\_"));
                self.query(*node, "mysql", &there)
                    .is_ok_and(|found| !found.is_empty())
            });
        }
        self.url_at(0, &name)
    }

    /// Runs SQL on a database, given by name or URL, at one node as the superuser.
    ///
    /// # Errors
    ///
    /// What the server answered instead.
    pub fn query(&self, node: usize, database: &str, sql: &str) -> Result<String, SqlError> {
        self.servers[node].query(database, sql)
    }

    /// Opens a session on a database, given by name or URL, at one node as the superuser.
    pub fn sql_session(&self, node: usize, database: &str) -> SqlSession {
        self.servers[node].sql_session(database)
    }

    pub(crate) fn runs(&self, node: usize) -> bool {
        self.servers[node].server().pid().is_some()
    }

    /// By how many seconds a node's clock is ahead of the machine's; `None` if it does not answer.
    pub fn clock(&self, node: usize) -> Option<i64> {
        let message = self.query(node, "mysql", "SELECT UNIX_TIMESTAMP()").ok()?;
        let clock: i64 = message.parse().ok()?;
        let machine = std::time::SystemTime::UNIX_EPOCH.elapsed().ok()?.as_secs();
        Some(clock - i64::try_from(machine).ok()?)
    }

    /// Sets a node's clock so many seconds ahead of the machine's, or behind it, and waits until
    /// the node has read it.
    ///
    /// # Panics
    ///
    /// If the node was started without a clock of its own, or does not answer.
    pub fn set_clock(&mut self, node: usize, ahead: i64) {
        let server = self.servers[node].server();
        assert!(
            !server.env.is_empty(),
            "node {node} has no clock of its own"
        );
        faketime::set(&clock_file(server.dir()), ahead).expect("the directory can be written to");
        self.clocks[node] = ahead;
        self.wait_for(node, "going by the new clock", || {
            self.clock(node)
                .is_some_and(|clock| (clock - ahead).abs() <= 5)
        });
    }

    pub(crate) fn wait_for(&self, node: usize, what: &str, mut done: impl FnMut() -> bool) {
        // Each check starts a client, which slows the servers down.
        let mut looked = || {
            let done = done();
            if !done {
                time::sleep(POLL_INTERVAL);
            }
            done
        };
        assert!(
            time::wait_until(SYNCED_WITHIN, &mut looked),
            "node {node} is not {what} after {SYNCED_WITHIN:?}\n{}",
            self.servers[node].server().log_tail()
        );
    }
}

/// Gives a node that does not run yet a wall clock of its own.
pub(crate) fn give_clock(server: &mut MySqlServer, library: &Path, ahead: i64) {
    let clock = clock_file(server.server.dir());
    faketime::set(&clock, ahead).expect("the directory can be written to");
    server.server.env = faketime::environment(library, &clock, Some(CLOCK_EVERY))
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
}

fn clock_file(dir: &Path) -> PathBuf {
    dir.join("clock")
}

/// A cluster that tests share.
pub trait Cluster: DerefMut<Target = Nodes> + Sized + 'static {
    /// Makes all nodes run and serve again after any faults. Their clocks stay as they are.
    fn mend(&mut self);
}

/// The shared cluster, for a test that leaves it as it is.
pub type Shared<C> = RwLockReadGuard<'static, C>;

/// The shared cluster, for a test that injects faults. It is mended on drop, before other tests use
/// it again.
#[derive(Debug)]
pub struct Alone<C: Cluster>(RwLockWriteGuard<'static, C>);

impl<C: Cluster> Alone<C> {
    pub(crate) fn of(cluster: &'static RwLock<C>) -> Self {
        Self(cluster.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<C: Cluster> Deref for Alone<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

impl<C: Cluster> DerefMut for Alone<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.0
    }
}

impl<C: Cluster> Drop for Alone<C> {
    fn drop(&mut self) {
        self.0.mend();
        for node in 0..NODES {
            if self.0.clocks[node] != 0 {
                self.0.set_clock(node, 0);
            }
        }
    }
}
