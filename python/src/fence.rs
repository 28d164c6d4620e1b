//! The first statements of a fenced transaction.

use std::sync::Mutex;

use database_locks::{FenceFailure, OpenFence, ParamStyle};
use pyo3::prelude::*;

use crate::sync::locked;

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Fence {
    statement: database_locks::Fence,
    open: Mutex<Option<OpenFence>>,
}

impl Fence {
    pub(crate) fn new(statement: database_locks::Fence, open: OpenFence) -> Self {
        Self {
            statement,
            open: Mutex::new(Some(open)),
        }
    }
}

#[pymethods]
impl Fence {
    #[getter]
    fn before(&self) -> Option<String> {
        self.statement.before(ParamStyle::Format)
    }

    #[getter]
    fn sql(&self) -> Option<String> {
        self.statement.sql(ParamStyle::Format)
    }

    #[getter]
    fn params(&self) -> (&str, i64, &str) {
        self.statement.params()
    }

    #[getter]
    fn is_query(&self) -> bool {
        self.statement.is_query()
    }

    fn passes(&self, rows: u64) -> bool {
        self.statement.passes(rows)
    }

    fn close(&self, py: Python<'_>) {
        let open = locked(&self.open).take();
        // Without the GIL: it may unlock a file.
        py.detach(|| drop(open));
    }
}

/// Whether a driver's error is a conflict (`true`) or means that the fence found no row (`false`);
/// `None` for any other error.
#[pyfunction]
#[pyo3(signature = (sqlstate=None, errno=None))]
pub(crate) fn is_fence_conflict(sqlstate: Option<&str>, errno: Option<u16>) -> Option<bool> {
    let failure = match (sqlstate, errno) {
        (Some(code), _) => FenceFailure::of_sqlstate(code),
        (None, Some(code)) => FenceFailure::of_mysql(code),
        (None, None) => None,
    };
    failure.map(|failure| matches!(failure, FenceFailure::Conflict))
}
