//! Whether the server itself is at the other end of a connection, or somebody in between.

use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpStream, UnixStream};

use super::hello::Hello;

/// What our socket says of the two ends of the connection.
pub(super) enum Ends {
    Tcp {
        ours: SocketAddr,
        theirs: SocketAddr,
    },
    /// The process that listens at the other end.
    Unix(i32),
}

impl Ends {
    pub(super) fn of_tcp(stream: &TcpStream) -> Option<Self> {
        Some(Self::Tcp {
            ours: stream.local_addr().ok()?,
            theirs: stream.peer_addr().ok()?,
        })
    }

    /// None where it is in another pid namespace.
    pub(super) fn of_unix(stream: &UnixStream) -> Option<Self> {
        stream
            .peer_cred()
            .ok()?
            .pid()
            .filter(|pid| *pid > 0)
            .map(Self::Unix)
    }

    /// Whether it is the server itself that is at the other end, and no pooler.
    pub(super) fn meet(&self, hello: &Hello) -> bool {
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

#[cfg(test)]
mod tests {
    use super::super::hello::tests::hello;
    use super::*;

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
}
