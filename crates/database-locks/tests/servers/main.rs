//! What concerns servers of one kind, and servers that a test stops, freezes or configures.
#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

mod blocked;
mod direct_mysql;
mod faults;
mod identity;
mod leader;
mod mysql_faults;
mod notify;
mod rest_faults;
mod row_locker;
mod settings;
mod tls;
