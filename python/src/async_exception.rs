//! Raises an exception in another thread, while that thread runs the body of a block.
//!
//! An asynchronous exception arrives at one of the next bytecodes of a thread. If the block has
//! just ended, that may be in a `finally`, in another library, or in the next request. So a block
//! ends in Rust, see [`crate::scope`]: that disarms the exception before any bytecode runs, and
//! takes back one that has not arrived yet.
//!
//! In some functions of Python's standard library the exception would do harm, see
//! `_critical_sections.py`. The check for those is here, where no other thread of Python runs
//! between the check and the exception.

use std::os::raw::{c_long, c_ulong};
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyFrozenSet, PyType};

use crate::sync::locked;

enum State {
    Armed,
    /// The body is not running: a generator that has yielded.
    Paused,
    /// This exception was sent to the thread, and may have arrived.
    Raised(Py<PyType>),
    /// The loss was reported to the body, or the body has ended.
    Disarmed {
        delivered: bool,
    },
}

/// Raises an exception in the thread that runs a body, as long as the body runs.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct AsyncException {
    thread: Mutex<c_long>,
    state: Mutex<State>,
}

/// Send `exception` to that thread; `None` takes back one that has not arrived.
///
/// Holding the GIL keeps that thread from ending meanwhile.
fn set_async_exc(_py: Python<'_>, thread: c_long, exception: Option<&Bound<'_, PyType>>) -> bool {
    let exception = exception.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: the GIL is held, as `_py` shows; the interpreter takes a reference of its own to the
    // exception's type, and takes null for "none".
    #[allow(unsafe_code, reason = "pyo3 has no safe wrapper of this call")]
    let threads = unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(thread, exception) };
    threads > 0
}

pub(crate) fn current_thread(py: Python<'_>) -> PyResult<c_long> {
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let get_ident = GET_IDENT.get_or_try_init(py, || {
        let module = PyModule::import(py, "threading")?;
        module.getattr("get_ident").map(Bound::unbind)
    })?;
    // `get_ident` returns an unsigned number; `PyThreadState_SetAsyncExc` takes its bits signed.
    let ident: u64 = get_ident.call0(py)?.extract(py)?;
    Ok(ident as c_long)
}

/// How many frames are checked, the innermost first: functions that the critical ones call, and
/// those of a debugger.
const FRAMES: usize = 16;

/// Whether an asynchronous exception would do harm in this frame: in a function with one of
/// `codes`, or in `Thread.start`, one of `starts`, until the new thread has its ident.
#[pyfunction]
pub(crate) fn is_critical(
    frame: Bound<'_, PyAny>,
    codes: &Bound<'_, PyFrozenSet>,
    starts: &Bound<'_, PyFrozenSet>,
) -> PyResult<bool> {
    let mut frame = frame;
    for depth in 0..FRAMES {
        if frame.is_none() {
            break;
        }
        let code = frame.getattr("f_code")?;
        if codes.contains(&code)? {
            return Ok(true);
        }
        if starts.contains(&code)? {
            let thread = frame.getattr("f_locals")?.get_item("self")?;
            return Ok(depth == 0 || thread.getattr("ident")?.is_none());
        }
        frame = frame.getattr("f_back")?;
    }
    Ok(false)
}

fn is_in_critical(
    py: Python<'_>,
    thread: c_long,
    codes: &Bound<'_, PyFrozenSet>,
    starts: &Bound<'_, PyFrozenSet>,
) -> PyResult<bool> {
    let frames = PyModule::import(py, "sys")?.call_method0("_current_frames")?;
    // The keys of `_current_frames` are unsigned.
    match frames.cast::<PyDict>()?.get_item(thread as c_ulong)? {
        Some(frame) => is_critical(frame, codes, starts),
        None => Ok(false),
    }
}

#[pymethods]
impl AsyncException {
    /// For the calling thread.
    #[new]
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            thread: Mutex::new(current_thread(py)?),
            state: Mutex::new(State::Armed),
        })
    }

    /// Whether the body is running and the loss was not reported yet.
    #[getter]
    fn armed(&self) -> bool {
        matches!(*locked(&self.state), State::Armed)
    }

    /// Raise `exception` in the thread of the body, unless the body has ended or the loss was
    /// reported. `false`: the thread is in a critical section, see [`is_critical`].
    fn raise_in_thread(
        &self,
        py: Python<'_>,
        exception: Bound<'_, PyType>,
        codes: &Bound<'_, PyFrozenSet>,
        starts: &Bound<'_, PyFrozenSet>,
    ) -> PyResult<bool> {
        // Before the state is locked: reading frames may collect garbage, which may call any code.
        let thread = *locked(&self.thread);
        if self.armed() && is_in_critical(py, thread, codes, starts)? {
            return Ok(false);
        }
        let mut state = locked(&self.state);
        if matches!(*state, State::Armed) && set_async_exc(py, thread, Some(&exception)) {
            *state = State::Raised(exception.unbind());
        }
        Ok(true)
    }

    /// The loss is reported by other means. Returns whether it was not reported before.
    fn mark_delivered(&self) -> bool {
        let mut state = locked(&self.state);
        let first = matches!(*state, State::Armed);
        if first {
            *state = State::Disarmed { delivered: true };
        }
        first
    }

    /// The body stops for a while. Returns whether it was running.
    pub(crate) fn pause(&self, py: Python<'_>) -> PyResult<bool> {
        self.take_back(py)?;
        let mut state = locked(&self.state);
        let running = matches!(*state, State::Armed);
        if running {
            *state = State::Paused;
        }
        Ok(running)
    }

    /// [`Self::mark_delivered`] for a paused body.
    fn mark_delivered_in_pause(&self) -> bool {
        let mut state = locked(&self.state);
        let first = matches!(*state, State::Paused);
        if first {
            *state = State::Disarmed { delivered: true };
        }
        first
    }

    /// The body goes on, in the calling thread.
    pub(crate) fn resume(&self, py: Python<'_>) -> PyResult<()> {
        *locked(&self.thread) = current_thread(py)?;
        let mut state = locked(&self.state);
        if matches!(*state, State::Paused) {
            *state = State::Armed;
        }
        Ok(())
    }

    /// The body has ended.
    pub(crate) fn disarm(&self, py: Python<'_>) -> PyResult<()> {
        self.take_back(py)?;
        let mut state = locked(&self.state);
        *state = State::Disarmed {
            delivered: matches!(
                *state,
                State::Raised(_) | State::Disarmed { delivered: true }
            ),
        };
        Ok(())
    }

    /// Whether the loss was reported before the body ended.
    #[getter]
    fn was_delivered(&self) -> bool {
        matches!(*locked(&self.state), State::Disarmed { delivered: true })
    }
}

impl AsyncException {
    /// [`Self::disarm`] for a task, to which no exception is sent.
    pub(crate) fn disarm_task(&self) {
        let mut state = locked(&self.state);
        if matches!(*state, State::Armed | State::Paused) {
            *state = State::Disarmed { delivered: false };
        }
    }

    /// Take back an exception that has not arrived; its class sets `arrived` when it is raised.
    fn take_back(&self, py: Python<'_>) -> PyResult<()> {
        let raised = match &*locked(&self.state) {
            State::Raised(exception) => exception.clone_ref(py),
            _ => return Ok(()),
        };
        if !raised.getattr(py, "arrived")?.extract::<bool>(py)? {
            set_async_exc(py, *locked(&self.thread), None);
            *locked(&self.state) = State::Armed;
        }
        Ok(())
    }
}
