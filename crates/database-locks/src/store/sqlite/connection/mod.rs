//! Connections to the file, and the thread that owns one.

pub(crate) mod database;
pub(crate) mod session;
pub(crate) mod thread;
pub(crate) mod worker;
