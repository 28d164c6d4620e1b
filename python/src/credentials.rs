//! Functions in Python that the core calls for a password or a URL at each connect.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use database_locks::BoxError;
use pyo3::prelude::*;

use crate::gil_thread;
use crate::sync::locked;

/// The result of a function, or why it has none.
type Credentials = Result<String, BoxError>;

/// Receives the result of a function.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Answer(Mutex<mpsc::Sender<Credentials>>);

impl Answer {
    fn send(&self, credentials: Credentials) {
        let to = locked(&self.0);
        // The connect may have given up.
        let _ = to.send(credentials);
    }
}

#[pymethods]
impl Answer {
    fn give(&self, text: String) {
        self.send(Ok(text));
    }

    /// `final`: another call would fail in the same way.
    #[pyo3(signature = (message, error, *, r#final))]
    fn fail(&self, message: String, error: Py<PyAny>, r#final: bool) {
        // Dropped after the mutex is unlocked: objects of an exception may run code when they are
        // freed.
        let _before = latest().replace((message.clone(), error));
        self.send(Err(match r#final {
            true => io::Error::new(io::ErrorKind::InvalidInput, message).into(),
            false => message.into(),
        }));
    }
}

/// The last failure: message and exception.
fn latest() -> MutexGuard<'static, Option<(String, Py<PyAny>)>> {
    static LATEST: Mutex<Option<(String, Py<PyAny>)>> = Mutex::new(None);
    locked(&LATEST)
}

/// The exception of the function that caused an error with this message.
pub(crate) fn cause(py: Python<'_>, message: &str) -> Option<Py<PyAny>> {
    let latest = latest();
    let (cause, error) = latest.as_ref()?;
    message.contains(cause).then(|| error.clone_ref(py))
}

/// Calls `ask` with an [`Answer`], and waits for the answer. `ask` starts a thread in Python, which
/// calls the application's function and may block.
///
/// Not called on the waiting thread: the interpreter stops threads at its end, wherever they are.
pub(crate) fn asking(ask: Py<PyAny>) -> impl Fn() -> Credentials + Send + Sync + 'static {
    let ask = Arc::new(ask);
    move || {
        let (to, answer) = mpsc::channel();
        let ask = Arc::clone(&ask);
        gil_thread::call(move |py| {
            let answer = Py::new(py, Answer(Mutex::new(to)))?;
            ask.call1(py, (answer,)).map(drop)
        });
        answer
            .recv()
            .unwrap_or_else(|_| Err("the interpreter has ended".into()))
    }
}
