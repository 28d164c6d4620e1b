//! Where the locks are, and what each process shares of it.

use std::fmt;
use std::sync::Arc;

use crate::client::{Inner, process_exit};
use crate::error::Error;
use crate::metrics::Engine;
use crate::runtime::fork::PerProcess;
use crate::store;
use crate::store::connect::source::Given;
use crate::store::connect::table::Table;
use crate::store::measured::Observed;

/// Where the locks are, and what each process made of it.
pub(crate) struct Endpoint {
    engine: Engine,
    given: Given,
    table: Table,
    inner: PerProcess<Arc<Inner>>,
}

/// On one line, and nothing of the URL but its engine.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("engine", &self.engine)
            .field("table", &self.table.as_str())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// No I/O: the URL and the name of the table are checked.
    pub(crate) fn new(given: Given, table: Option<&str>) -> Result<Self, Error> {
        let mut place = Self {
            given,
            engine: "",
            table: table.map_or_else(|| Ok(Table::default()), Table::new)?,
            inner: PerProcess::new(),
        };
        place.engine = place.inner()?.store.engine();
        Ok(place)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// A forked child connects for itself: it must not use its parent's connection.
    pub(crate) fn inner(&self) -> Result<&Arc<Inner>, Error> {
        let make = || {
            let (store, engine) = store::open_given(&self.given, &self.table)?;
            process_exit::watch();
            Inner::new(Observed::new(store, engine))
        };
        self.inner.get_or_try_init(make)
    }
}
