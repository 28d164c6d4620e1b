//! Which connection can hear bells, and whether it is in earnest.
//!
//! A pooler that hands out its connections by transaction takes a LISTEN as any other statement: it
//! stays behind on some connection of its own, and what rings there is heard by whoever has that one
//! next. So nobody listens but on a connection that is known to lead to one backend.

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

/// How long a ring from the one connection may take to the other.
const PROOF: Duration = Duration::from_secs(2);
/// How long the second connection may take, and a statement on it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which table of this database it is, for the channel's name, and which backend answers.
pub(in crate::store::postgres) const ABOUT: &str =
    "SELECT to_regclass('{table}')::oid::bigint, pg_backend_pid()";

/// A connection that hears.
pub(super) struct Ear {
    pub(super) on: Arc<Connection>,
    /// The backend, where it is also the one that carries out all other statements.
    pub(super) own: Option<i32>,
}

/// Why nothing can be heard.
pub(in crate::store::postgres) struct Deaf {
    pub(in crate::store::postgres) said: String,
    /// As long as the connection lasts.
    pub(super) for_good: bool,
}

impl Deaf {
    fn for_now(said: impl Into<String>) -> Self {
        let (said, for_good) = (said.into(), false);
        Self { said, for_good }
    }

    fn for_good(said: impl Into<String>) -> Self {
        let (said, for_good) = (said.into(), true);
        Self { said, for_good }
    }
}

impl From<Refusal> for Deaf {
    fn from(refusal: Refusal) -> Self {
        Self::for_now(refusal.said)
    }
}

/// What a connection is to the table.
struct About {
    table: i64,
    backend: i32,
    /// That backend and no other carries out all its statements.
    one_backend: bool,
}

impl About {
    async fn of(on: &Connection, text: &str) -> Result<Self, Deaf> {
        let rows = on.ask(text, &[]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Deaf::for_now("the server gave no answer"))?;
        let (table, backend) = (row.try_get(0), row.try_get(1));
        let table: Option<i64> = table.map_err(Refusal::from)?;
        let backend = backend.map_err(Refusal::from)?;
        Ok(Self {
            table: table.ok_or_else(|| Deaf::for_now("there is no such table"))?,
            backend,
            one_backend: on.is_direct()
                || backend_of_handshake(on.cancel_token()).await == Some(backend),
        })
    }
}

/// Find a connection that hears, and listen there.
pub(super) async fn arrange(bells: &Shared, main: &Arc<Connection>) -> Result<Ear, Deaf> {
    let ear = find(bells, main).await?;
    let about = About::of(&ear.on, &bells.about).await?;
    ear.on
        .script(&format!("LISTEN {}", channel(about.table)))
        .await?;
    Ok(ear)
}

fn channel(table: i64) -> String {
    format!("database_locks_{table}")
}

/// Find a connection that hears.
pub(super) async fn find(bells: &Shared, main: &Arc<Connection>) -> Result<Ear, Deaf> {
    let about = About::of(main, &bells.about).await?;
    if about.one_backend {
        let (on, own) = (Arc::clone(main), Some(about.backend));
        return Ok(Ear { on, own });
    }
    let Some(link) = &bells.ear else {
        let said = "the connection is not direct, and the URL has no listen_url";
        return Err(Deaf::for_good(said));
    };
    let second = link.on(PATIENCE, |on| async move { Ok(on) }).await;
    let second = second.map_err(|failure| Deaf::for_now(format!("listen_url: {failure}")))?;
    let there = About::of(&second, &bells.about)
        .await
        .map_err(|deaf| Deaf::for_now(format!("listen_url: {}", deaf.said)))?;
    if !there.one_backend {
        return Err(Deaf::for_good(
            "listen_url leads through a pooler or proxy as well",
        ));
    }
    if there.table != about.table {
        return Err(Deaf::for_good(
            "listen_url leads to another table or database than the URL itself",
        ));
    }
    prove(bells, main, &second).await?;
    Ok(Ear {
        on: second,
        own: None,
    })
}

/// Ring on the one connection, and hear it on the other: so both lead to one database.
async fn prove(bells: &Shared, main: &Connection, ear: &Connection) -> Result<(), Deaf> {
    let channel = format!("database_locks_proof_{:032x}", fastrand::u128(..));
    ear.script(&format!("LISTEN {channel}")).await?;
    let (sender, heard) = oneshot::channel();
    bells.posts().proofs.insert(channel.clone(), sender);
    let params: [Param<'_>; 1] = [(&channel, Type::TEXT)];
    let rung = main.ask("SELECT pg_notify($1, '')", &params).await;
    let heard = tokio::time::timeout(PROOF, heard).await;
    bells.posts().proofs.remove(&channel);
    ear.script(&format!("UNLISTEN {channel}")).await?;
    rung?;
    match heard {
        Ok(Ok(())) => Ok(()),
        _ => Err(Deaf::for_good(
            "listen_url leads to another database or server than the URL itself",
        )),
    }
}

/// The backend that greeted us. The driver keeps that to itself, but writes it into a request to cancel.
///
/// A pooler greets with a number of its own.
pub(in super::super) async fn backend_of_handshake(token: CancelToken) -> Option<i32> {
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
