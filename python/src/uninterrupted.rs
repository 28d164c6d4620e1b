//! The beginning and the end of a Django transaction, which no exception of ours may interrupt.
//!
//! `Atomic` keeps account of savepoints, commits, and switches autocommit off and on. An asynchronous
//! `LockLost` between two of its bytecodes would leave the connection in a transaction that nothing
//! ends, or come out after the commit. So what stands in the place of its methods begins and ends here
//! and not in Python, as [`Scope::__exit__`](crate::alarm::Scope) does: the alarms of the thread are
//! paused from before the first bytecode until after the last one.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};

use crate::alarm::Alarm;

/// Stands in the place of a method, and calls it by way of `call`.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Undisturbed {
    #[pyo3(get, name = "__wrapped__")]
    original: Py<PyAny>,
    /// Its attribute `holds` has the locks that the thread holds.
    here: Py<PyAny>,
    call: Py<PyAny>,
    /// An attribute that each object gets whose method is looked up.
    mark: Option<String>,
}

#[pymethods]
impl Undisturbed {
    #[new]
    #[pyo3(signature = (original, here, call, mark=None))]
    fn new(original: Py<PyAny>, here: Py<PyAny>, call: Py<PyAny>, mark: Option<String>) -> Self {
        Self {
            original,
            here,
            call,
            mark,
        }
    }

    /// Bound as a function would be.
    fn __get__(
        slf: &Bound<'_, Self>,
        instance: &Bound<'_, PyAny>,
        _owner: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        if instance.is_none() {
            return Ok(slf.clone().into_any().unbind());
        }
        if let Some(mark) = &slf.get().mark {
            instance.setattr(mark.as_str(), true)?;
        }
        static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let method = METHOD.import(slf.py(), "types", "MethodType")?;
        method.call1((slf, instance)).map(Bound::unbind)
    }

    #[pyo3(signature = (*args))]
    fn __call__(&self, py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        let paused = PyList::empty(py);
        let mut alarms = Vec::new();
        let holds = self.here.bind(py).getattr("holds")?;
        for held in holds.cast::<PyDict>()?.values() {
            let alarm = held.getattr("_alarm")?.cast_into::<Alarm>()?;
            if alarm.get().pause(py)? {
                paused.append(held)?;
                alarms.push(alarm);
            }
        }
        let done = self.call.call1(py, (&self.original, args, &paused));
        for alarm in alarms {
            alarm.get().resume(py)?;
        }
        done
    }
}
