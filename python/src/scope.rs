//! `__enter__` and `__exit__` of a `with` block.
//!
//! Python runs signal handlers and raises asynchronous exceptions between any two bytecodes. The
//! steps that must not be interrupted are here. A grant belongs to its [`Entry`] until the block
//! has begun, and an exception before that releases it. The interpreter raises no such exception
//! between the return of `__enter__` and the block, nor between the last bytecode of the body and
//! the call of `__exit__`. `__exit__` closes the guard whatever happens in Python.

use std::os::raw::c_long;
use std::sync::Mutex;

use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::async_exception::{AsyncException, current_thread};
use crate::entry::Entry;
use crate::guard::Guard;
use crate::sync::locked;

/// A block that has begun.
struct Block {
    /// The task or greenlet; for a thread its ident.
    owner: Py<PyAny>,
    /// `None`: a `try_()` that did not acquire the lock.
    held: Py<PyAny>,
    /// `None`: locks are switched off.
    guard: Option<Py<Guard>>,
    exception: Option<Py<AsyncException>>,
}

impl Block {
    /// Whether the lock ends with this block. If so, the exception is disarmed.
    fn ends(&self, py: Python<'_>) -> PyResult<bool> {
        if let Some(guard) = &self.guard
            && guard.get().left() > 0
        {
            return Ok(false);
        }
        if let Some(exception) = &self.exception {
            exception.get().disarm(py)?;
        }
        Ok(!self.held.is_none(py))
    }
}

/// The base class of `lock`: its open blocks.
#[pyclass(subclass, frozen, module = "database_locks._core")]
pub(crate) struct Scope {
    /// The innermost last.
    open: Mutex<Vec<Block>>,
}

impl Scope {
    fn begin(&self, held: &Bound<'_, PyAny>, entry: &Entry) -> PyResult<()> {
        let py = held.py();
        let block = if held.is_none() {
            Block {
                owner: owner(py, None)?,
                held: py.None(),
                guard: None,
                exception: None,
            }
        } else {
            Block {
                owner: owner(py, Some(held.getattr("_task")?))?,
                held: held.clone().unbind(),
                guard: held.getattr("_guard")?.extract()?,
                exception: Some(held.getattr("_exception")?.extract()?),
            }
        };
        if let Some(guard) = &block.guard {
            guard.get().entered();
        }
        locked(&self.open).push(block);
        entry.keep();
        Ok(())
    }

    /// The innermost block of the calling task or thread, and an exception that arrived meanwhile.
    fn pop(slf: &Bound<'_, Self>) -> PyResult<(Block, Option<PyErr>)> {
        let (this, py) = (slf.get(), slf.py());
        let (mut late, mut which) = (None, None);
        if this.is_shared(py)? {
            // This calls Python, where an exception may arrive. It is raised once the block has
            // ended.
            for _ in 0..8 {
                match current_owner(slf) {
                    Ok(owner) => {
                        which = Some(owner);
                        break;
                    }
                    Err(error) => late = Some(error),
                }
            }
        }
        let mut open = locked(&this.open);
        let mut found = None;
        if let Some(owner) = which {
            for (i, block) in open.iter().enumerate() {
                if owner.bind(py).eq(&block.owner)? {
                    found = Some(i);
                }
            }
        }
        // A block may end in another thread than it began: the garbage collector closes generators.
        match found.or(open.len().checked_sub(1)) {
            Some(i) => Ok((open.remove(i), late)),
            None => Err(PyRuntimeError::new_err("this lock has no open block")),
        }
    }

    /// Whether blocks of several tasks or threads are open.
    fn is_shared(&self, py: Python<'_>) -> PyResult<bool> {
        let open = locked(&self.open);
        let Some((first, rest)) = open.split_first() else {
            return Ok(false);
        };
        for block in rest {
            if !first.owner.bind(py).eq(&block.owner)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// `task`, or the ident of a thread.
fn owner(py: Python<'_>, task: Option<Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
    match task {
        Some(task) if !task.is_none() => Ok(task.unbind()),
        _ => Ok(c_long::into_pyobject(current_thread(py)?, py)?
            .into_any()
            .unbind()),
    }
}

fn current_owner(scope: &Bound<'_, Scope>) -> PyResult<Py<PyAny>> {
    owner(scope.py(), Some(scope.call_method0("_current_task")?))
}

#[pymethods]
impl Scope {
    #[new]
    #[pyo3(signature = (*_args, **_words))]
    fn new(_args: &Bound<'_, PyTuple>, _words: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            open: Mutex::default(),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(open) = self.open.try_lock() {
            for block in open.iter() {
                visit.call(&block.owner)?;
                visit.call(&block.held)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let blocks = std::mem::take(&mut *locked(&self.open));
        drop(blocks);
    }

    /// Acquire the lock and begin a block.
    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let entry = Py::new(py, Entry::new(py)?)?;
        let entered = slf
            .call_method1("_enter", (entry.clone_ref(py),))
            .and_then(|held| slf.get().begin(&held, entry.get()).map(|()| held));
        if entered.is_err() {
            entry.get().abandon(py);
        }
        entered.map(Bound::unbind)
    }

    /// End a block. The outermost one releases the lock.
    fn __exit__(
        slf: &Bound<'_, Self>,
        _kind: Bound<'_, PyAny>,
        raised: Bound<'_, PyAny>,
        _traceback: Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let py = slf.py();
        let (block, late) = Self::pop(slf)?;
        if block.ends(py)? {
            let kept = slf
                .call_method1("_leave", (block.held.clone_ref(py), raised))
                .and_then(|kept| kept.extract::<bool>());
            if let (Some(guard), Ok(false) | Err(_)) = (&block.guard, &kept) {
                guard.get().close();
            }
            kept?;
        }
        late.map_or(Ok(false), Err)
    }

    /// For a task: to be awaited.
    fn __aenter__(slf: &Bound<'_, Self>) -> PyResult<Steps> {
        let py = slf.py();
        let entry = Py::new(py, Entry::new(py)?)?;
        let coroutine = slf.call_method1("_aenter", (entry.clone_ref(py),))?;
        let end = End::Enter(slf.clone().unbind(), entry);
        Ok(Steps::new(Some(coroutine.unbind()), end))
    }

    /// For a task: to be awaited.
    fn __aexit__(
        slf: &Bound<'_, Self>,
        _kind: Bound<'_, PyAny>,
        raised: Bound<'_, PyAny>,
        _traceback: Bound<'_, PyAny>,
    ) -> PyResult<Steps> {
        let py = slf.py();
        let (block, late) = Self::pop(slf)?;
        if let Some(late) = late {
            // No exception is sent to tasks, so it comes from a signal handler.
            late.write_unraisable(py, None);
        }
        if !block.ends(py)? {
            return Ok(Steps::new(None, End::Nothing));
        }
        let end = block.guard.map_or(End::Nothing, End::Leave);
        let made = slf.call_method1("_aleave", (block.held, raised));
        match made {
            Ok(coroutine) => Ok(Steps::new(Some(coroutine.unbind()), end)),
            Err(error) => {
                end.abandon();
                Err(error)
            }
        }
    }
}

/// The effect of the end of a coroutine on the lock.
enum End {
    Nothing,
    Enter(Py<Scope>, Py<Entry>),
    Leave(Py<Guard>),
}

impl End {
    fn reached(self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        match &self {
            Self::Nothing => Ok(()),
            Self::Enter(scope, entry) => {
                let begun = scope.get().begin(value, entry.get());
                if begun.is_err() {
                    self.abandon();
                }
                begun
            }
            Self::Leave(guard) => {
                if !value.extract::<bool>().unwrap_or(false) {
                    guard.get().close();
                }
                Ok(())
            }
        }
    }

    /// The coroutine failed, or was dropped.
    fn abandon(&self) {
        match self {
            Self::Nothing => {}
            Self::Enter(_, entry) => {
                entry.get().exception.get().disarm_task();
                entry.get().give_back();
            }
            Self::Leave(guard) => guard.get().close(),
        }
    }
}

/// `__aenter__` or `__aexit__` of a lock: a coroutine in Python, with an end in Rust.
#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Steps {
    coroutine: Mutex<Option<Py<PyAny>>>,
    end: Mutex<Option<End>>,
}

impl Steps {
    fn new(coroutine: Option<Py<PyAny>>, end: End) -> Self {
        Self {
            coroutine: Mutex::new(coroutine),
            end: Mutex::new(Some(end)),
        }
    }

    fn step<'py>(
        &self,
        py: Python<'py>,
        step: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let coroutine = locked(&self.coroutine)
            .as_ref()
            .map(|one| one.clone_ref(py));
        let Some(coroutine) = coroutine else {
            return Err(PyStopIteration::new_err((false,)));
        };
        let error = match step(coroutine.bind(py)) {
            Ok(item) => return Ok(item.unbind()),
            Err(error) => error,
        };
        let end = locked(&self.end).take();
        if let Some(end) = end {
            if error.is_instance_of::<PyStopIteration>(py) {
                end.reached(&error.value(py).getattr("value")?)?;
            } else {
                end.abandon();
            }
        }
        Err(error)
    }
}

#[pymethods]
impl Steps {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(coroutine) = self.coroutine.try_lock()
            && let Some(coroutine) = &*coroutine
        {
            visit.call(coroutine)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let coroutine = locked(&self.coroutine).take();
        drop(coroutine);
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.step(py, |coroutine| coroutine.call_method1("send", (py.None(),)))
    }

    fn send(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<Py<PyAny>> {
        self.step(py, |coroutine| coroutine.call_method1("send", (value,)))
    }

    #[pyo3(signature = (*what))]
    fn throw(&self, py: Python<'_>, what: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        self.step(py, |coroutine| {
            coroutine.call_method1("throw", what.clone())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let coroutine = locked(&self.coroutine)
            .as_ref()
            .map(|one| one.clone_ref(py));
        let closed = coroutine.map_or(Ok(()), |one| one.call_method0(py, "close").map(drop));
        if let Some(end) = locked(&self.end).take() {
            end.abandon();
        }
        closed
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(end) = locked(&self.end).take() {
            end.abandon();
        }
    }
}
