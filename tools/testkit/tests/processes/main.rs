//! Locks across processes and servers that are killed, frozen and replaced.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

mod at_exit;
mod direct_postgres;
mod failover;
mod fairness;
mod fence;
mod guarded;
mod killed;
