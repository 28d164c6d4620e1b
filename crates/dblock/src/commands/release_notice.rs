//! The notice of a release, from `dblock release --ticket` or `run --ticket` to the `dblock run`
//! that holds the lock.
//!
//! The table keeps no trace of a release once another client has the lock: at its next renewal a
//! `dblock run` would find a later grant, as after a preemption, and stop a CMD that did nothing but
//! give its lock back early. So the releasing command sends a notice before and after, to an abstract
//! socket. Where there are none (elsewhere than on Linux), or from another machine or container, no
//! notice arrives, and the table alone decides.

use std::time::Duration;

use database_locks::Ticket;

#[cfg(not(target_os = "linux"))]
use no_sockets::{Socket, tell};
#[cfg(target_os = "linux")]
use sockets::{Socket, tell};

/// How long a loss is held back while a release is under way. It is part of the grace, and what is
/// waited for is the end of one statement.
const PATIENCE: Duration = Duration::from_millis(500);

const BEGUN: &str = "releasing";
const DONE: &str = "released";
const FAILED: &str = "kept";

/// Receives the notices about one grant.
#[derive(Debug)]
pub(crate) struct Listener {
    /// None: no notice can arrive.
    socket: Option<Socket>,
    said: Said,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Begun,
    Done,
}

impl Listener {
    pub(crate) fn listen(ticket: &Ticket) -> Self {
        Self {
            socket: Socket::listen(ticket),
            said: Said::Nothing,
        }
    }

    /// Wait for the next notice. May be dropped at any time.
    pub(crate) async fn hear(&mut self) {
        match &self.socket {
            Some(socket) => self.said = socket.next().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the lock was released by a process that had its ticket.
    pub(crate) async fn released(&mut self) -> bool {
        while let Some(said) = self.socket.as_ref().and_then(Socket::waiting) {
            self.said = said;
        }
        let _ = tokio::time::timeout(PATIENCE, async {
            while self.said == Said::Begun {
                self.hear().await;
            }
        })
        .await;
        self.said == Said::Done
    }
}

/// A release of which the holder has been notified. Dropped, it has failed.
#[derive(Debug)]
pub(crate) struct ReleaseNotice<'a>(Option<&'a Ticket>);

impl<'a> ReleaseNotice<'a> {
    pub(crate) fn begin(ticket: &'a Ticket) -> Self {
        tell(ticket, BEGUN);
        Self(Some(ticket))
    }

    pub(crate) fn done(mut self) {
        if let Some(ticket) = self.0.take() {
            tell(ticket, DONE);
        }
    }
}

impl Drop for ReleaseNotice<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.0 {
            tell(ticket, FAILED);
        }
    }
}

#[cfg(target_os = "linux")]
mod sockets {
    use std::io;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use database_locks::Ticket;
    use rustix::net::{RecvFlags, recv};

    use super::{BEGUN, DONE, FAILED, Said};

    /// More than the longest message: of a ticket a name takes up most, 255 characters of 12 bytes.
    const LONGEST: usize = 4096;

    #[derive(Debug)]
    pub(super) struct Socket {
        socket: tokio::net::UnixDatagram,
        ticket: String,
    }

    /// It bears half of the random grant id. All users of the machine can see it, and a notice counts
    /// only with all of it.
    fn address(ticket: &str) -> io::Result<SocketAddr> {
        let grant = ticket.split('.').nth(1).unwrap_or_default();
        let half = grant.get(..grant.len() / 2).unwrap_or_default();
        SocketAddr::from_abstract_name(format!("dblock/{half}"))
    }

    impl Socket {
        pub(super) fn listen(ticket: &Ticket) -> Option<Self> {
            let ticket = ticket.to_string();
            let socket = UnixDatagram::bind_addr(&address(&ticket).ok()?).ok()?;
            socket.set_nonblocking(true).ok()?;
            let socket = tokio::net::UnixDatagram::from_std(socket).ok()?;
            Some(Self { socket, ticket })
        }

        pub(super) async fn next(&self) -> Said {
            let mut message = [0; LONGEST];
            loop {
                let Ok(length) = self.socket.recv(&mut message).await else {
                    return std::future::pending().await;
                };
                if let Some(said) = self.understood(&message[..length]) {
                    return said;
                }
            }
        }

        /// What waits to be read. The kernel is asked: the runtime knows only what it has seen when it
        /// slept last.
        pub(super) fn waiting(&self) -> Option<Said> {
            let mut message = [0; LONGEST];
            loop {
                let read = recv(&self.socket, &mut message[..], RecvFlags::DONTWAIT);
                let (length, _) = read.ok()?;
                if let Some(said) = self.understood(&message[..length]) {
                    return Some(said);
                }
            }
        }

        fn understood(&self, message: &[u8]) -> Option<Said> {
            let message = std::str::from_utf8(message).ok()?;
            let (said, ticket) = message.split_once(' ')?;
            match said {
                _ if ticket != self.ticket => None,
                BEGUN => Some(Said::Begun),
                DONE => Some(Said::Done),
                FAILED => Some(Said::Nothing),
                _ => None,
            }
        }
    }

    /// No process may be listening: the holder was `dblock acquire`, or a library.
    pub(super) fn tell(ticket: &Ticket, said: &str) {
        let ticket = ticket.to_string();
        let told = address(&ticket).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.send_to_addr(format!("{said} {ticket}").as_bytes(), &address)
        });
        drop(told);
    }
}

#[cfg(not(target_os = "linux"))]
mod no_sockets {
    use database_locks::Ticket;

    use super::Said;

    #[derive(Debug)]
    pub(super) struct Socket;

    impl Socket {
        pub(super) fn listen(_: &Ticket) -> Option<Self> {
            None
        }

        pub(super) async fn next(&self) -> Said {
            std::future::pending().await
        }

        pub(super) fn waiting(&self) -> Option<Said> {
            None
        }
    }

    pub(super) fn tell(_: &Ticket, _: &str) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn ticket(grant: &str) -> Ticket {
        format!("17.{grant}.a%20job").parse().expect("a ticket")
    }

    #[tokio::test]
    async fn a_release_counts_when_it_is_done_and_not_when_it_failed() {
        let ours = ticket("0f3a9c5e7b2d46818f0a1c3e5d7b9f21");
        let mut listener = Listener::listen(&ours);
        assert!(!listener.released().await, "nothing was told");
        drop(ReleaseNotice::begin(&ours));
        assert!(!listener.released().await, "it failed");
        let notice = ReleaseNotice::begin(&ours);
        assert!(!listener.released().await, "it is not done in time");
        notice.done();
        assert!(listener.released().await);
    }

    #[tokio::test]
    async fn what_is_told_without_the_whole_grant_id_does_not_count() {
        let ours = ticket("1f3a9c5e7b2d46818f0a1c3e5d7b9f22");
        let mut listener = Listener::listen(&ours);
        ReleaseNotice::begin(&ticket("1f3a9c5e7b2d4681000000000000000f")).done();
        assert!(!listener.released().await);
    }

    #[tokio::test]
    async fn a_loss_waits_for_the_end_of_a_release_that_has_begun() {
        let ours = ticket("2f3a9c5e7b2d46818f0a1c3e5d7b9f23");
        let mut listener = Listener::listen(&ours);
        let notice = ReleaseNotice::begin(&ours);
        let later = async {
            tokio::task::yield_now().await;
            notice.done();
        };
        assert!(tokio::join!(listener.released(), later).0);
    }
}
