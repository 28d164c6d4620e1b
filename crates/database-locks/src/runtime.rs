//! The one background runtime of the process: all I/O and all renewals happen there.
//!
//! A runtime of our own rather than the caller's, since a caller that blocks its workers, drops its
//! runtime while holding a lock, or has none at all must not lose its locks for it.
//!
//! A thread of its own drives it, and makes way for threads that block until something is done: see
//! `baton`.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

use self::baton::Baton;
use crate::clock::{self, Time};
use crate::error::Error;
use crate::fork::{self, AtWork, PerProcess};

mod baton;
pub(crate) mod callbacks;

/// The runtime, and who drives it.
struct Background {
    runtime: Runtime,
    baton: Baton,
}

/// That of this process, which is started by the first call.
fn background() -> Result<&'static Background, Error> {
    static BACKGROUND: PerProcess<&Background> = PerProcess::new();
    BACKGROUND.get_or_try_init(start).copied()
}

fn start() -> Result<&'static Background, Error> {
    let failed = |source: std::io::Error| Error::Unavailable {
        op: "start the thread that renews leases".into(),
        source: Box::new(source),
    };
    // Before there is a thread for a fork to wait for.
    fork::generation();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(fork::rest)
        .on_thread_unpark(fork::begin)
        .build()
        .map_err(failed)?;
    // For as long as the process: so is the thread.
    let background: &Background = Box::leak(Box::new(Background {
        runtime,
        baton: Baton::new().map_err(failed)?,
    }));
    std::thread::Builder::new()
        .name("database-locks".into())
        .spawn(|| background.drive())
        .map_err(failed)?;
    Ok(background)
}

thread_local! {
    /// In which generation of forks this thread drives the runtime of its process, if it does.
    static DRIVES: Cell<Option<u64>> = const { Cell::new(None) };
}

/// This thread drives the runtime, for as long as this lives.
struct Driving(AtWork);

impl Driving {
    fn begin() -> Self {
        let at_work = AtWork::begin();
        DRIVES.set(Some(fork::generation()));
        Self(at_work)
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        DRIVES.set(None);
    }
}

/// Whether this thread is in the midst of driving the runtime, so that nothing goes on until it returns:
/// foreign code runs there where it is a waker, a log subscriber or a future that is waited for.
pub(crate) fn drives() -> bool {
    // A child that is forked from within is driven by another thread.
    DRIVES.get() == Some(fork::generation())
}

impl Background {
    /// What the background thread does for ever.
    fn drive(&self) {
        loop {
            let turn = self.baton.needs_background();
            let _driving = Driving::begin();
            self.runtime.block_on(turn.wanted());
        }
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            if let Some(done) = self.wait_until(future.as_mut(), None) {
                return done;
            }
        }
    }

    /// None: it takes longer than that.
    fn wait_until<F: Future + ?Sized>(
        &self,
        mut future: Pin<&mut F>,
        until: Option<Time>,
    ) -> Option<F::Output> {
        // Within another runtime tokio refuses to drive ours, and when a thread is about to end too.
        let may_drive = Handle::try_current().is_err_and(|why| why.is_missing_context());
        let mut place = self.baton.stand_in_line();
        loop {
            if may_drive && let Some(turn) = place.comes() {
                let _driving = Driving::begin();
                let left = until.map(|until| until.saturating_sub(clock::now()));
                let done = self.runtime.block_on(async {
                    match left {
                        Some(left) => tokio::time::timeout(left, future).await.ok(),
                        None => Some(future.await),
                    }
                });
                if done.is_none() {
                    turn.interrupt();
                }
                return done;
            }
            if let Poll::Ready(done) = place.poll(future.as_mut(), until) {
                return Some(done);
            }
            if until.is_some_and(|until| clock::now() >= until) {
                return None;
            }
        }
    }
}

/// Carry out `work` in the background. Dropping what this answers does not stop it.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    let Background { runtime, baton } = background()?;
    let begun = baton.begin();
    let task = runtime.spawn(async move {
        let _begun = begun;
        work.await
    });
    baton.begun();
    Ok(task)
}

/// The same with what goes on for ever, and nobody waits for.
pub(crate) fn spawn_service(work: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    background()?.runtime.spawn(work);
    Ok(())
}

/// Carry out `work` in the background, and wait for it. Dropping this future does not stop it.
pub(crate) async fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    spawn(work)?.await.unwrap_or_else(|stopped| {
        Err(Error::Unavailable {
            op: "finish what was begun".into(),
            source: Box::new(stopped),
        })
    })
}

/// Whether this thread may wait for what the runtime does.
///
/// Not where it is this thread that drives it: it would wait for itself, and every lease of the process
/// with it.
fn may_block() -> Result<(), Error> {
    match drives() {
        false => Ok(()),
        true => Err(Error::config(
            "a blocking call",
            "made on the thread that renews leases, by a log subscriber, a waker or a future that is \
             waited for there",
            "made on another thread",
        )),
    }
}

/// Wait for it on this thread.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, Error> {
    may_block()?;
    Ok(match background() {
        Ok(background) => background.wait(future),
        // It will say so itself, if it needs it.
        Err(_) => pollster::block_on(future),
    })
}

/// Wait for it on this thread, for so long.
pub(crate) fn block_on_for<F: Future + ?Sized>(
    future: Pin<&mut F>,
    at_most: Duration,
) -> Result<Option<F::Output>, Error> {
    may_block()?;
    let until = clock::now().saturating_add(at_most);
    let background = background().ok();
    Ok(background.and_then(|background| background.wait_until(future, Some(until))))
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
        run(async { Ok(thread::current().id()) }).await.unwrap()
    }

    #[test]
    fn who_blocks_carries_it_out_himself_and_who_does_not_has_it_done() {
        let me = thread::current().id();
        // Not at once, perhaps: whoever drives when it is asked for carries it out, and another test may.
        let began = clock::now();
        while block_on(carried_out_by()).unwrap() != me {
            assert!(clock::now() < began + LONG, "others do it all");
        }
        let by = pollster::block_on(carried_out_by());
        assert_ne!(by, me);
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
            block_on(async { run(async { Ok(()) }).await.unwrap() }).unwrap();
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
                    Ok(())
                })
                .await
                .unwrap();
            }
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    (0..200).for_each(|_| block_on(run(async { Ok(()) })).unwrap().unwrap())
                });
                scope.spawn(|| pollster::block_on(rounds()));
                scope.spawn(|| block_on(rounds()).unwrap());
            }
        });
    }

    #[test]
    fn a_wait_that_is_over_may_be_gone_on_with_by_any_thread() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut waiting = Box::pin(run(async { Ok(told.await.unwrap()) }));
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
        fn refused(why: Result<(), Error>) {
            let said = why.unwrap_err().to_string();
            assert!(said.contains("must be made on another thread"), "{said}");
        }
        let nested = || async {
            refused(block_on(async {}));
            refused(block_on_for(pin!(async {}), LONG).map(drop));
        };
        // In the background, on the thread that drives it just then, and on a thread that blocks.
        block_on(spawn(nested()).unwrap()).unwrap().unwrap();
        pollster::block_on(spawn(nested()).unwrap()).unwrap();
        let me = thread::current().id();
        let began = clock::now();
        while block_on(carried_out_by()).unwrap() != me {
            assert!(clock::now() < began + LONG, "others do it all");
        }
        // It may again once it does not drive any more.
        block_on(async {}).unwrap();
    }

    #[test]
    fn a_wait_that_panics_leaves_it_to_others_to_go_on() {
        let done = AtomicBool::new(false);
        let panics = std::panic::catch_unwind(|| block_on(async { panic!("of its own") }));
        assert!(panics.is_err());
        block_on(async {
            run(async { Ok(()) }).await.unwrap();
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
