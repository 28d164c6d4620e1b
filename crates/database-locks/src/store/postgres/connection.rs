//! The one connection of a store: made when it is needed, shared by all calls, made anew when it
//! breaks.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::time::timeout;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::cancel::{Cancel, Way, wind_up};
use super::refusal::{Kind, Refusal};
use super::tls::connector;
use crate::error::{Error, Human};
use crate::store::backoff::Backoff;
use crate::store::hosts::{Failure, Verdict, first_of, list};
use crate::store::tls::{Encrypt, Tls};
use crate::store::url::{Address, Binding, Server};
use crate::store::{StoreError, Table, keep_to};

/// How long one attempt to connect may take, name resolution and password check included, and all
/// hosts of the list. Less than the patience of an acquire, whose error then says what it was that
/// did not answer.
const DIAL: Duration = Duration::from_secs(4);

/// How many connections that were given up may still owe answers to others. A table that is locked as
/// a whole makes one each 100 ms, and who waits in it is patient.
const OWING: usize = 4;

/// What a caller that waits for the connection gets on top of the time that it may take.
const AFTERWARDS: Duration = Duration::from_secs(1);

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

/// The way to one server, or to that of several which can be written to: at most one connection at a
/// time, and at most one attempt to make it.
pub(super) struct Link(Arc<Shared>);

/// Without the configuration, which holds the password.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link")
            .field(&list(&self.0.addresses))
            .finish()
    }
}

struct Shared {
    addresses: Vec<Address>,
    /// For how long all of them together are tried.
    dialling: Duration,
    /// What the server has to say that it is, where the URL sets it.
    search_path: Option<String>,
    config: Config,
    /// For what comes in the place of the first one where there is no TLS: a Unix socket.
    local: Config,
    /// None where there shall be no TLS.
    tls: Option<MakeRustlsConnect>,
    hello: String,
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
    /// Which of the addresses served last.
    latest: usize,
    /// It has served us once: what is wrong with it now may be a failover that is going on.
    served: bool,
    /// Those that were given up, the oldest first.
    given_up: VecDeque<Weak<Connection>>,
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
    pub(super) fn new(server: &Server, table: &Table, texts: Vec<String>) -> Result<Self, Error> {
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
        // of the pooler's and stay there: so nothing is set but what the URL says, here or later.
        if let Some(options) = server.settings.start_up() {
            config.options(options);
        }
        config.application_name(server.application.as_deref().unwrap_or("database-locks"));
        config.channel_binding(match server.binding {
            Binding::Disable => ChannelBinding::Disable,
            Binding::Prefer => ChannelBinding::Prefer,
            Binding::Require => ChannelBinding::Require,
        });
        let tls = Tls::new(&server.tls)?;
        let mut local = config.clone();
        local.ssl_mode(SslMode::Disable);
        // With "prefer" the driver goes without only where the server answers that it has no TLS;
        // what is wrong with a certificate ends the attempt.
        config.ssl_mode(match tls.encrypt {
            Encrypt::Never => SslMode::Disable,
            Encrypt::IfOffered => SslMode::Prefer,
            Encrypt::Always => SslMode::Require,
        });
        let tls = match tls.encrypt {
            Encrypt::Never => None,
            Encrypt::IfOffered | Encrypt::Always => Some(connector(&tls)?),
        };
        Ok(Self(Arc::new(Shared {
            addresses: server.addresses.clone(),
            dialling: server.connecting(DIAL),
            search_path: server.settings.get("search_path").map(str::to_owned),
            config,
            local,
            tls,
            hello: table.fill(HELLO),
            texts: texts.into(),
            pooled: AtomicBool::new(false),
            state: Mutex::default(),
        })))
    }

    /// How long a caller waits who wants to know whether there is a connection.
    pub(super) fn patience(&self, within: Duration) -> Duration {
        within.max(self.0.dialling + AFTERWARDS)
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
        self.carry_out(within, false, work).await
    }

    /// The same with work that may rightly take long, whatever becomes of that of others.
    pub(super) async fn on_patiently<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Connection>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Refusal>> + Send,
    {
        self.carry_out(within, true, work).await
    }

    async fn carry_out<T, F>(
        &self,
        within: Duration,
        patient: bool,
        work: impl FnOnce(Arc<Connection>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Refusal>> + Send,
    {
        let (used, mut unconnected) = (OnceLock::new(), false);
        let reply = async {
            let on = self.connected().await?;
            let _ = used.set(Arc::clone(&on));
            let mut forsaken = on.forsaken.subscribe();
            let done = tokio::select! {
                biased;
                done = work(Arc::clone(&on)) => done,
                Ok(_) = forsaken.wait_for(|forsaken| *forsaken), if !patient => {
                    Err(Refusal::unavailable("the connection was given up, and others after it"))
                }
            };
            done.map_err(|refusal| {
                // The next connection looks at the table anew: somebody may have seen to it.
                if matches!(refusal.kind, Kind::Gone | Kind::Pooled) || on.unfit.is_some() {
                    self.retire(&on);
                }
                if refusal.kind == Kind::Pooled {
                    self.0.pooled.store(true, Ordering::Relaxed);
                }
                refusal.into()
            })
        };
        let answer = keep_to(within, reply, || match used.get() {
            Some(on) => self.give_up(on),
            None => unconnected = true,
        })
        .await;
        if unconnected {
            let failure = self.0.state().failure.take();
            let why =
                failure.map_or_else(String::new, |failure| format!("; before that, {failure}"));
            let said = format!(
                "no connection to {} within {}{why}",
                list(&self.0.addresses),
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

    /// An answer did not come in time.
    ///
    /// What hangs is cancelled when nobody waits for an answer any more: others may, who sent theirs
    /// before it. So not too many of them may be waited for.
    fn give_up(&self, on: &Arc<Connection>) {
        on.late.store(true, Ordering::Relaxed);
        self.retire(on);
        let mut state = self.0.state();
        let known = |known: &Weak<_>| known.as_ptr() == Arc::as_ptr(on);
        if !state.given_up.iter().any(known) {
            state.given_up.push_back(Arc::downgrade(on));
        }
        state.given_up.retain(|on| on.strong_count() > 0);
        let forsaken = match state.given_up.len() > OWING {
            true => state.given_up.pop_front().and_then(|on| on.upgrade()),
            false => None,
        };
        drop(state);
        if let Some(forsaken) = forsaken {
            forsaken.forsaken.send_replace(true);
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
    let first = link.state().latest;
    let dialled = first_of(&link.addresses, first, link.dialling, |at, within| {
        Connection::dial(&link, at, within)
    });
    let dialled = match dialled.await {
        Ok((at, on)) => {
            link.state().latest = at;
            tracing::debug!(
                direct = on.prepared.is_some(),
                "connected to {}",
                link.addresses[at]
            );
            Ok(on)
        }
        Err(failure) => Err(Refusal::from(failure)),
    };
    let mut state = link.state();
    match &dialled {
        Ok(on) => {
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
    /// Why the table cannot be used.
    unfit: Option<Refusal>,
    /// An answer did not come in time: once nobody waits for another, what still runs is cancelled.
    late: Arc<AtomicBool>,
    /// Nobody shall wait for it any longer.
    forsaken: watch::Sender<bool>,
    /// Dropped with the last user, and so tells the driver.
    _in_use: oneshot::Sender<()>,
}

#[derive(Default)]
struct Prepared {
    used: AtomicBool,
    statement: OnceCell<Statement>,
}

impl Connection {
    /// Connect to one of the addresses.
    async fn dial(
        link: &Shared,
        at: usize,
        within: Duration,
    ) -> Result<Arc<Self>, Failure<&'static str>> {
        let address = &link.addresses[at];
        let unreachable = |error: io::Error| {
            Refusal::unavailable(format!("cannot connect to {address}: {error}"))
        };
        let late = Arc::new(AtomicBool::new(false));
        let ((client, in_use), ends) = match address {
            Address::Tcp(host, port) => {
                let stream = reach(host, *port, within).await.map_err(unreachable)?;
                let ends = Ends::of_tcp(&stream);
                let way = stream.peer_addr().ok().map(|there| Way::Tcp {
                    there,
                    tls: link.tls.clone().map(|tls| (tls, host.clone())),
                });
                let greeted = match &link.tls {
                    Some(tls) => {
                        let Ok(tls) =
                            MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls.clone(), host);
                        greet(stream, tls, &link.config, address, way, &late).await?
                    }
                    None => greet(stream, NoTls, &link.config, address, way, &late).await?,
                };
                (greeted, ends)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                let ends = Ends::of_unix(&stream);
                let way = Some(Way::Unix(path.into()));
                let greeted = greet(stream, NoTls, &link.local, address, way, &late).await?;
                (greeted, ends)
            }
        };
        let hello = Hello::say(&client, &link.hello).await?;
        hello.check(address, link.state().served)?;
        hello.obeys(address, link.search_path.as_deref())?;
        let direct = !link.pooled.load(Ordering::Relaxed) && ends.is_some_and(|e| e.meet(&hello));
        let prepared = direct.then(|| link.texts.iter().map(|_| Prepared::default()).collect());
        let texts = Arc::clone(&link.texts);
        Ok(Arc::new(Self {
            client,
            texts,
            prepared,
            unfit: hello.unfit(),
            late,
            forsaken: watch::Sender::new(false),
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
        if let Some(unfit) = &self.unfit {
            return Err(unfit.clone());
        }
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

    /// Run a script of several statements, as one transaction. That may make the table, or fit.
    pub(super) async fn script(&self, script: &str) -> Result<(), Refusal> {
        Ok(self.client.batch_execute(script).await?)
    }
}

/// Connect to the first address of a host that answers.
///
/// Each has its share of the time: a first address that swallows what it is sent must not keep us
/// from the second.
async fn reach(host: &str, port: u16, within: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    let share = within / 2 / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (i, address) in addresses.iter().enumerate() {
        let patience = if i + 1 == addresses.len() {
            within
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
async fn greet<S, T>(
    stream: S,
    tls: T,
    config: &Config,
    address: &Address,
    way: Option<Way>,
    late: &Arc<AtomicBool>,
) -> Result<(Client, oneshot::Sender<()>), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: TlsConnect<S>,
    T::Stream: Send + 'static,
{
    let (client, connection) = config.connect_raw(stream, tls).await.map_err(|error| {
        let refusal = Refusal::from(error);
        let said = format!("cannot log in to {address}: {}", refusal.said);
        Refusal { said, ..refusal }
    })?;
    let cancel = way.map(|way| Cancel::new(client.cancel_token(), way));
    let late = Arc::clone(late);
    let (in_use, unused) = oneshot::channel();
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            _ = unused => {
                wind_up(connection, cancel, late.load(Ordering::Relaxed)).await;
                Ok(())
            }
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

/// What a server says of itself, and of the table if it is there.
struct Hello {
    version: i32,
    version_text: String,
    standby: bool,
    read_only: bool,
    client: Option<(IpAddr, u16)>,
    server: Option<(IpAddr, u16)>,
    backend: i32,
    persistence: Option<String>,
    /// Type and collation of the column `name`.
    name: Option<Vec<i64>>,
    /// Whether that collation tells all names apart.
    exact: bool,
    search_path: String,
}

/// One statement, since each is a round trip. Of the table only what two plain look-ups tell: on a new
/// connection the server has to read its catalogue for everything else, at up to 1 ms each.
const HELLO: &str = "
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
           pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean,
           host(inet_client_addr()), inet_client_port(),
           host(inet_server_addr()), inet_server_port(), pg_backend_pid(),
           (SELECT relpersistence::text FROM pg_class WHERE oid = to_regclass('{table}')),
           (SELECT ARRAY[atttypid, attcollation]::bigint[] FROM pg_attribute
             WHERE attrelid = to_regclass('{table}') AND attname = 'name'),
           current_setting('search_path')";

/// The types `text` and `varchar`: `char` pads, and `citext` and others fold case.
const TEXTS: [i64; 2] = [25, 1043];
/// The collations of the database, `C` and `POSIX`, which tell all names apart. Of others it depends.
const EXACT: [i64; 3] = [100, 950, 951];
/// By way of JSON: before version 12, which shall be told that it is too old, there was no such column.
const DETERMINISTIC: &str = "
    SELECT coalesce((to_jsonb(c) ->> 'collisdeterministic')::boolean, true)
      FROM pg_collation c WHERE oid = $1::bigint::oid";

impl Hello {
    async fn say(client: &Client, text: &str) -> Result<Self, Refusal> {
        let rows = match client.query_typed(text, &[]).await {
            // The schema may not be looked into: that is for the statements to tell, and for the
            // doctor. The server itself can be looked at all the same.
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let without = HELLO.replace("{table}", "pg_catalog.no_table_of_locks");
                client.query_typed(&without, &[]).await?
            }
            rows => rows?,
        };
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
        let name: Option<Vec<i64>> = row.try_get(10)?;
        let exact = match name.as_deref() {
            Some([of, collation]) if TEXTS.contains(of) && !EXACT.contains(collation) => {
                let params: [Param<'_>; 1] = [(collation, Type::INT8)];
                let rows = client.query_typed(DETERMINISTIC, &params).await?;
                rows.first().map_or(Ok(true), |row| row.try_get(0))?
            }
            _ => true,
        };
        Ok(Self {
            version: row.try_get(0)?,
            version_text: row.try_get(1)?,
            standby: row.try_get(2)?,
            read_only: row.try_get(3)?,
            client: end(4)?,
            server: end(6)?,
            backend: row.try_get(8)?,
            persistence: row.try_get(9)?,
            name,
            exact,
            search_path: row.try_get(11)?,
        })
    }

    /// A pooler may pass over what we set at the start: then the table would be another one than the
    /// one that was meant, and its locks would exclude nobody.
    fn obeys(
        &self,
        address: &Address,
        search_path: Option<&str>,
    ) -> Result<(), Failure<&'static str>> {
        match search_path {
            Some(wanted) if wanted != self.search_path => Err(Failure {
                verdict: Verdict::Refused,
                said: format!(
                    "{address} looks for tables in {}, whatever the URL says",
                    self.search_path
                ),
                hint: Some(super::refusal::POOLER),
            }),
            _ => Ok(()),
        }
    }

    /// Whether it is fit to serve us.
    fn check(&self, address: &Address, served: bool) -> Result<(), Failure<&'static str>> {
        if self.version < OLDEST {
            return Err(Failure {
                verdict: Verdict::Refused,
                said: format!("{address} is PostgreSQL {}", self.version_text),
                hint: Some("PostgreSQL 12 or later is needed"),
            });
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
        Err(match served {
            true => Refusal::unavailable(said).into(),
            false => Failure {
                verdict: Verdict::ReadOnly,
                said,
                hint: Some(hint),
            },
        })
    }

    /// Why the table, of which a server may be fit for the rest, cannot hold locks.
    ///
    /// What is lacking in it is told by the statements themselves; this is what would go unnoticed.
    fn unfit(&self) -> Option<Refusal> {
        let of = self.name.as_ref().and_then(|name| name.first());
        let (said, hint) = match self.persistence.as_deref() {
            Some("u") => (
                "the table is UNLOGGED: a crash of the server would forget who holds what",
                "ALTER TABLE … SET LOGGED",
            ),
            Some("t") => (
                "the table is TEMPORARY: nobody else can see it",
                "drop it, and make one with `dblock init` or `locks.migrate()`",
            ),
            _ if of.is_some_and(|of| !TEXTS.contains(of)) => (
                "the column name is neither varchar nor text: two names could be one lock",
                "ALTER TABLE … ALTER COLUMN name TYPE varchar(255)",
            ),
            _ if !self.exact => (
                "the column name has a nondeterministic collation: two names could be one lock",
                "ALTER TABLE … ALTER COLUMN name TYPE varchar(255) COLLATE \"C\"",
            ),
            _ => return None,
        };
        Some(Refusal::rejected(said, Some(hint)))
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
            persistence: None,
            name: None,
            exact: true,
            search_path: "public".into(),
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
        let verdict = |served| standby.check(&address, served).unwrap_err().verdict;
        assert_eq!(verdict(false), Verdict::ReadOnly);
        assert_eq!(verdict(true), Verdict::Unavailable);
    }

    #[test]
    fn a_search_path_that_did_not_arrive_is_refused() {
        let address = Address::Tcp("pooler".into(), 6432);
        let hello = hello("", "");
        assert!(hello.obeys(&address, None).is_ok());
        assert!(hello.obeys(&address, Some("public")).is_ok());
        let failure = hello.obeys(&address, Some("app, public")).unwrap_err();
        assert_eq!(failure.verdict, Verdict::Refused);
        assert_eq!(
            failure.said,
            "pooler:6432 looks for tables in public, whatever the URL says"
        );
    }

    #[test]
    fn an_old_version_is_refused_with_its_number() {
        let mut old = hello("", "");
        (old.version, old.version_text) = (110_022, "11.22 (Debian)".into());
        let failure = old
            .check(&Address::Tcp("db".into(), 5432), true)
            .unwrap_err();
        assert_eq!(failure.verdict, Verdict::Refused);
        assert_eq!(failure.said, "db:5432 is PostgreSQL 11.22 (Debian)");
    }
}
