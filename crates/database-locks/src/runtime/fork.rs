//! Telling a forked child from its parent.
//!
//! A child has a copy of all memory, but of all threads only the one that forked: the scheduler, the
//! connection and whoever holds a mutex at that moment do not exist in it. So nothing that the parent
//! made is used there, not even dropped.

use std::cell::Cell;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

static GENERATION: AtomicU64 = AtomicU64::new(0);
static FORKS: Gate = Gate::new();

thread_local! {
    /// Whether this thread drives the background runtime, and is at work.
    static WORKS: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn before() {
    // Who forks from within that thread, as a callback may, does not wait for himself.
    FORKS.close(u32::from(WORKS.get()));
}

extern "C" fn in_parent() {
    FORKS.open();
}

extern "C" fn in_child() {
    FORKS.reset();
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Whoever drives the background runtime is about to do something: not while the process is forked.
pub(crate) fn begin() {
    FORKS.enter();
    WORKS.set(true);
}

/// He rests until something happens.
pub(crate) fn rest() {
    WORKS.set(false);
    FORKS.leave();
}

/// The same for as long as this lives.
pub(crate) struct AtWork;

impl AtWork {
    pub(crate) fn begin() -> Self {
        begin();
        Self
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        rest();
    }
}

/// A future of ours on a runtime of the application: while it is polled the process is not forked, and in a
/// forked child it is leaked rather than dropped.
///
/// A child that drops an inherited socket takes it out of the event queue that it shares with its parent,
/// which then waits for ever (`EPOLL_CTL_DEL`).
#[derive(Debug)]
pub(crate) struct Gated<F: ?Sized>(Here<Pin<Box<F>>>);

impl<F> Gated<F> {
    pub(crate) fn new(future: F) -> Self {
        Self::of(Box::pin(future))
    }
}

impl<F: ?Sized> Gated<F> {
    pub(crate) fn of(future: Pin<Box<F>>) -> Self {
        Self(Here::new(future))
    }

    /// Whether this is the process that made it.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_here()
    }
}

impl<F: Future + ?Sized> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = self.0.here_mut() else {
            // The runtime was forked, and is used on all the same.
            return Poll::Pending;
        };
        if WORKS.get() {
            return future.as_mut().poll(context);
        }
        let _at_work = AtWork::begin();
        future.as_mut().poll(context)
    }
}

/// What a child that is forked now would see.
#[cfg(test)]
pub(crate) fn as_forked<T>(look: impl FnOnce() -> T) -> T {
    before();
    let seen = look();
    in_parent();
    seen
}

/// Keeps forks and the work of the background runtime apart.
///
/// What it is in the middle of when somebody forks would stay half done in the child for ever:
/// a regular expression of a driver's that it was compiling for the first time, behind a `LazyLock`
/// whose other users wait for it to be finished. The first connection of such a child would hang.
///
/// Neither side waits for long: a thread that is stuck keeps nobody from forking, and takes the risk.
struct Gate {
    working: AtomicU32,
    forking: AtomicU32,
}

impl Gate {
    const LOOK: Duration = Duration::from_micros(100);
    /// How many looks either side takes before it goes on regardless: a second, at least.
    const LOOKS: u32 = 10_000;

    const fn new() -> Self {
        Self {
            working: AtomicU32::new(0),
            forking: AtomicU32::new(0),
        }
    }

    /// Answers whether there were no more than so many in time.
    #[allow(
        clippy::disallowed_methods,
        reason = "a fork takes less than a millisecond, and there is nothing to be woken by"
    )]
    fn wait_for(who: &AtomicU32, at_most: u32) -> bool {
        for _ in 0..Self::LOOKS {
            if who.load(Ordering::SeqCst) <= at_most {
                return true;
            }
            std::thread::sleep(Self::LOOK);
        }
        false
    }

    fn enter(&self) {
        loop {
            self.working.fetch_add(1, Ordering::SeqCst);
            if self.forking.load(Ordering::SeqCst) == 0 {
                return;
            }
            self.leave();
            if !Self::wait_for(&self.forking, 0) {
                self.working.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }

    fn leave(&self) {
        self.working.fetch_sub(1, Ordering::SeqCst);
    }

    /// `own`: how many of those that work are the caller himself.
    fn close(&self, own: u32) -> bool {
        self.forking.fetch_add(1, Ordering::SeqCst);
        Self::wait_for(&self.working, own)
    }

    fn open(&self) {
        self.forking.fetch_sub(1, Ordering::SeqCst);
    }

    /// Nobody works and nobody forks in a new process.
    fn reset(&self) {
        self.working.store(0, Ordering::SeqCst);
        self.forking.store(0, Ordering::SeqCst);
    }
}

/// How many forks lie between this process and the one that first asked.
///
/// A counter rather than the pid: a pid is used again, and a grandchild may have that of its
/// grandparent.
pub fn generation() -> u64 {
    static REGISTERED: Once = Once::new();
    let mut failed = false;
    REGISTERED.call_once(|| {
        // SAFETY: the handler of the child is async-signal-safe, as it must be where the parent had
        // several threads: it does nothing but set atomics. The others run in the parent, and unwind
        // nowhere.
        #[allow(unsafe_code, reason = "there is no other way to be told of a fork")]
        let registered =
            unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        failed = registered != 0;
    });
    // Not in there: a subscriber that calls us would wait for itself.
    if failed {
        tracing::warn!("forks cannot be noticed: do not fork while holding a lock");
    }
    GENERATION.load(Ordering::Relaxed)
}

/// Something that belongs to the process that made it. In a child it is leaked rather than dropped.
#[derive(Debug)]
pub(crate) struct Here<T> {
    value: Option<T>,
    generation: u64,
}

impl<T> Here<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Some(value),
            generation: generation(),
        }
    }

    /// Whether this is the process that made it.
    pub(crate) fn is_here(&self) -> bool {
        self.generation == generation()
    }

    /// The value, in the process that made it. Elsewhere it is leaked.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        match self.is_here() {
            true => self.value.take(),
            false => None,
        }
    }

    /// The value, in the process that made it.
    pub(crate) fn here_mut(&mut self) -> Option<&mut T> {
        match self.is_here() {
            true => self.value.as_mut(),
            false => None,
        }
    }
}

impl<T> Deref for Here<T> {
    type Target = T;

    #[allow(clippy::expect_used, reason = "only `drop` takes it")]
    fn deref(&self) -> &T {
        self.value.as_ref().expect("not dropped yet")
    }
}

impl<T> Drop for Here<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}

/// One value for each process, made when it is first asked for there.
///
/// A child finds what its parent made and passes it by. No lock is taken that another thread may have
/// held while the process was forked.
#[derive(Debug)]
pub struct PerProcess<T>(OnceLock<Box<Node<T>>>);

#[derive(Debug)]
struct Node<T> {
    value: Here<T>,
    /// That of a child, and of a child's child.
    next: PerProcess<T>,
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PerProcess<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value of this process, if it has been made.
    pub fn get(&self) -> Option<&T> {
        let mut slot = self;
        while let Some(node) = slot.0.get() {
            if node.value.is_here() {
                return Some(&node.value);
            }
            slot = &node.next;
        }
        None
    }

    /// The value of this process. Where two threads make it at once, one of them does so in vain.
    pub fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let (mut slot, mut make) = (self, Some(make));
        loop {
            match (slot.0.get(), make.take()) {
                (Some(node), _) if node.value.is_here() => return Ok(&node.value),
                (Some(node), unused) => (slot, make) = (&node.next, unused),
                (None, Some(make)) => {
                    let node = Node {
                        value: Here::new(make()?),
                        next: Self::new(),
                    };
                    // Filled then, by us or by another thread of this process.
                    let _ = slot.0.set(Box::new(node));
                }
                (None, None) => unreachable!("a slot that was filled is empty"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_waits_for_the_background_thread_to_rest_and_keeps_it_resting() {
        let gate = Gate::new();
        gate.enter();
        std::thread::scope(|scope| {
            let fork = scope.spawn(|| gate.close(0));
            while gate.forking.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(!fork.is_finished());
            gate.leave();
            assert!(fork.join().unwrap());
            let work = scope.spawn(|| gate.enter());
            assert!(!work.is_finished());
            gate.open();
            work.join().unwrap();
        });
        // The fork of a thread that works itself.
        assert!(gate.close(1));
        gate.reset();
        assert!(gate.close(0));
    }

    #[test]
    fn a_value_is_made_once_in_a_process() {
        let slot = PerProcess::new();
        assert_eq!(
            slot.get_or_try_init(|| Err::<u8, _>("failed")),
            Err("failed")
        );
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(1)), Ok(&1));
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(2)), Ok(&1));
    }

    #[test]
    fn a_child_passes_by_what_its_parent_made() {
        let slot = PerProcess::new();
        slot.get_or_try_init(|| Ok::<_, ()>(1)).unwrap();
        let parents = Node {
            value: Here {
                value: Some(0),
                generation: generation() + 1,
            },
            next: slot,
        };
        let slot = PerProcess(OnceLock::from(Box::new(parents)));
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(2)), Ok(&1));
    }
}
