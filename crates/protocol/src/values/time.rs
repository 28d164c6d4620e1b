//! Instants of the boot-time clock.

use std::time::Duration;

/// An instant of the boot-time clock: the time since this machine was started.
///
/// It has no relation to any database's clock or any wall clock, and so must never leave the process.
pub type Time = Duration;
