//! Methods that no asynchronous exception of this extension interrupts: begin and end of Django
//! transactions.
//!
//! `Atomic` counts savepoints, commits, and switches autocommit off and on. An asynchronous
//! `LockLost` between two of its bytecodes could leave a transaction open that nothing ends, or be
//! raised after the commit. So the replacements of its methods begin and end in Rust: the
//! exceptions of the thread are paused from before the first bytecode until after the last one.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};

use crate::async_exception::AsyncException;

/// Replaces a method, and calls it through `call`.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct UninterruptedMethod {
    #[pyo3(get, name = "__wrapped__")]
    original: Py<PyAny>,
    /// Its attribute `holds` has the locks of the calling thread.
    here: Py<PyAny>,
    call: Py<PyAny>,
    /// An attribute that is set on each object whose method is looked up.
    mark: Option<String>,
}

#[pymethods]
impl UninterruptedMethod {
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

    /// Binds like a function.
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
        let mut exceptions = Vec::new();
        let holds = self.here.bind(py).getattr("holds")?;
        for held in holds.cast::<PyDict>()?.values() {
            let exception = held.getattr("_exception")?.cast_into::<AsyncException>()?;
            if exception.get().pause(py)? {
                paused.append(held)?;
                exceptions.push(exception);
            }
        }
        let done = self.call.call1(py, (&self.original, args, &paused));
        for exception in exceptions {
            exception.get().resume(py)?;
        }
        done
    }
}
