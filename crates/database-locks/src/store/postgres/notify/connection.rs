//! The connection that listens: which one can, and how that is known.
//!
//! A pooler that hands out its connections by transaction takes a LISTEN as any other statement: it
//! stays behind on some connection of the pooler's, and notifications go to the client that has that one
//! next. So LISTEN is sent only on a connection that is known to lead to one backend.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::oneshot;
use tokio_postgres::CancelToken;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::types::Type;

use super::super::connection::{Connection, Param};
use super::super::refusal::Refusal;
use super::Shared;

/// How long a notification from the one connection may take to the other.
const PROOF: Duration = Duration::from_secs(2);
/// How long the second connection may take, and a statement on it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which table of this database it is, for the channel's name.
pub(in crate::store::postgres) const ABOUT: &str = "SELECT to_regclass('{table}')::oid::bigint";

/// A connection that listens.
pub(super) struct Subscription {
    pub(super) on: Arc<Connection>,
    /// It is also the one that carries out all other statements.
    pub(super) direct: bool,
    table: i64,
}

/// Why notifications cannot be heard.
pub(in crate::store::postgres) struct Unsupported {
    pub(in crate::store::postgres) said: String,
    /// As long as the connection lasts.
    pub(super) for_good: bool,
}

impl Unsupported {
    fn for_now(said: impl Into<String>) -> Self {
        let (said, for_good) = (said.into(), false);
        Self { said, for_good }
    }

    fn for_good(said: impl Into<String>) -> Self {
        let (said, for_good) = (said.into(), true);
        Self { said, for_good }
    }
}

impl From<Refusal> for Unsupported {
    fn from(refusal: Refusal) -> Self {
        Self::for_now(refusal.said)
    }
}

async fn table(on: &Connection, about: &str) -> Result<i64, Unsupported> {
    let rows = on.ask(about, &[]).await?;
    let row = rows.first();
    let row = row.ok_or_else(|| Unsupported::for_now("the server gave no answer"))?;
    let table: Option<i64> = row.try_get(0).map_err(Refusal::from)?;
    table.ok_or_else(|| Unsupported::for_now("there is no such table"))
}

/// Find a connection that hears, and listen there.
pub(super) async fn listen(
    listener: &Shared,
    main: &Arc<Connection>,
) -> Result<Subscription, Unsupported> {
    let found = find(listener, main).await?;
    let channel = format!("database_locks_{}", found.table);
    found.on.script(&format!("LISTEN {channel}")).await?;
    Ok(found)
}

/// Find a connection that hears.
pub(super) async fn find(
    listener: &Shared,
    main: &Arc<Connection>,
) -> Result<Subscription, Unsupported> {
    let number = table(main, &listener.about).await?;
    if main.backend.is_some() {
        return Ok(Subscription {
            on: Arc::clone(main),
            direct: true,
            table: number,
        });
    }
    let Some(link) = &listener.second else {
        let said = "the connection is not direct, and the URL has no listen_url";
        return Err(Unsupported::for_good(said));
    };
    let second = link.on(PATIENCE, |on| async move { Ok(on) }).await;
    let second =
        second.map_err(|failure| Unsupported::for_now(format!("listen_url: {failure}")))?;
    let there = table(&second, &listener.about)
        .await
        .map_err(|unsupported| Unsupported::for_now(format!("listen_url: {}", unsupported.said)))?;
    if second.backend.is_none() {
        return Err(Unsupported::for_good(
            "listen_url leads through a pooler or proxy as well",
        ));
    }
    if there != number {
        return Err(Unsupported::for_good(
            "listen_url leads to another table or database than the URL itself",
        ));
    }
    prove(listener, main, &second).await?;
    Ok(Subscription {
        on: second,
        direct: false,
        table: number,
    })
}

/// Notify on the one connection, and hear it on the other: so both lead to one database.
async fn prove(
    listener: &Shared,
    main: &Connection,
    second: &Connection,
) -> Result<(), Unsupported> {
    let channel = format!("database_locks_proof_{:032x}", fastrand::u128(..));
    second.script(&format!("LISTEN {channel}")).await?;
    let (sender, heard) = oneshot::channel();
    listener.state().proofs.insert(channel.clone(), sender);
    let params: [Param<'_>; 1] = [(&channel, Type::TEXT)];
    let sent = main.ask("SELECT pg_notify($1, '')", &params).await;
    let heard = tokio::time::timeout(PROOF, heard).await;
    listener.state().proofs.remove(&channel);
    second.script(&format!("UNLISTEN {channel}")).await?;
    sent?;
    match heard {
        Ok(Ok(())) => Ok(()),
        _ => Err(Unsupported::for_good(
            "listen_url leads to another database or server than the URL itself",
        )),
    }
}

/// The backend that greeted us. The driver keeps that to itself, but writes it into a request to cancel.
///
/// A pooler greets with a number of its own.
pub(in crate::store::postgres) async fn backend_of_handshake(token: CancelToken) -> Option<i32> {
    let (theirs, mut ours) = tokio::io::duplex(64);
    let asked = token.cancel_query_raw(theirs, Plain);
    let read = async {
        loop {
            let length = ours.read_u32().await.ok()?;
            let code = ours.read_u32().await.ok()?;
            match (length, code) {
                // It asks for TLS.
                (8, 80_877_103) => ours.write_all(b"S").await.ok()?,
                (16, 80_877_102) => return ours.read_i32().await.ok(),
                _ => return None,
            }
        }
    };
    let (_, pid) = tokio::join!(asked, read);
    pid
}

/// What stands for TLS there: nothing leaves this process.
struct Plain;

struct Unprotected(DuplexStream);

impl TlsConnect<DuplexStream> for Plain {
    type Stream = Unprotected;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Unprotected, Self::Error>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        std::future::ready(Ok(Unprotected(stream)))
    }
}

impl TlsStream for Unprotected {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Unprotected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unprotected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
