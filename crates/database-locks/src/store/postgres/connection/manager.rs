//! A connection that is made when it is needed, shared by all calls, and made anew when it breaks.
//!
//! A store has two: the background connection, and that of the direct connection. What they know of
//! the server they know together, so that neither believes an answer of a server that was replaced.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::watch;

use super::blocked::Blocked;
use super::dial::dial;
use super::server::Server;
use super::session::Session;
use crate::runtime::clock;
use crate::runtime::fork::ForkSafeFuture;
use crate::store::connect::backoff::Backoff;
use crate::store::postgres::error::ServerError;
use crate::store::postgres::failover;
use protocol::Primary;

/// The connection to one server, or to that of several which can be written to: at most one at a
/// time, and at most one attempt to make it.
#[derive(Clone)]
pub(crate) struct ConnectionManager(pub(super) Arc<Inner>);

/// Without the settings, which hold the password.
impl fmt::Debug for ConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectionManager")
            .field(&self.0.server.connector.hosts())
            .finish()
    }
}

pub(super) struct Inner {
    pub(super) server: Arc<Server>,
    state: Mutex<State>,
    pub(super) of: Use,
}

/// What the connection is for.
pub(super) enum Use {
    Background {
        blocked: Blocked,
        direct: OnceLock<Weak<Inner>>,
        /// The latest attempt to connect failed. If the server has room for one connection alone,
        /// that is the one that renews, so the direct connection has none meanwhile.
        failing: Arc<AtomicBool>,
    },
    /// See [`DirectConnection`](crate::store::api::DirectConnection).
    DirectConnection { background_fails: Arc<AtomicBool> },
}

#[derive(Default)]
pub(super) struct State {
    slot: Slot,
    backoff: Backoff,
    /// Those that were given up, the oldest first.
    pub(super) given_up: VecDeque<Weak<Session>>,
    /// Why the latest attempt to connect failed.
    pub(super) failure: Option<String>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// By a task of that runtime.
    Connecting(runtime::Handle, watch::Receiver<Option<Connected>>),
    Up(Arc<Session>),
}

pub(super) type Connected = Result<Arc<Session>, ServerError>;

impl Inner {
    fn new(server: Arc<Server>, of: Use) -> Arc<Self> {
        Arc::new(Self {
            server,
            state: Mutex::default(),
            of,
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if it can be used.
    fn up(&self, state: &State) -> Option<Arc<Session>> {
        match &state.slot {
            Slot::Up(on) if !on.is_closed() && !self.server.has_replaced(on) => {
                Some(Arc::clone(on))
            }
            _ => None,
        }
    }

    /// Give up the connection, or the attempt to make it.
    fn clear(&self) {
        let before = std::mem::take(&mut self.state().slot);
        if let Slot::Connecting(by, mut attempt) = before {
            let over = async move { drop(attempt.wait_for(Option::is_some).await) };
            crate::runtime::drive_until_done(&by, over);
        }
    }
}

impl ConnectionManager {
    pub(crate) fn new(server: Server) -> Self {
        let of = Use::Background {
            blocked: Blocked::default(),
            direct: OnceLock::new(),
            failing: Arc::default(),
        };
        Self(Inner::new(Arc::new(server), of))
    }

    /// Another connection to the same database, for the direct connection.
    pub(crate) fn for_direct(&self) -> Self {
        let background_fails = match &self.0.of {
            Use::Background { failing, .. } => Arc::clone(failing),
            Use::DirectConnection { background_fails } => Arc::clone(background_fails),
        };
        let of_direct = Inner::new(
            Arc::clone(&self.0.server),
            Use::DirectConnection { background_fails },
        );
        if let Use::Background { direct, .. } = &self.0.of {
            let _ = direct.set(Arc::downgrade(&of_direct));
        }
        Self(of_direct)
    }

    /// How long a caller waits that wants to know whether there is a connection.
    pub(crate) fn patience(&self, within: Duration) -> Duration {
        self.0.server.connector.patience(within)
    }

    /// Use this connection for no further call. Those that wait for its answers may still get them.
    pub(crate) fn retire(&self, on: &Arc<Session>) {
        let mut state = self.0.state();
        if let Slot::Up(current) = &state.slot
            && Arc::ptr_eq(current, on)
        {
            state.slot = Slot::Empty;
        }
    }

    /// Give up the connection of the direct connection, or the attempt to make it: it may belong to
    /// a runtime that is not the home any more. If a call on it was late, what the server still
    /// does for it is cancelled when it is dropped.
    pub(crate) fn retire_direct(&self) {
        self.0.clear();
    }

    /// The connection, if there is one just now.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.0.up(&self.0.state())
    }

    /// The connection, which is made if there is none.
    ///
    /// The direct connection does not wait after an attempt that failed: the background connection
    /// serves meanwhile.
    pub(super) async fn connected(&self) -> Connected {
        let mut attempt = {
            let mut state = self.0.state();
            if let Some(on) = self.0.up(&state) {
                return Ok(on);
            }
            let here = runtime::Handle::current();
            let background_fails = match &self.0.of {
                Use::Background { .. } => None,
                Use::DirectConnection { background_fails } => {
                    Some(background_fails.load(Ordering::Relaxed))
                }
            };
            let of_direct = background_fails.is_some();
            match &state.slot {
                // An attempt that was stopped, with its runtime, has dropped its sender. The direct
                // connection may have moved to another runtime, and the one that it has left may
                // not be driven.
                Slot::Connecting(by, attempt)
                    if attempt.has_changed().is_ok() && (!of_direct || by.id() == here.id()) =>
                {
                    attempt.clone()
                }
                _ => {
                    let pause = state.backoff.pause();
                    if background_fails.is_some_and(|fails| fails || !pause.is_zero()) {
                        let why = state.failure.clone().unwrap_or_default();
                        return Err(ServerError::unavailable(why));
                    }
                    let (done, attempt) = watch::channel(None);
                    // In a task of its own: a caller that gives up after 100 ms would otherwise
                    // never get through to a server that takes 200 ms to answer.
                    let inner = Arc::downgrade(&self.0);
                    tokio::spawn(ForkSafeFuture::new(connect_after(pause, inner, done)));
                    state.slot = Slot::Connecting(here, attempt.clone());
                    attempt
                }
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(connected)) => connected.clone(),
            _ => Err(ServerError::unavailable("connecting was stopped")),
        }
    }
}

/// Connect; and which server has replaced which, if one has.
async fn connect(inner: &Inner) -> Result<(Arc<Session>, Option<(Primary, Primary)>), ServerError> {
    let server = &inner.server;
    let endpoint = server.connector.ask::<&str>().await?;
    let connected = server.connector.connect(&endpoint, |at, within| {
        // The connection of the direct connection does not listen.
        let events = match inner.of {
            Use::Background { .. } => Some(Weak::clone(&server.events)),
            Use::DirectConnection { .. } => None,
        };
        dial(server, events, &endpoint, (at, within))
    });
    let (_, on) = connected.await?;
    let replaced = server.serves(&on)?;
    tracing::debug!(direct = on.direct, "connected to {}", on.address);
    Ok((on, replaced))
}

async fn connect_after(
    pause: Duration,
    inner: Weak<Inner>,
    done: watch::Sender<Option<Connected>>,
) {
    clock::sleep(pause).await;
    // The store may have been dropped.
    let Some(inner) = inner.upgrade() else { return };
    let (connected, replaced) = match connect(&inner).await {
        Ok((on, replaced)) => (Ok(on), replaced),
        Err(error) => (Err(error), None),
    };
    if let Use::Background {
        direct, failing, ..
    } = &inner.of
    {
        failing.store(connected.is_err(), Ordering::Relaxed);
        let direct = direct.get().and_then(Weak::upgrade);
        if let Some(direct) = direct.filter(|_| connected.is_err()) {
            direct.clear();
        }
    }
    let mut state = inner.state();
    let waited_for = match &state.slot {
        Slot::Connecting(_, attempt) => attempt.same_channel(&done.subscribe()),
        _ => false,
    };
    match &connected {
        _ if !waited_for => {}
        Ok(on) => {
            state.backoff.succeeded();
            state.failure = None;
            state.slot = Slot::Up(Arc::clone(on));
        }
        Err(error) => {
            state.backoff.failed();
            state.failure = Some(error.message.clone());
            state.slot = Slot::Empty;
        }
    }
    drop(state);
    done.send_replace(Some(connected));
    if let Some((before, now)) = replaced {
        failover::log(before, now);
        // Waiters may be listening to the server that was replaced.
        if let Some(events) = inner.server.events.upgrade() {
            events.ended();
        }
    }
}
