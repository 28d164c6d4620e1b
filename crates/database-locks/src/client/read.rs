//! Reading lock rows for `show` and `list`.

use protocol::{LockInfo, LockName, LockState, ObservedExpiry, REQUEST_TIMEOUT};

use crate::client::Client;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;

/// Read the row of one lock.
pub(crate) async fn read(client: &Client, name: &LockName) -> Result<Option<LockInfo>, Error> {
    let row = try_read(client, name).await;
    row.map_err(|failure| failure.into_error("read the locks"))
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

/// Record an observation of each row whose lease ends by observation, and set the row's state from
/// it.
pub(crate) fn observe(client: &Client, rows: &mut [LockInfo]) {
    let now = clock::now();
    for row in rows {
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
            .record(&row.name, version, *length, *overdue, now);
        row.state = match client.observations.ended_for(&row.name, now) {
            Some(since) => LockState::Expired { since },
            None => LockState::Held {
                free_in: Some(left),
            },
        };
    }
}
