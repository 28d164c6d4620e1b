//! What the tasks that drive connections report, and to whom.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_postgres::Notification;

use crate::store::api::{Notice, NoticeHandler};
use crate::store::postgres::expiring_map::ExpiringMap;
use protocol::LockName;

/// The events of the connections of one store.
#[derive(Default)]
pub(crate) struct Events {
    handler: OnceLock<NoticeHandler>,
    /// The names that this process waits for, and until when they are announced.
    announced: Mutex<ExpiringMap<LockName>>,
    /// The backends that serve this process alone. Their notifications are ignored, since the
    /// caller of the statement knows the event.
    own_backends: Mutex<Vec<i32>>,
}

impl Events {
    /// Set the receiver of notifications. The first call counts.
    pub(crate) fn on_notified(&self, handler: NoticeHandler) {
        let _ = self.handler.set(handler);
    }

    pub(crate) fn announced(&self) -> MutexGuard<'_, ExpiringMap<LockName>> {
        self.announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn own_backends(&self) -> MutexGuard<'_, Vec<i32>> {
        self.own_backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self, notice: Notice<'_>) {
        if let Some(handler) = self.handler.get() {
            handler(notice);
        }
    }

    /// The server sent a notification.
    pub(super) fn notified(&self, notification: &Notification) {
        let pid = notification.process_id();
        if self.own_backends().contains(&pid) {
            return;
        }
        if let Ok(name) = LockName::new(notification.payload()) {
            self.notify(Notice::Released(&name, Some(pid)));
        }
    }

    /// A connection that may have listened has ended, or its server was replaced.
    pub(super) fn ended(&self) {
        // A server that crashed or was replaced may have lost the announcements.
        *self.announced() = ExpiringMap::default();
        self.notify(Notice::Missed);
    }
}

/// A backend that serves this process alone, as long as its connection lasts.
pub(crate) struct OwnBackend {
    events: Arc<Events>,
    pid: i32,
}

impl OwnBackend {
    pub(crate) fn new(events: &Arc<Events>, pid: i32) -> Self {
        events.own_backends().push(pid);
        let events = Arc::clone(events);
        Self { events, pid }
    }
}

impl Drop for OwnBackend {
    fn drop(&mut self) {
        let mut own_backends = self.events.own_backends();
        if let Some(at) = own_backends.iter().position(|own| *own == self.pid) {
            own_backends.swap_remove(at);
        }
    }
}
