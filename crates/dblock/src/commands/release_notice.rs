//! Notifies a `dblock run` on the same machine that its lock is being released by its ticket.
//!
//! Once another client has the lock, the row no longer shows the release. The next renewal of the
//! `dblock run` would find a later grant, as after a preemption, and stop a CMD that only released
//! its lock early. So the releasing command sends a datagram before and after the release to an
//! abstract socket (Linux). From another machine or container, or on another system, no notice
//! arrives, and the row alone decides.

use std::future::pending;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use database_locks::{LostReason, Ticket};
use rustix::net::{RecvFlags, recv};

use crate::ticket;

/// How long a loss is not acted upon while a release is under way. It is taken from the grace. A
/// release is one statement.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

const RELEASING: &str = "releasing";
const RELEASED: &str = "released";
const FAILED: &str = "failed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    Releasing,
    Released,
}

/// The address contains half of the random grant id. All users of the machine can see it, and a
/// notice counts only if it contains the whole ticket.
fn address(ticket: &str) -> io::Result<SocketAddr> {
    let grant = ticket.split('.').nth(1).unwrap_or_default();
    let half = grant.get(..grant.len() / 2).unwrap_or_default();
    abstract_address(&format!("dblock/{half}"))
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Receives the notices about one grant, for its holder.
#[derive(Debug)]
pub(super) struct Listener {
    /// `None` if no notice can arrive.
    socket: Option<tokio::net::UnixDatagram>,
    ticket: String,
    state: State,
}

impl Listener {
    pub(super) fn bind(ticket: &Ticket) -> Self {
        let ticket = ticket.to_string();
        let socket = address(&ticket).and_then(|address| {
            let socket = UnixDatagram::bind_addr(&address)?;
            socket.set_nonblocking(true)?;
            tokio::net::UnixDatagram::from_std(socket)
        });
        Self {
            socket: socket.ok(),
            ticket,
            state: State::Held,
        }
    }

    /// Waits for the next notice. Cancel safe.
    pub(super) async fn receive(&mut self) {
        let mut buffer = [0; ticket::MAX_LENGTH];
        let received = match &self.socket {
            Some(socket) => socket.recv(&mut buffer).await,
            None => pending().await,
        };
        match received {
            Ok(length) => self.record(&buffer[..length]),
            Err(_) => pending().await,
        }
    }

    /// Whether a process with the ticket has released or resumed the lock, which is no loss.
    pub(super) async fn is_released(&mut self, reason: LostReason) -> bool {
        if matches!(reason, LostReason::Released | LostReason::Resumed) {
            return true;
        }
        self.receive_pending();
        let finished = async {
            while self.state == State::Releasing {
                self.receive().await;
            }
        };
        let _ = tokio::time::timeout(RELEASE_TIMEOUT, finished).await;
        self.state == State::Released
    }

    /// Reads the notices that have arrived, without tokio, which detects them only when it polls.
    fn receive_pending(&mut self) {
        let mut buffer = [0; ticket::MAX_LENGTH];
        while let Some(socket) = &self.socket
            && let Ok((length, _)) = recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)
        {
            self.record(&buffer[..length]);
        }
    }

    /// Ignores a message that does not contain the ticket.
    fn record(&mut self, message: &[u8]) {
        let message = String::from_utf8_lossy(message);
        if let Some((event, ticket)) = message.split_once(' ')
            && ticket == self.ticket
        {
            self.state = match event {
                RELEASING => State::Releasing,
                RELEASED => State::Released,
                _ => State::Held,
            };
        }
    }
}

/// A release that is under way, for the command that releases. If it is dropped, the release has
/// failed.
#[derive(Debug)]
pub(super) struct ReleaseNotice<'a> {
    ticket: &'a Ticket,
    result: &'static str,
}

impl<'a> ReleaseNotice<'a> {
    pub(super) fn begin(ticket: &'a Ticket) -> Self {
        send(ticket, RELEASING);
        Self {
            ticket,
            result: FAILED,
        }
    }

    pub(super) fn done(mut self) {
        self.result = RELEASED;
    }
}

impl Drop for ReleaseNotice<'_> {
    fn drop(&mut self) {
        send(self.ticket, self.result);
    }
}

/// An error is ignored: no process listens if the holder is `dblock acquire` or a program.
fn send(ticket: &Ticket, event: &str) {
    let ticket = ticket.to_string();
    let _ = address(&ticket).and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(format!("{event} {ticket}").as_bytes(), &address)
    });
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn ticket(grant: &str) -> Ticket {
        format!("17.{grant}.a%20job").parse().expect("a ticket")
    }

    async fn is_released(listener: &mut Listener) -> bool {
        listener.is_released(LostReason::Preempted).await
    }

    #[tokio::test]
    async fn a_release_counts_when_it_is_done_and_not_when_it_failed() {
        let ticket = ticket("0f3a9c5e7b2d46818f0a1c3e5d7b9f21");
        let mut listener = Listener::bind(&ticket);
        assert!(!is_released(&mut listener).await, "no notice was sent");
        drop(ReleaseNotice::begin(&ticket));
        assert!(!is_released(&mut listener).await, "the release failed");
        let notice = ReleaseNotice::begin(&ticket);
        assert!(!is_released(&mut listener).await, "it is not done in time");
        notice.done();
        assert!(is_released(&mut listener).await);
    }

    #[tokio::test]
    async fn a_notice_without_the_whole_grant_id_does_not_count() {
        let held = ticket("1f3a9c5e7b2d46818f0a1c3e5d7b9f22");
        let mut listener = Listener::bind(&held);
        ReleaseNotice::begin(&ticket("1f3a9c5e7b2d4681000000000000000f")).done();
        assert!(!is_released(&mut listener).await);
    }

    #[tokio::test]
    async fn a_loss_waits_for_the_end_of_a_release_that_has_begun() {
        let ticket = ticket("2f3a9c5e7b2d46818f0a1c3e5d7b9f23");
        let mut listener = Listener::bind(&ticket);
        let notice = ReleaseNotice::begin(&ticket);
        let later = async {
            tokio::task::yield_now().await;
            notice.done();
        };
        assert!(tokio::join!(is_released(&mut listener), later).0);
    }
}
