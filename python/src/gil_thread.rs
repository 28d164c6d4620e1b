//! The only thread of the extension that waits for the GIL.
//!
//! The core's background thread renews all leases of the process. If it waited for the GIL, a busy
//! interpreter would delay renewals until the leases end. So it hands its calls of Python (a loss,
//! the end of an operation) to this thread. A thread that has the GIL and waits for the background
//! thread would otherwise also cause a deadlock.
//!
//! No code of the application runs on this thread: it would delay the report of the next loss. Log
//! records have a thread of their own, see [`crate::logging`], and so has each `lost_lock_cb`.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks::__python::{PerProcess, exclude_from_direct_connections};
use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use crate::sync::of_process;

fn handle() -> std::io::Result<&'static Handle> {
    static HANDLE: PerProcess<Handle> = PerProcess::new();
    HANDLE.get_or_try_init(|| {
        let runtime = Builder::new_current_thread().build()?;
        let handle = runtime.handle().clone();
        // It polls the first try of each task, and has no drivers.
        exclude_from_direct_connections(&handle);
        std::thread::Builder::new()
            .name("database-locks-py".into())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(handle)
    })
}

/// Run `work` on the GIL thread.
///
/// # Errors
///
/// If the thread cannot be started.
pub(crate) fn spawn(
    work: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    Ok(handle()?.spawn(work))
}

/// Call Python later, on the GIL thread. An exception goes to `sys.unraisablehook`.
pub(crate) fn call(call: impl FnOnce(Python<'_>) -> PyResult<()> + Send + 'static) {
    // Without a thread Python cannot be called at all.
    let _ = spawn(async move {
        call_now(call);
    });
}

/// Whether Python can still be called in this process.
#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    /// A call is running.
    busy: AtomicBool,
}

fn gate() -> &'static Gate {
    static GATE: PerProcess<Gate> = PerProcess::new();
    of_process(&GATE)
}

/// Call Python on this thread, waiting for the GIL. Does nothing once the interpreter is ending.
pub(crate) fn call_now(call: impl FnOnce(Python<'_>) -> PyResult<()>) {
    let gate = gate();
    gate.busy.store(true, Ordering::SeqCst);
    if !gate.closed.load(Ordering::SeqCst) {
        Python::try_attach(|py| {
            if let Err(error) = call(py) {
                error.write_unraisable(py, None);
            }
        });
    }
    gate.busy.store(false, Ordering::SeqCst);
}

/// The longest time that the end of the interpreter waits for a running call.
const TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);

/// Stop all calls of Python; called before the interpreter ends.
///
/// After its end the interpreter terminates every thread that asks for the GIL. Unwinding through
/// frames of Rust would abort the process.
#[pyfunction]
pub(crate) fn close(py: Python<'_>) {
    let gate = gate();
    gate.closed.store(true, Ordering::SeqCst);
    py.detach(|| {
        let mut left = TIMEOUT;
        while gate.busy.load(Ordering::SeqCst) && !left.is_zero() {
            std::thread::park_timeout(POLL);
            left = left.saturating_sub(POLL);
        }
    });
}
