//! The SQL of SQLite, and the calls that send it.

pub(crate) mod acquire;
pub(crate) mod fence;
mod grant;
pub(crate) mod handover;
pub(crate) mod permit;
pub(crate) mod prune;
pub(crate) mod read;
pub(crate) mod release;
pub(crate) mod renew;
pub(crate) mod shared;
pub(crate) mod sql;
