//! Functions of Python's that the core asks for a password or a URL at each connect.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use database_locks::BoxError;
use pyo3::prelude::*;

use crate::courier;

/// What a function has answered, or why it has not.
type Said = Result<String, BoxError>;

/// Where a function's answer goes.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Answer(Mutex<mpsc::Sender<Said>>);

impl Answer {
    fn tell(&self, said: Said) {
        let to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It may be waited for no longer.
        let _ = to.send(said);
    }
}

#[pymethods]
impl Answer {
    fn give(&self, text: String) {
        self.tell(Ok(text));
    }

    /// `final`: asking again is of no use.
    #[pyo3(signature = (said, error, *, r#final))]
    fn fail(&self, said: String, error: Py<PyAny>, r#final: bool) {
        // Dropped when the mutex is free: what an exception refers to may run code.
        let _before = latest().replace((said.clone(), error));
        self.tell(Err(match r#final {
            true => io::Error::new(io::ErrorKind::InvalidInput, said).into(),
            false => said.into(),
        }));
    }
}

/// What has failed last, and in which words.
fn latest() -> MutexGuard<'static, Option<(String, Py<PyAny>)>> {
    static LATEST: Mutex<Option<(String, Py<PyAny>)>> = Mutex::new(None);
    LATEST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The exception of the function's that a message is about.
pub(crate) fn cause(py: Python<'_>, message: &str) -> Option<Py<PyAny>> {
    let latest = latest();
    let (said, error) = latest.as_ref()?;
    message.contains(said).then(|| error.clone_ref(py))
}

/// Have `ask` called on a thread of Python's own, which may block, and wait for its answer.
///
/// It is never called on the thread that waits: the end of the interpreter would tear that one out of
/// the middle of something.
pub(crate) fn asking(ask: Py<PyAny>) -> impl Fn() -> Said + Send + Sync + 'static {
    let ask = Arc::new(ask);
    move || {
        let (to, answer) = mpsc::channel();
        let ask = Arc::clone(&ask);
        courier::tell(move |py| {
            let answer = Py::new(py, Answer(Mutex::new(to)))?;
            let start = PyModule::import(py, "database_locks._login")?.getattr("start")?;
            start.call1((ask.bind(py), answer))?;
            Ok(())
        });
        answer
            .recv()
            .unwrap_or_else(|_| Err("the interpreter answers no more".into()))
    }
}
