//! Events that the tasks which drive connections report.

use std::sync::Weak;

use tokio_postgres::Notification;

/// Receives the events of the connections of a store.
pub(crate) trait ConnectionEvents: Send + Sync {
    /// The server sent a notification.
    fn notified(&self, notification: &Notification);

    /// A connection that may have listened has ended, or its server was replaced.
    fn ended(&self);

    /// A backend now serves this process alone.
    fn backend_began(&self, pid: i32);

    /// The connection of that backend has ended.
    fn backend_ended(&self, pid: i32);
}

/// A backend that serves this process alone, as long as its connection lasts.
pub(crate) struct OwnBackend {
    events: Weak<dyn ConnectionEvents>,
    pid: i32,
}

impl OwnBackend {
    pub(crate) fn new(events: &Weak<dyn ConnectionEvents>, pid: i32) -> Self {
        if let Some(events) = events.upgrade() {
            events.backend_began(pid);
        }
        let events = Weak::clone(events);
        Self { events, pid }
    }
}

impl Drop for OwnBackend {
    fn drop(&mut self) {
        if let Some(events) = self.events.upgrade() {
            events.backend_ended(self.pid);
        }
    }
}
