//! The thread that owns the file, and how calls reach it.

pub(crate) mod thread;
pub(crate) mod worker;
