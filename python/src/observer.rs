//! Observes who leads.

use std::sync::Arc;

use database_locks::LeaderObserver;
use pyo3::prelude::*;
use tokio::sync::Mutex;

use crate::pending::{Pending, value};

#[pyclass(frozen, module = "database_locks._core")]
pub(crate) struct Observer(Arc<Mutex<LeaderObserver>>);

impl Observer {
    pub(crate) fn new(observer: LeaderObserver) -> Self {
        Self(Arc::new(Mutex::new(observer)))
    }
}

#[pymethods]
impl Observer {
    fn next(&self) -> Pending {
        let observer = Arc::clone(&self.0);
        Pending::new(async move {
            let leader = observer.lock().await.next().await?;
            Ok(value(leader.map(|leader| leader.to_json())))
        })
    }
}
