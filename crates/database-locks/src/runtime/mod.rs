//! The background runtime of the process, and blocking waits.
//!
//! All renewals run on the background runtime, on its own thread rather than on a caller's runtime.
//! An application that blocks its workers, ends its runtime while a lock is held, or has no runtime
//! at all, must not lose its locks because of that.
//!
//! Threads that block share a second runtime, the blocking runtime, which they drive themselves: a
//! request is sent, and its answer received, on the thread that waits for it. Otherwise two threads
//! would have to wake each other at each call, a third of the duration of an acquire. A wait that
//! needs nothing of that runtime is spent outside it, so that other threads can drive it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{LocalKey, Thread};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinHandle};

use fork::{AtWork, PerProcess};
use protocol::BootInstant;

pub(crate) mod callbacks;
pub(crate) mod clock;
pub(crate) mod fork;
pub(crate) mod join;

/// Why work was not run or not completed.
#[derive(Debug)]
pub(crate) enum RuntimeError {
    /// The operating system started no thread or runtime.
    NotStarted(std::io::Error),
    /// The work panicked, or its runtime ended.
    Stopped(JoinError),
    /// The calling thread drives the background runtime, so that waiting would deadlock.
    DrivesRuntime,
}

/// The background runtime of this process, started by the first call.
fn background() -> Result<&'static Handle, RuntimeError> {
    static BACKGROUND: PerProcess<Handle> = PerProcess::new();
    BACKGROUND.get_or_try_init(|| {
        // Registers the fork handlers before the thread exists that they wait for.
        fork::generation();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(fork::end_work)
            .on_thread_unpark(fork::begin_work)
            .build()
            .map_err(RuntimeError::NotStarted)?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("database-locks".into())
            .spawn(move || {
                let _at_work = AtWork::begin();
                BACKGROUND_THREAD_IN.set(Some(fork::generation()));
                runtime.block_on(std::future::pending::<()>());
            })
            .map_err(RuntimeError::NotStarted)?;
        Ok(handle)
    })
}

static BLOCKING: PerProcess<&Runtime> = PerProcess::new();

/// The runtime that blocking threads drive. It is never dropped, so that no task ends with a
/// thread.
fn blocking() -> Result<&'static Runtime, RuntimeError> {
    let start = || {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(&*Box::leak(Box::new(
            runtime.map_err(RuntimeError::NotStarted)?,
        )))
    };
    BLOCKING.get_or_try_init(start).copied()
}

/// How long the background drives the blocking runtime for one task.
const DRIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// If `owner` is the blocking runtime, drive it until its task `work` is done, for at most
/// [`DRIVE_TIMEOUT`]. While no thread blocks, no thread drives that runtime, and a connection that
/// should close would stay open.
pub(crate) fn drive_until_done<T: Send + 'static>(
    owner: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) {
    let Some(shared) = BLOCKING.get().copied() else {
        return;
    };
    if owner.id() == shared.handle().id() {
        let drive =
            move || shared.block_on(async { tokio::time::timeout(DRIVE_TIMEOUT, work).await });
        let _ = spawn(async { drop(tokio::task::spawn_blocking(drive)) });
    }
}

/// When the latest wait in the blocking runtime began, in milliseconds.
static LAST_DRIVEN: AtomicU64 = AtomicU64::new(0);
/// For how many milliseconds after that its tasks need not be polled first.
const RECENT_MS: u64 = 100;

thread_local! {
    /// The fork generation in which this thread is the background thread; `None` on other threads.
    static BACKGROUND_THREAD_IN: Cell<Option<u64>> = const { Cell::new(None) };
    /// The future that this thread waits for needs the runtime that the thread drives.
    static NEEDS_RUNTIME: Cell<bool> = const { Cell::new(false) };
    /// This thread is in the blocking runtime.
    static IN_BLOCKING_RUNTIME: Cell<bool> = const { Cell::new(false) };
    /// This thread waits outside the runtime that it is in, which may be blocked until the wait
    /// ends.
    static PARKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is the background thread, which must not wait for its own work. Foreign code
/// runs there as a waker, a log subscriber or an awaited future.
pub(crate) fn drives_background() -> bool {
    // A child forked from this thread has another background thread.
    BACKGROUND_THREAD_IN.get() == Some(fork::generation())
}

/// The runtime that polls the caller, and whether it is the blocking runtime. `None` outside of a
/// runtime, on the background thread, and where the runtime is blocked by the wait of the caller.
pub(crate) fn caller_runtime() -> Option<(Handle, bool)> {
    if PARKED.get() || drives_background() {
        return None;
    }
    let handle = Handle::try_current().ok()?;
    Some((handle, IN_BLOCKING_RUNTIME.get()))
}

/// Mark that the future being polled needs the runtime of this thread.
pub(crate) fn mark_runtime_needed() {
    NEEDS_RUNTIME.set(true);
}

/// Run `work` in the background. Dropping the handle does not stop it.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<JoinHandle<T>, RuntimeError> {
    Ok(background()?.spawn(work))
}

/// Run `work` in the background and wait for it. Dropping this future does not stop the work.
pub(crate) async fn run<T: Send + 'static, E: From<RuntimeError> + Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E> {
    let done = spawn(work)?.await;
    done.unwrap_or_else(|stopped| Err(RuntimeError::Stopped(stopped).into()))
}

/// An error if this thread must not wait for the background runtime.
fn check_may_block() -> Result<(), RuntimeError> {
    match drives_background() {
        false => Ok(()),
        true => Err(RuntimeError::DrivesRuntime),
    }
}

/// Wait for a future on this thread.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, RuntimeError> {
    check_may_block()?;
    let mut future = pin!(future);
    loop {
        if let Some(done) = wait(future.as_mut(), None) {
            return Ok(done);
        }
    }
}

/// Wait for a future on this thread, for at most `at_most`; `None` if it takes longer.
pub(crate) fn block_on_for<F: Future + ?Sized>(
    future: Pin<&mut F>,
    at_most: Duration,
) -> Result<Option<F::Output>, RuntimeError> {
    check_may_block()?;
    Ok(wait(future, Some(clock::now() + at_most)))
}

fn wait<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    until: Option<BootInstant>,
) -> Option<F::Output> {
    // Inside a runtime, or at the end of a thread, tokio refuses to drive another runtime.
    let outside = Handle::try_current().is_err_and(|why| why.is_missing_context());
    if outside && let Ok(runtime) = blocking() {
        let done = {
            let _blocks = FlagGuard::begin(&IN_BLOCKING_RUNTIME);
            runtime.block_on(drive(future.as_mut(), until))
        };
        if let Driven::Done(done) = done {
            return Some(done);
        } else if let Driven::Late = done {
            return None;
        }
    }
    park(future, until)
}

/// The result of driving the blocking runtime for a future.
enum Driven<T> {
    Done(T),
    /// The future does not need the runtime any more.
    NotNeeded,
    Late,
}

/// Wait for a future in the blocking runtime, for as long as it needs that.
async fn drive<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    until: Option<BootInstant>,
) -> Driven<F::Output> {
    // If the runtime's tasks were not polled for a while, they come first: one of them detects that
    // the server has closed the connection.
    let now = u64::try_from(clock::now().since_boot().as_millis()).unwrap_or(u64::MAX);
    if now.saturating_sub(LAST_DRIVEN.swap(now, Ordering::Relaxed)) > RECENT_MS {
        tokio::task::yield_now().await;
    }
    let driven = poll_fn(|context| {
        NEEDS_RUNTIME.set(false);
        let polled = {
            let _at_work = AtWork::begin();
            future.as_mut().poll(context)
        };
        match polled {
            Poll::Ready(done) => Poll::Ready(Driven::Done(done)),
            Poll::Pending if NEEDS_RUNTIME.get() => Poll::Pending,
            Poll::Pending => Poll::Ready(Driven::NotNeeded),
        }
    });
    match until {
        None => driven.await,
        Some(until) => {
            let left = until - clock::now();
            let driven = tokio::time::timeout(left, driven).await;
            driven.unwrap_or(Driven::Late)
        }
    }
}

/// Wait for a future on this thread, outside any runtime.
fn park<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    until: Option<BootInstant>,
) -> Option<F::Output> {
    let _parked = FlagGuard::begin(&PARKED);
    let signal = Arc::new(Signal {
        thread: std::thread::current(),
        set: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&signal));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return Some(done);
        }
        if !signal.wait(until) {
            return None;
        }
    }
}

/// A thread-local flag that is set while this value lives.
struct FlagGuard(&'static LocalKey<Cell<bool>>, bool);

impl FlagGuard {
    fn begin(mark: &'static LocalKey<Cell<bool>>) -> Self {
        Self(mark, mark.replace(true))
    }
}

impl Drop for FlagGuard {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Wakes one thread.
#[derive(Debug)]
struct Signal {
    thread: Thread,
    set: AtomicBool,
}

impl Signal {
    /// Wait until the signal is set; `false` at the timeout.
    fn wait(&self, until: Option<BootInstant>) -> bool {
        while !self.set.swap(false, Ordering::Acquire) {
            match until.map(|until| until - clock::now()) {
                None => std::thread::park(),
                Some(Duration::ZERO) => return false,
                Some(left) => std::thread::park_timeout(left),
            }
        }
        true
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

#[cfg(test)]
mod tests;
