//! The direct path of callers to the database.
//!
//! The first try of an acquire, and a release, go out on a connection of their own whose I/O the caller's
//! runtime drives: no other thread has to be woken, and none has to wake the caller. What cannot be answered
//! at once, such as a wait, goes on in the background.
//!
//! The lane has one home at a time: the first runtime of callers that uses it for more than a moment, or the
//! one that threads share while they block. It ends with its home, and the next runtime takes over. Callers
//! elsewhere go by the background.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::{Notify, oneshot};

use crate::acquire::{DIRECT, PATIENCE};
use crate::batch::Batch;
use crate::clock::{self, Time};
use crate::error::Error;
use crate::fork::Gated;
use crate::runtime;
use crate::store::{Ask, Lane, Observed, Outcome, Released, Return, StoreError};

/// At which call in a row a runtime of async callers becomes the home. One that makes fewer does not repay a
/// connection.
const CALLS: u32 = 3;
/// A home that made no call for so long makes way for another runtime.
const UNUSED: Duration = Duration::from_secs(10);
/// For how long the lane is left alone after two calls in a row were late, or it could not be connected.
const SHUNNED: Duration = Duration::from_secs(5);
/// How often late calls are looked for, while there are calls.
const TICK: Duration = Duration::from_millis(250);
/// After how many ticks without a call the search ends until the next one.
const TICKS_IDLE: u32 = 40;

/// The direct path of one [`Locks`](crate::Locks).
#[derive(Debug)]
pub(crate) struct DirectPath {
    lane: Arc<dyn Lane>,
    acquires: Batch<Ask, Outcome>,
    releases: Batch<Return, Released>,
    election: Arc<Mutex<Election>>,
    calls: Arc<Calls>,
}

/// Which runtime is the home.
#[derive(Debug, Default)]
struct Election {
    home: Option<Home>,
    used: Time,
    /// The runtime that called last and is not the home, and how often in a row.
    candidate: Option<(Id, u32)>,
    /// A call has been answered since the home was made or the connection was given up.
    connected: bool,
    /// By when the last call was due, if it was late.
    late: Option<Time>,
    shunned_until: Time,
}

#[derive(Debug)]
struct Home {
    runtime: Id,
    /// Whether the lane is connected, or connects at the first call.
    ready: bool,
    /// Closed when the runtime has ended; none: the runtime of threads that block, which never does. Dropping it
    /// ends the task that stands for the home.
    ended: Option<oneshot::Sender<()>>,
}

impl Home {
    fn has_ended(&self) -> bool {
        self.ended.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DirectPath {
    /// None: the engine has no such path.
    pub(crate) fn of(store: &Observed) -> Result<Option<Self>, Error> {
        store.lane().map(|lane| Self::new(store, lane)).transpose()
    }

    fn new(store: &Observed, lane: Arc<dyn Lane>) -> Result<Self, Error> {
        let calls = Arc::new(Calls::default());
        runtime::spawn(find_late(Arc::downgrade(&calls), Arc::clone(&calls.more)))?;
        let (acquiring, releasing) = (store.clone(), store.clone());
        let [a, r] = [(); 2].map(|()| Arc::clone(&lane));
        Ok(Self {
            acquires: Batch::new(move |asks| acquiring.acquire_on(Arc::clone(&a), asks)),
            releases: Batch::new(move |returns| releasing.release_on(Arc::clone(&r), returns)),
            lane,
            election: Arc::default(),
            calls,
        })
    }

    /// The runtime of this caller, if it is the home of the lane.
    pub(crate) fn here(&self) -> Option<Handle> {
        let (runtime, blocking) = runtime::of_caller()?;
        if self.lane.blocks() && !blocking {
            return None;
        }
        let (id, now) = (runtime.id(), clock::now());
        let mut election = locked(&self.election);
        if now < election.shunned_until {
            return None;
        }
        match &election.home {
            Some(home) if home.has_ended() => {}
            Some(home) if home.runtime == id => {
                let ready = home.ready;
                election.used = now;
                return ready.then_some(runtime);
            }
            Some(_) if now < election.used + UNUSED => return None,
            _ => {}
        }
        let calls = match election.candidate {
            Some((candidate, calls)) if candidate == id => calls + 1,
            _ => 1,
        };
        election.candidate = Some((id, calls));
        if calls < CALLS && !blocking {
            return None;
        }
        // Whatever runtime it was on before: the connection belongs to that.
        self.lane.give_up();
        (election.used, election.connected) = (now, false);
        if blocking {
            election.home = Some(Home {
                runtime: id,
                ready: true,
                ended: None,
            });
            return Some(runtime);
        }
        election.candidate = None;
        drop(election);
        self.move_in(&runtime);
        None
    }

    /// Make that runtime the home. Until the lane is connected its callers go by the background.
    fn move_in(&self, runtime: &Handle) {
        // A runtime without timers or I/O has no use for the lane, and tokio can tell only by a panic. A program
        // that ends at a panic must not be asked.
        let drives = || {
            drop(tokio::time::sleep(Duration::ZERO));
            tokio::net::UnixDatagram::unbound().is_ok()
        };
        let fit = cfg!(panic = "unwind") && catch_unwind(drives).unwrap_or(false);
        let id = runtime.id();
        let (ended, left) = oneshot::channel();
        locked(&self.election).home = Some(Home {
            runtime: id,
            ready: false,
            ended: Some(ended),
        });
        if !fit {
            locked(&self.election).shun();
            return;
        }
        let (lane, election) = (Arc::clone(&self.lane), Arc::downgrade(&self.election));
        let stay = async move {
            let connected = lane.connect().await;
            drop(lane);
            if let Some(election) = election.upgrade() {
                let mut election = locked(&election);
                match (&connected, &mut election.home) {
                    (Ok(()), Some(home)) if home.runtime == id => {
                        home.ready = true;
                        election.connected = true;
                    }
                    (Err(_), Some(home)) if home.runtime == id => election.shun(),
                    _ => {}
                }
            }
            let _ = left.await;
        };
        runtime.spawn(Gated::new(stay));
    }

    /// Ask for a grant on the lane. See [`call`](Self::call): `under_way` is dropped when the request is carried
    /// through, or when the runtime ends.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        home: Handle,
        ask: Ask,
        patience: Duration,
        under_way: oneshot::Sender<()>,
    ) -> Option<Result<Outcome, StoreError>> {
        let path = Arc::clone(self);
        let reply = async move {
            let _under_way = under_way;
            path.acquires.ask(ask).await
        };
        self.call(home, reply, patience).await
    }

    /// Give a grant back on the lane. See [`call`](Self::call).
    pub(crate) async fn release(
        self: &Arc<Self>,
        home: Handle,
        what: Return,
        patience: Duration,
    ) -> Option<Result<Released, StoreError>> {
        let path = Arc::clone(self);
        let reply = async move { path.releases.ask(what).await };
        self.call(home, reply, patience).await
    }

    /// Wait for a reply, for [`DIRECT`] on a connection that is there and for `patience` at most; none: it is late.
    ///
    /// # Cancel safety
    ///
    /// A request whose reply is dropped half-way may be carried out at any later time. So it is carried through on
    /// its runtime.
    async fn call<T: Send + 'static>(
        &self,
        home: Handle,
        reply: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        patience: Duration,
    ) -> Option<Result<T, StoreError>> {
        let id = home.id();
        let connected = locked(&self.election).connected;
        // A first call of threads that block includes the connecting, which may take long.
        let due = clock::now()
            + if connected {
                patience.min(DIRECT)
            } else {
                patience
            };
        let answer = InFlight {
            reply: Some(Gated::new(reply)),
            home,
            path: self,
            number: None,
            due,
        };
        let answer = answer.await;
        let mut election = locked(&self.election);
        if !election.is_home(id) {
            // Another runtime has it by now, and another connection.
            return answer;
        }
        match &answer {
            None => {
                self.lane.give_up();
                election.connected = false;
                election.was_late(due);
            }
            Some(Err(failure)) if failure.is_undone() && !failure.is_answer() => election.shun(),
            Some(_) => (election.late, election.connected) = (None, true),
        }
        answer
    }
}

impl Election {
    fn is_home(&self, id: Id) -> bool {
        self.home.as_ref().is_some_and(|home| home.runtime == id)
    }

    /// A call that was due by then was late. The second one in a row is the fault of the home, most likely, and
    /// not of the database; those that were under way together count as one.
    fn was_late(&mut self, due: Time) {
        match self.late {
            Some(before) if due > before + TICK => self.shun(),
            _ => self.late = Some(due),
        }
    }

    fn shun(&mut self) {
        self.shunned_until = clock::now() + SHUNNED;
        (self.home, self.candidate, self.late) = (None, None, None);
        self.connected = false;
    }
}

/// One call on the lane.
struct InFlight<'a, F: Future + Send + 'static>
where
    F::Output: Send + 'static,
{
    /// None: it is done.
    reply: Option<Gated<F>>,
    home: Handle,
    path: &'a DirectPath,
    number: Option<u64>,
    due: Time,
}

impl<F: Future + Send + 'static> Future for InFlight<'_, F>
where
    F::Output: Send + 'static,
{
    /// None: it is late.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let call = &mut *self;
        // Taken: after a panic it is not polled again.
        let Some(mut reply) = call.reply.take() else {
            return Poll::Pending;
        };
        if let Poll::Ready(answer) = Pin::new(&mut reply).poll(context) {
            return Poll::Ready(Some(answer));
        }
        runtime::needed();
        let calls = &call.path.calls;
        let number = *call.number.get_or_insert_with(|| calls.begin(call.due));
        match calls.wait(number, context.waker()) {
            true => {
                call.reply = Some(reply);
                Poll::Pending
            }
            false => Poll::Ready(None),
        }
    }
}

impl<F: Future + Send + 'static> Drop for InFlight<'_, F>
where
    F::Output: Send + 'static,
{
    fn drop(&mut self) {
        let reply = self.reply.take();
        // In a forked child it is leaked, and a thread that is not there may have the mutex.
        if reply.as_ref().is_some_and(|reply| !reply.is_here()) {
            return;
        }
        if let Some(number) = self.number {
            self.path.calls.end(number);
        }
        if let Some(reply) = reply {
            let lane = Arc::clone(&self.path.lane);
            let through = self.home.spawn(Gated::new(async move {
                if tokio::time::timeout(PATIENCE, reply).await.is_err() {
                    lane.give_up();
                }
            }));
            runtime::finish(&self.home, through);
        }
    }
}

/// The calls that are under way. The background looks for late ones: the runtime of the caller might not,
/// where the caller blocks it.
#[derive(Debug, Default)]
struct Calls {
    state: Mutex<Open>,
    more: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Open {
    calls: Vec<Call>,
    next: u64,
    /// Nobody looks for late ones.
    asleep: bool,
}

#[derive(Debug)]
struct Call {
    number: u64,
    due: Time,
    late: bool,
    waker: Option<Waker>,
}

impl Calls {
    fn begin(&self, due: Time) -> u64 {
        let mut open = locked(&self.state);
        let number = open.next;
        open.next += 1;
        open.calls.push(Call {
            number,
            due,
            late: false,
            waker: None,
        });
        let soon = due < clock::now() + TICK;
        if std::mem::take(&mut open.asleep) || soon {
            self.more.notify_one();
        }
        number
    }

    /// Whether to go on waiting.
    fn wait(&self, number: u64, waker: &Waker) -> bool {
        let mut open = locked(&self.state);
        let Some(call) = open.calls.iter_mut().find(|call| call.number == number) else {
            return false;
        };
        if !call
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            call.waker = Some(waker.clone());
        }
        !call.late
    }

    fn end(&self, number: u64) {
        locked(&self.state)
            .calls
            .retain(|call| call.number != number);
    }

    /// Mark what is late; those to be woken, and when the next one will be.
    fn find_late(&self, now: Time) -> (Vec<Waker>, Option<Time>) {
        let mut open = locked(&self.state);
        let mut late = Vec::new();
        for call in open.calls.iter_mut().filter(|call| call.due <= now) {
            call.late = true;
            late.extend(call.waker.take());
        }
        let due = open
            .calls
            .iter()
            .filter(|call| !call.late)
            .map(|call| call.due);
        (late, due.min())
    }
}

/// Find late calls, for as long as the path is there.
async fn find_late(calls: Weak<Calls>, more: Arc<Notify>) {
    let (mut idle, mut last) = (0, 0);
    loop {
        let Some(known) = calls.upgrade() else { return };
        let now = clock::now();
        let (late, due) = known.find_late(now);
        let asleep = {
            let mut open = locked(&known.state);
            idle = match due.is_some() || open.next != last {
                true => 0,
                false => idle + 1,
            };
            last = open.next;
            open.asleep = idle > TICKS_IDLE;
            open.asleep
        };
        drop(known);
        for waker in late {
            // Foreign code, without which the others would wait for ever.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        let nap = due.map_or(TICK, |due| due.saturating_sub(now).min(TICK));
        tokio::select! {
            () = more.notified() => {}
            () = tokio::time::sleep(nap), if !asleep => {}
        }
    }
}

impl Drop for DirectPath {
    fn drop(&mut self) {
        self.calls.more.notify_one();
    }
}

#[cfg(test)]
mod tests;
