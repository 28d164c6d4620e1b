//! The one thread of the extension that may wait for the GIL.
//!
//! The core's background thread renews every lease of the process. If it asked for the GIL, a busy
//! interpreter would starve it and the leases would end; so it hands over what Python is to be told
//! (a loss, the end of an operation), and goes on. The same holds for a thread that has the GIL
//! already and would wait for the background thread to answer.
//!
//! No code of the application runs on the courier's thread: it would delay the next loss. Log records
//! go to a thread of their own, see [`crate::logging`], and so does each `lost_lock_cb`.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use database_locks::__face::PerProcess;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

fn handle() -> std::io::Result<&'static Handle> {
    static HANDLE: PerProcess<Handle> = PerProcess::new();
    HANDLE.get_or_try_init(|| {
        let runtime = Builder::new_current_thread().build()?;
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("database-locks-py".into())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(handle)
    })
}

/// Carry out `work` on the courier's thread.
///
/// # Errors
///
/// Where the thread cannot be started.
pub(crate) fn spawn(
    work: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    Ok(handle()?.spawn(work))
}

/// Tell Python something, later and on the courier's thread. What `tell` raises goes where Python
/// sends what nobody can catch.
pub(crate) fn tell(tell: impl FnOnce(Python<'_>) -> PyResult<()> + Send + 'static) {
    // Without a thread there is nobody to be told.
    let _ = spawn(async move {
        now(tell);
    });
}

/// Whether Python can be told things in this process.
#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    /// Python is being told something.
    busy: AtomicBool,
}

fn gate() -> &'static Gate {
    static GATE: PerProcess<Gate> = PerProcess::new();
    let made = GATE.get_or_try_init(|| Ok::<_, Infallible>(Gate::default()));
    match made {
        Ok(gate) => gate,
        Err(never) => match never {},
    }
}

/// Tell Python something on this thread, waiting for the GIL. Not at all where the interpreter is
/// coming to its end.
pub(crate) fn now(tell: impl FnOnce(Python<'_>) -> PyResult<()>) {
    let gate = gate();
    gate.busy.store(true, Ordering::SeqCst);
    if !gate.closed.load(Ordering::SeqCst) {
        Python::try_attach(|py| {
            if let Err(error) = tell(py) {
                error.write_unraisable(py, None);
            }
        });
    }
    gate.busy.store(false, Ordering::SeqCst);
}

/// How long what Python is being told at its end may take.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(1);

/// From now on Python is told nothing more; called before the interpreter ends.
///
/// The interpreter ends every other thread that asks for the GIL from then on, wherever it is: in the
/// middle of something that Rust must not be torn out of, which aborts the process.
#[pyfunction]
pub(crate) fn close(py: Python<'_>) {
    let gate = gate();
    gate.closed.store(true, Ordering::SeqCst);
    py.detach(|| {
        let mut left = PATIENCE;
        while gate.busy.load(Ordering::SeqCst) && !left.is_zero() {
            std::thread::park_timeout(LOOK);
            left = left.saturating_sub(LOOK);
        }
    });
}
