//! Reading rows for people to see.

use protocol::{LockInfo, LockName, LockState, ObservedExpiry, REQUEST_TIMEOUT};

use crate::client::Inner;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::retry::while_contended;

/// Read one row.
pub(crate) async fn read(inner: &Inner, name: &LockName) -> Result<Option<LockInfo>, Error> {
    let names = std::slice::from_ref(name);
    let read = while_contended(REQUEST_TIMEOUT, || inner.store.read(names, REQUEST_TIMEOUT));
    let mut rows = read
        .await
        .map_err(|failure| failure.into_error("read the locks"))?;
    observe(inner, &mut rows);
    Ok(rows.pop())
}

/// Take note of what was read, where leases end by being observed.
pub(crate) fn observe(inner: &Inner, rows: &mut [LockInfo]) {
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
        let left = (inner.observations).saw(&row.name, version, *length, *overdue, now);
        row.state = match inner.observations.over_for(&row.name, now) {
            Some(since) => LockState::Expired { since },
            None => LockState::Held {
                free_in: Some(left),
            },
        };
    }
}
