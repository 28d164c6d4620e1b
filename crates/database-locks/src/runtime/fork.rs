//! Distinguishes a forked child from its parent.
//!
//! A child has a copy of all memory but only the thread that forked: the scheduler, the connection
//! and holders of mutexes do not exist in it. So a child neither uses nor drops what its parent
//! made.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

static GENERATION: AtomicU64 = AtomicU64::new(0);
static FORKS: ForkLock = ForkLock::new();

thread_local! {
    /// Whether this thread runs work of this library at the moment.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn before() {
    // A callback may fork on the working thread, which must not wait for itself.
    FORKS.close(u32::from(WORKING.get()));
}

extern "C" fn in_parent() {
    FORKS.open();
}

extern "C" fn in_child() {
    FORKS.reset();
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Mark this thread as working. Waits while the process is being forked.
pub(crate) fn begin_work() {
    FORKS.enter();
    WORKING.set(true);
}

/// Mark this thread as sleeping.
pub(crate) fn end_work() {
    WORKING.set(false);
    FORKS.leave();
}

/// Marks this thread as working until it is dropped.
pub(crate) struct AtWork;

impl AtWork {
    pub(crate) fn begin() -> Self {
        begin_work();
        Self
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        end_work();
    }
}

/// A future of this library on a runtime of the application. The process is not forked while it is
/// polled, and it is leaked rather than dropped in a forked child.
///
/// A child that drops an inherited socket removes it from the event queue that it shares with its
/// parent (`EPOLL_CTL_DEL`), which then waits for ever.
#[derive(Debug)]
pub(crate) struct ForkSafeFuture<F: ?Sized>(ForkSafe<Pin<Box<F>>>);

impl<F> ForkSafeFuture<F> {
    pub(crate) fn new(future: F) -> Self {
        Self::of(Box::pin(future))
    }
}

impl<F: ?Sized> ForkSafeFuture<F> {
    pub(crate) fn of(future: Pin<Box<F>>) -> Self {
        Self(ForkSafe::new(future))
    }

    /// Whether this process made the future.
    pub(crate) fn is_in_owner_process(&self) -> bool {
        self.0.is_in_owner_process()
    }
}

impl<F: Future + ?Sized> Future for ForkSafeFuture<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = self.0.get_mut() else {
            // The application uses its runtime in a forked child too.
            return Poll::Pending;
        };
        if WORKING.get() {
            return future.as_mut().poll(context);
        }
        let _at_work = AtWork::begin();
        future.as_mut().poll(context)
    }
}

/// Run `read` as if the process were being forked: it reads what a child would read.
#[cfg(test)]
pub(crate) fn as_forked<T>(read: impl FnOnce() -> T) -> T {
    before();
    let seen = read();
    in_parent();
    seen
}

/// Excludes forks during work of this library.
///
/// Work that a fork interrupts is never completed in the child. If it is the initialization of a
/// `LazyLock`, such as that of a driver's regular expression, the first connection of the child
/// waits for it for ever.
///
/// Both sides wait for a limited time, so that a thread that hangs does not block forks.
struct ForkLock {
    working: AtomicU32,
    forking: AtomicU32,
}

impl ForkLock {
    const CHECK_INTERVAL: Duration = Duration::from_micros(100);
    /// How often either side checks before it continues anyway: for at least a second.
    const CHECKS: u32 = 10_000;

    const fn new() -> Self {
        Self {
            working: AtomicU32::new(0),
            forking: AtomicU32::new(0),
        }
    }

    /// Wait until `count` is `at_most`; `false` at the timeout.
    #[allow(
        clippy::disallowed_methods,
        reason = "a fork takes less than a millisecond, and there is nothing to be woken by"
    )]
    fn wait_for(count: &AtomicU32, at_most: u32) -> bool {
        for _ in 0..Self::CHECKS {
            if count.load(Ordering::SeqCst) <= at_most {
                return true;
            }
            std::thread::sleep(Self::CHECK_INTERVAL);
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

    /// Begin a fork. `own`: 1 if the calling thread is working, else 0.
    fn close(&self, own: u32) -> bool {
        self.forking.fetch_add(1, Ordering::SeqCst);
        Self::wait_for(&self.working, own)
    }

    fn open(&self) {
        self.forking.fetch_sub(1, Ordering::SeqCst);
    }

    /// A new process has no working and no forking thread.
    fn reset(&self) {
        self.working.store(0, Ordering::SeqCst);
        self.forking.store(0, Ordering::SeqCst);
    }
}

/// The number of forks between this process and the first one that called this.
///
/// A counter rather than the pid, because pids are reused: a grandchild may have its grandparent's.
pub fn generation() -> u64 {
    static REGISTERED: Once = Once::new();
    let mut failed = false;
    REGISTERED.call_once(|| {
        // SAFETY: the child's handler is async-signal-safe, as required if the parent had several
        // threads: it only sets atomics. The other handlers run in the parent. None of them
        // unwinds.
        #[allow(unsafe_code, reason = "only `pthread_atfork` reports forks")]
        let registered =
            unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        failed = registered != 0;
    });
    // Logged outside `call_once`: a log subscriber that uses this library would deadlock inside it.
    if failed {
        tracing::warn!("forks cannot be detected: do not fork while holding a lock");
    }
    GENERATION.load(Ordering::Relaxed)
}

/// A value that belongs to the process that made it, its *owner*. In a forked child it is leaked
/// rather than dropped.
#[derive(Debug)]
pub(crate) struct ForkSafe<T> {
    value: Option<T>,
    generation: u64,
}

impl<T> ForkSafe<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Some(value),
            generation: generation(),
        }
    }

    /// Whether this process made the value.
    pub(crate) fn is_in_owner_process(&self) -> bool {
        self.generation == generation()
    }

    /// The value. In a forked child it is leaked, and the result is `None`.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        match self.is_in_owner_process() {
            true => self.value.take(),
            false => None,
        }
    }

    /// The value; `None` in a forked child.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        match self.is_in_owner_process() {
            true => self.value.as_mut(),
            false => None,
        }
    }
}

impl<T> Deref for ForkSafe<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("not dropped yet")
    }
}

impl<T> Drop for ForkSafe<T> {
    fn drop(&mut self) {
        if !self.is_in_owner_process() {
            std::mem::forget(self.value.take());
        }
    }
}

/// One value per process, made on first use.
///
/// A child skips the values of its parents. No mutex is used, because another thread may hold it at
/// a fork.
#[derive(Debug)]
pub struct PerProcess<T>(OnceLock<Box<Node<T>>>);

#[derive(Debug)]
struct Node<T> {
    value: ForkSafe<T>,
    /// The value of a forked child, and of its children.
    next: PerProcess<T>,
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Default> PerProcess<T> {
    /// The value of this process, made on first use.
    pub(crate) fn get_or_default(&self) -> &T {
        let Ok(value) = self.get_or_try_init(|| Ok::<_, Infallible>(T::default()));
        value
    }
}

impl<T: Default> PerProcess<Mutex<T>> {
    /// Lock the mutex of this process.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let mutex = self.get_or_default();
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> PerProcess<T> {
    /// Create an empty cell.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value of this process, if it has been made.
    pub fn get(&self) -> Option<&T> {
        self.find().ok()
    }

    /// The value of this process, made on first use. If two threads make it at the same time, one
    /// result is dropped.
    pub fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let empty = match self.find() {
            Ok(value) => return Ok(value),
            Err(empty) => empty,
        };
        // Allocated before: a child of a fork during an allocation in here would wait for it for ever.
        let node = Box::new(Node {
            value: ForkSafe::new(make()?),
            next: Self::new(),
        });
        Ok(&empty.0.get_or_init(|| node).value)
    }

    /// The value of this process, or the cell for it.
    fn find(&self) -> Result<&T, &Self> {
        let mut slot = self;
        while let Some(node) = slot.0.get() {
            if node.value.is_in_owner_process() {
                return Ok(&node.value);
            }
            slot = &node.next;
        }
        Err(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_waits_for_the_background_thread_to_finish_its_work_and_keeps_it_from_starting() {
        let lock = ForkLock::new();
        lock.enter();
        std::thread::scope(|scope| {
            let fork = scope.spawn(|| lock.close(0));
            while lock.forking.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(!fork.is_finished());
            lock.leave();
            assert!(fork.join().unwrap());
            let work = scope.spawn(|| lock.enter());
            assert!(!work.is_finished());
            lock.open();
            work.join().unwrap();
        });
        // A fork on the working thread itself.
        assert!(lock.close(1));
        lock.reset();
        assert!(lock.close(0));
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
    fn a_child_skips_the_value_of_its_parent() {
        let slot = PerProcess::new();
        slot.get_or_try_init(|| Ok::<_, ()>(1)).unwrap();
        let parents = Node {
            value: ForkSafe {
                value: Some(0),
                generation: generation() + 1,
            },
            next: slot,
        };
        let slot = PerProcess(OnceLock::from(Box::new(parents)));
        assert_eq!(slot.get_or_try_init(|| Ok::<_, ()>(2)), Ok(&1));
    }
}
