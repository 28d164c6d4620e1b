//! The database and table of one [`Locks`](crate::Locks), with one client a process.

use std::fmt;
use std::sync::Arc;

use crate::client::{Client, process_exit};
use crate::error::Error;
use crate::metrics::Engine;
use crate::runtime::fork::PerProcess;
use crate::store;
use crate::store::connect::options::ConnectOptions;
use crate::store::connect::table::Table;
use crate::store::measured::Measured;

/// The database and table of one [`Locks`](crate::Locks), with one client a process.
pub(crate) struct Endpoint {
    engine: Engine,
    given: ConnectOptions,
    table: Table,
    client: PerProcess<Arc<Client>>,
}

/// Shows the engine but not the URL, which may contain a password.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("engine", &self.engine)
            .field("table", &self.table.as_str())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Checks the URL and the table name. No I/O.
    pub(crate) fn new(given: ConnectOptions, table: Option<&str>) -> Result<Self, Error> {
        let mut endpoint = Self {
            given,
            engine: "",
            table: table.map_or_else(|| Ok(Table::default()), Table::new)?,
            client: PerProcess::new(),
        };
        endpoint.engine = endpoint.client()?.store.engine();
        Ok(endpoint)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// The client of this process. A forked child makes its own, because it must not use its
    /// parent's connection.
    pub(crate) fn client(&self) -> Result<&Arc<Client>, Error> {
        let make = || {
            let (store, engine) = store::open_given(&self.given, &self.table)?;
            process_exit::watch();
            Client::new(Measured::new(store, engine))
        };
        self.client.get_or_try_init(make)
    }
}
