//! A stream that the server closes first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// A stream whose shutdown waits until the server has closed it; or a maker of such streams.
///
/// The driver closes the connection of a request to cancel as soon as the request is sent. PgBouncer up to
/// 1.19 ends with `bad client state: 0` if it finds that connection closed before it has passed the request
/// on (<https://github.com/pgbouncer/pgbouncer/issues/801>), and with it all of its clients. libpq waits
/// too.
pub(crate) struct ClosedByServer<T>(pub(crate) T);

impl<T: AsyncRead + Unpin> AsyncRead for ClosedByServer<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClosedByServer<T> {
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
        let mut bytes = [0; 16];
        loop {
            let mut read = ReadBuf::new(&mut bytes);
            let end = ready!(Pin::new(&mut self.0).poll_read(cx, &mut read));
            if end.is_err() || read.filled().is_empty() {
                return Pin::new(&mut self.0).poll_shutdown(cx);
            }
        }
    }
}

/// No request to cancel logs in.
impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream for ClosedByServer<T> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S, C> TlsConnect<S> for ClosedByServer<C>
where
    C: TlsConnect<S>,
    C::Future: Send + 'static,
{
    type Stream = ClosedByServer<C::Stream>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, C::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connected = self.0.connect(stream);
        Box::pin(async move { connected.await.map(ClosedByServer) })
    }
}
