//! The direct path of callers to the database.
//!
//! The first try of an acquire, and a release, go out on a connection of their own whose I/O the caller's
//! runtime drives: no other thread has to be woken, and none has to wake the caller. What cannot be answered
//! at once, such as a wait, goes on in the background.
//!
//! The lane has one home at a time: the first runtime of callers that uses it for more than a moment, or the
//! one that threads share while they block. It ends with its home, and the next runtime takes over. Callers
//! elsewhere go by the background, and so does a crowd: the lane serves one call at a time, and the background
//! carries out together what comes meanwhile.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::slice::from_ref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::{Notify, oneshot};

use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::{Gated, Here};
use crate::store::{
    api::{Lane, StoreError},
    measured::Observed,
};
use protocol::{AcquireCommand, BootInstant, Outcome, ReleaseCommand, Released};

/// How long a call waits for its answer. After it the background goes on. Longer than the statements wait for a
/// table of MySQL that is locked as a whole: a second, the least that can be set.
pub(crate) const DIRECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// At which call in a row a runtime of async callers becomes the home. One that makes fewer does not repay a
/// connection.
const CALLS: u32 = 3;
/// A home that made no call for so long makes way for another runtime.
const UNUSED: Duration = Duration::from_secs(10);
/// For how long the lane is left alone after a call was late, or it could not be connected. Twice as long after
/// each failure in a row, up to a minute: a runtime that its callers block goes on being blocked.
const SHUNNED: Duration = Duration::from_secs(5);
const LONGEST_SHUNNED: Duration = Duration::from_secs(60);
/// How long the first call of threads that block may take, which connects.
const CONNECTING: Duration = Duration::from_millis(2_500);
/// How often a late call is looked for, while there are calls.
const TICK: Duration = Duration::from_millis(250);
/// After how many ticks without a call the search ends until the next one.
const TICKS_IDLE: u32 = 40;

/// The direct path of one [`Locks`](crate::Locks).
#[derive(Debug)]
pub(crate) struct DirectPath {
    store: Observed,
    lane: Arc<dyn Lane>,
    state: Mutex<State>,
    more: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    home: Option<Home>,
    /// When the home called last.
    used: BootInstant,
    /// The runtime that called last while there was no home, and how often in a row.
    candidate: Option<(Id, u32)>,
    /// Runtimes that cannot drive a connection.
    unfit: Vec<Id>,
    shunned_until: BootInstant,
    /// For how long it was shunned the last time.
    shunned: Duration,
    call: Option<Call>,
    /// The number of the latest call.
    latest: u64,
    /// The search for late calls sleeps until `more` is notified.
    asleep: bool,
}

#[derive(Debug)]
struct Home {
    runtime: Id,
    /// Whether the lane is connected, or connects at the first call.
    ready: bool,
    /// The next call has to connect: it has [`CONNECTING`] rather than [`DIRECT_TIMEOUT`].
    first: bool,
    /// Closed when the runtime has ended; none: the runtime of threads that block, which never does. Dropping it
    /// ends the task that stands for the home.
    ended: Option<oneshot::Sender<Infallible>>,
}

impl Home {
    fn has_ended(&self) -> bool {
        self.ended.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// The call that is under way.
#[derive(Debug)]
struct Call {
    number: u64,
    /// By when the lane has to answer. The background looks: the runtime of the caller might not, where the
    /// caller blocks it.
    due: BootInstant,
    /// When its caller stops waiting.
    until: BootInstant,
    waker: Option<Waker>,
}

impl State {
    fn shun(&mut self) {
        self.shunned = (self.shunned * 2).clamp(SHUNNED, LONGEST_SHUNNED);
        self.shunned_until = clock::now() + self.shunned;
        (self.home, self.candidate, self.call) = (None, None, None);
    }

    fn call(&mut self, number: u64) -> Option<&mut Call> {
        self.call.as_mut().filter(|call| call.number == number)
    }

    fn take(&mut self, number: u64) -> Option<Call> {
        self.call.take_if(|call| call.number == number)
    }
}

impl DirectPath {
    /// None: the engine has no such path.
    pub(crate) fn of(store: &Observed) -> Result<Option<Arc<Self>>, Error> {
        store.lane().map(|lane| Self::new(store, lane)).transpose()
    }

    fn new(store: &Observed, lane: Arc<dyn Lane>) -> Result<Arc<Self>, Error> {
        let path = Arc::new(Self {
            store: store.clone(),
            lane,
            state: Mutex::default(),
            more: Arc::default(),
        });
        runtime::spawn(find_late(Arc::downgrade(&path), Arc::clone(&path.more)))?;
        Ok(path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take the lane for one call, if the runtime of this caller is its home and no other call is under way.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Entry> {
        let (runtime, blocking) = runtime::of_caller()?;
        if self.lane.blocks() && !blocking {
            return None;
        }
        let (id, now) = (runtime.id(), clock::now());
        let mut state = self.state();
        if now < state.shunned_until || state.unfit.contains(&id) {
            return None;
        }
        let others_are_here = now < state.used + UNUSED;
        match &state.home {
            Some(home) if home.has_ended() => {}
            Some(home) if home.runtime == id => {
                let (ready, first) = (home.ready, home.first);
                state.used = now;
                // A call that blocks is over when it has begun, and the engine has the threads take turns.
                if !ready || (state.call.is_some() && !self.lane.blocks()) {
                    return None;
                }
                let patience = if first { CONNECTING } else { DIRECT_TIMEOUT };
                return Some(self.begin(state, runtime, patience));
            }
            Some(_) if others_are_here => return None,
            // One that is late is found to be so first.
            _ if state.call.is_some() && !self.lane.blocks() => return None,
            _ => {}
        }
        let calls = match state.candidate {
            Some((candidate, calls)) if candidate == id => calls + 1,
            _ => 1,
        };
        state.candidate = Some((id, calls));
        if calls < CALLS && !blocking {
            return None;
        }
        if !blocking {
            // Not with the mutex: a panic runs a hook of the application's.
            drop(state);
            let fit = is_fit();
            state = self.state();
            if !fit {
                state.unfit.push(id);
                return None;
            }
            // Another has come meanwhile.
            if state.candidate != Some((id, calls)) {
                return None;
            }
        }
        (state.used, state.candidate, state.call) = (now, None, None);
        // Whatever runtime it was on before: the connection belongs to that.
        self.lane.give_up();
        let (ended, left) = match blocking {
            true => (None, None),
            false => Some(oneshot::channel()).unzip(),
        };
        state.home = Some(Home {
            runtime: id,
            ready: blocking,
            first: blocking,
            ended,
        });
        match left {
            None => Some(self.begin(state, runtime, CONNECTING)),
            Some(left) => {
                self.move_in(&runtime, left);
                None
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        home: Handle,
        patience: Duration,
    ) -> Entry {
        state.latest += 1;
        let number = state.latest;
        state.call = Some(Call {
            number,
            due: clock::now() + patience,
            until: BootInstant::MAX,
            waker: None,
        });
        if std::mem::take(&mut state.asleep) {
            self.more.notify_one();
        }
        Entry {
            path: Here::new(Arc::clone(self)),
            home,
            number,
        }
    }

    /// Connect on the home, and stay until it ends. Until then its callers go by the background.
    fn move_in(self: &Arc<Self>, runtime: &Handle, left: oneshot::Receiver<Infallible>) {
        let id = runtime.id();
        let (lane, path) = (Arc::clone(&self.lane), Arc::downgrade(self));
        let stay = async move {
            let connected = lane.connect().await;
            drop(lane);
            if let Some(path) = path.upgrade() {
                let mut state = path.state();
                match (&connected, &mut state.home) {
                    (Ok(()), Some(home)) if home.runtime == id => home.ready = true,
                    (Err(_), Some(home)) if home.runtime == id => state.shun(),
                    _ => {}
                }
            }
            let _ = left.await;
        };
        runtime.spawn(Gated::new(stay));
    }

    /// Look whether the call under way is late, or its caller waits no longer. Who has to be woken, and when to
    /// look again.
    fn look(&self) -> (Option<Waker>, Duration) {
        let now = clock::now();
        let mut state = self.state();
        let Some(call) = &mut state.call else {
            return (None, TICK);
        };
        if call.due <= now {
            let waker = call.waker.take();
            state.shun();
            drop(state);
            self.lane.give_up();
            return (waker, TICK);
        }
        let next = match call.until <= now {
            true => call.due,
            false => call.due.min(call.until),
        };
        let waker = (call.until <= now).then(|| call.waker.take()).flatten();
        (waker, (next - now).min(TICK))
    }
}

/// Whether the runtime of this thread drives timers and I/O. Tokio can tell only by a panic, once for each runtime
/// that does not. A program that ends at a panic must not be asked.
fn is_fit() -> bool {
    let drives = || {
        drop(tokio::time::sleep(Duration::ZERO));
        drop(tokio::net::UnixDatagram::unbound());
    };
    cfg!(panic = "unwind") && catch_unwind(drives).is_ok()
}

/// The right to make one call on the lane. Dropping it leaves the lane to others.
#[derive(Debug)]
pub(crate) struct Entry {
    /// In a forked child it is left alone: a thread that is not there may have the mutex.
    path: Here<Arc<DirectPath>>,
    home: Handle,
    number: u64,
}

impl Drop for DirectPath {
    fn drop(&mut self) {
        // The search for late calls ends.
        self.more.notify_one();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.path.is_here() {
            let over = self.path.state().take(self.number);
            // Not with the mutex: its waker is foreign code.
            drop(over);
        }
    }
}

impl Entry {
    /// Ask for a grant on the lane. See [`call`](Self::call): `under_way` is dropped when the request is carried
    /// through or late, or when the runtime ends.
    pub(crate) async fn acquire(
        self,
        ask: AcquireCommand,
        wait: Option<Duration>,
        under_way: oneshot::Sender<()>,
    ) -> Option<Result<Outcome, StoreError>> {
        let (store, lane) = (self.path.store.clone(), Arc::clone(&self.path.lane));
        let reply = async move {
            let _under_way = under_way;
            only(store.acquire_on(&*lane, from_ref(&ask)).await)
        };
        self.call(reply, wait).await
    }

    /// Give a grant back on the lane. See [`call`](Self::call).
    pub(crate) async fn release(
        self,
        what: ReleaseCommand,
    ) -> Option<Result<Released, StoreError>> {
        let (store, lane) = (self.path.store.clone(), Arc::clone(&self.path.lane));
        let reply = async move { only(store.release_on(&*lane, from_ref(&what)).await) };
        self.call(reply, None).await
    }

    /// Wait for a reply, for `wait` at most, if that is given; none: it has not come.
    ///
    /// # Cancel safety
    ///
    /// A request whose reply is dropped half-way may be carried out at any later time. So it is carried through on
    /// its runtime, and the lane is in use until it is.
    async fn call<T: Send + 'static>(
        self,
        reply: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        wait: Option<Duration>,
    ) -> Option<Result<T, StoreError>> {
        if let Some(wait) = wait {
            if let Some(call) = self.path.state().call(self.number) {
                call.until = clock::now() + wait;
            }
            if wait < TICK {
                self.path.more.notify_one();
            }
        }
        InFlight {
            reply: Some(Gated::of(Box::pin(reply))),
            entry: Some(self),
            dropped: false,
        }
        .await
    }

    /// What is to become of a call that is not answered yet.
    fn wait(&self, waker: &Waker) -> Wait {
        let mut state = self.path.state();
        let old = match state.call(self.number) {
            None => return Wait::Late,
            Some(call) if call.until <= clock::now() => return Wait::Over,
            Some(call) if call.waker.as_ref().is_some_and(|it| it.will_wake(waker)) => None,
            Some(call) => call.waker.replace(waker.clone()),
        };
        drop(state);
        drop(old);
        Wait::On
    }

    /// Whether the lane was given up meanwhile. Those that block have their answer at once.
    fn is_late(&self) -> bool {
        !self.path.lane.blocks() && self.path.state().call(self.number).is_none()
    }

    /// It was answered; or nothing was sent, since there is no connection.
    fn answered(&self, connected: bool) {
        let mut state = self.path.state();
        let Some(over) = state.take(self.number) else {
            return;
        };
        if !connected {
            state.shun();
        } else {
            state.shunned = Duration::ZERO;
            if let Some(home) = &mut state.home {
                home.first = false;
            }
        }
        drop(state);
        drop(over);
    }
}

enum Wait {
    On,
    /// Its caller waits no longer.
    Over,
    /// The lane did not answer in time, and its connection has been given up.
    Late,
}

/// The one answer to what was asked alone.
fn only<T>(answers: Result<Vec<T>, StoreError>) -> Result<T, StoreError> {
    let none = || StoreError::Unavailable("the store gave no answer".into());
    answers?.pop().ok_or_else(none)
}

type Answer<T> = dyn Future<Output = Result<T, StoreError>> + Send;

/// One call on the lane.
struct InFlight<T: Send + 'static> {
    /// None: it is done.
    reply: Option<Gated<Answer<T>>>,
    entry: Option<Entry>,
    /// Its caller has dropped it.
    dropped: bool,
}

impl<T: Send + 'static> Future for InFlight<T> {
    /// None: it has not come in time.
    type Output = Option<Result<T, StoreError>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let call = &mut *self;
        // Taken: after a panic it is not polled again.
        let (Some(mut reply), Some(entry)) = (call.reply.take(), &call.entry) else {
            return Poll::Pending;
        };
        if !reply.is_here() {
            return Poll::Pending;
        }
        // Then nothing more of it is sent.
        if entry.is_late() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(answer) = Pin::new(&mut reply).poll(context) {
            let unsent = |failure: &StoreError| failure.is_undone() && !failure.is_answer();
            entry.answered(!answer.as_ref().is_err_and(unsent));
            return Poll::Ready(Some(answer));
        }
        match entry.wait(context.waker()) {
            Wait::Late => Poll::Ready(None),
            Wait::On => {
                runtime::needed();
                call.reply = Some(reply);
                Poll::Pending
            }
            Wait::Over => {
                call.reply = Some(reply);
                Poll::Ready(None)
            }
        }
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        let (Some(reply), Some(entry)) = (self.reply.take(), self.entry.take()) else {
            return;
        };
        // In a forked child it is leaked. A runtime that has ended drops what is spawned there.
        if !reply.is_here() || self.dropped {
            return;
        }
        if let Some(call) = entry.path.state().call(entry.number) {
            call.until = BootInstant::MAX;
        }
        let home = entry.home.clone();
        let through = InFlight {
            reply: Some(reply),
            entry: Some(entry),
            dropped: true,
        };
        let through = home.spawn(Gated::new(async move { drop(through.await) }));
        runtime::finish(&home, through);
    }
}

/// Find late calls, for as long as the path is there.
async fn find_late(path: Weak<DirectPath>, more: Arc<Notify>) {
    let (mut idle, mut last) = (0, 0);
    loop {
        let Some(known) = path.upgrade() else { return };
        let (waker, nap) = known.look();
        let asleep = {
            let mut state = known.state();
            idle = match state.call.is_some() || state.latest != last {
                true => 0,
                false => idle + 1,
            };
            last = state.latest;
            state.asleep = idle > TICKS_IDLE;
            state.asleep
        };
        drop(known);
        if let Some(waker) = waker {
            // Foreign code, without which the search would end.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        tokio::select! {
            () = more.notified() => {}
            () = tokio::time::sleep(nap), if !asleep => {}
        }
    }
}

#[cfg(test)]
mod tests;
