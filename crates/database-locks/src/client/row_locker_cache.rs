//! The session whose open transaction keeps a lock from others, also after its lease, as the database
//! has just named it.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::measured::Measured;
use protocol::{BootInstant, LockName, Slot};

/// How long a caller whose error is ready waits for the session to be found.
pub(crate) const ROW_LOCKER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer is given again. The callers of a process that are kept out together would connect
/// to the database twice each.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The latest answer, for the callers that ask at the same time.
#[derive(Debug)]
pub(crate) struct RowLockerCache {
    store: Measured,
    latest: Mutex<Option<Found>>,
}

#[derive(Debug)]
struct Found {
    row: (LockName, Slot),
    session: String,
    at: BootInstant,
}

impl RowLockerCache {
    pub(crate) fn new(store: Measured) -> Self {
        let latest = Mutex::default();
        Self { store, latest }
    }

    /// The session whose transaction has the row of this lock or permit locked, for people to read;
    /// `None` if no transaction has.
    pub(crate) async fn find(
        &self,
        name: &LockName,
        slot: Slot,
    ) -> Result<Option<String>, StoreError> {
        let find = async {
            let mut latest = self.latest.lock().await;
            if let Some(Found { row, session, at }) = &*latest
                && *row == (name.clone(), slot)
                && clock::now() <= *at + KEPT_FOR
            {
                return Ok(Some(session.clone()));
            }
            let found = self.store.row_locker(name, slot, ROW_LOCKER_TIMEOUT);
            let found = found.await?;
            *latest = found.clone().map(|session| Found {
                row: (name.clone(), slot),
                session,
                at: clock::now(),
            });
            Ok(found)
        };
        let found = timeout(ROW_LOCKER_TIMEOUT, find).await;
        let found = found.unwrap_or_else(|_| Err(StoreError::late(ROW_LOCKER_TIMEOUT)));
        if let Err(failure) = &found {
            tracing::debug!(
                lock.name = name.as_str(),
                "cannot see whether a session has its row locked: {failure}"
            );
        }
        found
    }

    /// [`find`](Self::find) for a message that is as true without it.
    pub(crate) async fn find_if_possible(&self, name: &LockName, slot: Slot) -> Option<String> {
        self.find(name, slot).await.ok().flatten()
    }
}
