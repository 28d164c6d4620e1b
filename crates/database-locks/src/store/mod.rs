//! The databases: one interface, one folder an engine, and what all engines share.

use std::sync::Arc;

use crate::error::Error;
use crate::metrics::Engine;

pub(crate) mod api;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod blocking_session;
pub(crate) mod connect;
mod direct_connection;
#[cfg_attr(
    not(all(feature = "postgres", feature = "mysql", feature = "sqlite-unbundled")),
    allow(dead_code, unused_imports)
)]
mod doctor;
mod error;
pub(crate) mod measured;
mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(all(
    test,
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite-unbundled"
))]
#[path = "tests/protocol_page.rs"]
mod protocol_page;
pub(crate) mod retry;
mod schema;
#[cfg(feature = "sqlite-unbundled")]
mod sqlite;

pub use api::*;
pub(crate) use connect::options::ConnectOptions;
#[cfg(feature = "__seam")]
pub use connect::table::Rows;
pub use connect::table::Table;
pub(crate) use error::ROW_LOCKED;
#[cfg(feature = "mysql")]
pub use mysql::{guard_triggers, unguard_triggers};
#[cfg(feature = "postgres")]
pub(crate) use postgres::{guard_script, unguard_script};

/// Open the store that a URL names. No I/O: that begins with [`Store::connect`].
///
/// # Errors
///
/// [`Error::Config`] for a URL that cannot be understood, or whose engine's feature is off. It
/// never repeats the URL, which may hold a password.
pub fn open(url: &str, table: &Table) -> Result<Arc<dyn Store>, Error> {
    open_given(&ConnectOptions::url(url), table).map(|(store, _)| store)
}

/// [`open`] with all options. Also answers which engine it is.
pub(crate) fn open_given(
    options: &ConnectOptions,
    table: &Table,
) -> Result<(Arc<dyn Store>, Engine), Error> {
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    let source = || Arc::new(connect::provider::ServerProvider::new(options.clone()));
    Ok(match options.target()? {
        connect::url::Target::Memory(name) => {
            (Arc::new(memory::Memory::named(&name, table)), "memory")
        }
        #[cfg(feature = "sqlite-unbundled")]
        connect::url::Target::Sqlite(path) => {
            let store = sqlite::Sqlite::new(path, options.create, table);
            (Arc::new(store), "sqlite")
        }
        #[cfg(feature = "postgres")]
        connect::url::Target::Postgres(server) => {
            let store = postgres::Postgres::new(server, source(), table)?;
            (Arc::new(store), "postgres")
        }
        #[cfg(feature = "mysql")]
        connect::url::Target::Mysql(server) => {
            let store = mysql::Mysql::new(server, source(), table)?;
            (Arc::new(store), "mysql")
        }
        #[cfg(not(feature = "sqlite-unbundled"))]
        connect::url::Target::Sqlite(_) => return Err(left_out("SQLite", "sqlite")),
        #[cfg(not(feature = "postgres"))]
        connect::url::Target::Postgres(_) => return Err(left_out("PostgreSQL", "postgres")),
        #[cfg(not(feature = "mysql"))]
        connect::url::Target::Mysql(_) => return Err(left_out("MySQL or MariaDB", "mysql")),
    })
}

/// The error for a URL whose engine's feature is off.
#[cfg(not(all(feature = "sqlite-unbundled", feature = "postgres", feature = "mysql")))]
fn left_out(engine: &str, feature: &str) -> Error {
    Error::config(
        "url",
        format!("for {engine}, which this program was built without"),
        format!("for an engine that is built in: this one takes the cargo feature `{feature}`"),
    )
}
