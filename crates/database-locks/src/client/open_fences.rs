//! The grants that have a fenced transaction open in this process.
//!
//! On MySQL and MariaDB an open fence locks its row against a release by the same process too. Such
//! a release is deferred until the transaction ends: waiting for it would block the caller that has
//! to end it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::client::renewal::grant_state::GrantState;
use protocol::{GrantId, LockName, Slot};

/// The open fences of one [`Client`](crate::client::Client), by grant.
#[derive(Debug, Default)]
pub(crate) struct OpenFences(Mutex<HashMap<GrantId, Entry>>);

/// The open fences of one grant.
#[derive(Debug)]
struct Entry {
    state: Arc<GrantState>,
    count: usize,
    /// Dropped with the entry, which wakes all that wait for its end.
    ended: watch::Sender<()>,
}

impl OpenFences {
    fn entries(&self) -> MutexGuard<'_, HashMap<GrantId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn opened(&self, state: &Arc<GrantState>) {
        let mut entries = self.entries();
        let entry = entries.entry(state.grant.id).or_insert_with(|| Entry {
            state: Arc::clone(state),
            count: 0,
            ended: watch::Sender::new(()),
        });
        entry.count += 1;
    }

    pub(crate) fn closed(&self, grant: GrantId) {
        let mut entries = self.entries();
        let last = entries.get_mut(&grant).is_some_and(|entry| {
            entry.count -= 1;
            entry.count == 0
        });
        let removed = last.then(|| entries.remove(&grant));
        drop(entries);
        drop(removed);
    }

    /// Wait for the end of the last open fence of this grant; `None` if it has no open fence.
    pub(crate) fn end_of(&self, grant: GrantId) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut ended = self.entries().get(&grant)?.ended.subscribe();
        // The sender never sends; the channel closes when the entry is dropped.
        Some(async move { while ended.changed().await.is_ok() {} })
    }

    /// The grant of this lock that has an open fence.
    pub(crate) fn of_lock(&self, name: &LockName, slot: Slot) -> Option<Arc<GrantState>> {
        let entries = self.entries();
        let mut of_lock = entries
            .values()
            .filter(|entry| entry.state.grant.name == *name && entry.state.grant.slot == slot);
        of_lock.next().map(|entry| Arc::clone(&entry.state))
    }
}
