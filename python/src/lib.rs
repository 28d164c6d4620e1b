//! The extension module: Python objects over the public API of the core.
//!
//! Three rules hold everywhere. Code that may wait releases the GIL first. The thread that renews
//! leases never asks for the GIL: it calls Python through the [GIL thread](gil_thread). State of a
//! process is keyed by the process, so that a forked child has its own.
//!
//! Of the Python package the extension imports only `exceptions`.

mod async_exception;
mod convert;
mod credentials;
mod entry;
mod errors;
mod fence;
mod gil_thread;
mod guard;
mod listing;
mod locks;
mod logging;
mod observer;
mod pending;
mod schema;
mod scope;
mod sync;
mod uninterrupted;

use pyo3::prelude::*;

/// Documented in `_core.pyi`.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::async_exception::{AsyncException, is_critical};
    #[pymodule_export]
    use super::convert::{human, parse_duration};
    #[pymodule_export]
    use super::credentials::Answer;
    #[pymodule_export]
    use super::entry::Entry;
    #[pymodule_export]
    use super::fence::{Fence, is_fence_conflict};
    #[pymodule_export]
    use super::gil_thread::close;
    #[pymodule_export]
    use super::guard::{Guard, give_all_back};
    #[pymodule_export]
    use super::locks::Locks;
    #[pymodule_export]
    use super::logging::{close_log, next_record, set_log_level};
    #[pymodule_export]
    use super::observer::Observer;
    #[pymodule_export]
    use super::pending::Pending;
    #[pymodule_export]
    use super::schema::{
        columns, guard_script, guard_triggers, permit_schema, schema, unguard_script,
        unguard_triggers,
    };
    #[pymodule_export]
    use super::scope::{Scope, Steps};
    #[pymodule_export]
    use super::uninterrupted::UninterruptedMethod;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pyfunction]
    fn generation() -> u64 {
        database_locks::__python::generation()
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
    fn ticket_parts(py: Python<'_>, ticket: &str) -> PyResult<(String, Option<u16>, bool)> {
        match ticket.parse::<database_locks::Ticket>() {
            Ok(ticket) => {
                let (name, slot) = (ticket.name().as_str().to_owned(), ticket.slot);
                Ok((name, slot.number(), slot.is_shared()))
            }
            Err(error) => Err(errors::raise(py, error)),
        }
    }

    #[pyfunction]
    fn set_program(path: std::path::PathBuf) {
        database_locks::__python::set_program(&path);
    }
}
