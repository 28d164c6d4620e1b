//! The test kit: real servers in temporary directories, a proxy that loses packets on purpose,
//! processes that can be killed and frozen, sessions of other clients that hold row locks, and the
//! store contract.
//!
//! Everything here blocks the calling thread. An asynchronous test starts the servers before its
//! runtime has other work, or uses `spawn_blocking`.
//!
//! A server runs until its handle is dropped; a shared one until the test process ends, in whatever
//! way: see [`cleanup`].

pub mod cleanup;
pub mod contract;
mod error_text;
pub mod faketime;
pub mod galera;
pub mod group;
pub mod haproxy;
mod least_privilege;
pub mod mysql;
pub mod nodes;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod promise;
pub mod proxy;
pub mod server;
pub mod sql;
pub mod standby;
mod template;
pub mod test_db;
pub mod time;
pub mod tls;

pub use error_text::assert_error_contains;
pub use galera::Galera;
pub use group::Group;
pub use haproxy::HaProxy;
pub use mysql::{MariaDb, MySql, MySqlServer};
pub use nodes::Nodes;
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use process::ChildProcess;
pub use programs::require;
pub use promise::promise;
pub use proxy::Proxy;
pub use sql::{SqlError, SqlSession};
pub use standby::{Commits, Pair};
pub use test_db::TestDb;
