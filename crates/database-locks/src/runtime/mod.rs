//! The background runtime of the process, and waiting on a thread.
//!
//! All renewals happen on the background runtime, on a thread of its own, rather than on the runtime of a
//! caller: one that blocks its workers, ends its runtime while it holds a lock, or has none at all must not
//! lose its locks for it.
//!
//! A thread that blocks drives a second runtime, which all such threads share: a request to the database is
//! sent, and its answer heard, on the very thread that waits for it. Otherwise two threads would have to wake
//! each other at each call, a third of what an acquire takes. A wait that needs nothing of that runtime is
//! spent outside it, so that no thread keeps it from the others.

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

/// Why work was not done.
#[derive(Debug)]
pub(crate) enum RuntimeError {
    /// The system started no thread or runtime.
    NotStarted(std::io::Error),
    /// The work panicked, or its runtime ended.
    Stopped(JoinError),
    /// The calling thread drives the background runtime: it would wait for itself.
    DrivesRuntime,
}

/// The background runtime of this process, which is started by the first call.
fn background() -> Result<&'static Handle, RuntimeError> {
    static BACKGROUND: PerProcess<Handle> = PerProcess::new();
    BACKGROUND.get_or_try_init(|| {
        // Before there is a thread for a fork to wait for.
        fork::generation();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(fork::rest)
            .on_thread_unpark(fork::begin)
            .build()
            .map_err(RuntimeError::NotStarted)?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("database-locks".into())
            .spawn(move || {
                let _at_work = AtWork::begin();
                DRIVES.set(Some(fork::generation()));
                runtime.block_on(std::future::pending::<()>());
            })
            .map_err(RuntimeError::NotStarted)?;
        Ok(handle)
    })
}

static BLOCKING: PerProcess<&Runtime> = PerProcess::new();

/// The runtime that threads drive while they block. It is never dropped: nothing of it is stopped with a
/// thread that ends.
fn blocking() -> Result<&'static Runtime, RuntimeError> {
    let start = || {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(&*Box::leak(Box::new(
            runtime.map_err(RuntimeError::NotStarted)?,
        )))
    };
    BLOCKING.get_or_try_init(start).copied()
}

/// How long the background drives the blocking runtime for one piece of work.
const FINISHING: Duration = Duration::from_secs(10);

/// Drive the blocking runtime, if that is the `home`, until `work`, the end of one of its tasks, is done, for some
/// seconds at most. While no thread blocks, no thread drives it: a connection that was no longer used stayed open,
/// and kept its database from being dropped.
pub(crate) fn finish<T: Send + 'static>(
    home: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) {
    let Some(shared) = BLOCKING.get().copied() else {
        return;
    };
    if home.id() == shared.handle().id() {
        let drive = move || shared.block_on(async { tokio::time::timeout(FINISHING, work).await });
        let _ = spawn(async { drop(tokio::task::spawn_blocking(drive)) });
    }
}

/// When a wait within the blocking runtime last began, in milliseconds.
static DRIVEN: AtomicU64 = AtomicU64::new(0);
/// For how long after it, in milliseconds, what the tasks of that runtime know is taken for new enough.
const FRESH: u64 = 100;

thread_local! {
    /// In which generation of forks this thread is the background thread, if it is.
    static DRIVES: Cell<Option<u64>> = const { Cell::new(None) };
    /// What this thread waits for needs the runtime that the thread drives.
    static NEEDED: Cell<bool> = const { Cell::new(false) };
    /// This thread is in the blocking runtime.
    static BLOCKS: Cell<bool> = const { Cell::new(false) };
    /// This thread waits outside the runtime that it is in, which may not go on until the wait is over.
    static PARKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is the background thread, so that nothing goes on until it returns: foreign code runs
/// there where it is a waker, a log subscriber or a future that is waited for.
pub(crate) fn drives() -> bool {
    // A child that is forked from within has another.
    DRIVES.get() == Some(fork::generation())
}

/// The runtime that polls the caller and will go on polling it, if there is one that is not the background
/// runtime; and whether it is the one that threads drive while they block.
pub(crate) fn of_caller() -> Option<(Handle, bool)> {
    if PARKED.get() || drives() {
        return None;
    }
    let handle = Handle::try_current().ok()?;
    Some((handle, BLOCKS.get()))
}

/// What is being polled waits for something that the runtime of this thread has to do.
pub(crate) fn needed() {
    NEEDED.set(true);
}

/// Carry out `work` in the background. Dropping what this answers does not stop it.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<JoinHandle<T>, RuntimeError> {
    Ok(background()?.spawn(work))
}

/// Carry out `work` in the background, and wait for it. Dropping this future does not stop it.
pub(crate) async fn run<T: Send + 'static, E: From<RuntimeError> + Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E> {
    let done = spawn(work)?.await;
    done.unwrap_or_else(|stopped| Err(RuntimeError::Stopped(stopped).into()))
}

/// Whether this thread may wait for what the background runtime does.
fn may_block() -> Result<(), RuntimeError> {
    match drives() {
        false => Ok(()),
        true => Err(RuntimeError::DrivesRuntime),
    }
}

/// Wait for it on this thread.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, RuntimeError> {
    may_block()?;
    let mut future = pin!(future);
    loop {
        if let Some(done) = wait(future.as_mut(), None) {
            return Ok(done);
        }
    }
}

/// Wait for it on this thread, for so long. None: it takes longer.
pub(crate) fn block_on_for<F: Future + ?Sized>(
    future: Pin<&mut F>,
    at_most: Duration,
) -> Result<Option<F::Output>, RuntimeError> {
    may_block()?;
    Ok(wait(future, Some(clock::now() + at_most)))
}

fn wait<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    until: Option<BootInstant>,
) -> Option<F::Output> {
    // Within a runtime tokio refuses to drive another, and while a thread ends too.
    let outside = Handle::try_current().is_err_and(|why| why.is_missing_context());
    if outside && let Ok(runtime) = blocking() {
        let done = {
            let _blocks = Set::begin(&BLOCKS);
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

enum Driven<T> {
    Done(T),
    /// It needs nothing of the runtime any more.
    Elsewhere,
    Late,
}

/// Wait for it within the blocking runtime, for as long as it needs that.
async fn drive<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    until: Option<BootInstant>,
) -> Driven<F::Output> {
    // The tasks of the runtime come first, if none was polled for a while: one of them knows whether the server
    // has ended the connection meanwhile.
    let now = u64::try_from(clock::now().since_boot().as_millis()).unwrap_or(u64::MAX);
    if now.saturating_sub(DRIVEN.swap(now, Ordering::Relaxed)) > FRESH {
        tokio::task::yield_now().await;
    }
    let driven = poll_fn(|context| {
        NEEDED.set(false);
        let polled = {
            let _at_work = AtWork::begin();
            future.as_mut().poll(context)
        };
        match polled {
            Poll::Ready(done) => Poll::Ready(Driven::Done(done)),
            Poll::Pending if NEEDED.get() => Poll::Pending,
            Poll::Pending => Poll::Ready(Driven::Elsewhere),
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

/// Wait for it on this thread, outside any runtime.
fn park<F: Future + ?Sized>(
    mut future: Pin<&mut F>,
    until: Option<BootInstant>,
) -> Option<F::Output> {
    let _parked = Set::begin(&PARKED);
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

/// A mark of this thread, set for as long as this lives.
struct Set(&'static LocalKey<Cell<bool>>, bool);

impl Set {
    fn begin(mark: &'static LocalKey<Cell<bool>>) -> Self {
        Self(mark, mark.replace(true))
    }
}

impl Drop for Set {
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
    /// Whether it was set, rather than that the time was over.
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
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// On which thread it is carried out.
    async fn carried_out_by() -> thread::ThreadId {
        run(async { Ok::<_, RuntimeError>(thread::current().id()) })
            .await
            .unwrap()
    }

    #[test]
    fn a_wait_leaves_the_shared_runtime_once_it_needs_it_no_more() {
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let long = thread::spawn(move || block_on(told).unwrap());
        // Another thread gets to drive it while that one waits.
        let sleeps = || async {
            let mut sleep = pin!(tokio::time::sleep(Duration::from_millis(1)));
            poll_fn(|context| {
                needed();
                sleep.as_mut().poll(context)
            })
            .await;
            of_caller().is_some_and(|(_, blocking)| blocking)
        };
        for _ in 0..3 {
            assert!(block_on(sleeps()).unwrap());
        }
        tell.send(()).unwrap();
        long.join().unwrap().unwrap();
    }

    #[test]
    fn what_nobody_blocks_for_goes_on_while_others_block_and_after_them() {
        let (hear, heard) = mpsc::channel();
        let ticks = async move {
            for tick in 0..100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                hear.send(tick).unwrap();
            }
        };
        drop(spawn(ticks).unwrap());
        for _ in 0..20 {
            block_on(async { run(async { Ok::<_, RuntimeError>(()) }).await.unwrap() }).unwrap();
        }
        for tick in 0..100 {
            assert_eq!(heard.recv_timeout(LONG), Ok(tick));
        }
    }

    #[test]
    fn many_threads_that_block_and_tasks_that_do_not_all_have_their_answers() {
        let rounds = || async {
            for _ in 0..200 {
                run(async {
                    tokio::task::yield_now().await;
                    Ok::<_, RuntimeError>(())
                })
                .await
                .unwrap();
            }
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    (0..200).for_each(|_| {
                        block_on(run(async { Ok::<_, RuntimeError>(()) }))
                            .unwrap()
                            .unwrap()
                    })
                });
                scope.spawn(|| pollster::block_on(rounds()));
                scope.spawn(|| block_on(rounds()).unwrap());
            }
        });
    }

    #[test]
    fn a_wait_that_is_over_may_be_gone_on_with_by_any_thread() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut waiting = Box::pin(run(async { Ok::<_, RuntimeError>(told.await.unwrap()) }));
        for _ in 0..3 {
            let waited = block_on_for(waiting.as_mut(), Duration::from_millis(5));
            assert!(waited.unwrap().is_none());
        }
        let waiting = thread::spawn(move || block_on_for(waiting.as_mut(), LONG));
        tell.send("news").unwrap();
        let waited = waiting.join().unwrap().unwrap();
        assert_eq!(waited.unwrap().unwrap(), "news");
    }

    #[test]
    fn who_blocks_within_another_runtime_has_it_done() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let by = runtime
            .unwrap()
            .block_on(async { block_on(carried_out_by()).unwrap() });
        assert_ne!(by, thread::current().id());
    }

    #[test]
    fn a_thread_that_drives_is_refused_to_wait_for_itself() {
        fn refused(why: Result<(), RuntimeError>) {
            let said = crate::Error::from(why.unwrap_err()).to_string();
            assert!(said.contains("must be made on another thread"), "{said}");
        }
        let nested = || async {
            refused(block_on(async {}));
            refused(block_on_for(pin!(async {}), LONG).map(drop));
        };
        block_on(spawn(nested()).unwrap()).unwrap().unwrap();
        // Elsewhere it may.
        block_on(async {}).unwrap();
    }

    #[test]
    fn a_wait_that_panics_leaves_it_to_others_to_go_on() {
        let done = AtomicBool::new(false);
        let panics = std::panic::catch_unwind(|| block_on(async { panic!("of its own") }));
        assert!(panics.is_err());
        block_on(async {
            run(async { Ok::<_, RuntimeError>(()) }).await.unwrap();
            done.store(true, Ordering::Relaxed);
        })
        .unwrap();
        assert!(done.into_inner());
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "it stands for work that takes a while"
    )]
    fn a_child_never_sees_the_background_in_the_middle_of_something() {
        static HALVES: AtomicU8 = AtomicU8::new(0);
        let (begun, has_begun) = mpsc::channel();
        let work = async move {
            HALVES.fetch_add(1, Ordering::SeqCst);
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            HALVES.fetch_add(1, Ordering::SeqCst);
        };
        let work = spawn(work).unwrap();
        has_begun.recv().unwrap();
        assert_eq!(fork::as_forked(|| HALVES.load(Ordering::SeqCst)), 2);
        block_on(work).unwrap().unwrap();
    }
}
