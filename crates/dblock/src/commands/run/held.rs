//! A lock that is held while CMD runs.

use database_locks::LockGuard;

use crate::commands::release_notice::Listener;

/// A lock that is held while CMD runs.
pub(super) struct Held {
    pub(super) guard: LockGuard,
    /// Notices of its release by its ticket.
    pub(super) listener: Listener,
}

impl Held {
    pub(super) fn new(guard: LockGuard) -> Self {
        let listener = Listener::bind(&guard.ticket());
        Self { guard, listener }
    }
}
