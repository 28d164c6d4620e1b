//! A held lock.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use database_locks::__face::PerProcess;
use database_locks::{Error, FenceFailure, LockGuard, Loss};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::{Notify, RwLock};

use crate::courier;
use crate::errors::{raise, said};
use crate::locks::{seconds, ttl};
use crate::pending::{Pending, Value};

/// Whatever asks the database reads this lock; only what ends the guard writes. So a question that
/// must not wait finds it locked only when there is nothing held any more.
type Shared = Arc<RwLock<Option<LockGuard>>>;

/// Every grant of this process, so that its end gives them all back.
#[derive(Default)]
struct Grants {
    held: HashMap<u64, Weak<RwLock<Option<LockGuard>>>>,
    ended: bool,
}

static LAST: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Process {
    grants: Mutex<Grants>,
    ends: Notify,
    /// How many acquires are under way.
    acquires: AtomicUsize,
}

fn process() -> &'static Process {
    static PROCESS: PerProcess<Process> = PerProcess::new();
    let made = PROCESS.get_or_try_init(|| Ok::<_, Infallible>(Process::default()));
    match made {
        Ok(process) => process,
        Err(never) => match never {},
    }
}

fn grants() -> MutexGuard<'static, Grants> {
    let grants = &process().grants;
    grants.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts an acquire until it has ended, however it ends.
struct Acquire(&'static Process);

impl Acquire {
    fn begin() -> Self {
        let process = process();
        process.acquires.fetch_add(1, Ordering::SeqCst);
        Self(process)
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.0.acquires.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Carry out an acquire, and give it up when the process ends.
pub(crate) async fn acquire(
    work: impl Future<Output = Result<Option<LockGuard>, Error>>,
) -> Result<Value, Error> {
    let under_way = Acquire::begin();
    let (mut work, mut ends) = (pin!(work), pin!(under_way.0.ends.notified()));
    let guard = poll_fn(|cx| {
        // In this order: what comes between the two is heard by the first.
        if ends.as_mut().poll(cx).is_ready() || grants().ended {
            return Poll::Ready(Ok(None));
        }
        work.as_mut().poll(cx).map_ok(Some)
    });
    Ok(match guard.await? {
        None => Value::Ending,
        Some(None) => Value::Guard(None),
        Some(Some(guard)) => {
            Grant::new(guard).map_or(Value::Ending, |grant| Value::Guard(Some(grant)))
        }
    })
}

/// A grant that this process has to give back.
pub(crate) struct Grant {
    id: u64,
    guard: Shared,
}

impl Grant {
    /// `None` where the process is ending: the grant has been given back.
    pub(crate) fn new(guard: LockGuard) -> Option<Self> {
        let mut grants = grants();
        if grants.ended {
            drop(grants);
            drop(guard);
            return None;
        }
        // Never the same in a forked child, which drops what its parent had.
        let id = LAST.fetch_add(1, Ordering::Relaxed);
        let guard = Arc::new(RwLock::new(Some(guard)));
        grants.held.insert(id, Arc::downgrade(&guard));
        Some(Self { id, guard })
    }

    fn ask<T>(&self, ask: impl FnOnce(&LockGuard) -> T) -> Option<T> {
        self.guard.try_read().ok()?.as_ref().map(ask)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        grants().held.remove(&self.id);
    }
}

/// How long acquires that are given up may take to end; then the database frees what they were
/// granted.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(1);

/// Begin to release whatever this process holds, in all its threads; it is given no more from now on.
#[pyfunction]
pub(crate) fn give_all_back(py: Python<'_>) {
    py.detach(|| {
        // First of all: what they were granted meanwhile is dropped, and released with the rest.
        let process = process();
        grants().ended = true;
        process.ends.notify_waiters();
        let mut left = PATIENCE;
        while process.acquires.load(Ordering::SeqCst) > 0 && !left.is_zero() {
            std::thread::park_timeout(LOOK);
            left = left.saturating_sub(LOOK);
        }
        let held = {
            let mut grants = grants();
            std::mem::take(&mut grants.held)
        };
        for guard in held.into_values().filter_map(|guard| guard.upgrade()) {
            close(&guard);
        }
    });
}

/// Release in the background.
fn close(guard: &Shared) {
    if let Ok(mut guard) = guard.try_write() {
        return drop(guard.take());
    }
    // A question to the database is under way, on another thread.
    let guard = Arc::clone(guard);
    // Without a thread it is released when the last reference goes.
    let _ = courier::spawn(async move {
        let held = guard.write().await.take();
        drop(held);
    });
}

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Guard {
    grant: Grant,
    /// How many blocks are open that hold by it.
    depth: AtomicUsize,
    /// Dropped, it stays held until its lease ends.
    stays: AtomicBool,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    token: i64,
    #[pyo3(get)]
    grant_id: String,
    #[pyo3(get)]
    holder: String,
}

impl Guard {
    /// `None` where it was released meanwhile.
    pub(crate) fn new(grant: Grant) -> Option<Self> {
        let (name, token, grant_id, holder) = grant.ask(|guard| {
            (
                guard.name().as_str().to_owned(),
                guard.token().get(),
                guard.grant_id().to_owned(),
                guard.holder().to_owned(),
            )
        })?;
        Some(Self {
            grant,
            depth: AtomicUsize::new(0),
            stays: AtomicBool::new(false),
            name,
            token,
            grant_id,
            holder,
        })
    }

    /// Release in the background, if it is held still.
    pub(crate) fn close(&self) {
        close(&self.grant.guard);
    }

    pub(crate) fn entered(&self) {
        self.depth.fetch_add(1, Ordering::SeqCst);
    }

    /// A block has ended; how many are left.
    pub(crate) fn left(&self) -> usize {
        let before = self
            .depth
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        before.map_or(0, |before| before - 1)
    }
}

/// A loss of the guard's own grant is an answer and no error: an exception that arrives meanwhile is
/// another lock's.
fn answer(outcome: Result<Value, Error>) -> Result<Value, Error> {
    match outcome {
        Err(Error::Lost { loss, .. }) => Ok(Value::Lost(loss)),
        other => other,
    }
}

#[pymethods]
impl Guard {
    /// Whether nothing is held by it any more: released, or handed over.
    #[getter]
    fn closed(&self) -> bool {
        match self.grant.guard.try_read() {
            Ok(guard) => guard.is_none(),
            Err(_) => true,
        }
    }

    /// How many blocks are open that hold by it.
    #[getter]
    fn depth(&self) -> usize {
        self.depth.load(Ordering::SeqCst)
    }

    fn is_held(&self) -> bool {
        self.grant.ask(LockGuard::is_held).unwrap_or(false)
    }

    fn trusted_for(&self) -> f64 {
        match self.grant.ask(LockGuard::trusted_for) {
            Some(Duration::MAX) => f64::INFINITY,
            left => left.unwrap_or_default().as_secs_f64(),
        }
    }

    fn on_lost(&self, callback: Py<PyAny>) {
        // On a thread of the core's for callbacks, of which there are few: the courier waits for the GIL instead.
        let tell = move |loss: Loss| {
            courier::tell(move |py| callback.call1(py, (said(py, &loss)?,)).map(drop));
        };
        self.grant.ask(|guard| guard.on_lost(tell));
    }

    fn loss<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let loss = self.grant.ask(LockGuard::loss).flatten();
        loss.map(|loss| said(py, &loss)).transpose()
    }

    fn ticket(&self) -> Option<String> {
        self.grant.ask(|guard| guard.ticket().to_string())
    }

    /// Dropped without a release, it stays held until its lease ends.
    fn stay(&self) {
        self.stays.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Pending {
        let guard = Arc::clone(&self.grant.guard);
        Pending::new(async move {
            if let Some(guard) = guard.read().await.as_ref() {
                return answer(guard.check().await.map(|()| Value::Nothing));
            }
            Ok(Value::Nothing)
        })
    }

    #[pyo3(signature = (ttl))]
    fn extend(&self, py: Python<'_>, ttl: Option<f64>) -> PyResult<Pending> {
        let (guard, ttl) = (Arc::clone(&self.grant.guard), self::ttl(py, ttl)?);
        Ok(Pending::new(async move {
            if let Some(guard) = guard.read().await.as_ref() {
                return answer(guard.extend(ttl).await.map(|()| Value::Nothing));
            }
            Ok(Value::Nothing)
        }))
    }

    /// The ticket, or the loss; `None` where nothing was held by it any more.
    fn hand_over(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let guard = self
            .grant
            .guard
            .try_write()
            .ok()
            .and_then(|mut it| it.take());
        match guard.map(LockGuard::into_ticket).transpose() {
            Ok(ticket) => ticket.map(|ticket| ticket.to_string()).into_py_any(py),
            Err(Error::Lost { loss, .. }) => said(py, &loss)?.into_py_any(py),
            Err(error) => Err(raise(py, error)),
        }
    }

    #[pyo3(signature = (lasting=None))]
    fn fence(&self, py: Python<'_>, lasting: Option<f64>) -> PyResult<Pending> {
        let guard = Arc::clone(&self.grant.guard);
        let lasting = lasting
            .map(|lasting| seconds(py, "lasting", lasting))
            .transpose()?;
        Ok(Pending::new(async move {
            let guard = guard.read().await;
            let Some(guard) = guard.as_ref() else {
                return Ok(Value::Nothing);
            };
            let opened = guard.open_fence(lasting).await;
            answer(opened.and_then(|open| Ok(Value::Fence(guard.fence_statement()?, open))))
        }))
    }

    /// Why a fence did not pass: a loss, or an error.
    fn fence_failed(&self, conflict: bool) -> Pending {
        let guard = Arc::clone(&self.grant.guard);
        let failure = match conflict {
            true => FenceFailure::Conflict,
            false => FenceFailure::NoRow,
        };
        Pending::new(async move {
            match guard.read().await.as_ref() {
                Some(guard) => answer(Err(guard.fence_failed(failure).await)),
                None => Ok(Value::Nothing),
            }
        })
    }

    fn release(&self) -> Pending {
        let guard = Arc::clone(&self.grant.guard);
        Pending::new(async move {
            // Bound first: a guard that is being released must not keep others from asking.
            let held = guard.write().await.take();
            match held {
                Some(held) => answer(held.release().await.map(|()| Value::Nothing)),
                None => Ok(Value::Nothing),
            }
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if *self.stays.get_mut()
            && let Ok(mut guard) = self.grant.guard.try_write()
            && let Some(guard) = guard.take()
        {
            // Lost is as good.
            let _ = guard.into_ticket();
        }
    }
}
