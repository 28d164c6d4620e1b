//! What the tasks that drive connections report.

use std::sync::Weak;

use tokio_postgres::Notification;

/// Receives what happens to the connections of a store.
pub(crate) trait ConnectionEvents: Send + Sync {
    /// The server has sent a notification.
    fn notified(&self, notification: &Notification);

    /// A connection that may have listened has ended, or another server has replaced its own.
    fn ended(&self);

    /// From now on a backend serves this process alone.
    fn backend_began(&self, pid: i32);

    /// Its connection has ended.
    fn backend_ended(&self, pid: i32);
}

/// The backend of a connection of this process, as long as the connection lasts.
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
