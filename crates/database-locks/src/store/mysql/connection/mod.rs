//! Connections: how one is made, how a statement runs on it, and the one of the background.

pub(crate) mod config;
mod driver;
mod handshake;
mod interpolate;
pub(crate) mod open;
pub(crate) mod panic;
pub(crate) mod queue;
pub(crate) mod row_locker;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod table;
mod unanswered;
pub(crate) mod waiting_renewal;
pub(crate) mod worker;
