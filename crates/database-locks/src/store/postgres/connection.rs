//! The one connection of a store: made when it is needed, shared by all calls, made anew when it
//! breaks.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use super::refusal::{Kind, Refusal};
use crate::error::{Error, Human};
use crate::store::backoff::Backoff;
use crate::store::url::Server;
use crate::store::{StoreError, keep_to};

/// How long one attempt to connect may take, name resolution and password check included. Less than
/// the patience of an acquire, whose error then says what it was that did not answer.
const DIAL: Duration = Duration::from_secs(4);

/// How long a connection that nobody uses any more may take to send what was left to it.
const LINGER: Duration = Duration::from_secs(1);

/// An idle connection through a firewall or NAT has to show some life, and one whose server has
/// lost its power shall be noticed before it is needed: after 30 s + 3 × 10 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// The version below which `MATERIALIZED` is not understood.
const OLDEST: i32 = 120_000;

/// A parameter of a statement. Its type is stated, since asking the server for it would be a round
/// trip more.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Where the server is.
#[derive(Debug)]
enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The way to one server: at most one connection at a time, and at most one attempt to make it.
pub(super) struct Link(Arc<Shared>);

/// Without the configuration, which holds the password.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link")
            .field(&self.0.address.to_string())
            .finish()
    }
}

struct Shared {
    address: Address,
    config: Config,
    /// The statements, with the name of the table put in.
    texts: Arc<[String]>,
    /// A pooler was caught handing our prepared statements to others.
    pooled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slot: Slot,
    backoff: Backoff,
    /// It has served us once: what is wrong with it now may be a failover that is going on.
    served: bool,
    /// Why the latest attempt to connect failed.
    failure: Option<String>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    Dialling(watch::Receiver<Option<Dialled>>),
    Up(Arc<Connection>),
}

type Dialled = Result<Arc<Connection>, Refusal>;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    pub(super) fn new(server: &Server, texts: Vec<String>) -> Result<Self, Error> {
        let mut config = Config::new();
        if let Some(user) = &server.user {
            config.user(user);
        }
        if let Some(password) = &server.password {
            config.password(password);
        }
        if let Some(database) = &server.database {
            config.dbname(database);
        }
        // Poolers pass it on. Start-up `options` they refuse, and a SET would reach some connection
        // of the pooler's and stay there: so nothing else is set, here or later.
        config.application_name(server.application.as_deref().unwrap_or("database-locks"));
        let address = match &server.socket {
            Some(folder) => Address::Unix(folder.join(format!(".s.PGSQL.{}", server.port))),
            None => Address::Tcp(server.host.clone(), server.port),
        };
        Ok(Self(Arc::new(Shared {
            address,
            config,
            texts: texts.into(),
            pooled: AtomicBool::new(false),
            state: Mutex::default(),
        })))
    }

    /// Do some work on the connection, within a time that includes making it.
    pub(super) async fn on<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Connection>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Refusal>> + Send,
    {
        let (used, mut unconnected) = (OnceLock::new(), false);
        let reply = async {
            let on = self.connected().await?;
            let _ = used.set(Arc::clone(&on));
            work(Arc::clone(&on)).await.map_err(|refusal| {
                if let Kind::Gone | Kind::Pooled = refusal.kind {
                    self.retire(&on);
                }
                if refusal.kind == Kind::Pooled {
                    self.0.pooled.store(true, Ordering::Relaxed);
                }
                refusal.into()
            })
        };
        let answer = keep_to(within, reply, || match used.get() {
            Some(on) => self.retire(on),
            None => unconnected = true,
        })
        .await;
        if unconnected {
            let failure = self.0.state().failure.take();
            let why =
                failure.map_or_else(String::new, |failure| format!("; before that, {failure}"));
            let said = format!(
                "no connection to {} within {}{why}",
                self.0.address,
                Human(within)
            );
            return Err(StoreError::Unavailable(said.into()));
        }
        answer
    }

    /// Use this connection for no further call. Those that wait for its answers may still get them.
    fn retire(&self, on: &Arc<Connection>) {
        let mut state = self.0.state();
        if let Slot::Up(current) = &state.slot
            && Arc::ptr_eq(current, on)
        {
            state.slot = Slot::Empty;
        }
    }

    async fn connected(&self) -> Dialled {
        let mut attempt = {
            let mut state = self.0.state();
            match &state.slot {
                Slot::Up(on) if !on.client.is_closed() => return Ok(Arc::clone(on)),
                // An attempt that was stopped, with its runtime, has dropped its sender.
                Slot::Dialling(attempt) if attempt.has_changed().is_ok() => attempt.clone(),
                _ => {
                    let (done, attempt) = watch::channel(None);
                    // In a task of its own: a caller in a hurry, which gives up after 100 ms, would
                    // otherwise never get through to a server that takes 200 ms to answer.
                    let pause = state.backoff.pause();
                    tokio::spawn(dial_after(pause, Arc::downgrade(&self.0), done));
                    state.slot = Slot::Dialling(attempt.clone());
                    attempt
                }
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(dialled)) => dialled.clone(),
            _ => Err(Refusal::unavailable("connecting was stopped")),
        }
    }
}

async fn dial_after(pause: Duration, link: Weak<Shared>, done: watch::Sender<Option<Dialled>>) {
    tokio::time::sleep(pause).await;
    // Nobody is there any more to use it.
    let Some(link) = link.upgrade() else { return };
    let dialled = timeout(DIAL, Connection::dial(&link))
        .await
        .unwrap_or_else(|_| {
            let said = format!("{} did not answer within {}", link.address, Human(DIAL));
            Err(Refusal::unavailable(said))
        });
    let mut state = link.state();
    match &dialled {
        Ok(on) => {
            tracing::debug!(
                direct = on.prepared.is_some(),
                "connected to {}",
                link.address
            );
            state.backoff.succeeded();
            state.failure = None;
            state.served = true;
            state.slot = Slot::Up(Arc::clone(on));
        }
        Err(refusal) => {
            state.backoff.failed();
            state.failure = Some(refusal.said.clone());
            state.slot = Slot::Empty;
        }
    }
    drop(state);
    done.send_replace(Some(dialled));
}

/// One connection that has been found fit to serve.
pub(super) struct Connection {
    client: Client,
    texts: Arc<[String]>,
    /// One for each statement; none where a pooler may be in between.
    ///
    /// The driver's statements are called s0, s1, … in each process. Behind a pooler that hands out
    /// its connections by transaction, those of several processes meet on one connection
    /// (<https://github.com/rust-postgres/rust-postgres/issues/959>): at best that is an error.
    prepared: Option<Vec<Prepared>>,
    /// Dropped with the last user, and so tells the driver.
    _in_use: oneshot::Sender<()>,
}

#[derive(Default)]
struct Prepared {
    used: AtomicBool,
    statement: OnceCell<Statement>,
}

impl Connection {
    async fn dial(link: &Shared) -> Dialled {
        let unreachable = |error: io::Error| {
            Refusal::unavailable(format!("cannot connect to {}: {error}", link.address))
        };
        let ((client, in_use), ends) = match &link.address {
            Address::Tcp(host, port) => {
                let stream = reach(host, *port).await.map_err(unreachable)?;
                let ends = Ends::of_tcp(&stream);
                (greet(stream, link).await?, ends)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                let ends = Ends::of_unix(&stream);
                (greet(stream, link).await?, ends)
            }
        };
        let hello = Hello::say(&client).await?;
        hello.check(&link.address, link.state().served)?;
        let direct = !link.pooled.load(Ordering::Relaxed) && ends.is_some_and(|e| e.meet(&hello));
        let prepared = direct.then(|| link.texts.iter().map(|_| Prepared::default()).collect());
        let texts = Arc::clone(&link.texts);
        Ok(Arc::new(Self {
            client,
            texts,
            prepared,
            _in_use: in_use,
        }))
    }

    /// Run the statement of that number, prepared if it may be and `reused` says that it pays.
    pub(super) async fn rows(
        &self,
        number: usize,
        reused: bool,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Refusal> {
        let prepared = match &self.prepared {
            Some(all) if reused => self.prepare(number, &all[number], params).await?,
            _ => None,
        };
        match prepared {
            Some(statement) => {
                let values: Vec<_> = params.iter().map(|(value, _)| *value).collect();
                Ok(self.client.query(statement, &values).await?)
            }
            None => Ok(self.client.query_typed(&self.texts[number], params).await?),
        }
    }

    /// Preparing is a round trip more, which whoever acquires once and releases once would pay in
    /// vain: so from the second use on.
    async fn prepare<'a>(
        &self,
        number: usize,
        prepared: &'a Prepared,
        params: &[Param<'_>],
    ) -> Result<Option<&'a Statement>, Refusal> {
        if !prepared.used.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let types: Vec<Type> = params.iter().map(|(_, of)| of.clone()).collect();
        let prepare = || self.client.prepare_typed(&self.texts[number], &types);
        Ok(Some(prepared.statement.get_or_try_init(prepare).await?))
    }

    /// Run a statement that is not used often.
    pub(super) async fn ask(
        &self,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Refusal> {
        Ok(self.client.query_typed(statement, params).await?)
    }

    /// Whether nobody stands between us and the server.
    pub(super) fn is_direct(&self) -> bool {
        self.prepared.is_some()
    }

    /// Run a script of several statements, as one transaction.
    pub(super) async fn script(&self, script: &str) -> Result<(), Refusal> {
        Ok(self.client.batch_execute(script).await?)
    }
}

/// Connect to the first address of a host that answers.
///
/// Each has its share of the time: a first address that swallows what it is sent must not keep us
/// from the second.
async fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    let share = DIAL / 2 / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (i, address) in addresses.iter().enumerate() {
        let patience = if i + 1 == addresses.len() {
            DIAL
        } else {
            share
        };
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    Ok(())
}

/// Log in, and start the task that drives the connection.
async fn greet<S>(stream: S, link: &Shared) -> Result<(Client, oneshot::Sender<()>), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = link
        .config
        .connect_raw(stream, NoTls)
        .await
        .map_err(|error| {
            let refusal = Refusal::from(error);
            let said = format!("cannot log in to {}: {}", link.address, refusal.said);
            Refusal { said, ..refusal }
        })?;
    let (in_use, unused) = oneshot::channel();
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            // Without its client it ends by itself, but not before every answer has come that it
            // waits for: from a server that is gone none ever does.
            _ = unused => timeout(LINGER, connection).await.unwrap_or(Ok(())),
        };
        if let Err(error) = ended {
            tracing::debug!("connection lost: {}", Refusal::from(error).said);
        }
    });
    Ok((client, in_use))
}

/// What our socket says of the two ends of the connection.
enum Ends {
    Tcp {
        ours: SocketAddr,
        theirs: SocketAddr,
    },
    /// The process that listens at the other end.
    Unix(i32),
}

impl Ends {
    fn of_tcp(stream: &TcpStream) -> Option<Self> {
        Some(Self::Tcp {
            ours: stream.local_addr().ok()?,
            theirs: stream.peer_addr().ok()?,
        })
    }

    /// None where it is in another pid namespace.
    fn of_unix(stream: &UnixStream) -> Option<Self> {
        stream
            .peer_cred()
            .ok()?
            .pid()
            .filter(|pid| *pid > 0)
            .map(Self::Unix)
    }

    /// Whether it is the server itself that is at the other end, and no pooler.
    fn meet(&self, hello: &Hello) -> bool {
        match *self {
            // A pooler on our own host may by chance use the same port as we do, towards another
            // server: so there the other end has to be the same too. Elsewhere it need not be,
            // since address translation changes it (a service in Kubernetes).
            Self::Tcp { ours, theirs } => {
                let same = |a: SocketAddr, b: Option<(IpAddr, u16)>| {
                    b == Some((a.ip().to_canonical(), a.port()))
                };
                same(ours, hello.client) && (ours.ip() != theirs.ip() || same(theirs, hello.server))
            }
            // Every backend is a child of the process that listens.
            Self::Unix(listener) => parent_of(hello.backend) == Some(listener),
        }
    }
}

/// The parent of a process, as Linux tells it.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `PID (NAME) STATE PARENT …`, and the name may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// What a server says of itself.
struct Hello {
    version: i32,
    version_text: String,
    standby: bool,
    read_only: bool,
    client: Option<(IpAddr, u16)>,
    server: Option<(IpAddr, u16)>,
    backend: i32,
}

const HELLO: &str = "
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
           pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean,
           host(inet_client_addr()), inet_client_port(),
           host(inet_server_addr()), inet_server_port(), pg_backend_pid()";

impl Hello {
    async fn say(client: &Client) -> Result<Self, Refusal> {
        let rows = client.query_typed(HELLO, &[]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Refusal::rejected("the server gave no answer", None))?;
        let end = |at: usize| -> Result<_, Refusal> {
            let (ip, port): (Option<&str>, Option<i32>) = (row.try_get(at)?, row.try_get(at + 1)?);
            let ip = ip
                .and_then(|ip| ip.parse::<IpAddr>().ok())
                .map(|ip| ip.to_canonical());
            Ok(ip.zip(port.and_then(|port| u16::try_from(port).ok())))
        };
        Ok(Self {
            version: row.try_get(0)?,
            version_text: row.try_get(1)?,
            standby: row.try_get(2)?,
            read_only: row.try_get(3)?,
            client: end(4)?,
            server: end(6)?,
            backend: row.try_get(8)?,
        })
    }

    /// Whether it is fit to serve us.
    fn check(&self, address: &Address, served: bool) -> Result<(), Refusal> {
        if self.version < OLDEST {
            let said = format!("{address} is PostgreSQL {}", self.version_text);
            return Err(Refusal::rejected(
                said,
                Some("PostgreSQL 12 or later is needed"),
            ));
        }
        let (said, hint) = if self.standby {
            let hint = "locks have to be written: connect to the primary";
            (format!("{address} is a read-only standby"), hint)
        } else if self.read_only {
            let hint = "locks have to be written: set default_transaction_read_only to off for this \
                        role and database, or connect to a primary";
            (
                format!("{address} is read-only (default_transaction_read_only is on)"),
                hint,
            )
        } else {
            return Ok(());
        };
        // Of a server that did serve us this is no mistake in the URL but a failover that goes on:
        // who waits for a lock waits through it.
        Err(if served {
            Refusal::unavailable(said)
        } else {
            Refusal::rejected(said, Some(hint))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(client: &str, server: &str) -> Hello {
        let end = |text: &str| text.parse().ok().map(|a: SocketAddr| (a.ip(), a.port()));
        Hello {
            version: OLDEST,
            version_text: "12.0".into(),
            standby: false,
            read_only: false,
            client: end(client),
            server: end(server),
            backend: 0,
        }
    }

    #[test]
    fn a_connection_is_direct_only_if_the_server_sees_our_own_socket() {
        let meet = |ours: &str, theirs: &str, hello: &Hello| {
            Ends::Tcp {
                ours: ours.parse().unwrap(),
                theirs: theirs.parse().unwrap(),
            }
            .meet(hello)
        };
        let (here, there) = ("10.0.0.1:50000", "10.0.0.2:5432");
        assert!(meet(here, there, &hello(here, there)));
        // Behind a service's address.
        assert!(meet(here, "10.9.9.9:5432", &hello(here, there)));
        // Through a pooler: elsewhere, on this host, on this host with our port by chance.
        assert!(!meet(here, there, &hello("10.0.0.2:40000", there)));
        assert!(!meet(
            "127.0.0.1:50000",
            "127.0.0.1:6432",
            &hello("127.0.0.1:41000", "127.0.0.1:5432")
        ));
        assert!(!meet(
            "127.0.0.1:50000",
            "127.0.0.1:6432",
            &hello("127.0.0.1:50000", "127.0.0.1:5432")
        ));
        // The pooler is at a Unix socket of the server's.
        assert!(!meet(here, there, &hello("", "")));
    }

    #[test]
    fn only_a_server_that_never_served_us_is_refused_for_being_read_only() {
        let address = Address::Tcp("db".into(), 5432);
        let mut standby = hello("", "");
        standby.standby = true;
        assert!(matches!(
            standby.check(&address, false).unwrap_err().kind,
            Kind::Rejected(_)
        ));
        assert_eq!(
            standby.check(&address, true).unwrap_err().kind,
            Kind::Unavailable
        );
    }
}
