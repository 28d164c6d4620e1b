//! One connection to the server: who owns it, when it is made anew, and what its errors mean.
//!
//! A `Conn` of the driver does one thing at a time and must not be dropped in the midst of it (see
//! <https://github.com/blackbeam/mysql_async/issues/401>), so a task owns it and callers queue.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, IoError, Opts, OptsBuilder, Params, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::super::backoff::Backoff;
use super::super::{StoreError, Table, keep_to, url};
use crate::clock::{self, Time};

/// How long a connection may take to be made. Longer than the patience of a short lease on purpose:
/// where the way to the server is slow, attempts cut off at 100 ms would never get through.
const CONNECT: Duration = Duration::from_secs(3);
/// A connection that was idle for this long may have been closed by the server, or forgotten by a
/// firewall: it is asked first, since a statement that was sent must not be sent again.
const IDLE: Duration = Duration::from_millis(100);
/// So that a firewall does not forget an idle connection in the first place.
const KEEPALIVE: Duration = Duration::from_secs(30);

pub(super) const INIT: &str = "make it with `dblock init` or `locks.migrate()`";
const UPGRADE: &str = "the table is of an older version: run `dblock init` or `locks.migrate()`";

/// Where the server is and how to talk to it.
pub(super) struct Server {
    opts: Opts,
    /// Host and port, or the socket, for messages. The driver's own options show the password.
    pub(super) at: String,
    pub(super) table: Table,
    /// Whether a server was once found fit: a read-only one is then a failover under way.
    greeted: AtomicBool,
}

impl Server {
    pub(super) fn new(server: &url::Server, table: &Table) -> Self {
        let opts = OptsBuilder::default()
            .ip_or_hostname(server.host.clone())
            .tcp_port(server.port)
            .user(server.user.clone())
            .pass(server.password.clone())
            .db_name(server.database.clone())
            .socket(server.socket.as_ref().map(|path| path.to_string_lossy()))
            // By default the driver asks a server on loopback for its socket and goes there instead.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            // "Affected" rows are those that were found, even if no value of theirs has changed.
            .client_found_rows(true)
            // Known, so that the driver does not ask for them at each connect.
            .max_allowed_packet(Some(1 << 26))
            .wait_timeout(Some(0));
        let at = match &server.socket {
            Some(path) => path.display().to_string(),
            None => format!("{}:{}", server.host, server.port),
        };
        let (table, greeted) = (table.clone(), AtomicBool::new(false));
        Self {
            opts: opts.into(),
            at,
            table,
            greeted,
        }
    }
}

type Promise<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;
type Work = Box<dyn for<'s> FnOnce(Result<&'s mut Session, StoreError>) -> Promise<'s, ()> + Send>;

/// What a caller wants done on the connection.
struct Job {
    deadline: Time,
    work: Work,
}

impl Job {
    fn left(&self) -> Duration {
        self.deadline.saturating_sub(clock::now())
    }
}

/// The task that owns the connection at present.
struct Worker {
    task: AbortHandle,
    /// When it began with what it is doing, in nanoseconds; 0: it does nothing, or connects.
    busy_since: Arc<AtomicU64>,
}

/// A queue of jobs and the connection that they are done on, one after another.
pub(super) struct Line {
    server: Arc<Server>,
    jobs: mpsc::UnboundedSender<Job>,
    /// Outlives a worker, so that what waited behind a call that hung is done on a new connection.
    inbox: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>>,
    worker: Mutex<Option<Worker>>,
}

impl Line {
    pub(super) fn new(server: Arc<Server>) -> Self {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let inbox = Arc::new(tokio::sync::Mutex::new(inbox));
        Self {
            server,
            jobs,
            inbox,
            worker: Mutex::default(),
        }
    }

    /// Do this in its turn. Once begun it is carried through, even if the caller has gone away.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl for<'s> FnOnce(&'s mut Session) -> Promise<'s, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let (tell, answer) = oneshot::channel();
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                let done = match session {
                    Ok(session) => work(session).await,
                    Err(failure) => Err(failure),
                };
                // Whoever asked may have gone away.
                let _ = tell.send(done);
            })
        });
        let reply = async move {
            answer.await.unwrap_or_else(|_| {
                let said = format!("{}: the connection was given up", self.server.at);
                Err(StoreError::Unavailable(said.into()))
            })
        };
        // Never closed: the inbox is ours.
        let _ = self.jobs.send(Job {
            deadline: clock::now().saturating_add(within),
            work,
        });
        self.employ();
        keep_to(within, reply, || self.give_up(within)).await
    }

    /// See to it that somebody works, on the runtime that calls: the one that did may be gone.
    fn employ(&self) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker
            .as_ref()
            .is_none_or(|worker| worker.task.is_finished())
        {
            let busy_since = Arc::new(AtomicU64::new(0));
            let (server, inbox) = (Arc::clone(&self.server), Arc::clone(&self.inbox));
            let task = tokio::spawn(serve(server, inbox, Arc::clone(&busy_since)));
            *worker = Some(Worker {
                task: task.abort_handle(),
                busy_since,
            });
        }
    }

    /// Drop the connection, if it has been busy with one thing for most of that time.
    ///
    /// A caller may also have waited too long because many others came first: then the connection is
    /// as good as ever, and to drop it would make all of them wait longer.
    fn give_up(&self, within: Duration) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let since = worker
            .as_ref()
            .map_or(0, |worker| worker.busy_since.load(Ordering::Acquire));
        let busy_for = clock::now().saturating_sub(Duration::from_nanos(since));
        if since > 0 && busy_for >= within / 2 {
            if let Some(worker) = worker.take() {
                worker.task.abort();
            }
            drop(worker);
            self.employ();
        }
    }
}

/// Carry out jobs, until nobody can send any more.
async fn serve(
    server: Arc<Server>,
    inbox: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>>,
    busy_since: Arc<AtomicU64>,
) {
    let mut inbox = inbox.lock().await;
    let mut backoff = Backoff::default();
    let mut session: Option<Session> = None;
    let mut last_used = clock::now();
    while let Some(job) = inbox.recv().await {
        // Nobody waits for it any more.
        if job.left().is_zero() {
            continue;
        }
        if let Some(old) = &mut session
            && clock::now().saturating_sub(last_used) >= IDLE
            && !old.answers(job.left() / 3).await
        {
            session = None;
        }
        let ready = match &mut session {
            Some(session) => session,
            none => match connect(&server, &mut backoff, job.left()).await {
                Ok(new) => none.insert(new),
                Err(failure) => {
                    tracing::debug!("no connection: {failure}");
                    (job.work)(Err(same(&failure))).await;
                    while let Ok(job) = inbox.try_recv() {
                        (job.work)(Err(same(&failure))).await;
                    }
                    continue;
                }
            },
        };
        let left = job.left();
        if left.is_zero() {
            continue;
        }
        let now = u64::try_from(clock::now().as_nanos()).unwrap_or(u64::MAX);
        busy_since.store(now, Ordering::Release);
        let in_time = tokio::time::timeout(left, (job.work)(Ok(ready)))
            .await
            .is_ok();
        busy_since.store(0, Ordering::Release);
        if !in_time || ready.is_broken() {
            session = None;
        }
        last_used = clock::now();
    }
}

async fn connect(
    server: &Arc<Server>,
    backoff: &mut Backoff,
    left: Duration,
) -> Result<Session, StoreError> {
    let pause = backoff.pause();
    if pause >= left {
        let said = format!("{}: not to be reached a moment ago", server.at);
        return Err(StoreError::Unavailable(said.into()));
    }
    tokio::time::sleep(pause).await;
    let made = keep_to(CONNECT, Session::open(server), || ()).await;
    match &made {
        Ok(_) => backoff.succeeded(),
        Err(_) => backoff.failed(),
    }
    made.map_err(|failure| match failure {
        StoreError::Unavailable(said) if !said.to_string().contains(&server.at) => {
            StoreError::Unavailable(format!("{}: {said}", server.at).into())
        }
        failure => failure,
    })
}

/// The same failure for another caller.
fn same(failure: &StoreError) -> StoreError {
    match failure {
        StoreError::Contention(said) => StoreError::Contention(said.to_string().into()),
        StoreError::Unavailable(said) => StoreError::Unavailable(said.to_string().into()),
        StoreError::Rejected { hint, source } => {
            StoreError::rejected(source.to_string(), hint.as_deref())
        }
    }
}

/// What a statement that reads nothing has done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// How many rows were found.
    pub(super) rows: u64,
    /// What `LAST_INSERT_ID(…)` handed back; 0 where no row was found.
    pub(super) id: u64,
}

/// A connection, set up, to a server that was found fit.
pub(super) struct Session {
    conn: Conn,
    pub(super) server: Arc<Server>,
    collation: &'static str,
    /// The longest parameter that fits into a statement.
    pub(super) longest: usize,
    broken: bool,
}

impl Session {
    /// Connect, look at the server, and set the session up.
    pub(super) async fn open(server: &Arc<Server>) -> Result<Self, StoreError> {
        if server.opts.db_name().is_none() {
            let hint = "end the URL with the database that holds the table: mysql://HOST/DATABASE";
            return Err(StoreError::rejected("no database was named", Some(hint)));
        }
        let conn = Conn::new(server.opts.clone())
            .await
            .map_err(|e| meaning(&server.at, &e).0)?;
        let server = Arc::clone(server);
        let mut session = Self {
            conn,
            server,
            collation: "",
            longest: 0,
            broken: false,
        };
        session.hello().await?;
        session.server.greeted.store(true, Ordering::Relaxed);
        Ok(session)
    }

    /// Not `@@name`: a variable that one of the servers does not know would be an error.
    const VARIABLES: &str = "
        SHOW VARIABLES WHERE Variable_name IN
            ('version', 'read_only', 'super_read_only', 'innodb_read_only', 'wsrep_on',
             'group_replication_group_name', 'group_replication_single_primary_mode',
             'max_allowed_packet')";

    /// Everything that the statements count on, whatever the server's defaults are.
    ///
    /// `lock_wait_timeout` bounds the wait for an ALTER TABLE of somebody, a year by default.
    /// READ COMMITTED keeps a statement from locking the gaps between rows.
    const SETTINGS: &str = "
        SET NAMES utf8mb4, autocommit = 1, lock_wait_timeout = 1, innodb_lock_wait_timeout = {wait},
            sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
            sql_safe_updates = 0";
    const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";

    async fn hello(&mut self) -> Result<(), StoreError> {
        let found: Vec<(String, String)> = self
            .conn
            .query(Self::VARIABLES)
            .await
            .map_err(|e| self.failed(&e))?;
        let variable = |name: &str| {
            let named = found
                .iter()
                .find(|(found, _)| found.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let on = |name: &str| !matches!(variable(name), "" | "0" | "OFF");
        let version = variable("version");
        let mariadb = version.contains("MariaDB");
        let least = if mariadb { [10, 6, 0] } else { [8, 0, 17] };
        if numbers(version) < least {
            let hint = "MySQL 8.0.17 or MariaDB 10.6 at least: older ones cannot skip locked rows, or \
                        have no collation that keeps all names apart";
            return Err(StoreError::rejected(
                format!("the server is {version}"),
                Some(hint),
            ));
        }
        let cluster = on("wsrep_on")
            || (!variable("group_replication_group_name").is_empty()
                && !on("group_replication_single_primary_mode"));
        if cluster {
            let said = "multi-primary clusters are not supported by this version";
            let hint = "a node whose clock is ahead would give a lock away too early: \
                        use a database with a single primary";
            return Err(StoreError::rejected(said, Some(hint)));
        }
        // A privileged user may write in spite of `read_only`: on a replica that goes nowhere.
        if ["read_only", "super_read_only", "innodb_read_only"]
            .into_iter()
            .any(on)
        {
            let said = format!("the server at {} is read-only", self.server.at);
            if self.server.greeted.load(Ordering::Relaxed) {
                return Err(StoreError::Unavailable(said.into()));
            }
            return Err(StoreError::rejected(said, Some("connect to the primary")));
        }
        self.collation = if mariadb {
            "utf8mb4_nopad_bin"
        } else {
            "utf8mb4_0900_bin"
        };
        self.longest = variable("max_allowed_packet").parse().unwrap_or(1 << 20) / 2;
        // MySQL knows no 0.
        let settings = Self::SETTINGS.replace("{wait}", if mariadb { "0" } else { "1" });
        self.conn
            .query_drop(settings)
            .await
            .map_err(|e| self.failed(&e))?;
        self.conn
            .query_drop(Self::ISOLATION)
            .await
            .map_err(|e| self.failed(&e))
    }

    /// Whether the connection is still there.
    async fn answers(&mut self, within: Duration) -> bool {
        matches!(
            tokio::time::timeout(within, self.conn.ping()).await,
            Ok(Ok(()))
        )
    }

    fn is_broken(&self) -> bool {
        self.broken || self.conn.is_disconnected()
    }

    /// Put the table and the collation into a statement.
    pub(super) fn fill(&self, statement: &str) -> String {
        self.server
            .table
            .fill(statement)
            .replace("{collation}", self.collation)
    }

    pub(super) fn collation(&self) -> &'static str {
        self.collation
    }

    /// Carry out a statement that reads nothing. The driver prepares it once for each connection.
    pub(super) async fn execute(
        &mut self,
        statement: &str,
        params: Params,
    ) -> Result<Done, StoreError> {
        let statement = self.fill(statement);
        self.conn
            .exec_drop(statement, params)
            .await
            .map_err(|e| self.failed(&e))?;
        let id = self.conn.last_insert_id().unwrap_or_default();
        Ok(Done {
            rows: self.conn.affected_rows(),
            id,
        })
    }

    /// Carry out a statement that reads rows.
    pub(super) async fn query(
        &mut self,
        statement: &str,
        params: Params,
    ) -> Result<Vec<Row>, StoreError> {
        let statement = self.fill(statement);
        self.conn
            .exec(statement, params)
            .await
            .map_err(|e| self.failed(&e))
    }

    /// Carry out a statement that cannot be prepared.
    pub(super) async fn define(&mut self, statement: String) -> Result<(), StoreError> {
        self.conn
            .query_drop(statement)
            .await
            .map_err(|e| self.failed(&e))
    }

    fn failed(&mut self, error: &mysql_async::Error) -> StoreError {
        let (meaning, broken) = meaning(&self.server.at, error);
        self.broken |= broken;
        meaning
    }
}

/// `10.11.19-MariaDB-…` and `8.0.36-log`; MariaDB used to put `5.5.5-` before its own.
fn numbers(version: &str) -> [u32; 3] {
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or_default());
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// What an error means, and whether the connection is of no use after it.
///
/// Put into words of ours: the driver's own errors may hold whole packets.
fn meaning(at: &str, error: &mysql_async::Error) -> (StoreError, bool) {
    use mysql_async::Error::{Driver, Io, Server};
    let unavailable = |said: String| (StoreError::Unavailable(said.into()), true);
    let error = match error {
        Server(error) => error,
        Io(IoError::Io(error)) => return unavailable(format!("{at}: {error}")),
        Driver(
            error @ (DriverError::UnknownAuthPlugin { .. }
            | DriverError::CleartextPluginDisabled
            | DriverError::MysqlOldPasswordDisabled),
        ) => return (StoreError::rejected(format!("{at}: {error}"), None), true),
        error => return unavailable(format!("{at}: {error}")),
    };
    let said = format!("{at}: {} (error {})", error.message, error.code);
    let refused = |hint| (StoreError::rejected(&*said, hint), false);
    match error.code {
        // Lock wait, deadlock, duplicate key, NOWAIT, changed since the snapshot, rolled back by
        // the group, statement to be prepared anew, KILL QUERY.
        1205 | 1213 | 1062 | 3572 | 1020 | 3101 | 1615 | 1317 => {
            (StoreError::Contention(said.into()), false)
        }
        // Too many connections, shutting down, gone, killed, cluster node not ready, no answer;
        // read-only: a failover, and the next connection may find the new primary.
        1040
        | 1203
        | 1226
        | 1047
        | 1053
        | 1152..=1161
        | 1180
        | 1243
        | 1290
        | 1792
        | 1836
        | 1927
        | 1969
        | 2006
        | 2013
        | 3024
        | 3168
        | 4031 => unavailable(said),
        _ if error.state.starts_with("40") => (StoreError::Contention(said.into()), false),
        _ if error.state.starts_with("08") => unavailable(said),
        1146 => refused(Some(INIT)),
        1054 | 1176 => refused(Some(UPGRADE)),
        1044 | 1142 | 1143 | 1227 => refused(Some(
            "grant this user SELECT, INSERT, UPDATE and DELETE on the table, and for `dblock init` \
             CREATE, ALTER and INDEX",
        )),
        1045 | 1698 => refused(Some("check user name and password")),
        1049 => refused(Some(
            "check the database's name at the end of the URL, or create it",
        )),
        _ => refused(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_both_servers_write_them() {
        assert_eq!(numbers("8.0.36-0ubuntu0.22.04.1"), [8, 0, 36]);
        assert_eq!(numbers("10.11.19-MariaDB-0+deb12u1"), [10, 11, 19]);
        assert_eq!(numbers("5.5.5-10.6.1-MariaDB"), [10, 6, 1]);
        assert!(numbers("5.7.44-log") < [8, 0, 17]);
    }

    #[test]
    fn the_password_is_not_shown() {
        let Ok(url::Target::Mysql(server)) = url::parse("mysql://u:hunter2@h:3307/d") else {
            panic!("not a MySQL URL");
        };
        let store = super::super::Mysql::new(&server, &Table::default()).unwrap();
        let shown = format!("{store:?}");
        assert!(
            shown.contains("h:3307") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
