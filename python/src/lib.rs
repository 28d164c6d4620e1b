//! The extension module: Python objects over the public API of the core.
//!
//! Three rules hold everywhere. Whatever may wait gives up the GIL first. The thread that renews
//! leases never asks for it: what Python is to be told goes through the [courier](courier). And
//! what belongs to a process is keyed by it, so that a forked child makes its own.

mod alarm;
mod courier;
mod errors;
mod fence;
mod guard;
mod listed;
mod locks;
mod logging;
mod login;
mod pending;
mod scope;
mod transactions;

use pyo3::prelude::*;

/// Built and documented in `_core.pyi`.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::alarm::Alarm;
    #[pymodule_export]
    use super::courier::close;
    #[pymodule_export]
    use super::fence::{Fence, is_fence_conflict};
    #[pymodule_export]
    use super::guard::{Guard, give_all_back};
    #[pymodule_export]
    use super::locks::Locks;
    #[pymodule_export]
    use super::logging::{close_log, next_record, set_log_level};
    #[pymodule_export]
    use super::login::Answer;
    #[pymodule_export]
    use super::pending::Pending;
    #[pymodule_export]
    use super::scope::{Entry, Scope, Steps};
    #[pymodule_export]
    use super::transactions::Undisturbed;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pyfunction]
    fn generation() -> u64 {
        database_locks::__face::generation()
    }

    #[pyfunction]
    #[pyo3(signature = (url, table=None))]
    fn check_url(py: Python<'_>, url: &str, table: Option<&str>) -> PyResult<()> {
        match locks::builder(url, table).connect_lazy() {
            Ok(_) => Ok(()),
            Err(error) => Err(errors::raise(py, error)),
        }
    }

    #[pyfunction]
    fn ticket_name(py: Python<'_>, ticket: &str) -> PyResult<String> {
        match ticket.parse::<database_locks::Ticket>() {
            Ok(ticket) => Ok(ticket.name().as_str().to_owned()),
            Err(error) => Err(errors::raise(py, error)),
        }
    }

    #[pyfunction]
    fn schema(engine: &str) -> Option<&'static str> {
        database_locks::__face::schema(engine)
    }

    #[pyfunction]
    fn set_program(path: std::path::PathBuf) {
        database_locks::__face::set_program(&path);
    }
}
