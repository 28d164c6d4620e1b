//! Making a connection: reach the server, log in, and see whether it is fit to serve.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use super::cancel::{Cancel, Way, wind_up};
use super::endpoint::Endpoint;
use crate::runtime::fork::Gated;
use crate::store::connect::hosts::Failure;
use crate::store::connect::url::Address;
use crate::store::postgres::connection::backend_check::{Ends, backend_of_handshake};
use crate::store::postgres::connection::connector::Shared;
use crate::store::postgres::connection::handshake::Hello;
use crate::store::postgres::connection::{Connection, InUse, Prepared};
use crate::store::postgres::error::{Kind, Refusal};
use crate::store::postgres::failover;
use crate::store::postgres::notify::{OwnBackend, Shared as Listener};

/// An idle connection through a firewall or NAT has to show some life, and one whose server has
/// lost its power shall be noticed before it is needed: after 30 s + 3 × 10 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

impl Connection {
    /// Connect to one of the addresses.
    pub(crate) async fn dial(
        (link, of_lane): (&Shared, bool),
        endpoint: &Endpoint,
        at: usize,
        within: Duration,
    ) -> Result<Arc<Self>, Failure<&'static str>> {
        let (address, config) = (&endpoint.addresses()[at], endpoint.config(at));
        let unreachable = |error: io::Error| {
            Refusal::unavailable(format!("cannot connect to {address}: {error}"))
        };
        let settled = |refusal: Refusal| match refusal.kind {
            // What it was logged in with may just have been replaced by something else.
            Kind::Rejected(_) if refusal.is_about_login() && link.may_log_in_later() => {
                Refusal::unavailable(refusal.said).into()
            }
            _ => Failure::from(refusal.settled(link.used.load(Ordering::Relaxed))),
        };
        let late = Arc::new(AtomicBool::new(false));
        // That of the lane hears nothing.
        let listener = match of_lane {
            true => Weak::new(),
            false => Weak::clone(&link.listener),
        };
        let to = (address, &listener);
        let ((client, in_use), ends) = match address {
            Address::Tcp(host, port) => {
                let stream = reach(host, *port, within).await.map_err(unreachable)?;
                let ends = Ends::of_tcp(&stream);
                let way = stream.peer_addr().ok().map(|there| Way::Tcp {
                    there,
                    tls: endpoint.tls.clone().map(|tls| (tls, host.clone())),
                });
                let greeted = match &endpoint.tls {
                    Some(tls) => {
                        let Ok(tls) =
                            MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls.clone(), host);
                        greet(stream, tls, &config, to, way, &late).await
                    }
                    None => greet(stream, NoTls, &config, to, way, &late).await,
                };
                (greeted.map_err(settled)?, ends)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                let ends = Ends::of_unix(&stream);
                let way = Some(Way::Unix(path.into()));
                let greeted = greet(stream, NoTls, &config, to, way, &late).await;
                (greeted.map_err(settled)?, ends)
            }
        };
        // Both at once, in one round trip.
        let (hello, server) =
            tokio::join!(Hello::say(&client, &link.hello), failover::ask(&client));
        let hello = hello.map_err(settled)?;
        hello.check(address, link.has_served())?;
        hello.obeys(address, endpoint.search_path())?;
        failover::no_step_back(address, server, link.latest_server())?;
        let direct = !link.pooled.load(Ordering::Relaxed) && ends.is_some_and(|e| e.meet(&hello));
        // Something in between that passes the whole session on passes the handshake on as well.
        let known =
            direct || backend_of_handshake(client.cancel_token()).await == Some(hello.backend);
        let backend = known.then_some(hello.backend);
        let own = backend.zip(link.listener.upgrade());
        let prepared = direct.then(|| link.texts.iter().map(|_| Prepared::default()).collect());
        let texts = Arc::clone(&link.texts);
        Ok(Arc::new(Self {
            client,
            address: address.clone(),
            texts,
            prepared,
            used: Arc::clone(&link.used),
            backend,
            asked_to_listen: AtomicBool::new(false),
            listens: AtomicBool::new(false),
            unfit: hello.unfit(),
            server,
            late,
            forsaken: watch::Sender::new(false),
            _in_use: in_use,
            _own: own.map(|(backend, listener)| OwnBackend::new(&listener, backend)),
        }))
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
    (address, listener): (&Address, &Weak<Listener>),
    way: Option<Way>,
    late: &Arc<AtomicBool>,
) -> Result<(Client, InUse), Refusal>
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
    let listener = Weak::clone(listener);
    let driver = tokio::spawn(Gated::new(async move {
        let mut driven = std::pin::pin!(drive(connection, Weak::clone(&listener)));
        let ended = tokio::select! {
            biased;
            ended = &mut driven => ended,
            _ = unused => {
                wind_up(driven, cancel, late.load(Ordering::Relaxed)).await;
                Ok(())
            }
        };
        if let Err(error) = ended {
            tracing::debug!("connection lost: {}", Refusal::from(error).said);
        }
        if let Some(listener) = listener.upgrade() {
            listener.ended();
        }
    }));
    Ok((client, InUse::new(in_use, driver)))
}

/// Carry what is sent and answered, and say what is heard, until the connection ends.
async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    listener: Weak<Listener>,
) -> Result<(), tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message? {
            AsyncMessage::Notification(notification) => {
                if let Some(listener) = listener.upgrade() {
                    listener.notified(&notification);
                }
            }
            AsyncMessage::Notice(notice) => {
                tracing::debug!(
                    "the server says: {}: {}",
                    notice.severity(),
                    notice.message()
                );
            }
            _ => {}
        }
    }
    Ok(())
}
