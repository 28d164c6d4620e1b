//! The end of a Django transaction, which no exception of ours may interrupt.
//!
//! `Atomic.__exit__` keeps account of savepoints, commits, and switches autocommit back on. An
//! asynchronous `LockLost` between two of its bytecodes would leave the connection in a transaction that
//! nothing ends, or come out after the commit. So what stands in its place begins here and not in
//! Python, as [`Scope::__exit__`](crate::alarm::Scope) does: the alarms of the thread are paused before
//! the first bytecode.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyType};

use crate::alarm::Alarm;

/// Stands in the place of a context manager's `__exit__`, and calls it by way of `leave`.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct AtomicExit {
    #[pyo3(get, name = "__wrapped__")]
    original: Py<PyAny>,
    /// Its attribute `holds` has the locks that the thread holds.
    here: Py<PyAny>,
    leave: Py<PyAny>,
}

#[pymethods]
impl AtomicExit {
    #[new]
    fn new(original: Py<PyAny>, here: Py<PyAny>, leave: Py<PyAny>) -> Self {
        Self {
            original,
            here,
            leave,
        }
    }

    /// Bound as a function would be. The interpreter does that where a block begins, so that this block
    /// is known to end here.
    fn __get__(
        slf: &Bound<'_, Self>,
        instance: &Bound<'_, PyAny>,
        _owner: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        if instance.is_none() {
            return Ok(slf.clone().into_any().unbind());
        }
        instance.setattr("_end_is_seen", true)?;
        static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let method = METHOD.import(slf.py(), "types", "MethodType")?;
        method.call1((slf, instance)).map(Bound::unbind)
    }

    fn __call__(
        &self,
        py: Python<'_>,
        atomic: Bound<'_, PyAny>,
        kind: Bound<'_, PyAny>,
        raised: Bound<'_, PyAny>,
        traceback: Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let paused = PyList::empty(py);
        let holds = self.here.bind(py).getattr("holds")?;
        for held in holds.cast::<PyDict>()?.values() {
            let alarm = held.getattr("_alarm")?;
            if alarm.cast::<Alarm>()?.get().pause(py)? {
                paused.append(held)?;
            }
        }
        let exception = (kind, raised, traceback);
        self.leave.call1(py, (&self.original, atomic, exception, paused))
    }
}
