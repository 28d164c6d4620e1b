//! Reading lock rows for `show` and `list`.

use tokio::time::timeout;

use crate::store::api::StoreError;
use protocol::{
    LockInfo, LockName, LockRow, LockState, ObservedExpiry, REQUEST_TIMEOUT, Semaphore, Slot,
};

use crate::client::Client;
use crate::client::row_locker_cache::ROW_LOCKER_TIMEOUT;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::connect::table::Rows;
use crate::store::retry::while_contended;

/// Read the row of one lock.
pub(crate) async fn read(client: &Client, name: &LockName) -> Result<Option<LockInfo>, Error> {
    let read_all = async {
        let mut rows: Vec<LockInfo> = try_read(client, name).await?.into_iter().collect();
        // Whether the holder waits for shared ones.
        if rows.iter().any(|row| row.was_shared && row.is_held()) {
            rows.extend(read_shared(client, name).await?);
            note_waits(&mut rows);
        }
        Ok::<_, StoreError>(rows.into_iter().next())
    };
    let row = read_all.await;
    row.map_err(|failure| failure.into_error("read the locks"))
}

/// Set for each exclusive holder how many shared ones it waits for. Its own row comes before theirs.
pub(crate) fn note_waits(rows: &mut [LockInfo]) {
    let mut exclusive: Option<usize> = None;
    for at in 0..rows.len() {
        let row = &rows[at];
        match row.row_slot() {
            Slot::Lock => exclusive = row.is_held().then_some(at),
            Slot::Shared(_) if row.is_held() => {
                let name = &row.name;
                if let Some(holder) = exclusive.filter(|at| rows[*at].name == *name) {
                    *rows[holder].waits_for.get_or_insert(0) += 1;
                }
            }
            _ => {}
        }
    }
}

/// Of these locks, the first one that no client holds and whose row is locked all the same, and the session
/// that has it locked. The row of a lock that is held may be locked too, by a holder that is alive.
pub(crate) async fn locked_unheld(
    client: &Client,
    names: &[LockName],
) -> Option<(LockName, String)> {
    let find = async {
        let mut rows = client.store.read(names, ROW_LOCKER_TIMEOUT).await.ok()?;
        observe(client, &mut rows);
        for row in rows.iter().filter(|row| is_unheld(row)) {
            let find = (client.row_lockers).find_if_possible(&row.name, Slot::Lock);
            if let Some(session) = find.await {
                return Some((row.name.clone(), session));
            }
        }
        None
    };
    timeout(ROW_LOCKER_TIMEOUT, find).await.ok().flatten()
}

/// Whether the lock was released, or its lease has ended, so that the next caller gets it.
pub(crate) fn is_unheld(row: &LockInfo) -> bool {
    matches!(row.state, LockState::Free | LockState::Expired { .. })
}

/// [`read`] with the error of the store, for a caller that tries again.
pub(crate) async fn try_read(
    client: &Client,
    name: &LockName,
) -> Result<Option<LockInfo>, StoreError> {
    let names = std::slice::from_ref(name);
    let read = while_contended(REQUEST_TIMEOUT, || {
        client.store.read(names, REQUEST_TIMEOUT)
    });
    let mut rows = read.await?;
    observe(client, &mut rows);
    Ok(rows.pop())
}

/// Read a semaphore.
pub(crate) async fn read_semaphore(client: &Client, name: &LockName) -> Result<Semaphore, Error> {
    let read = while_contended(REQUEST_TIMEOUT, || {
        client.store.semaphore(name, REQUEST_TIMEOUT)
    });
    let read = read.await;
    let mut semaphore =
        read.map_err(|failure| failure.into_error(format!("read semaphore `{name}`")))?;
    observe(client, &mut semaphore.permits);
    Ok(semaphore)
}

/// Read the shared grants of a lock.
pub(crate) async fn read_shared(
    client: &Client,
    name: &LockName,
) -> Result<Vec<LockInfo>, StoreError> {
    let read = while_contended(REQUEST_TIMEOUT, || {
        client.store.shared(name, REQUEST_TIMEOUT)
    });
    let mut rows = read.await?;
    observe(client, &mut rows);
    // A release by force leaves the row, by which its holder learns of it.
    rows.retain(|row| row.state != LockState::Free);
    Ok(rows)
}

/// Read the row of a grant.
pub(crate) async fn read_row(
    client: &Client,
    name: &LockName,
    slot: Slot,
) -> Result<Option<LockInfo>, StoreError> {
    let (of, names) = (Rows::of(slot), std::slice::from_ref(name));
    let rows = client.store.rows(of, names, REQUEST_TIMEOUT).await?;
    let mut rows = rows.into_iter().map(LockRow::into_info);
    Ok(rows.find(|row| row.row_slot() == slot))
}

/// Record an observation of each row whose lease ends by observation, and set the row's state from
/// it.
pub(crate) fn observe(client: &Client, rows: &mut [LockInfo]) {
    let now = clock::now();
    for row in rows {
        let key = (row.name.clone(), row.row_slot());
        let Some(ObservedExpiry {
            version,
            length,
            overdue,
        }) = &row.observed_expiry
        else {
            continue;
        };
        let left = client
            .observations
            .record(&key, version, *length, *overdue, now);
        row.state = match (client.observations.ended_for(&key, now), row.state) {
            (Some(_), LockState::Resting { .. }) => LockState::Free,
            (None, LockState::Resting { free_in }) => LockState::Resting {
                free_in: free_in.min(left),
            },
            (Some(since), _) => LockState::Expired { since },
            (None, _) => LockState::Held {
                free_in: Some(left),
            },
        };
    }
}
