//! Helpers for mutexes and for state of one process.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};

use database_locks::__python::PerProcess;

/// The content of a mutex, also after a panic of another thread.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of this process; a forked child gets a new one.
pub(crate) fn of_process<T: Default + Send + Sync>(cell: &'static PerProcess<T>) -> &'static T {
    match cell.get_or_try_init(|| Ok::<_, Infallible>(T::default())) {
        Ok(state) => state,
        Err(never) => match never {},
    }
}
