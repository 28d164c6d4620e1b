//! A held lock, or several that are held together.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::Poll;
use std::time::Duration;

use database_locks::__python::PerProcess;
use database_locks::{Error, FenceFailure, LockGuard, LockName, LockSet, Loss};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::{Notify, RwLock};

use crate::convert::{seconds, ttl};
use crate::errors::{self, loss_fields, raise};
use crate::fence::Fence;
use crate::gil_thread;
use crate::pending::{Answer, Pending, nothing};
use crate::sync::{locked, of_process};

/// Requests to the database read this lock; only the end of the guard writes it. So a method that
/// must not wait finds it locked only if the guard is ending.
type Shared = Arc<RwLock<Option<LockSet>>>;

/// All grants of this process, which the end of the process releases.
#[derive(Default)]
struct Grants {
    held: HashMap<u64, Weak<RwLock<Option<LockSet>>>>,
    ended: bool,
}

static LAST: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Process {
    grants: Mutex<Grants>,
    ends: Notify,
    /// The number of running acquires.
    acquires: AtomicUsize,
}

fn process() -> &'static Process {
    static PROCESS: PerProcess<Process> = PerProcess::new();
    of_process(&PROCESS)
}

fn grants() -> MutexGuard<'static, Grants> {
    locked(&process().grants)
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

/// Run an acquire, and cancel it when the process ends.
pub(crate) async fn acquire(
    work: impl Future<Output = Result<Option<LockSet>, Error>>,
) -> Result<Answer, Error> {
    let running = Acquire::begin();
    let (mut work, mut ends) = (pin!(work), pin!(running.0.ends.notified()));
    let guard = poll_fn(|cx| {
        // In this order: an end between the two checks is seen by the first.
        if ends.as_mut().poll(cx).is_ready() || grants().ended {
            return Poll::Ready(Ok(None));
        }
        work.as_mut().poll(cx).map_ok(Some)
    });
    Ok(match guard.await? {
        Some(None) => nothing(),
        Some(Some(guard)) => match Grant::new(guard) {
            Some(grant) => granted(grant),
            None => ending(),
        },
        None => ending(),
    })
}

fn granted(grant: Grant) -> Answer {
    Box::new(|py| {
        // The process may have begun to end, and released it.
        if grant.ask(|_| ()).is_none() {
            return Err(errors::ending(py));
        }
        Guard::new(grant).into_py_any(py)
    })
}

/// The process is ending: no grant is made any more.
fn ending() -> Answer {
    Box::new(|py| Err(errors::ending(py)))
}

/// A grant that this process has to release, or several that are held together.
pub(crate) struct Grant {
    id: u64,
    guard: Shared,
    facts: Facts,
}

/// What is known of a grant without its guard, also after its end.
struct Facts {
    /// The name and the token of each lock, in the order of the names.
    tokens: Vec<(String, i64)>,
    holder: String,
    /// The number of the permit; `None`: a lock, or several.
    slot: Option<u16>,
    is_shared: bool,
}

impl Facts {
    fn of(set: &LockSet) -> Self {
        let first = set.guards().first();
        let token = |guard: &LockGuard| (guard.name().to_string(), guard.token().get());
        Self {
            tokens: set.guards().iter().map(token).collect(),
            holder: first.map(|it| it.holder().to_owned()).unwrap_or_default(),
            slot: first.and_then(LockGuard::slot),
            is_shared: first.is_some_and(LockGuard::is_shared),
        }
    }
}

impl Grant {
    /// `None` if the process is ending; the grant is released then.
    pub(crate) fn new(guard: LockSet) -> Option<Self> {
        let mut grants = grants();
        if grants.ended {
            drop(grants);
            drop(guard);
            return None;
        }
        // Unique in a forked child too, which drops the grants of its parent.
        let id = LAST.fetch_add(1, Ordering::Relaxed);
        let facts = Facts::of(&guard);
        let guard = Arc::new(RwLock::new(Some(guard)));
        grants.held.insert(id, Arc::downgrade(&guard));
        Some(Self { id, guard, facts })
    }

    fn ask<T>(&self, ask: impl FnOnce(&LockSet) -> T) -> Option<T> {
        self.guard.try_read().ok()?.as_ref().map(ask)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        grants().held.remove(&self.id);
    }
}

/// The longest wait for cancelled acquires. Later the database frees a lock that they were granted.
const TIMEOUT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(1);

/// Begin to release all locks of this process, in all its threads. No later acquire succeeds.
#[pyfunction]
pub(crate) fn give_all_back(py: Python<'_>) {
    py.detach(|| {
        // First, so that acquires which succeed meanwhile drop their grants.
        let process = process();
        grants().ended = true;
        process.ends.notify_waiters();
        let mut left = TIMEOUT;
        while process.acquires.load(Ordering::SeqCst) > 0 && !left.is_zero() {
            std::thread::park_timeout(POLL);
            left = left.saturating_sub(POLL);
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
    // Another thread waits for an answer of the database.
    let guard = Arc::clone(guard);
    // Without a thread the last reference releases it.
    let _ = gil_thread::spawn(async move {
        let held = guard.write().await.take();
        drop(held);
    });
}

/// The grant of a guard. A downgrade replaces it.
type Current = Arc<Mutex<Arc<Grant>>>;

/// The functions that a loss calls.
type Callbacks = Arc<Mutex<Vec<Arc<Py<PyAny>>>>>;

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Guard {
    current: Current,
    callbacks: Callbacks,
    /// The number of open blocks that hold the lock by this guard.
    depth: AtomicUsize,
    /// A dropped guard leaves the lock held until its lease ends.
    stays: AtomicBool,
}

impl Guard {
    pub(crate) fn new(grant: Grant) -> Self {
        Self {
            current: Arc::new(Mutex::new(Arc::new(grant))),
            callbacks: Callbacks::default(),
            depth: AtomicUsize::new(0),
            stays: AtomicBool::new(false),
        }
    }

    fn grant(&self) -> Arc<Grant> {
        Arc::clone(&locked(&self.current))
    }

    fn guard(&self) -> Shared {
        Arc::clone(&self.grant().guard)
    }

    /// Release in the background, if it is still held.
    pub(crate) fn close(&self) {
        close(&self.guard());
    }

    pub(crate) fn entered(&self) {
        self.depth.fetch_add(1, Ordering::SeqCst);
    }

    /// A block has ended. Returns how many are left.
    pub(crate) fn left(&self) -> usize {
        let before = self
            .depth
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        before.map_or(0, |before| before - 1)
    }
}

/// Turns a loss of the guard's own grant from an error into an answer. So a `LockLost` that Python
/// sees during the call is about another lock.
fn answer(outcome: Result<Answer, Error>) -> Result<Answer, Error> {
    match outcome {
        Err(Error::Lost { name, loss, .. }) => Ok(Box::new(move |py| {
            fields(py, &name, &loss)?.into_py_any(py)
        })),
        other => other,
    }
}

/// The name of the lock that was lost, and the loss.
fn fields<'py>(py: Python<'py>, name: &LockName, loss: &Loss) -> PyResult<Bound<'py, PyDict>> {
    let words = loss_fields(py, loss)?;
    words.set_item("name", name.as_str())?;
    Ok(words)
}

/// Call `callback` when the grant is lost, or at once if it is.
fn tell_loss(grant: &Grant, callback: Arc<Py<PyAny>>) {
    // The core has few threads for callbacks, so the GIL thread waits for the GIL.
    let tell = move |name: LockName, loss: Loss| {
        gil_thread::call(move |py| callback.call1(py, (fields(py, &name, &loss)?,)).map(drop));
    };
    grant.ask(|set| set.on_lost(tell));
}

/// Make the grant a shared one. Whoever sees the guard meanwhile finds one of the two grants.
async fn downgrade(current: Current, callbacks: Callbacks) -> Result<Answer, Error> {
    let exclusive = Arc::clone(&locked(&current));
    let shared = {
        let guard = exclusive.guard.read().await;
        match guard.as_ref().map(LockSet::guards) {
            Some([guard]) => guard.shared_beside().await?,
            // Released meanwhile; Python refuses several.
            _ => return Ok(nothing()),
        }
    };
    let Some(shared) = Grant::new(shared.into()).map(Arc::new) else {
        return Ok(ending());
    };
    *locked(&current) = Arc::clone(&shared);
    for callback in locked(&callbacks).iter() {
        tell_loss(&shared, Arc::clone(callback));
    }
    match exclusive.guard.write().await.take() {
        // An error changes nothing: the release goes on in the background, or the exclusive grant
        // was lost after the shared one was made.
        Some(exclusive) => drop(exclusive.release().await),
        // Released in the meantime, by another thread.
        None => close(&shared.guard),
    }
    Ok(nothing())
}

#[pymethods]
impl Guard {
    /// The name and the token of each lock, in the order of the names.
    #[getter]
    fn tokens(&self) -> Vec<(String, i64)> {
        self.grant().facts.tokens.clone()
    }

    #[getter]
    fn holder(&self) -> String {
        self.grant().facts.holder.clone()
    }

    /// The number of the permit; `None`: a lock, or several.
    #[getter]
    fn slot(&self) -> Option<u16> {
        self.grant().facts.slot
    }

    #[getter]
    fn is_shared(&self) -> bool {
        self.grant().facts.is_shared
    }

    /// Whether it was released or handed over.
    #[getter]
    fn closed(&self) -> bool {
        match self.grant().guard.try_read() {
            Ok(guard) => guard.is_none(),
            Err(_) => true,
        }
    }

    /// The number of open blocks.
    #[getter]
    fn depth(&self) -> usize {
        self.depth.load(Ordering::SeqCst)
    }

    fn is_held(&self) -> bool {
        self.grant().ask(LockSet::is_held).unwrap_or(false)
    }

    fn trusted_for(&self) -> f64 {
        match self.grant().ask(LockSet::trusted_for) {
            Some(Duration::MAX) => f64::INFINITY,
            left => left.unwrap_or_default().as_secs_f64(),
        }
    }

    fn on_lost(&self, callback: Py<PyAny>) {
        let callback = Arc::new(callback);
        // First, for a downgrade that is about to replace the grant.
        locked(&self.callbacks).push(Arc::clone(&callback));
        tell_loss(&self.grant(), callback);
    }

    /// Share the lock, which was exclusive. The result is a loss of the exclusive grant, or `None`.
    fn downgrade(&self) -> Pending {
        let (current, callbacks) = (Arc::clone(&self.current), Arc::clone(&self.callbacks));
        Pending::new(async move { answer(downgrade(current, callbacks).await) })
    }

    fn loss<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let loss = self.grant().ask(LockSet::loss).flatten();
        loss.map(|(name, loss)| fields(py, &name, &loss))
            .transpose()
    }

    /// A ticket of each lock, in the order of the names; `None` if the guard is closed.
    fn tickets(&self) -> Option<Vec<String>> {
        let texts = |set: &LockSet| set.tickets().iter().map(ToString::to_string).collect();
        self.grant().ask(texts)
    }

    /// Dropped without a release, the lock stays held until its lease ends.
    fn stay(&self) {
        self.stays.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Pending {
        let guard = self.guard();
        Pending::new(async move {
            if let Some(guard) = guard.read().await.as_ref() {
                return answer(guard.check().await.map(|()| nothing()));
            }
            Ok(nothing())
        })
    }

    #[pyo3(signature = (ttl))]
    fn extend(&self, py: Python<'_>, ttl: Option<f64>) -> PyResult<Pending> {
        let (guard, ttl) = (self.guard(), self::ttl(py, ttl)?);
        Ok(Pending::new(async move {
            if let Some(guard) = guard.read().await.as_ref() {
                return answer(guard.extend(ttl).await.map(|()| nothing()));
            }
            Ok(nothing())
        }))
    }

    /// The ticket of the only lock, or the loss; `None` if the guard is closed.
    fn hand_over(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let guard = self.guard();
        let guard = guard.try_write().ok().and_then(|mut it| it.take());
        let guard = guard.and_then(|set| set.into_guards().pop());
        match guard.map(LockGuard::into_ticket).transpose() {
            Ok(ticket) => ticket.map(|ticket| ticket.to_string()).into_py_any(py),
            Err(Error::Lost { name, loss, .. }) => fields(py, &name, &loss)?.into_py_any(py),
            Err(error) => Err(raise(py, error)),
        }
    }

    /// The fence of each lock, in the order of the names.
    #[pyo3(signature = (lasting=None))]
    fn fences(&self, py: Python<'_>, lasting: Option<f64>) -> PyResult<Pending> {
        let set = self.guard();
        let lasting = lasting
            .map(|lasting| seconds(py, "lasting", lasting))
            .transpose()?;
        Ok(Pending::new(async move {
            let set = set.read().await;
            let Some(set) = set.as_ref() else {
                return Ok(nothing());
            };
            answer(open_fences(set, lasting).await)
        }))
    }

    /// The reason why a fence did not pass: a loss, or an error.
    fn fence_failed(&self, conflict: bool) -> Pending {
        let set = self.guard();
        let failure = match conflict {
            true => FenceFailure::Conflict,
            false => FenceFailure::NoRow,
        };
        Pending::new(async move {
            let set = set.read().await;
            let Some((set, first)) =
                (set.as_ref()).and_then(|set| Some((set, set.guards().first()?)))
            else {
                return Ok(nothing());
            };
            // Whichever it was, a lock that is lost is the reason.
            if let Err(error) = set.check().await {
                return answer(Err(error));
            }
            answer(Err(first.fence_failed(failure).await))
        })
    }

    fn release(&self) -> Pending {
        let guard = self.guard();
        Pending::new(async move {
            // Bound first: the lock must not stay write-locked during the release.
            let held = guard.write().await.take();
            match held {
                Some(held) => answer(held.release().await.map(|()| nothing())),
                None => Ok(nothing()),
            }
        })
    }
}

async fn open_fences(set: &LockSet, lasting: Option<Duration>) -> Result<Answer, Error> {
    let mut fences = Vec::with_capacity(set.guards().len());
    for guard in set.guards() {
        let open = guard.open_fence(lasting).await?;
        fences.push(Fence::new(guard.fence_statement()?, open));
    }
    Ok(Box::new(move |py: Python<'_>| fences.into_py_any(py)))
}

impl Drop for Guard {
    fn drop(&mut self) {
        if *self.stays.get_mut()
            && let Ok(mut guard) = self.guard().try_write()
            && let Some(set) = guard.take()
        {
            for guard in set.into_guards() {
                // An error means that the lock is lost, which needs no release.
                let _ = guard.into_ticket();
            }
        }
    }
}
