//! A connection of a store: made when it is needed, shared by all calls of its path, made anew when it
//! breaks.
//!
//! A store has two: the background connection, and that of the lane. What they know of the database they
//! know together, so that an answer of a server that was replaced is believed on neither.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::watch;

use super::blocked::{self, Blocked};
use super::endpoint::Endpoint;
use crate::client::own_grants::Primary;
use crate::error::Error;
use crate::runtime::clock;
use crate::runtime::fork::Gated;
use crate::store::connect::backoff::Backoff;
use crate::store::connect::hosts::{first_of, list};
use crate::store::connect::source::{Missing, Source};
use crate::store::connect::url::{Address, Server};
use crate::store::postgres::connection::Connection;
use crate::store::postgres::connection::handshake::HELLO;
use crate::store::postgres::error::{Kind, Refusal};
use crate::store::postgres::failover;
use crate::store::postgres::notify::Shared as Listener;
use crate::store::{
    api::{StoreError, keep_to},
    connect::table::Table,
};
use protocol::Human;

/// How many connections that were given up may still owe answers to others. A table that is locked as
/// a whole makes one each 100 ms, and who waits in it is patient.
const OWING: usize = 4;

/// What a caller that waits for the connection gets on top of the time that it may take.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// The way to one server, or to that of several which can be written to: at most one connection at a
/// time, and at most one attempt to make it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

/// Without the configuration, which holds the password.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link")
            .field(&list(self.0.shared.endpoint().addresses()))
            .finish()
    }
}

struct Inner {
    shared: Arc<Shared>,
    /// Whether it is that of the lane: see [`Lane`](crate::store::api::Lane).
    of_lane: bool,
    state: Mutex<State>,
}

/// What the links of a store to the same database have in common.
pub(crate) struct Shared {
    /// Where the endpoint is asked for.
    source: Arc<Source>,
    /// As it was said latest.
    endpoint: Mutex<Arc<Endpoint>>,
    pub(crate) hello: String,
    /// The statements, with the name of the table put in.
    pub(crate) texts: Arc<[String]>,
    /// Who is told what a connection hears.
    pub(crate) listener: Weak<Listener>,
    /// Who has what we want locked.
    pub(crate) blocked: Blocked,
    /// The table has been used through it.
    pub(crate) used: Arc<AtomicBool>,
    /// A pooler was caught handing our prepared statements to others.
    pub(crate) pooled: AtomicBool,
    serving: Mutex<Serving>,
    /// The link of the lane.
    lane: OnceLock<Weak<Inner>>,
    /// The latest attempt to make the background connection failed. Where the server has room for one alone, that
    /// is the one that renews: so the lane has none meanwhile.
    failing: AtomicBool,
}

/// The server that a connection was made to last.
#[derive(Default)]
struct Serving {
    /// None: none has served yet. Once one has, what is wrong with it may be a failover that is going on.
    at: Option<Address>,
    /// Which server that was.
    server: Option<Primary>,
}

#[derive(Default)]
struct State {
    slot: Slot,
    backoff: Backoff,
    /// Those that were given up, the oldest first.
    given_up: VecDeque<Weak<Connection>>,
    /// Why the latest attempt to connect failed.
    failure: Option<String>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// By a task of that runtime.
    Dialling(runtime::Handle, watch::Receiver<Option<Dialled>>),
    Up(Arc<Connection>),
}

type Dialled = Result<Arc<Connection>, Refusal>;

impl Shared {
    /// Whether a server that was found fit has been reached before.
    pub(crate) fn has_served(&self) -> bool {
        self.serving().at.is_some()
    }

    /// Which of the addresses has served latest; the first one where that is not in the list any more.
    pub(crate) fn first(&self, endpoint: &Endpoint) -> usize {
        let serving = self.serving();
        let latest = |at: &Address| endpoint.addresses().iter().position(|it| it == at);
        serving.at.as_ref().and_then(latest).unwrap_or(0)
    }

    /// Which server has served latest, where that is known.
    pub(crate) fn latest_server(&self) -> Option<Primary> {
        self.serving().server
    }

    /// The server of this connection serves from now on; which did and which does, where it is another one.
    fn serves(&self, on: &Connection) -> Result<Option<(Primary, Primary)>, Refusal> {
        let mut serving = self.serving();
        // Another link may have found a later one since this one was asked.
        failover::no_step_back(&on.address, on.server, serving.server)?;
        serving.at = Some(on.address.clone());
        let before = serving.server;
        serving.server = on.server.or(before);
        Ok(before.zip(on.server).filter(|(before, now)| before != now))
    }

    /// Whether another server than that of this connection has served since. Where servers do not say which
    /// they are, whether one at another address has.
    fn has_replaced(&self, on: &Connection) -> bool {
        let serving = self.serving();
        match (on.server, serving.server) {
            (Some(then), Some(now)) => then != now,
            _ => serving.at.as_ref().is_some_and(|at| *at != on.address),
        }
    }

    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        let endpoint = self.endpoint.lock();
        Arc::clone(&endpoint.unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a login that was refused may be let in later: it was let in before, and what it logs
    /// in with changes.
    pub(crate) fn may_log_in_later(&self) -> bool {
        let may_change = self.source.may_change() || self.endpoint().password_may_change();
        may_change && self.has_served()
    }

    /// Ask where the server is, and what to log in with.
    pub(crate) async fn ask(&self) -> Result<Arc<Endpoint>, Refusal> {
        let asked = self.endpoint().anew(&self.source).await;
        let endpoint = asked.map_err(|missing| match missing {
            Missing::Unusable(said) if !self.has_served() => Refusal::rejected(said, None),
            Missing::Unusable(said) | Missing::Later(said) => Refusal::unavailable(said),
        })?;
        let mut latest = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Arc::clone(&endpoint);
        Ok(endpoint)
    }

    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if it can be used.
    fn up(&self, state: &State) -> Option<Arc<Connection>> {
        match &state.slot {
            Slot::Up(on) if !on.is_closed() && !self.shared.has_replaced(on) => {
                Some(Arc::clone(on))
            }
            _ => None,
        }
    }
}

impl Link {
    pub(crate) fn new(
        server: Server,
        source: Arc<Source>,
        table: &Table,
        texts: Vec<String>,
        listener: Weak<Listener>,
    ) -> Result<Self, Error> {
        let endpoint = Arc::new(Endpoint::new(server)?);
        let shared = Arc::new(Shared {
            source,
            endpoint: Mutex::new(endpoint),
            hello: table.fill(HELLO),
            texts: texts.into(),
            listener,
            blocked: Blocked::default(),
            used: Arc::default(),
            pooled: AtomicBool::new(false),
            serving: Mutex::default(),
            lane: OnceLock::new(),
            failing: AtomicBool::new(false),
        });
        Ok(Self(Arc::new(Inner {
            shared,
            of_lane: false,
            state: Mutex::default(),
        })))
    }

    /// Another link to the same database, for the lane.
    pub(crate) fn for_lane(&self) -> Self {
        let lane = Arc::new(Inner {
            shared: Arc::clone(&self.0.shared),
            of_lane: true,
            state: Mutex::default(),
        });
        let _ = self.0.shared.lane.set(Arc::downgrade(&lane));
        Self(lane)
    }

    /// How long a caller waits who wants to know whether there is a connection.
    pub(crate) fn patience(&self, within: Duration) -> Duration {
        within.max(self.0.shared.endpoint().dialling() + AFTERWARDS)
    }

    /// Do some work on the connection, within a time that includes making it.
    pub(crate) async fn on<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Connection>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Refusal>> + Send,
    {
        let work = |on: Arc<Connection>| async move {
            let mut forsaken = on.forsaken.subscribe();
            tokio::select! {
                biased;
                done = work(on) => done,
                Ok(_) = forsaken.wait_for(|forsaken| *forsaken) => {
                    Err(Refusal::unavailable("the connection was given up, and others after it"))
                }
            }
        };
        self.on_patiently(within, work).await
    }

    /// The same with work that may rightly take long, whatever becomes of that of others.
    pub(crate) async fn on_patiently<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(Arc<Connection>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Refusal>> + Send,
    {
        let (used, mut late) = (OnceLock::new(), false);
        let reply = async {
            let connected = self.connected().await;
            let on = connected.map_err(|refusal| StoreError::from(refusal).undone())?;
            let _ = used.set(Arc::clone(&on));
            let done = work(Arc::clone(&on)).await;
            self.settled(&on, done)
        };
        let kept = keep_to(within, reply, || late = true);
        let watch = async {
            tokio::time::sleep(blocked::LONG.min(within / 2)).await;
            if let Some(on) = used.get() {
                match blocked::look(&self.0.shared, on).await {}
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
        let said = |by| format!("blocked for {} by {by}", Human(within));
        match self.blocked_by() {
            Some(by) => Err(StoreError::cannot_serve(said(by))),
            None => answer,
        }
    }

    /// Do some work for the lane: without a deadline, and without a timer once there is a connection.
    pub(crate) async fn directly<T, F>(
        &self,
        work: impl FnOnce(Arc<Connection>) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Refusal>> + Send,
    {
        let connected = self.connected().await;
        // Whatever the server said: nothing was sent, and the background may have a connection.
        let unsent = |refusal: Refusal| StoreError::Unavailable(refusal.said.into()).undone();
        let on = connected.map_err(unsent)?;
        let owed = Owed(&on);
        let done = work(Arc::clone(&on)).await;
        std::mem::forget(owed);
        self.settled(&on, done)
    }

    /// What an answer means, and what it means for the connection that it came on.
    fn settled<T>(&self, on: &Arc<Connection>, done: Result<T, Refusal>) -> Result<T, StoreError> {
        let shared = &self.0.shared;
        // An old primary that answers once another has taken its place confirms nothing: the new
        // one may have given the lock to another client.
        let done = match shared.has_replaced(on) {
            true => Err(Refusal {
                kind: Kind::Gone,
                said: "it was answered by a server that another one has replaced since".into(),
                code: None,
            }),
            false => done,
        };
        // The next connection looks at the table anew: it may have been altered.
        if on.unfit.is_some() {
            self.retire(on);
        }
        done.map_err(|refusal| {
            if matches!(refusal.kind, Kind::Gone | Kind::Pooled) {
                self.retire(on);
            }
            if refusal.kind == Kind::Pooled {
                shared.pooled.store(true, Ordering::Relaxed);
            }
            refusal.settled(shared.used.load(Ordering::Relaxed)).into()
        })
    }

    /// No connection was made in time.
    fn unconnected(&self, within: Duration) -> StoreError {
        let shared = &self.0.shared;
        let failure = self.0.state().failure.take();
        let why = match (shared.source.waits_for(), failure) {
            (Some(function), _) => format!(": {function}"),
            (None, Some(failure)) => format!("; before that, {failure}"),
            (None, None) => String::new(),
        };
        let (at, within) = (list(shared.endpoint().addresses()), Human(within));
        let said = format!("no connection to {at} within {within}{why}");
        StoreError::Unavailable(said.into()).undone()
    }

    /// Who has what we want locked, where a call that is under way found that out.
    pub(crate) fn blocked_by(&self) -> Option<String> {
        self.0.shared.blocked.by()
    }

    /// Use this connection for no further call. Those that wait for its answers may still get them.
    pub(crate) fn retire(&self, on: &Arc<Connection>) {
        let mut state = self.0.state();
        if let Slot::Up(current) = &state.slot
            && Arc::ptr_eq(current, on)
        {
            state.slot = Slot::Empty;
        }
    }

    /// An answer did not come in time.
    ///
    /// What hangs is cancelled when nobody waits for an answer any more: others may, who sent theirs
    /// before it. So not too many of them may be waited for.
    fn give_up(&self, on: &Arc<Connection>) {
        on.late.store(true, Ordering::Relaxed);
        self.retire(on);
        let mut state = self.0.state();
        let known = |known: &Weak<_>| known.as_ptr() == Arc::as_ptr(on);
        if !state.given_up.iter().any(known) {
            state.given_up.push_back(Arc::downgrade(on));
        }
        state.given_up.retain(|on| on.strong_count() > 0);
        let forsaken = match state.given_up.len() > OWING {
            true => state.given_up.pop_front().and_then(|on| on.upgrade()),
            false => None,
        };
        drop(state);
        if let Some(forsaken) = forsaken {
            forsaken.forsaken.send_replace(true);
        }
    }

    /// Give up the connection of the lane, or what is to become one: it may be of a runtime that is not the home any
    /// more. If a call on it was late, what the server still does for it is cancelled when that is dropped.
    pub(crate) fn retire_lane(&self) {
        let retired = std::mem::take(&mut self.0.state().slot);
        if let Slot::Dialling(by, mut attempt) = retired {
            let over = async move { drop(attempt.wait_for(Option::is_some).await) };
            crate::runtime::finish(&by, over);
        }
    }

    /// The connection, if there is one just now.
    pub(crate) fn current(&self) -> Option<Arc<Connection>> {
        self.0.up(&self.0.state())
    }

    /// The connection, which is made where there is none.
    ///
    /// The lane does not wait after an attempt that failed: the background connection serves meanwhile.
    async fn connected(&self) -> Dialled {
        let of_lane = self.0.of_lane;
        let mut attempt = {
            let mut state = self.0.state();
            if let Some(on) = self.0.up(&state) {
                return Ok(on);
            }
            match &state.slot {
                // An attempt that was stopped, with its runtime, has dropped its sender. The lane may have moved
                // to another runtime, and nothing drives the one that it has left.
                Slot::Dialling(by, attempt)
                    if attempt.has_changed().is_ok()
                        && (!of_lane || by.id() == runtime::Handle::current().id()) =>
                {
                    attempt.clone()
                }
                _ => {
                    let pause = state.backoff.pause();
                    let failing = self.0.shared.failing.load(Ordering::Relaxed);
                    if of_lane && (failing || !pause.is_zero()) {
                        let why = state.failure.clone().unwrap_or_default();
                        return Err(Refusal::unavailable(why));
                    }
                    let (done, attempt) = watch::channel(None);
                    // In a task of its own: a caller in a hurry, which gives up after 100 ms, would
                    // otherwise never get through to a server that takes 200 ms to answer.
                    let link = Arc::downgrade(&self.0);
                    tokio::spawn(Gated::new(dial_after(pause, link, done)));
                    let by = runtime::Handle::current();
                    state.slot = Slot::Dialling(by, attempt.clone());
                    attempt
                }
            }
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(dialled)) => dialled.clone(),
            _ => Err(Refusal::unavailable("connecting was stopped")),
        }
    }
}

/// A call that its connection has not answered yet. Dropped, it makes the connection count as late.
struct Owed<'a>(&'a Connection);

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.0.late.store(true, Ordering::Relaxed);
    }
}

/// Ask for all that it takes, and connect. And which server has taken the place of which, if one has.
async fn dial(
    link: &Shared,
    of_lane: bool,
) -> Result<(Arc<Connection>, Option<(Primary, Primary)>), Refusal> {
    let endpoint = link.ask().await?;
    let (addresses, first) = (endpoint.addresses(), link.first(&endpoint));
    let dialled = first_of(addresses, first, endpoint.dialling(), |at, within| {
        Connection::dial((link, of_lane), &endpoint, at, within)
    });
    let (_, on) = dialled.await.map_err(Refusal::from)?;
    let replaced = link.serves(&on)?;
    tracing::debug!(
        direct = on.prepared.is_some(),
        "connected to {}",
        on.address
    );
    Ok((on, replaced))
}

async fn dial_after(pause: Duration, link: Weak<Inner>, done: watch::Sender<Option<Dialled>>) {
    clock::sleep(pause).await;
    // Nobody is there any more to use it.
    let Some(link) = link.upgrade() else { return };
    let (dialled, replaced) = match dial(&link.shared, link.of_lane).await {
        Ok((on, replaced)) => (Ok(on), replaced),
        Err(refusal) => (Err(refusal), None),
    };
    if !link.of_lane {
        link.shared
            .failing
            .store(dialled.is_err(), Ordering::Relaxed);
        let lane = link.shared.lane.get().and_then(Weak::upgrade);
        if let Some(lane) = lane.filter(|_| dialled.is_err()) {
            Link(lane).retire_lane();
        }
    }
    let mut state = link.state();
    let waited_for = match &state.slot {
        Slot::Dialling(_, attempt) => attempt.same_channel(&done.subscribe()),
        _ => false,
    };
    match &dialled {
        _ if !waited_for => {}
        Ok(on) => {
            state.backoff.succeeded();
            state.failure = None;
            state.slot = Slot::Up(Arc::clone(on));
        }
        Err(refusal) => {
            state.backoff.failed();
            state.failure = Some(refusal.said.clone());
            state.slot = Slot::Empty;
        }
    }
    drop(state);
    done.send_replace(Some(dialled));
    if let Some((before, now)) = replaced {
        failover::tell(before, now);
        // Waiters may be listening to the server that was replaced.
        if let Some(listener) = link.shared.listener.upgrade() {
            listener.ended();
        }
    }
}
