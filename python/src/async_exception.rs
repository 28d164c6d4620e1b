//! Raising an exception in another thread, and never too late.
//!
//! An asynchronous exception reaches a thread at one of its next bytecodes, wherever that is: in the
//! `finally` of a block that has just ended, in another library, in the next request. So the way out
//! of a block is in Rust, see [`crate::scope`]: the alarm is switched off there before any bytecode
//! runs, and an exception that has not arrived yet is taken back.
//!
//! Nor too early: in some functions of Python's own it would do harm, see `_critical.py`. Whether the
//! thread is in one of them is asked here, where no other thread runs between the question and the
//! exception.

use std::os::raw::{c_long, c_ulong};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyFrozenSet, PyType};

enum State {
    Armed,
    /// The body is not running just now: a generator that has yielded.
    Paused,
    /// That exception is under way to the thread, or has arrived.
    Raised(Py<PyType>),
    /// The body has been told, or has ended without that.
    Off {
        told: bool,
    },
}

/// What can raise an exception in the thread that runs a body, as long as it runs.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Alarm {
    thread: Mutex<c_long>,
    state: Mutex<State>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Have `exception` raised in that thread; without one, take back what was under way.
///
/// Holding the GIL is what makes this safe against that thread's ending.
fn set_async_exc(_py: Python<'_>, thread: c_long, exception: Option<&Bound<'_, PyType>>) -> bool {
    let exception = exception.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: the GIL is held, as `_py` shows; the interpreter takes a reference of its own to the
    // exception's type, and takes null for "none".
    #[allow(unsafe_code, reason = "there is no safe face to this call")]
    let threads = unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(thread, exception) };
    threads > 0
}

pub(crate) fn current_thread(py: Python<'_>) -> PyResult<c_long> {
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let get_ident = GET_IDENT.get_or_try_init(py, || {
        let module = PyModule::import(py, "threading")?;
        module.getattr("get_ident").map(Bound::unbind)
    })?;
    // The interpreter's own type for it is unsigned; the call above wants the same bits signed.
    let ident: u64 = get_ident.call0(py)?.extract(py)?;
    Ok(ident as c_long)
}

/// How many frames are looked at, the innermost first: what those functions call, and what a debugger
/// adds.
const FRAMES: usize = 16;

/// Whether an exception from outside would do harm there: in a function with one of `codes`, or in
/// `Thread.start`, with one of `starts`, until the new thread has its number.
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
    // The interpreter's own type for it is unsigned.
    match frames.cast::<PyDict>()?.get_item(thread as c_ulong)? {
        Some(frame) => is_critical(frame, codes, starts),
        None => Ok(false),
    }
}

#[pymethods]
impl Alarm {
    /// For the thread that calls this.
    #[new]
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            thread: Mutex::new(current_thread(py)?),
            state: Mutex::new(State::Armed),
        })
    }

    /// Whether the body is running, and was not told yet.
    #[getter]
    fn armed(&self) -> bool {
        matches!(*locked(&self.state), State::Armed)
    }

    /// Raise `exception` in the thread that runs the body, unless it has ended, or was told already.
    /// `false`: it must not arrive where the thread is just now, see [`is_critical`].
    fn raise_in_thread(
        &self,
        py: Python<'_>,
        exception: Bound<'_, PyType>,
        codes: &Bound<'_, PyFrozenSet>,
        starts: &Bound<'_, PyFrozenSet>,
    ) -> PyResult<bool> {
        // Before the state is locked: a look at frames may collect garbage, which may call anything.
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

    /// The body was told by other means, or has been: from now on this does nothing more.
    fn told(&self) -> bool {
        let mut state = locked(&self.state);
        let first = matches!(*state, State::Armed);
        if first {
            *state = State::Off { told: true };
        }
        first
    }

    /// The body stops for a while. Whether it was running.
    pub(crate) fn pause(&self, py: Python<'_>) -> PyResult<bool> {
        self.take_back(py)?;
        let mut state = locked(&self.state);
        let running = matches!(*state, State::Armed);
        if running {
            *state = State::Paused;
        }
        Ok(running)
    }

    /// The body, which is paused, is told by other means. Whether it had not been before.
    fn told_in_pause(&self) -> bool {
        let mut state = locked(&self.state);
        let first = matches!(*state, State::Paused);
        if first {
            *state = State::Off { told: true };
        }
        first
    }

    /// It goes on, in the thread that calls this.
    pub(crate) fn resume(&self, py: Python<'_>) -> PyResult<()> {
        *locked(&self.thread) = current_thread(py)?;
        let mut state = locked(&self.state);
        if matches!(*state, State::Paused) {
            *state = State::Armed;
        }
        Ok(())
    }

    /// The body has ended.
    pub(crate) fn off(&self, py: Python<'_>) -> PyResult<()> {
        self.take_back(py)?;
        let mut state = locked(&self.state);
        *state = State::Off {
            told: matches!(*state, State::Raised(_) | State::Off { told: true }),
        };
        Ok(())
    }

    /// Whether the body was told before it ended.
    #[getter]
    fn was_told(&self) -> bool {
        matches!(*locked(&self.state), State::Off { told: true })
    }
}

impl Alarm {
    /// The same where no exception of this alarm can be under way: for a task, which is told otherwise.
    pub(crate) fn disarm(&self) {
        let mut state = locked(&self.state);
        if matches!(*state, State::Armed | State::Paused) {
            *state = State::Off { told: false };
        }
    }

    /// Take back an exception that has not arrived: its `arrived` is set when it is made.
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
