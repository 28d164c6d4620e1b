//! Making a connection: reach the server, log in, and check it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::backend_check::{SocketEnds, backend_of_login};
use super::cancel::{Cancel, Route, wind_up};
use super::config::ServerConfig;
use super::events::{Events, OwnBackend};
use super::handshake::Handshake;
use super::server::Server;
use super::session::{InUse, Session};
use crate::runtime::fork::ForkSafeFuture;
use crate::store::connect::hosts::ConnectFailure;
use crate::store::connect::url::Address;
use crate::store::postgres::error::{Kind, ServerError};
use crate::store::postgres::failover;

/// TCP keepalive: a firewall or NAT keeps an idle connection, and a dead server is noticed after 30
/// s + 3 × 10 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// Connect to one of the hosts. Without `events` notifications are not reported.
pub(crate) async fn dial(
    server: &Server,
    events: Option<Arc<Events>>,
    config: &ServerConfig,
    (at, within): (usize, Duration),
) -> Result<Arc<Session>, ConnectFailure> {
    let settled = |error: ServerError| match error.kind {
        // The password may have been changed since it was read.
        Kind::Rejected(_) if error.is_about_login() && server.connector.may_log_in_later() => {
            ServerError::unavailable(error.message).into()
        }
        _ => ConnectFailure::from(error.settled(server.was_used())),
    };
    let address = &config.addresses()[at];
    let late = Arc::new(AtomicBool::new(false));
    let login = Login {
        config,
        at,
        events,
        late: Arc::clone(&late),
    };
    let (client, in_use, ends) = login.log_in(within).await.map_err(settled)?;
    // Both queries take one round trip.
    let (handshake, primary) = tokio::join!(
        Handshake::ask(&client, &server.handshake),
        failover::ask(&client)
    );
    let handshake = handshake.map_err(settled)?;
    handshake.check(address, server.connector.has_served())?;
    handshake.check_search_path(address, config.search_path())?;
    failover::no_step_back(address, primary, server.latest_primary())?;
    let is_unpooled = !server.pooled.load(Ordering::Relaxed)
        && ends.is_some_and(|ends| ends.match_server(&handshake));
    // A proxy that forwards the whole session forwards the login as well.
    let known =
        is_unpooled || backend_of_login(client.cancel_token()).await == Some(handshake.backend);
    let backend = known.then_some(handshake.backend);
    Ok(Arc::new(Session {
        client,
        address: address.clone(),
        statements: server.statements(),
        is_unpooled,
        used: Arc::clone(&server.used),
        permits_used: AtomicBool::new(false),
        table_error: handshake.table_error(),
        backend,
        asked_to_listen: AtomicBool::new(false),
        listens: AtomicBool::new(false),
        primary,
        late,
        abandoned: watch::Sender::new(false),
        _in_use: in_use,
        _own_backend: backend.map(|pid| OwnBackend::new(&server.events, pid)),
    }))
}

/// A login to one of the hosts.
struct Login<'a> {
    config: &'a ServerConfig,
    at: usize,
    events: Option<Arc<Events>>,
    late: Arc<AtomicBool>,
}

impl Login<'_> {
    async fn log_in(
        self,
        within: Duration,
    ) -> Result<(Client, InUse, Option<SocketEnds>), ServerError> {
        let address = &self.config.addresses()[self.at];
        let unreachable = |error: io::Error| {
            ServerError::unavailable(format!("cannot connect to {address}: {error}"))
        };
        let ((client, in_use), ends) = match address {
            Address::Tcp(host, port) => {
                let stream = connect_tcp(host, *port, within)
                    .await
                    .map_err(unreachable)?;
                let ends = SocketEnds::of_tcp(&stream);
                let tls = self.config.tls.clone();
                let route = stream.peer_addr().ok().map(|there| Route::Tcp {
                    there,
                    tls: tls.clone().map(|tls| (tls, host.clone())),
                });
                let begun = match tls {
                    Some(mut tls) => {
                        let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, host);
                        self.begin(stream, tls, route).await?
                    }
                    None => self.begin(stream, NoTls, route).await?,
                };
                (begun, ends)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                let ends = SocketEnds::of_unix(&stream);
                let route = Some(Route::Unix(path.into()));
                (self.begin(stream, NoTls, route).await?, ends)
            }
        };
        Ok((client, in_use, ends))
    }

    /// Log in over this stream, and spawn the task that drives the connection.
    async fn begin<S, T>(
        &self,
        stream: S,
        tls: T,
        route: Option<Route>,
    ) -> Result<(Client, InUse), ServerError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: TlsConnect<S>,
        T::Stream: Send + 'static,
    {
        let config = self.config.driver_config(self.at);
        let logged_in = config.connect_raw(stream, tls).await;
        let (client, connection) = logged_in.map_err(|error| {
            let error = ServerError::from(error);
            let address = &self.config.addresses()[self.at];
            let message = format!("cannot log in to {address}: {}", error.message);
            ServerError { message, ..error }
        })?;
        let cancel = route.map(|route| Cancel::new(client.cancel_token(), route));
        let (late, events) = (Arc::clone(&self.late), self.events.clone());
        let (in_use, unused) = oneshot::channel();
        let driver = tokio::spawn(ForkSafeFuture::new(async move {
            let mut driven = std::pin::pin!(drive(connection, events.as_deref()));
            let ended = tokio::select! {
                biased;
                ended = &mut driven => ended,
                _ = unused => {
                    wind_up(driven, cancel, late.load(Ordering::Relaxed)).await;
                    Ok(())
                }
            };
            if let Err(error) = ended {
                tracing::debug!("connection lost: {}", ServerError::from(error).message);
            }
            if let Some(events) = &events {
                events.ended();
            }
        }));
        Ok((client, InUse::new(in_use, driver)))
    }
}

/// Connect to the first address of a host that answers.
///
/// Each address has a share of the time, so that one that never answers does not keep the next from
/// being tried.
async fn connect_tcp(host: &str, port: u16, within: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    let share = within / 2 / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (i, address) in addresses.iter().enumerate() {
        let limit = match i + 1 == addresses.len() {
            true => within,
            false => share,
        };
        match timeout(limit, TcpStream::connect(address)).await {
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

/// Drive the connection until it ends, and report notifications.
async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    events: Option<&Events>,
) -> Result<(), tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message? {
            AsyncMessage::Notification(notification) => {
                if let Some(events) = events {
                    events.notified(&notification);
                }
            }
            AsyncMessage::Notice(notice) => {
                tracing::debug!(
                    "notice of the server: {}: {}",
                    notice.severity(),
                    notice.message()
                );
            }
            _ => {}
        }
    }
    Ok(())
}
