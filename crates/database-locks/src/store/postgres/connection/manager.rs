//! A connection that is made when it is needed, shared by all calls, and made anew when it breaks.
//!
//! A store has two: the background connection, and that of the lane. What they know of the server they
//! know together, so that neither believes an answer of a server that was replaced.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::watch;

use super::blocked::{self, Blocked};
use super::dial::dial;
use super::server::Server;
use super::session::Session;
use crate::runtime::clock;
use crate::runtime::fork::Gated;
use crate::store::api::{StoreError, keep_to};
use crate::store::connect::backoff::Backoff;
use crate::store::postgres::error::{Kind, ServerError};
use crate::store::postgres::failover;
use protocol::{Human, Primary};

/// How many connections that were given up may still owe answers to others. A table that is locked as
/// a whole makes one each 100 ms, and waiters inside it are patient.
const OWING: usize = 4;

/// The connection to one server, or to that of several which can be written to: at most one at a time, and at
/// most one attempt to make it.
#[derive(Clone)]
pub(crate) struct ConnectionManager(Arc<Inner>);

/// Without the settings, which hold the password.
impl fmt::Debug for ConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectionManager")
            .field(&self.0.server.connector.hosts())
            .finish()
    }
}

struct Inner {
    server: Arc<Server>,
    state: Mutex<State>,
    of: Use,
}

/// What the connection is for.
enum Use {
    Background {
        blocked: Blocked,
        lane: OnceLock<Weak<Inner>>,
        /// The latest attempt to connect failed. If the server has room for one connection alone, that is the one
        /// that renews, so the lane has none meanwhile.
        failing: Arc<AtomicBool>,
    },
    /// See [`Lane`](crate::store::api::Lane).
    Lane { background_fails: Arc<AtomicBool> },
}

#[derive(Default)]
struct State {
    slot: Slot,
    backoff: Backoff,
    /// Those that were given up, the oldest first.
    given_up: VecDeque<Weak<Session>>,
    /// Why the latest attempt to connect failed.
    failure: Option<String>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// By a task of that runtime.
    Connecting(runtime::Handle, watch::Receiver<Option<Connected>>),
    Up(Arc<Session>),
}

type Connected = Result<Arc<Session>, ServerError>;

impl Inner {
    fn new(server: Arc<Server>, of: Use) -> Arc<Self> {
        Arc::new(Self {
            server,
            state: Mutex::default(),
            of,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
            crate::runtime::finish(&by, over);
        }
    }
}

impl ConnectionManager {
    pub(crate) fn new(server: Server) -> Self {
        let of = Use::Background {
            blocked: Blocked::default(),
            lane: OnceLock::new(),
            failing: Arc::default(),
        };
        Self(Inner::new(Arc::new(server), of))
    }

    /// Another connection to the same database, for the lane.
    pub(crate) fn for_lane(&self) -> Self {
        let background_fails = match &self.0.of {
            Use::Background { failing, .. } => Arc::clone(failing),
            Use::Lane { background_fails } => Arc::clone(background_fails),
        };
        let of_lane = Inner::new(Arc::clone(&self.0.server), Use::Lane { background_fails });
        if let Use::Background { lane, .. } = &self.0.of {
            let _ = lane.set(Arc::downgrade(&of_lane));
        }
        Self(of_lane)
    }

    /// How long a caller waits that wants to know whether there is a connection.
    pub(crate) fn patience(&self, within: Duration) -> Duration {
        self.0.server.connector.patience(within)
    }

    /// Do some work on the connection, within a time that includes making it.
    pub(crate) async fn run<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Session>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ServerError>> + Send,
    {
        let work = |on: Arc<Session>| async move {
            let mut abandoned = on.abandoned.subscribe();
            tokio::select! {
                biased;
                done = work(on) => done,
                Ok(_) = abandoned.wait_for(|abandoned| *abandoned) => {
                    Err(ServerError::unavailable("the connection was given up, and others after it"))
                }
            }
        };
        self.run_long(within, work).await
    }

    /// The same for work that may take long, even if other calls on the connection hang.
    pub(crate) async fn run_long<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Session>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ServerError>> + Send,
    {
        let (used, mut late) = (OnceLock::new(), false);
        let reply = async {
            let connected = self.connected().await;
            let on = connected.map_err(|error| StoreError::from(error).undone())?;
            let _ = used.set(Arc::clone(&on));
            let done = work(Arc::clone(&on)).await;
            self.settled(&on, done)
        };
        let kept = keep_to(within, reply, || late = true);
        let watch = async {
            tokio::time::sleep(blocked::LONG.min(within / 2)).await;
            if let (Some(on), Use::Background { blocked, .. }) = (used.get(), &self.0.of) {
                match blocked::watch(blocked, &self.0.server, on).await {}
            }
            std::future::pending().await
        };
        let answer = tokio::select! {
            biased;
            answer = kept => answer,
            never = watch => never,
        };
        if !late {
            return answer;
        }
        let Some(on) = used.get() else {
            return Err(self.unconnected(within));
        };
        self.give_up(on);
        let blocked = |by| format!("blocked for {} by {by}", Human(within));
        match self.blocked_by() {
            Some(by) => Err(StoreError::cannot_serve(blocked(by))),
            None => answer,
        }
    }

    /// Do some work for the lane: without a deadline, and without a timer once there is a connection.
    pub(crate) async fn run_direct<T, F>(
        &self,
        work: impl FnOnce(Arc<Session>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ServerError>> + Send,
    {
        let connected = self.connected().await;
        // Even if the server answered: nothing was sent, and the background may have a connection.
        let unsent = |error: ServerError| StoreError::Unavailable(error.message.into()).undone();
        let on = connected.map_err(unsent)?;
        let unanswered = Unanswered(&on);
        let done = work(Arc::clone(&on)).await;
        std::mem::forget(unanswered);
        self.settled(&on, done)
    }

    /// What an answer means, and what it means for the connection that it came on.
    fn settled<T>(&self, on: &Arc<Session>, done: Result<T, ServerError>) -> Result<T, StoreError> {
        let server = &self.0.server;
        // An old primary that answers after another has replaced it confirms nothing: the new one may have
        // given the lock to another client.
        let done = match server.has_replaced(on) {
            true => Err(ServerError::new(
                Kind::Gone,
                "it was answered by a server that another one has replaced since",
            )),
            false => done,
        };
        // The next connection looks at the table anew: it may have been altered.
        if on.unfit.is_some() {
            self.retire(on);
        }
        done.map_err(|error| {
            if matches!(error.kind, Kind::Gone | Kind::Pooled) {
                self.retire(on);
            }
            if error.kind == Kind::Pooled {
                server.pooled.store(true, Ordering::Relaxed);
            }
            error.settled(server.was_used()).into()
        })
    }

    /// No connection was made in time.
    fn unconnected(&self, within: Duration) -> StoreError {
        let connector = &self.0.server.connector;
        let failure = self.0.state().failure.take();
        let why = match (connector.waits_for(), failure) {
            (Some(function), _) => format!(": {function}"),
            (None, Some(failure)) => format!("; before that, {failure}"),
            (None, None) => String::new(),
        };
        let (hosts, within) = (connector.hosts(), Human(within));
        let message = format!("no connection to {hosts} within {within}{why}");
        StoreError::Unavailable(message.into()).undone()
    }

    /// What blocks the statements, if a call that is under way has found that out.
    pub(crate) fn blocked_by(&self) -> Option<String> {
        match &self.0.of {
            Use::Background { blocked, .. } => blocked.by(),
            Use::Lane { .. } => None,
        }
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

    /// An answer did not come in time.
    ///
    /// What hangs is cancelled when no caller waits for an answer any more. Other callers may, whose statements
    /// were sent before it, so only so many connections may be waited for.
    fn give_up(&self, on: &Arc<Session>) {
        on.late.store(true, Ordering::Relaxed);
        self.retire(on);
        let mut state = self.0.state();
        let known = |known: &Weak<_>| known.as_ptr() == Arc::as_ptr(on);
        if !state.given_up.iter().any(known) {
            state.given_up.push_back(Arc::downgrade(on));
        }
        state.given_up.retain(|on| on.strong_count() > 0);
        let abandoned = match state.given_up.len() > OWING {
            true => state.given_up.pop_front().and_then(|on| on.upgrade()),
            false => None,
        };
        drop(state);
        if let Some(abandoned) = abandoned {
            abandoned.abandoned.send_replace(true);
        }
    }

    /// Give up the connection of the lane, or the attempt to make it: it may belong to a runtime that is not the
    /// home any more. If a call on it was late, what the server still does for it is cancelled when it is dropped.
    pub(crate) fn retire_lane(&self) {
        self.0.clear();
    }

    /// The connection, if there is one just now.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.0.up(&self.0.state())
    }

    /// The connection, which is made if there is none.
    ///
    /// The lane does not wait after an attempt that failed: the background connection serves meanwhile.
    async fn connected(&self) -> Connected {
        let mut attempt = {
            let mut state = self.0.state();
            if let Some(on) = self.0.up(&state) {
                return Ok(on);
            }
            let here = runtime::Handle::current();
            let background_fails = match &self.0.of {
                Use::Background { .. } => None,
                Use::Lane { background_fails } => Some(background_fails.load(Ordering::Relaxed)),
            };
            let of_lane = background_fails.is_some();
            match &state.slot {
                // An attempt that was stopped, with its runtime, has dropped its sender. The lane may have moved
                // to another runtime, and the one that it has left may not be driven.
                Slot::Connecting(by, attempt)
                    if attempt.has_changed().is_ok() && (!of_lane || by.id() == here.id()) =>
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
                    // In a task of its own: a caller that gives up after 100 ms would otherwise never get
                    // through to a server that takes 200 ms to answer.
                    let inner = Arc::downgrade(&self.0);
                    tokio::spawn(Gated::new(connect_after(pause, inner, done)));
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

/// A call that its connection has not answered yet. Dropped, it makes the connection count as late.
struct Unanswered<'a>(&'a Session);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.late.store(true, Ordering::Relaxed);
    }
}

/// Connect; and which server has replaced which, if one has.
async fn connect(inner: &Inner) -> Result<(Arc<Session>, Option<(Primary, Primary)>), ServerError> {
    let server = &inner.server;
    let endpoint = server.connector.ask::<&str>().await?;
    let connected = server.connector.connect(&endpoint, |at, within| {
        // The connection of the lane does not listen.
        let events = match inner.of {
            Use::Background { .. } => Some(Weak::clone(&server.events)),
            Use::Lane { .. } => None,
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
    if let Use::Background { lane, failing, .. } = &inner.of {
        failing.store(connected.is_err(), Ordering::Relaxed);
        let lane = lane.get().and_then(Weak::upgrade);
        if let Some(lane) = lane.filter(|_| connected.is_err()) {
            lane.clear();
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
