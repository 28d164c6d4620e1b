//! A held lock.

use std::sync::Arc;
use std::time::Duration;

use database_locks::{FenceFailure, LockGuard, Loss};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::RwLock;

use crate::courier;
use crate::errors::{raise, said};
use crate::locks::{seconds, ttl};
use crate::pending::{Pending, Value};

/// Whatever asks the database reads this lock; only what ends the guard writes. So a question that
/// must not wait finds it locked only when there is nothing held any more.
type Shared = Arc<RwLock<Option<LockGuard>>>;

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Guard {
    guard: Shared,
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
    pub(crate) fn new(guard: LockGuard) -> Self {
        Self {
            name: guard.name().as_str().to_owned(),
            token: guard.token().get(),
            grant_id: guard.grant_id().to_owned(),
            holder: guard.holder().to_owned(),
            guard: Arc::new(RwLock::new(Some(guard))),
        }
    }

    fn ask<T>(&self, ask: impl FnOnce(&LockGuard) -> T) -> Option<T> {
        self.guard.try_read().ok()?.as_ref().map(ask)
    }
}

#[pymethods]
impl Guard {
    fn is_held(&self) -> bool {
        self.ask(LockGuard::is_held).unwrap_or(false)
    }

    fn trusted_for(&self) -> f64 {
        match self.ask(LockGuard::trusted_for) {
            Some(Duration::MAX) => f64::INFINITY,
            left => left.unwrap_or_default().as_secs_f64(),
        }
    }

    fn on_lost(&self, callback: Py<PyAny>) {
        // On a thread of the core's for callbacks, of which there are few: the courier waits for the GIL instead.
        let tell = move |loss: Loss| {
            courier::tell(move |py| callback.call1(py, (said(py, &loss)?,)).map(drop));
        };
        self.ask(|guard| guard.on_lost(tell));
    }

    fn loss<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let loss = self.ask(LockGuard::loss).flatten();
        loss.map(|loss| said(py, &loss)).transpose()
    }

    fn ticket(&self) -> Option<String> {
        self.ask(|guard| guard.ticket().to_string())
    }

    fn check(&self) -> Pending {
        let guard = Arc::clone(&self.guard);
        Pending::new(async move {
            if let Some(guard) = guard.read().await.as_ref() {
                guard.check().await?;
            }
            Ok(Value::Nothing)
        })
    }

    #[pyo3(signature = (ttl))]
    fn extend(&self, py: Python<'_>, ttl: Option<f64>) -> PyResult<Pending> {
        let (guard, ttl) = (Arc::clone(&self.guard), self::ttl(py, ttl)?);
        Ok(Pending::new(async move {
            if let Some(guard) = guard.read().await.as_ref() {
                guard.extend(ttl).await?;
            }
            Ok(Value::Nothing)
        }))
    }

    fn hand_over(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let guard = self
            .guard
            .try_write()
            .ok()
            .and_then(|mut guard| guard.take());
        let ticket = guard.map(LockGuard::into_ticket).transpose();
        let ticket = ticket.map_err(|error| raise(py, error))?;
        Ok(ticket.map(|ticket| ticket.to_string()))
    }

    #[pyo3(signature = (lasting=None))]
    fn fence(&self, py: Python<'_>, lasting: Option<f64>) -> PyResult<Pending> {
        let guard = Arc::clone(&self.guard);
        let lasting = lasting
            .map(|lasting| seconds(py, "lasting", lasting))
            .transpose()?;
        Ok(Pending::new(async move {
            let guard = guard.read().await;
            let Some(guard) = guard.as_ref() else {
                return Ok(Value::Nothing);
            };
            let open = guard.open_fence(lasting).await?;
            Ok(Value::Fence(guard.fence_statement()?, open))
        }))
    }

    /// Why a fence did not pass. It comes to nothing but an error.
    fn fence_failed(&self, conflict: bool) -> Pending {
        let guard = Arc::clone(&self.guard);
        let failure = match conflict {
            true => FenceFailure::Conflict,
            false => FenceFailure::NoRow,
        };
        Pending::new(async move {
            match guard.read().await.as_ref() {
                Some(guard) => Err(guard.fence_failed(failure).await),
                None => Ok(Value::Nothing),
            }
        })
    }

    fn release(&self) -> Pending {
        let guard = Arc::clone(&self.guard);
        Pending::new(async move {
            // Bound first: a guard that is being released must not keep others from asking.
            let held = guard.write().await.take();
            if let Some(held) = held {
                held.release().await?;
            }
            Ok(Value::Nothing)
        })
    }
}
