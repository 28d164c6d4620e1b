//! Operations in the background, which Python waits for.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use database_locks::Error;
use database_locks::blocking::wait_for;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::task::AbortHandle;

use crate::sync::locked;
use crate::{errors, gil_thread};

/// The longest delay of Ctrl-C.
const SIGNALS: Duration = Duration::from_millis(50);

/// Makes the result of an operation, with the GIL. Dropped uncalled, it gives back a grant that it
/// owns.
pub(crate) type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// The answer of an operation without a result.
pub(crate) fn nothing() -> Answer {
    Box::new(|py| Ok(py.None()))
}

/// The answer with this value.
pub(crate) fn value<T>(value: T) -> Answer
where
    T: for<'py> IntoPyObject<'py> + Send + 'static,
{
    Box::new(move |py| value.into_py_any(py))
}

type Outcome = Result<Answer, Error>;
type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

enum State {
    /// Polled by the thread that waits, or on the GIL thread after [`Pending::then`].
    Running(Work),
    Done(Outcome),
    Taken,
}

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Pending {
    state: Arc<Mutex<State>>,
    /// Polls the work on the GIL thread.
    task: Mutex<Option<AbortHandle>>,
}

impl Pending {
    pub(crate) fn new(work: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::Running(Box::pin(work)))),
            task: Mutex::default(),
        }
    }

    /// Polls for `at_most`. Returns whether the operation is done.
    fn drive(&self, at_most: Duration) -> bool {
        let on_gil_thread = locked(&self.task).is_some();
        let mut state = locked(&self.state);
        let work = match &mut *state {
            State::Running(work) if !on_gil_thread => work,
            State::Done(_) => return true,
            State::Running(_) | State::Taken => return false,
        };
        let Some(outcome) = wait_for(work.as_mut(), at_most) else {
            return false;
        };
        *state = State::Done(outcome);
        true
    }
}

/// Poll work that [`Pending::cancel`] may drop between two polls.
fn poll_shared(state: &Mutex<State>, context: &mut Context<'_>) -> Poll<()> {
    let mut state = locked(state);
    let State::Running(work) = &mut *state else {
        return Poll::Ready(());
    };
    let outcome = ready!(work.as_mut().poll(context));
    *state = State::Done(outcome);
    Poll::Ready(())
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
            // Counted in naps and not by a clock: an early wake-up does no harm.
            left -= nap;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    pub(crate) fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let state = std::mem::replace(&mut *locked(&self.state), State::Taken);
        match state {
            State::Done(Ok(answer)) => answer(py),
            State::Done(Err(error)) => Err(errors::raise(py, error)),
            other => {
                *locked(&self.state) = other;
                Err(PyRuntimeError::new_err(
                    "there is no result: the operation is not done, or its result was taken",
                ))
            }
        }
    }

    fn then(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        let mut task = locked(&self.task);
        let is_done = !matches!(*locked(&self.state), State::Running(_));
        if is_done || task.is_some() {
            drop(task);
            return if is_done {
                callback.call0(py).map(drop)
            } else {
                Ok(())
            };
        }
        let shared = Arc::clone(&self.state);
        let spawned = gil_thread::spawn(async move {
            poll_fn(|context| poll_shared(&shared, context)).await;
            gil_thread::call_now(|py| callback.call0(py).map(drop));
        })?;
        *task = Some(spawned.abort_handle());
        Ok(())
    }

    /// Drops the work before it returns. If the GIL thread dropped it some time later, a cancelled
    /// wait could be granted a lock that its caller releases next.
    pub(crate) fn cancel(&self) {
        if let Some(task) = locked(&self.task).take() {
            task.abort();
        }
        let given_up = std::mem::replace(&mut *locked(&self.state), State::Taken);
        drop(given_up);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(task) = locked(&self.task).take() {
            task.abort();
        }
    }
}
