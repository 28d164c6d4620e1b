//! The SQL of PostgreSQL.

pub(crate) mod acquire;
pub(crate) mod handover;
pub(crate) mod release;
pub(crate) mod renew;
