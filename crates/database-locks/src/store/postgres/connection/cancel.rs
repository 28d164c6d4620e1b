//! Cancelling the statements of a connection that is no longer used.
//!
//! While a statement waits for a lock, the server does not notice that its client has gone. Behind
//! a long ALTER TABLE each given-up connection would leave a waiting backend, until the server
//! accepts no more clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::closed_by_server::ClosedByServer;

/// The time for an unused connection to receive its remaining answers.
const LINGER: Duration = Duration::from_secs(1);
/// The deadline of a request to cancel, which needs another connection. A pooler closes that connection
/// after it has passed the request on.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(4);
/// A cancelled statement answers at once. After this time the next one runs, since several may have
/// been sent.
const PAUSE: Duration = Duration::from_millis(50);
/// The number of requests to cancel, and their time in all, before the connection is closed in any
/// case.
const TRIES: u32 = 20;
const LONGEST: Duration = Duration::from_secs(5);

/// The address for requests to cancel: the server or pooler of the connection.
pub(crate) enum Route {
    Tcp {
        there: SocketAddr,
        /// With the host name that the certificate is checked for.
        tls: Option<(MakeRustlsConnect, String)>,
    },
    Unix(PathBuf),
}

pub(crate) struct Cancel {
    token: CancelToken,
    route: Route,
}

impl Cancel {
    pub(crate) fn new(token: CancelToken, route: Route) -> Self {
        Self { token, route }
    }

    /// Ask the server to cancel the running statement. The server does not answer whether it did.
    async fn ask(&self) {
        let asked = async {
            match &self.route {
                Route::Tcp { there, tls } => {
                    let stream = ClosedByServer(TcpStream::connect(there).await.ok()?);
                    let asked = match tls {
                        Some((tls, host)) => {
                            let Ok(tls) =
                                MakeTlsConnect::<ClosedByServer<TcpStream>>::make_tls_connect(
                                    &mut tls.clone(),
                                    host,
                                );
                            // Within TLS, and also without it, if the server has none.
                            let tls = ClosedByServer(tls);
                            self.token.cancel_query_raw(stream, tls).await
                        }
                        None => self.token.cancel_query_raw(stream, NoTls).await,
                    };
                    asked.ok()
                }
                Route::Unix(path) => {
                    let stream = ClosedByServer(UnixStream::connect(path).await.ok()?);
                    self.token.cancel_query_raw(stream, NoTls).await.ok()
                }
            }
        };
        let _ = timeout(CANCEL_TIMEOUT, asked).await;
    }
}

/// Drive an unused connection to its end.
///
/// The connection ends by itself once every answer has come. If an answer was `late` already, or
/// does not come, the running statement is cancelled, and then the next one, until none is left. No
/// caller waits for any of them.
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
        let mut pause = Duration::ZERO;
        for _ in 0..TRIES {
            if timeout(pause, connection.as_mut()).await.is_ok() {
                return;
            }
            let mut asked = pin!(cancel.ask());
            tokio::select! {
                () = asked.as_mut() => {}
                // It is not closed before the server or pooler has closed it: see [`ClosedByServer`].
                _ = connection.as_mut() => return asked.await,
            }
            pause = PAUSE;
        }
    };
    let _ = timeout(LONGEST, all).await;
}
