//! Ending what still runs on a connection that nobody uses any more.
//!
//! A server does not look after its client while a statement of his waits for a lock: behind a long
//! ALTER TABLE each connection that is given up would leave a process waiting, until the server has
//! no more of them for anybody.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection that nobody uses any more may take to send what was left to it.
const LINGER: Duration = Duration::from_secs(1);
/// How long a request to cancel may take; it is a connection of its own.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is cancelled answers at once; after that time it is the turn of the next statement, for more
/// than one may have been sent ahead.
const PAUSE: Duration = Duration::from_millis(50);
/// How often, and for how long in all: then the connection is closed, whatever the server does.
const TRIES: u32 = 20;
const LONGEST: Duration = Duration::from_secs(5);

/// Where a request to cancel goes: the same server, or the same pooler, as the connection.
pub(crate) enum Way {
    Tcp {
        there: SocketAddr,
        /// With the name that the certificate is checked for.
        tls: Option<(MakeRustlsConnect, String)>,
    },
    Unix(PathBuf),
}

pub(crate) struct Cancel {
    token: CancelToken,
    way: Way,
}

impl Cancel {
    pub(crate) fn new(token: CancelToken, way: Way) -> Self {
        Self { token, way }
    }

    /// Ask the server to cancel what the connection runs just now. It tells nobody whether it did.
    async fn ask(&self) {
        let asked = async {
            match &self.way {
                Way::Tcp { there, tls } => {
                    let stream = TcpStream::connect(there).await.ok()?;
                    let asked = match tls {
                        Some((tls, host)) => {
                            let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(
                                &mut tls.clone(),
                                host,
                            );
                            self.token.cancel_query_raw(stream, tls).await
                        }
                        None => self.token.cancel_query_raw(stream, NoTls).await,
                    };
                    asked.ok()
                }
                Way::Unix(path) => {
                    let stream = UnixStream::connect(path).await.ok()?;
                    self.token.cancel_query_raw(stream, NoTls).await.ok()
                }
            }
        };
        let _ = timeout(PATIENCE, asked).await;
    }
}

/// Drive a connection to its end, for which nobody waits any more.
///
/// It ends by itself once every answer has come that was asked for. Where one was `late` already, or
/// does not come, what runs is cancelled, again and again until nothing is left: none of it can be a
/// statement whose answer somebody wants.
pub(crate) async fn wind_up<E>(
    mut connection: Pin<&mut impl Future<Output = Result<(), E>>>,
    cancel: Option<Cancel>,
    late: bool,
) {
    if !late && timeout(LINGER, connection.as_mut()).await.is_ok() {
        return;
    }
    let Some(cancel) = cancel else { return };
    let all = async {
        for _ in 0..TRIES {
            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                () = cancel.ask() => {}
            }
            if timeout(PAUSE, connection.as_mut()).await.is_ok() {
                return;
            }
        }
    };
    let _ = timeout(LONGEST, all).await;
}
