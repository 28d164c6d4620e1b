//! The session whose open transaction keeps a lock from others, also after its lease.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::client::Client;
use crate::client::read::observe;
use crate::runtime::clock;
use protocol::{BootInstant, LockInfo, LockName, LockState, Slot};

/// How long a caller whose error is ready waits for the session to be found.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer is given again. The callers of a process that are kept out together would connect
/// to the database twice each.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The latest answer.
#[derive(Debug, Default)]
pub(crate) struct LatestRowLocker(Mutex<Option<Found>>);

#[derive(Debug)]
struct Found {
    row: (LockName, Slot),
    session: String,
    at: BootInstant,
}

/// The session whose transaction has the row of this lock or permit locked, for people to read.
pub(crate) async fn row_locker(client: &Client, name: &LockName, slot: Slot) -> Option<String> {
    let find = async {
        let mut latest = client.row_locker.0.lock().await;
        if let Some(Found { row, session, at }) = &*latest
            && *row == (name.clone(), slot)
            && clock::now() <= *at + KEPT_FOR
        {
            return Some(session.clone());
        }
        let found = client.store.row_locker(name, slot, TIMEOUT).await;
        let found = found.unwrap_or_else(|failure| {
            let lock = name.as_str();
            tracing::debug!(
                lock.name = lock,
                "cannot see which session has its row locked: {failure}"
            );
            None
        });
        *latest = found.clone().map(|session| Found {
            row: (name.clone(), slot),
            session,
            at: clock::now(),
        });
        found
    };
    timeout(TIMEOUT, find).await.ok().flatten()
}

/// Of these locks, the first one whose lease has ended and whose row is locked all the same, and the
/// session that has it locked. The row of a lock that is held may be locked too, by a holder that is
/// alive.
pub(crate) async fn locked_after_lease(
    client: &Client,
    names: &[LockName],
) -> Option<(LockName, String)> {
    let find = async {
        let mut rows = client.store.read(names, TIMEOUT).await.ok()?;
        observe(client, &mut rows);
        for row in rows.iter().filter(|row| has_ended(row)) {
            if let Some(session) = row_locker(client, &row.name, Slot::Lock).await {
                return Some((row.name.clone(), session));
            }
        }
        None
    };
    timeout(TIMEOUT, find).await.ok().flatten()
}

/// Whether the lease has ended without a release.
pub(crate) fn has_ended(row: &LockInfo) -> bool {
    matches!(row.state, LockState::Expired { .. })
}
