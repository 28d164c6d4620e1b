//! Renewing leases, and reporting their loss.

pub(crate) mod grant_state;
pub(crate) mod lease_events;
mod lease_table;
pub(crate) mod listeners;
pub(crate) mod outage;
mod round;
pub(crate) mod scheduler;
mod split;
mod waiting;

#[cfg(test)]
mod tests;
