//! The table of one clause, and the calls that clauses share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::direct_store::DirectStore;
use database_locks::seam::{
    AcquireCommand, Grant, Holder, ObservedExpiry, Outcome, PAGE, ReleaseCommand, Released,
    Renewal, Rows, Store, StoreError, Table, Version, open, random_grant_id,
};
use database_locks::{ListFilter, LockInfo, LockName, LockState, Token, Ttl};

/// A lease that does not end during a test.
pub(super) const LONG: Duration = Duration::from_secs(25);
/// A lease whose end the test awaits; long enough for a few round trips on a busy machine.
pub(super) const SHORT: Duration = Duration::from_millis(400);
/// A lease that must last for the next calls, and whose end the test awaits: each call may take a
/// second on a busy machine.
pub(super) const BRIEF: Duration = Duration::from_millis(2_500);
/// How long clients contend at least, and how long at most for all to happen that has to.
pub(super) const CONTEND: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(60)];
/// How long a call may take.
pub(super) const WITHIN: Duration = Duration::from_secs(20);

/// A table for one test, and the clients, connections and SQL that the test uses on it.
#[derive(Clone, Debug)]
pub struct StoreFixture {
    /// Its name in promises: `memory`, `sqlite`, `postgres`, `mariadb`, `mysql`, `galera`,
    /// `mysql-group`.
    pub engine: &'static str,
    /// The URLs of the database; the clients take the nodes in turn.
    urls: Vec<String>,
    clients: Arc<AtomicUsize>,
    /// The table, if it is not the usual one.
    pub table: Table,
    sql: Option<RunSql>,
    direct: bool,
}

/// Runs a statement on the database as another client than those that are tested.
#[derive(Clone)]
struct RunSql(Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for RunSql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunSql")
    }
}

impl StoreFixture {
    /// The usual table at `url`.
    pub fn new(engine: &'static str, url: impl Into<String>) -> Self {
        Self::spread(engine, vec![url.into()])
    }

    /// The usual table, in a database that is at each of these URLs.
    pub fn spread(engine: &'static str, urls: Vec<String>) -> Self {
        Self {
            engine,
            urls,
            clients: Arc::default(),
            table: Table::default(),
            sql: None,
            direct: false,
        }
    }

    /// Adds a way to change rows by SQL; `memory` has none.
    #[must_use]
    pub fn with_sql(mut self, run: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.sql = Some(RunSql(Arc::new(run)));
        self
    }

    /// Lets the clients use their direct connections.
    #[must_use]
    pub fn with_direct_connection(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Runs a statement as another client.
    ///
    /// # Panics
    ///
    /// Without [`StoreFixture::with_sql`].
    pub fn sql(&self, statement: &str) {
        let RunSql(run) = self.sql.as_ref().expect("a way to run SQL");
        run(statement);
    }

    /// Whether leases end by observation rather than by a clock of the database.
    pub fn is_cluster(&self) -> bool {
        matches!(self.engine, "galera" | "mysql-group")
    }

    /// Another client, with its own connection.
    pub fn store(&self) -> Arc<dyn Store> {
        let client = self.clients.fetch_add(1, Ordering::Relaxed);
        let store = open(&self.urls[client % self.urls.len()], &self.table).expect("a good URL");
        match self.direct {
            true => Arc::new(DirectStore(store)),
            false => store,
        }
    }

    /// A client of a table that is there.
    pub async fn ready(&self) -> Arc<dyn Store> {
        let store = self.store();
        store.connect(WITHIN).await.expect("connects");
        store.install(WITHIN).await.expect("installs");
        store
    }
}

/// A valid name.
pub fn name(text: &str) -> LockName {
    LockName::new(text).expect("a good name")
}

/// A new request for `name`.
pub fn acquire_command(lock: &str, holder: &str, length: Duration) -> AcquireCommand {
    AcquireCommand {
        name: name(lock),
        grant: random_grant_id().expect("randomness"),
        holder: holder.into(),
        length,
        not_within: None,
        metadata: "{}".into(),
        expired_version: None,
        kind: Default::default(),
    }
}

/// Sends a request once, and again after conflicts that are not about this lock.
pub async fn try_once(store: &dyn Store, command: &AcquireCommand) -> Outcome {
    for _ in 0..2_000 {
        match store.acquire(std::slice::from_ref(command), WITHIN).await {
            Ok(outcomes) => return outcomes[0].clone(),
            Err(StoreError::Contention(_)) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("contention without end")
}

/// Sends a request until the lock is not busy. A node may have a grant a moment later than another.
pub(super) async fn decided(store: &dyn Store, command: &AcquireCommand) -> Outcome {
    for _ in 0..2_000 {
        match try_once(store, command).await {
            Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
            outcome => return outcome,
        }
    }
    panic!("busy without end")
}

pub(super) fn grant_of(command: &AcquireCommand, token: Token) -> Grant {
    Grant {
        slot: Default::default(),
        name: command.name.clone(),
        token,
        id: command.grant,
        holder: Arc::clone(&command.holder),
        confirmed_by: None,
    }
}

/// A grant, made now.
///
/// On a cluster, an expired lease is first observed for its length.
pub async fn granted(store: &dyn Store, lock: &str, holder: &str, length: Duration) -> Grant {
    let mut command = acquire_command(lock, holder, length);
    for _ in 0..1_000 {
        match try_once(store, &command).await {
            Outcome::Granted { token, .. } => return grant_of(&command, token),
            Outcome::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
            Outcome::Held(Holder {
                observed_expiry: Some(expiry),
                ..
            }) if expiry.length <= 2 * BRIEF => {
                command.expired_version = observed(&expiry).await;
            }
            other => panic!("{lock} not granted: {other:?}"),
        }
    }
    panic!("{lock} stayed busy")
}

async fn observed(expiry: &ObservedExpiry) -> Option<Version> {
    tokio::time::sleep(expiry.length + Duration::from_millis(10)).await;
    Some(expiry.version.clone())
}

/// The observation of an expired lease by a contender, on a cluster.
pub(super) async fn expired_version(fixture: &StoreFixture, lock: &str) -> Option<Version> {
    if !fixture.is_cluster() {
        return None;
    }
    let store = fixture.store();
    let Outcome::Held(Holder {
        observed_expiry: Some(expiry),
        ..
    }) = try_once(&*store, &acquire_command(lock, "a watcher", SHORT)).await
    else {
        panic!("{lock} is not held")
    };
    observed(&expiry).await
}

/// Renews one grant.
pub async fn renew(store: &dyn Store, grant: &Grant, ttl: impl Into<Ttl>) -> Renewal {
    let answers = store.renew(&[(grant.clone(), ttl.into())], WITHIN).await;
    answers.expect("an answer").remove(0)
}

/// Releases one grant.
pub async fn release(store: &dyn Store, grant: &Grant) -> Released {
    let what = ReleaseCommand::of(grant, Ttl::from(LONG));
    store.release(&[what], WITHIN).await.expect("an answer")[0]
}

/// Reads a row that another client has made; a node may apply it a moment later.
pub(super) async fn info_soon(store: &dyn Store, lock: &str) -> Option<LockInfo> {
    for _ in 0..200 {
        let found = info(store, lock).await;
        if found.is_some() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// Reads the row of a lock.
pub async fn info(store: &dyn Store, lock: &str) -> Option<LockInfo> {
    store
        .read(&[name(lock)], WITHIN)
        .await
        .expect("an answer")
        .pop()
}

/// All rows that match, in the order of their names.
pub async fn list(store: &dyn Store, filter: &ListFilter) -> Vec<LockInfo> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store
            .page(Rows::Locks, filter, after, WITHIN)
            .await
            .expect("an answer");
        // Where there is more than one.
        assert!(page.last.is_none() || page.rows.len() <= PAGE as usize);
        found.extend(page.rows);
        match page.last {
            Some(last) => {
                assert!(after.is_none_or(|after| after < last), "it goes on");
                after = Some(last);
            }
            None => break,
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

pub(super) async fn holder_of(store: &dyn Store, lock: &str) -> Option<String> {
    let info = info(store, lock).await?;
    matches!(info.state, LockState::Held { .. }).then_some(info.holder)?
}

pub(super) async fn outlived(length: Duration) {
    tokio::time::sleep(length + Duration::from_millis(100)).await;
}
