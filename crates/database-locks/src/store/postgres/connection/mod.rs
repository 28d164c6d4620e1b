//! Connections: how one is made, how a statement runs on it, and when it is replaced.

pub(crate) mod backend_check;
pub(crate) mod blocked;
mod calls;
pub(crate) mod cancel;
mod closed_by_server;
pub(crate) mod config;
pub(crate) mod dial;
pub(crate) mod events;
pub(crate) mod handshake;
pub(crate) mod manager;
pub(crate) mod product;
pub(crate) mod row_locker;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod tls;
