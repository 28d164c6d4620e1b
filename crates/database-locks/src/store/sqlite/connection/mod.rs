//! The connection to the file, the thread that owns it, and how calls reach it.

pub(crate) mod database;
pub(crate) mod session;
pub(crate) mod thread;
pub(crate) mod worker;
