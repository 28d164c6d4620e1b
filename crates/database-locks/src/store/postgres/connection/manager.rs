//! A connection that is made on demand, shared by all requests, and made again after it has broken.
//!
//! A store has two: the background connection and the direct connection. They share what is known
//! about the server, so that neither trusts an answer of a server that was replaced.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::watch;

use super::blocked::Blocked;
use super::dial::dial;
use super::events::Events;
use super::server::Server;
use super::session::Session;
use crate::runtime::clock;
use crate::runtime::fork::ForkSafeFuture;
use crate::store::connect::backoff::Backoff;
use crate::store::connect::hosts::{ConnectFailure, FailureKind};
use crate::store::postgres::failover;

/// The connection to one server, or to the writable one of several: at most one at a time, and at
/// most one attempt to make it.
#[derive(Clone)]
pub(crate) struct ConnectionManager(pub(super) Arc<Inner>);

/// Leaves out the settings, which contain the password.
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
    /// What blocks requests on the background connection.
    pub(super) blocked: Blocked,
    role: Role,
}

/// The use of the connection.
enum Role {
    /// With the direct connection, if there is one.
    Background(OnceLock<Weak<Inner>>),
    /// See [`DirectConnection`](crate::store::api::DirectConnection).
    Direct,
}

#[derive(Default)]
pub(super) struct State {
    slot: Slot,
    backoff: Backoff,
    /// The connections that were given up, the oldest first.
    pub(super) given_up: VecDeque<Weak<Session>>,
    /// Why the latest attempt to connect failed.
    pub(super) failure: Option<String>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// With the runtime of the task that connects.
    Connecting(runtime::Handle, watch::Receiver<Option<Connected>>),
    Up(Arc<Session>),
}

pub(super) type Connected = Result<Arc<Session>, ConnectFailure>;

impl Inner {
    fn new(server: Arc<Server>, role: Role) -> Arc<Self> {
        Arc::new(Self {
            server,
            state: Mutex::default(),
            blocked: Blocked::default(),
            role,
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if it is usable.
    fn up(&self, state: &State) -> Option<Arc<Session>> {
        match &state.slot {
            Slot::Up(session) if !session.is_closed() && !self.server.has_replaced(session) => {
                Some(Arc::clone(session))
            }
            _ => None,
        }
    }

    /// Give up the connection or the attempt to connect.
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
        let role = Role::Background(OnceLock::new());
        Self(Inner::new(Arc::new(server), role))
    }

    /// The direct connection to the same database.
    pub(crate) fn for_direct(&self) -> Self {
        let inner = Inner::new(Arc::clone(&self.0.server), Role::Direct);
        if let Role::Background(direct) = &self.0.role {
            let _ = direct.set(Arc::downgrade(&inner));
        }
        Self(inner)
    }

    pub(crate) fn events(&self) -> Arc<Events> {
        Arc::clone(&self.0.server.events)
    }

    /// How long a caller waits to learn whether there is a connection.
    pub(crate) fn connect_deadline(&self, within: Duration) -> Duration {
        self.0.server.connector.connect_deadline(within)
    }

    /// Use this connection for no further request. Pending requests may still get their answers.
    pub(crate) fn retire(&self, session: &Arc<Session>) {
        let mut state = self.0.state();
        if let Slot::Up(current) = &state.slot
            && Arc::ptr_eq(current, session)
        {
            state.slot = Slot::Empty;
        }
    }

    /// Give up the direct connection, or the attempt to connect: it may belong to a runtime that is
    /// no longer the home. If a request on it was late, its statement is cancelled when the
    /// connection is dropped.
    pub(crate) fn retire_direct(&self) {
        self.0.clear();
    }

    /// The connection, if there is one.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.0.up(&self.0.state())
    }

    /// The connection. Connects if there is none.
    ///
    /// The direct connection does not wait after a failed attempt: the background connection serves
    /// meanwhile.
    pub(super) async fn connected(&self) -> Connected {
        let mut attempt = {
            let mut state = self.0.state();
            if let Some(session) = self.0.up(&state) {
                return Ok(session);
            }
            let here = runtime::Handle::current();
            let is_direct = matches!(self.0.role, Role::Direct);
            match &state.slot {
                // An attempt whose runtime has ended has dropped its sender. The direct connection
                // may have moved to another runtime, and its former runtime may not be driven.
                Slot::Connecting(by, attempt)
                    if attempt.has_changed().is_ok() && (!is_direct || by.id() == here.id()) =>
                {
                    attempt.clone()
                }
                _ => {
                    let pause = state.backoff.pause();
                    let background_fails = &self.0.server.background_fails;
                    if is_direct && (background_fails.load(Ordering::Relaxed) || !pause.is_zero()) {
                        let why = state.failure.clone().unwrap_or_default();
                        return Err(ConnectFailure::new(FailureKind::Unavailable, why, None));
                    }
                    let (done, attempt) = watch::channel(None);
                    // In a task of its own. Otherwise a caller that gives up after 100 ms would
                    // never connect to a server that takes 200 ms to answer.
                    let inner = Arc::downgrade(&self.0);
                    tokio::spawn(ForkSafeFuture::new(connect_after(pause, inner, done)));
                    state.slot = Slot::Connecting(here, attempt.clone());
                    attempt
                }
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(connected)) => connected.clone(),
            _ => {
                let message = "connecting was stopped";
                Err(ConnectFailure::new(FailureKind::Unavailable, message, None))
            }
        }
    }

    /// A connection for one caller, which is closed when it is dropped.
    pub(super) async fn connected_apart(&self) -> Connected {
        let (session, replaced) = connect(&self.0.server, None).await?;
        if replaced {
            self.0.server.events.ended();
        }
        Ok(session)
    }
}

/// Connect. Also answers whether another server has been replaced, to which the waiters may be
/// listening. Without `events` the connection does not listen.
async fn connect(
    server: &Server,
    events: Option<&Arc<Events>>,
) -> Result<(Arc<Session>, bool), ConnectFailure> {
    let config = server.connector.ask().await?;
    let connected = server.connector.connect(&config, |at, within| {
        dial(server, events.cloned(), &config, (at, within))
    });
    let (_, session) = connected.await?;
    let replaced = server.serves(&session)?;
    tracing::debug!(
        unpooled = session.is_unpooled,
        "connected to {}",
        session.address
    );
    if let Some((before, now)) = replaced {
        failover::log(before, now);
    }
    Ok((session, replaced.is_some()))
}

async fn connect_after(
    pause: Duration,
    inner: Weak<Inner>,
    done: watch::Sender<Option<Connected>>,
) {
    clock::sleep(pause).await;
    // The store may have been dropped.
    let Some(inner) = inner.upgrade() else { return };
    let events = match inner.role {
        Role::Background(_) => Some(&inner.server.events),
        Role::Direct => None,
    };
    let (connected, replaced) = match connect(&inner.server, events).await {
        Ok((session, replaced)) => (Ok(session), replaced),
        Err(failure) => (Err(failure), false),
    };
    if let Role::Background(direct) = &inner.role {
        let background_fails = &inner.server.background_fails;
        background_fails.store(connected.is_err(), Ordering::Relaxed);
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
        Ok(session) => {
            state.backoff.succeeded();
            state.failure = None;
            state.slot = Slot::Up(Arc::clone(session));
        }
        Err(failure) => {
            state.backoff.failed();
            state.failure = Some(failure.clone().into_message());
            state.slot = Slot::Empty;
        }
    }
    drop(state);
    done.send_replace(Some(connected));
    // Not earlier: a waiter that is woken announces itself on the new connection.
    if replaced {
        inner.server.events.ended();
    }
}
