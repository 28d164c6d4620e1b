//! Detects whether a connection leads to the server itself or to a pooler.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::CancelToken;
use tokio_postgres::tls::TlsConnect;

use super::closed_by_server::ClosedByServer;
use super::handshake::Handshake;

/// The two ends of the connection, as the local socket has them.
pub(crate) enum SocketEnds {
    Tcp {
        ours: SocketAddr,
        theirs: SocketAddr,
    },
    /// The process that listens at the other end.
    Unix(i32),
}

impl SocketEnds {
    pub(crate) fn of_tcp(stream: &TcpStream) -> Option<Self> {
        Some(Self::Tcp {
            ours: stream.local_addr().ok()?,
            theirs: stream.peer_addr().ok()?,
        })
    }

    /// `None` if the peer is in another pid namespace.
    pub(crate) fn of_unix(stream: &UnixStream) -> Option<Self> {
        stream
            .peer_cred()
            .ok()?
            .pid()
            .filter(|pid| *pid > 0)
            .map(Self::Unix)
    }

    /// Whether the server sees the same two ends, so that there is no pooler in between.
    pub(crate) fn match_server(&self, handshake: &Handshake) -> bool {
        match *self {
            // A pooler on this host may by chance use the same local port towards another server,
            // so on this host both ends have to match. Elsewhere address translation may change the
            // other end (a service in Kubernetes).
            Self::Tcp { ours, theirs } => {
                let same = |a: SocketAddr, b: Option<(IpAddr, u16)>| {
                    b == Some((a.ip().to_canonical(), a.port()))
                };
                same(ours, handshake.client)
                    && (ours.ip() != theirs.ip() || same(theirs, handshake.server))
            }
            // Every backend is a child of the listening process.
            Self::Unix(listener) => parent_of(handshake.backend) == Some(listener),
        }
    }
}

/// The parent of a process, on Linux.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `PID (NAME) STATE PARENT …`, where the name may contain any character.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The backend that the server named at the login. The driver has no method for it, but writes it
/// into a request to cancel.
///
/// A pooler names another number.
pub(crate) async fn backend_of_login(token: CancelToken) -> Option<i32> {
    let (theirs, mut ours) = tokio::io::duplex(64);
    let asked = token.cancel_query_raw(theirs, Plain);
    // Its end closes the stream, which the request waits for.
    let read = async move {
        loop {
            let length = ours.read_u32().await.ok()?;
            let code = ours.read_u32().await.ok()?;
            match (length, code) {
                // A request for TLS.
                (8, 80_877_103) => ours.write_all(b"S").await.ok()?,
                (16, 80_877_102) => return ours.read_i32().await.ok(),
                _ => return None,
            }
        }
    };
    let (_, pid) = tokio::join!(asked, read);
    pid
}

/// A stand-in for TLS, since the bytes do not leave this process.
struct Plain;

impl TlsConnect<DuplexStream> for Plain {
    type Stream = ClosedByServer<DuplexStream>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Stream, Infallible>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        ready(Ok(ClosedByServer(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::connection::handshake::tests::handshake;

    #[test]
    fn a_connection_is_direct_only_if_the_server_sees_our_own_socket() {
        let meet = |ours: &str, theirs: &str, seen: &Handshake| {
            SocketEnds::Tcp {
                ours: ours.parse().unwrap(),
                theirs: theirs.parse().unwrap(),
            }
            .match_server(seen)
        };
        let (here, there) = ("10.0.0.1:50000", "10.0.0.2:5432");
        assert!(meet(here, there, &handshake(here, there)));
        // Behind a service's address.
        assert!(meet(here, "10.9.9.9:5432", &handshake(here, there)));
        // Through a pooler: elsewhere, on this host, on this host with our port by chance.
        assert!(!meet(here, there, &handshake("10.0.0.2:40000", there)));
        assert!(!meet(
            "127.0.0.1:50000",
            "127.0.0.1:6432",
            &handshake("127.0.0.1:41000", "127.0.0.1:5432")
        ));
        assert!(!meet(
            "127.0.0.1:50000",
            "127.0.0.1:6432",
            &handshake("127.0.0.1:50000", "127.0.0.1:5432")
        ));
        // The pooler is at a Unix socket of the server's.
        assert!(!meet(here, there, &handshake("", "")));
    }
}
