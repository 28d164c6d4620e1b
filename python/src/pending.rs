//! Operations that go on in the background while Python waits, or does something else.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use database_locks::blocking::wait_for;
use database_locks::{Error, Loss, OpenFence, PreviousHolder};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::task::AbortHandle;

use crate::fence::Fence;
use crate::guard::{Grant, Guard};
use crate::{courier, errors};

/// How long Ctrl-C may have to wait.
const SIGNALS: Duration = Duration::from_millis(50);

/// What an operation comes to.
pub(crate) enum Value {
    Nothing,
    Bool(bool),
    Count(u64),
    Text(Option<String>),
    PreviousHolder(Option<PreviousHolder>),
    /// `None`: another holder has it.
    Guard(Option<Grant>),
    /// The process is ending: nothing is granted any more.
    Ending,
    /// The grant that was asked about is lost.
    Lost(Loss),
    Fence(database_locks::Fence, OpenFence),
}

impl Value {
    fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Nothing => Ok(py.None()),
            Self::Bool(yes) => yes.into_py_any(py),
            Self::Count(count) => count.into_py_any(py),
            Self::Text(text) => text.into_py_any(py),
            Self::PreviousHolder(freed) => freed
                .map(|freed| (freed.holder, freed.held_for.map(|age| age.as_secs_f64())))
                .into_py_any(py),
            Self::Guard(None) => Ok(py.None()),
            Self::Guard(Some(grant)) => match Guard::new(grant) {
                Some(guard) => guard.into_py_any(py),
                None => Err(errors::ending(py)),
            },
            Self::Ending => Err(errors::ending(py)),
            Self::Lost(loss) => errors::said(py, &loss)?.into_py_any(py),
            Self::Fence(statement, open) => Fence::new(statement, open).into_py_any(py),
        }
    }
}

type Outcome = Result<Value, Error>;
type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

enum State {
    /// Driven by whoever waits for it.
    Ours(Work),
    /// Driven by the courier.
    Couriers,
    Done(Outcome),
    Taken,
}

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Pending {
    state: Arc<Mutex<State>>,
    couriers: Mutex<Option<AbortHandle>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pending {
    pub(crate) fn new(work: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::Ours(Box::pin(work)))),
            couriers: Mutex::default(),
        }
    }

    /// Whether it is done, after so long at most.
    fn drive(&self, at_most: Duration) -> bool {
        let mut state = locked(&self.state);
        let State::Ours(work) = &mut *state else {
            return matches!(*state, State::Done(_));
        };
        let Some(outcome) = wait_for(work.as_mut(), at_most) else {
            return false;
        };
        *state = State::Done(outcome);
        true
    }
}

#[pymethods]
impl Pending {
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let mut left = Duration::try_from_secs_f64(seconds).unwrap_or(SIGNALS);
        loop {
            let nap = left.min(SIGNALS);
            if py.detach(|| self.drive(nap)) {
                return Ok(true);
            }
            py.check_signals()?;
            // By naps rather than by a clock: an early wake-up only brings Python a look earlier.
            left -= nap;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    pub(crate) fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let state = std::mem::replace(&mut *locked(&self.state), State::Taken);
        match state {
            State::Done(Ok(value)) => value.into_python(py),
            State::Done(Err(error)) => Err(errors::raise(py, error)),
            other => {
                *locked(&self.state) = other;
                Err(PyRuntimeError::new_err("there is no result to be had"))
            }
        }
    }

    fn then(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        let mut state = locked(&self.state);
        match std::mem::replace(&mut *state, State::Couriers) {
            State::Ours(work) => {
                drop(state);
                let shared = Arc::clone(&self.state);
                let task = courier::spawn(async move {
                    let outcome = work.await;
                    {
                        let mut state = locked(&shared);
                        // Given up meanwhile, what it came to is dropped: a grant is given back.
                        if matches!(*state, State::Couriers) {
                            *state = State::Done(outcome);
                        }
                    }
                    courier::now(|py| callback.call0(py).map(drop));
                })?;
                *locked(&self.couriers) = Some(task.abort_handle());
                Ok(())
            }
            other => {
                let done = matches!(other, State::Done(_));
                *state = other;
                drop(state);
                if done {
                    callback.call0(py)?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn cancel(&self) {
        if let Some(task) = locked(&self.couriers).take() {
            task.abort();
        }
        let given_up = std::mem::replace(&mut *locked(&self.state), State::Taken);
        drop(given_up);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(task) = locked(&self.couriers).take() {
            task.abort();
        }
    }
}
