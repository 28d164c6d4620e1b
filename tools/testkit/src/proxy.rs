//! A TCP proxy between a client and its server, which injects network faults.
//!
//! [`Proxy::stall`] acts like a pulled cable, and [`Proxy::cut`] like a firewall that resets
//! connections. [`Proxy::lose_next_reply`] is the fault that a client cannot tell from a statement
//! that was never executed.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::time;

mod pump;
mod state;

use state::{Control, Loss, State};

pub use state::Counts;

/// How long the proxy's own thread may take to close a connection.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// How long the proxy's own thread may take to read what a client has sent.
const FAULT_WITHIN: Duration = Duration::from_secs(10);

/// A proxy on a free port of 127.0.0.1. Everything is closed on drop.
///
/// A fault set by a call holds for every byte read after the call has returned.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy to a server that listens on `host` and `port`.
    ///
    /// # Panics
    ///
    /// If no thread or port is to be had.
    pub fn to(host: &str, port: u16) -> Self {
        let target = (host.to_owned(), port);
        let state = Arc::new(State::new());
        let (ready, started) = mpsc::channel();
        let for_thread = Arc::clone(&state);
        // A thread and runtime of its own: it goes on while a test blocks its runtime, and
        // in a test that has paused the clock.
        let thread = std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .build()
                    .expect("a runtime can be made");
                runtime.block_on(serve(for_thread, target, ready));
            })
            .expect("a thread can be started");
        let address = started.recv().expect("the proxy listens");
        Self {
            port: address.port(),
            state,
            thread: Some(thread),
        }
    }

    /// Starts a proxy to the server that a URL names.
    ///
    /// # Panics
    ///
    /// If the URL names no host and port.
    pub fn to_url(url: &str) -> Self {
        let (_, authority, _) = split(url);
        let place = authority
            .rsplit_once('@')
            .map_or(authority, |(_, place)| place);
        let parsed = place
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = parsed.unwrap_or_else(|| panic!("no host and port in {url}"));
        Self::to(host, port)
    }

    /// The port it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a server, through the proxy: the same with another host and port.
    pub fn url(&self, of_server: &str) -> String {
        let (scheme, authority, rest) = split(of_server);
        let user = authority
            .rsplit_once('@')
            .map_or(String::new(), |(user, _)| format!("{user}@"));
        format!("{scheme}{user}127.0.0.1:{}{rest}", self.port)
    }

    /// Forwards nothing in either direction. Connections stay open and new ones are
    /// accepted; what is sent meanwhile arrives after [`resume`](Self::resume).
    pub fn stall(&self) {
        self.control(|control| (control.up, control.down) = (false, false));
    }

    /// Forwards nothing from the server: statements are executed, and their replies held back.
    pub fn stall_replies(&self) {
        self.control(|control| (control.up, control.down) = (true, false));
    }

    /// Forwards again, what was held back first.
    pub fn resume(&self) {
        self.control(|control| (control.up, control.down) = (true, true));
    }

    /// Closes all connections there are, on both sides. New ones are accepted.
    ///
    /// # Panics
    ///
    /// If that takes longer than ten seconds.
    pub fn cut(&self) {
        let last = self.state.tally().last;
        self.control(|control| control.cut = last);
        // A test that goes on at once may find a connection that still works.
        let closed = time::wait_until(CLOSE_WITHIN, || {
            self.state.tally().open.iter().all(|number| *number > last)
        });
        assert!(closed, "connections are still open after {CLOSE_WITHIN:?}");
    }

    /// Closes new connections at once, without a word; those there are go on. Or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.control(|control| control.refuse = refuse);
    }

    /// From now on every second new connection goes to another server, which listens on this port of
    /// 127.0.0.1: as a balancer in front of two does. The next one does not.
    pub fn alternate_with(&self, port: u16) {
        let mut tally = self.state.tally();
        tally.second = Some((port, tally.last));
    }

    /// The next chunk from a client that contains `matching` is forwarded, the reply to it
    /// swallowed, and then the connection is cut: the statement was executed, its reply
    /// is lost.
    ///
    /// Match a value of the statement, not its text, when the client prepares statements:
    /// the text passes once, before the first execution. And on a connection that sends a
    /// request before it has the reply to another, the reply lost may be the other's.
    pub fn lose_next_reply(&self, matching: impl AsRef<[u8]>) {
        self.state.tally().scheduled = Some((matching.as_ref().to_vec(), Loss::Reply));
    }

    /// The next chunk from a client that contains `matching` is swallowed and the
    /// connection cut: the statement was never executed, which the client cannot tell
    /// from a lost reply.
    pub fn lose_next_request(&self, matching: impl AsRef<[u8]>) {
        self.state.tally().scheduled = Some((matching.as_ref().to_vec(), Loss::Request));
    }

    /// The number of faults that took effect: scheduled losses, and chunks that a stall held back.
    /// A test asserts that its fault did.
    pub fn faults_hit(&self) -> u64 {
        self.state.tally().faults_hit
    }

    /// Waits until a fault has taken effect: it may be noticed after the client has given up.
    ///
    /// # Panics
    ///
    /// If none does within ten seconds.
    pub fn wait_for_fault(&self) {
        let hit = time::wait_until(FAULT_WITHIN, || self.faults_hit() > 0);
        assert!(hit, "no fault took effect");
    }

    /// What has passed.
    pub fn counts(&self) -> Counts {
        self.state.tally().counts
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.state.tally().open.len()
    }

    /// Counts the chunks from clients that contain `pattern`, from now on.
    pub fn watch_for(&self, pattern: impl AsRef<[u8]>) {
        self.state
            .tally()
            .patterns
            .insert(pattern.as_ref().to_vec(), 0);
    }

    /// The chunks from clients that contained `pattern`, since
    /// [`watch_for`](Self::watch_for) or [`reset_counts`](Self::reset_counts).
    ///
    /// # Panics
    ///
    /// If [`watch_for`](Self::watch_for) was not called for it.
    pub fn count(&self, pattern: impl AsRef<[u8]>) -> u64 {
        let pattern = pattern.as_ref();
        *self.state.tally().patterns.get(pattern).unwrap_or_else(|| {
            panic!(
                "watch_for was not called for {:?}",
                String::from_utf8_lossy(pattern)
            );
        })
    }

    /// Sets all counts to zero, those of patterns and faults among them.
    pub fn reset_counts(&self) {
        let mut tally = self.state.tally();
        tally.counts = Counts::default();
        tally.faults_hit = 0;
        tally.patterns.values_mut().for_each(|count| *count = 0);
    }

    fn control(&self, change: impl FnOnce(&mut Control)) {
        self.state.control.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.control(|control| control.end = true);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; another one here would abort.
            let _ = thread.join();
        }
    }
}

/// The scheme with its slashes; user, host and port; the rest.
fn split(url: &str) -> (&str, &str, &str) {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = url.split_at(after_scheme);
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (scheme, authority, rest)
}

/// Accepts connections until the proxy is dropped. The runtime ends with its thread, and closes
/// them.
async fn serve(state: Arc<State>, target: (String, u16), ready: mpsc::Sender<SocketAddr>) {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a port is free");
    ready
        .send(listener.local_addr().expect("it is bound"))
        .expect("the maker waits");
    let mut control = state.control.subscribe();
    loop {
        tokio::select! {
            _ = control.wait_for(|control| control.end) => return,
            accepted = listener.accept() => {
                // An error is a connection that its client has closed already.
                let Ok((client, _)) = accepted else { continue };
                if state.control.borrow().refuse {
                    continue;
                }
                let (number, second) = state.tally().connect();
                let target = second.unwrap_or_else(|| target.clone());
                tokio::spawn(connection(Arc::clone(&state), number, client, target));
            }
        }
    }
}

/// One connection, until one side ends it or it is cut.
async fn connection(state: Arc<State>, number: u64, client: TcpStream, target: (String, u16)) {
    let mut control = state.control.subscribe();
    tokio::select! {
        _ = control.wait_for(|control| control.cut >= number) => {}
        () = pump::both(&state, client, target) => {}
    }
    state.tally().open.remove(&number);
}
