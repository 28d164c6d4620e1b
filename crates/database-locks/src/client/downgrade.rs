//! Making a shared grant in place of an exclusive one.

use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::client::acquire::attempt::Attempt;
use crate::client::acquire::poll_interval::LONGEST_POLL;
use crate::client::acquire::request::{AcquireRequest, op};
use crate::client::guard::LockGuard;
use crate::client::read::read_row;
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{Grant, Kind, LockName, Outcome, REQUEST_TIMEOUT, Slot};

/// The pause before another try, while a renewal has the row locked.
const PAUSE: Duration = Duration::from_millis(10);

/// Make a shared grant beside this exclusive one, which the caller then releases. Whichever of the
/// two steps fails, no other client has been granted the lock exclusively. `None`: the exclusive
/// grant does not hold the lock any more.
pub(crate) async fn downgrade(
    client: Arc<Client>,
    from: &Grant,
) -> Result<Option<LockGuard>, Error> {
    let (name, from) = (from.name.clone(), from.clone());
    let Some(timing) = client.scheduler.timing(from.id) else {
        return Ok(None);
    };
    let guard = runtime::run(async move {
        let row = read_row(&client, &name, Slot::Lock).await;
        let row = row.map_err(|failure| failure.into_error(op(&name, Slot::Shared(-2))))?;
        let request = AcquireRequest {
            name: name.clone(),
            holder: Arc::clone(&from.holder),
            metadata: row
                .and_then(|row| row.metadata)
                .unwrap_or_else(|| "{}".into())
                .into(),
            timing,
            wait: Some(Duration::ZERO),
            preempt: false,
            at_least: Duration::ZERO,
            once_per: None,
            poll: LONGEST_POLL,
            kind: Kind::Shared {
                beside: Some(from.id),
            },
        };
        acquire(&client, Arc::new(request)).await
    });
    let guard = guard.await?;
    if let Some(guard) = &guard {
        guard.still_trusted()?;
    }
    Ok(guard)
}

async fn acquire(
    client: &Arc<Client>,
    request: Arc<AcquireRequest>,
) -> Result<Option<LockGuard>, Error> {
    let name: &LockName = &request.name;
    let mut attempt = Attempt::new(client, &request)?;
    let until = clock::now() + REQUEST_TIMEOUT;
    loop {
        let failure = match attempt.in_background().await {
            Ok(Outcome::Granted {
                slot,
                token,
                length,
                ..
            }) => {
                let granted = attempt.granted(slot, token, length, request.timing);
                let granted = granted.await;
                return granted.map(Some).map_err(|loss| Error::lost(name, loss));
            }
            Ok(Outcome::Held(_) | Outcome::TooRecent(_)) => return Ok(None),
            Ok(Outcome::Busy) => StoreError::row_locked(),
            Err(failure) => failure,
        };
        if matches!(failure, StoreError::Rejected { .. }) || clock::now() >= until {
            return Err(failure.into_error(request.op()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
