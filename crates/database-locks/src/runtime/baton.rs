//! Whose turn it is to drive the background runtime.
//!
//! By default it is the background thread's. A thread that blocks until something is done takes its
//! place: what it waits for then happens on that thread itself. Otherwise one thread would have to wake
//! another, and be woken by it, at each call: a third of what an acquire took.
//!
//! The background thread comes back when nobody has needed it to be away for a moment, or at once where
//! something goes on that nobody blocks for.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::clock::{self, Time};

/// How long nobody may drive while nothing is waited for. What was due meanwhile is late by that: it is
/// short beside the margin of the shortest lease. The background thread looks that often whether others
/// still come and go.
const IDLE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Baton {
    state: Mutex<State>,
    /// Where the background thread waits for its turn. Not at a `Condvar`: that waits until a time on the
    /// clock, for an hour where a test shifts the clocks of a process by one.
    away: Runtime,
    /// It is its turn, perhaps.
    back: Notify,
    /// The background thread shall make way.
    leave: Notify,
    /// How much is waited for by somebody who does not drive.
    begun: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    driver: Driver,
    /// Those who block, and shall drive next.
    line: VecDeque<Arc<Signal>>,
    /// How often one of them has begun to.
    turns: u64,
    /// The background thread sleeps until the present turn is over.
    asleep: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Driver {
    #[default]
    Nobody,
    Background,
    Caller,
}

impl Baton {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            away: Builder::new_current_thread().enable_all().build()?,
            back: Notify::new(),
            leave: Notify::new(),
            begun: AtomicUsize::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something begins that is waited for, until what this answers is dropped.
    pub(super) fn begin(&'static self) -> Begun {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Begun(self)
    }

    /// Something was begun: it shall not wait for somebody to come.
    pub(super) fn begun(&self) {
        if self.state().driver == Driver::Nobody {
            self.back.notify_one();
        }
    }

    fn is_waited_for(&self) -> bool {
        self.begun.load(Ordering::SeqCst) > 0
    }

    /// Wait until the background thread is needed.
    pub(super) fn needs_background(&self) -> Turn<'_> {
        let mut unused_since = None;
        loop {
            let mut state = self.state();
            let (free, turns) = (state.driver == Driver::Nobody, state.turns);
            let needed = state.line.is_empty() && self.is_waited_for();
            if free && (needed || unused_since == Some(turns)) {
                state.driver = Driver::Background;
                return Turn {
                    baton: self,
                    returns: false,
                };
            }
            state.asleep = !free;
            drop(state);
            unused_since = self.away.block_on(async {
                if free {
                    let called = tokio::time::timeout(IDLE, self.back.notified()).await;
                    return called.is_err().then_some(turns);
                }
                self.back.notified().await;
                None
            });
        }
    }

    /// For a thread that blocks.
    pub(super) fn stand_in_line(&self) -> Place<'_> {
        let signal = Arc::new(Signal {
            thread: std::thread::current(),
            set: AtomicBool::new(false),
        });
        Place {
            baton: self,
            waker: Waker::from(Arc::clone(&signal)),
            signal,
            stands: false,
        }
    }

    /// Nobody drives from now on. Who `returns` in a moment need not be stood in for.
    fn pass_on(&self, mut state: MutexGuard<'_, State>, returns: bool) {
        state.driver = Driver::Nobody;
        if let Some(next) = state.line.pop_front() {
            next.wake_by_ref();
        } else if std::mem::take(&mut state.asleep) || (!returns && self.is_waited_for()) {
            self.back.notify_one();
        }
    }
}

/// Something that is waited for.
#[derive(Debug)]
pub(super) struct Begun(&'static Baton);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The right to drive; dropping it passes it on.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    baton: &'a Baton,
    returns: bool,
}

impl Turn<'_> {
    /// For the background thread: wait until somebody blocks.
    pub(super) async fn wanted(&self) {
        self.baton.leave.notified().await;
        // What he has asked for begins here, and the way is made while it is under way.
        tokio::task::yield_now().await;
    }

    /// Let go, to come again in a moment.
    pub(super) fn interrupt(mut self) {
        self.returns = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.baton.pass_on(self.baton.state(), self.returns);
    }
}

/// A thread that blocks, and drives when its turn comes.
#[derive(Debug)]
pub(super) struct Place<'a> {
    baton: &'a Baton,
    signal: Arc<Signal>,
    waker: Waker,
    /// In the line, or called out of it.
    stands: bool,
}

impl<'a> Place<'a> {
    /// Drive, if nobody else does; else be the next, in order.
    pub(super) fn comes(&mut self) -> Option<Turn<'a>> {
        let mut state = self.baton.state();
        if state.driver == Driver::Nobody {
            self.leave_line(&mut state);
            self.stands = false;
            state.driver = Driver::Caller;
            state.turns += 1;
            return Some(Turn {
                baton: self.baton,
                returns: false,
            });
        }
        if state.driver == Driver::Background {
            self.baton.leave.notify_one();
        }
        if !state.line.iter().any(|one| Arc::ptr_eq(one, &self.signal)) {
            state.line.push_back(Arc::clone(&self.signal));
        }
        self.stands = true;
        None
    }

    /// Whether it is done while somebody else drives; else wait until it may be, or the turn comes, or
    /// that time is over.
    pub(super) fn poll<F: Future + ?Sized>(
        &self,
        future: Pin<&mut F>,
        until: Option<Time>,
    ) -> Poll<F::Output> {
        let polled = future.poll(&mut Context::from_waker(&self.waker));
        if polled.is_pending() {
            self.signal.wait(until);
        }
        polled
    }

    fn leave_line(&self, state: &mut State) {
        state.line.retain(|one| !Arc::ptr_eq(one, &self.signal));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.stands {
            return;
        }
        let mut state = self.baton.state();
        self.leave_line(&mut state);
        // Called, perhaps, and not come.
        if state.driver == Driver::Nobody {
            self.baton.pass_on(state, false);
        }
    }
}

/// Wakes one thread.
#[derive(Debug)]
struct Signal {
    thread: Thread,
    set: AtomicBool,
}

impl Signal {
    fn wait(&self, until: Option<Time>) {
        while !self.set.swap(false, Ordering::Acquire) {
            match until.map(|until| until.saturating_sub(clock::now())) {
                None => std::thread::park(),
                Some(Duration::ZERO) => return,
                Some(left) => std::thread::park_timeout(left),
            }
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.set.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
    }
}
