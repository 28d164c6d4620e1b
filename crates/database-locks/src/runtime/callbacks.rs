//! Threads that run the callbacks of losses.
//!
//! A callback is foreign code that may block or never return. On the background thread it would
//! keep every lease of the process from being renewed.
//!
//! One idle thread is enough as long as callbacks return. A thread that takes a callback makes sure
//! that another thread takes the next, so that a callback that never returns delays no other.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::runtime::fork::PerProcess;

/// The largest number of threads, and so of concurrent callbacks. Further callbacks wait for one to
/// return.
const MAX_THREADS: usize = 64;

/// Run foreign code and catch its panic, after the panic hook has shown it. It must not end the
/// task that renews all leases.
pub(crate) fn shielded(foreign: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(foreign));
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads of one process, started for the first callback.
#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// Run a callback on a callback thread.
pub(crate) fn call(callback: impl FnOnce() + Send + 'static) {
    static POOL: PerProcess<&Pool> = PerProcess::new();
    let Ok(pool) = POOL.get_or_try_init(|| Ok::<_, Infallible>(&*Box::leak(Box::default())));
    pool.call(Box::new(callback));
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&'static self, job: Job) {
        let mut state = self.state();
        state.jobs.push_back(job);
        self.ensure_thread(&mut state);
        // If no thread can be started, the callback runs here rather than not at all.
        let unserved = match state.threads {
            0 => state.jobs.pop_back(),
            _ => None,
        };
        drop(state);
        if let Some(job) = unserved {
            shielded(job);
        }
    }

    /// Make sure that a thread takes the next job.
    fn ensure_thread(&'static self, state: &mut State) {
        if state.idle > 0 {
            self.more.notify_one();
        } else if state.threads < MAX_THREADS {
            let thread = std::thread::Builder::new().name("locks-callbacks".into());
            let started = thread.spawn(|| self.work()).is_ok();
            state.threads += usize::from(started);
        }
    }

    fn work(&'static self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                if !state.jobs.is_empty() {
                    self.ensure_thread(&mut state);
                }
                drop(state);
                shielded(job);
                state = self.state();
            } else if state.idle > 0 {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                state = self
                    .more
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn pool() -> &'static Pool {
        Box::leak(Box::default())
    }

    #[test]
    fn callbacks_that_never_return_keep_no_other_from_running() {
        let (pool, (sender, receiver)) = (pool(), mpsc::channel());
        for i in 0..20 {
            let sender = sender.clone();
            pool.call(Box::new(move || {
                sender.send(i).unwrap();
                loop {
                    std::thread::park();
                }
            }));
        }
        let mut all: Vec<_> = (0..20)
            .map(|_| receiver.recv_timeout(LONG).unwrap())
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn callbacks_that_return_share_few_threads_and_one_of_them_stays() {
        let (pool, (sender, receiver)) = (pool(), mpsc::channel());
        for round in 0..100 {
            for i in 0..10 {
                let sender = sender.clone();
                pool.call(Box::new(move || sender.send((round, i)).unwrap()));
            }
            for _ in 0..10 {
                receiver.recv_timeout(LONG).unwrap();
            }
        }
        let rests = || {
            let state = pool.state();
            state.threads == 1 && state.idle == 1
        };
        let began = crate::runtime::clock::now();
        while !rests() {
            assert!(
                crate::runtime::clock::now() < began + LONG,
                "threads are left over"
            );
            std::thread::yield_now();
        }
        let panics: Job = Box::new(|| panic!("on purpose"));
        pool.call(panics);
        pool.call(Box::new(move || sender.send((0, 0)).unwrap()));
        receiver.recv_timeout(LONG).unwrap();
    }
}
