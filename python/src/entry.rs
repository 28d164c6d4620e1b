//! The ownership of a grant until its block has begun.

use std::sync::Mutex;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::async_exception::AsyncException;
use crate::guard::Guard;
use crate::pending::Pending;
use crate::sync::locked;

/// One attempt to enter a block. Owns the grant until the block has begun.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Entry {
    #[pyo3(get)]
    pub(crate) exception: Py<AsyncException>,
    asked: Mutex<Option<Py<Pending>>>,
    granted: Mutex<Option<Py<Guard>>>,
}

#[pymethods]
impl Entry {
    #[new]
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            exception: Py::new(py, AsyncException::new(py)?)?,
            asked: Mutex::default(),
            granted: Mutex::default(),
        })
    }

    /// Own an operation that may grant the lock. The previous one is given back.
    fn ask(&self, pending: Py<Pending>) {
        self.give_back();
        *locked(&self.asked) = Some(pending);
    }

    /// The result of the operation. This entry owns the guard from here on.
    fn take(&self, py: Python<'_>) -> PyResult<Option<Py<Guard>>> {
        let asked = locked(&self.asked).take();
        let Some(pending) = asked else {
            return Err(PyRuntimeError::new_err(
                "there is no operation whose result could be taken",
            ));
        };
        let guard: Option<Py<Guard>> = pending.get().result(py)?.extract(py)?;
        *locked(&self.granted) = guard.as_ref().map(|guard| guard.clone_ref(py));
        Ok(guard)
    }

    /// Cancel the operation, and release the grant.
    pub(crate) fn give_back(&self) {
        let (asked, granted) = (locked(&self.asked).take(), locked(&self.granted).take());
        if let Some(pending) = asked {
            pending.get().cancel();
        }
        if let Some(guard) = granted {
            guard.get().close();
        }
    }

    /// The lock stays held without this entry.
    pub(crate) fn keep(&self) {
        locked(&self.granted).take();
    }
}

impl Entry {
    pub(crate) fn abandon(&self, py: Python<'_>) {
        // It fails only if `threading` cannot be imported, and then nothing is armed.
        let _ = self.exception.get().disarm(py);
        self.give_back();
    }
}
