//! What holds on clusters: three nodes of Galera, and three of MySQL's Group Replication.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

mod galera;
mod group;
