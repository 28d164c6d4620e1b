//! Releasing a lock by force.

use std::sync::Arc;

use crate::client::Client;
use crate::client::read::read_row;
use crate::client::renewal::grant_state::log_grant;
use crate::runtime;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{Force, Holder, LockName, REQUEST_TIMEOUT, Slot};

/// Release a lock or a permit, whichever grant holds it.
pub(crate) async fn force(
    client: &Client,
    name: &LockName,
    slot: Slot,
) -> Result<Force, StoreError> {
    client.store.force(name, slot, REQUEST_TIMEOUT).await
}

/// If a fence of the lock's grant is open in this process, release the lock by force when the fence
/// ends.
///
/// Returns the holder; `None` if no such fence is open, and nothing is done.
pub(crate) fn force_after_fence(
    client: &Arc<Client>,
    name: &LockName,
    slot: Slot,
) -> Option<Holder> {
    let state = client.fences.of_lock(name, slot)?;
    let fence = client.fences.end_of(state.grant.id)?;
    let holder = Holder {
        holder: Some(state.grant.holder.as_ref().to_owned()),
        token: Some(state.grant.token),
        held_for: Some(state.held_for()),
        ..Holder::default()
    };
    log_grant!(
        warn,
        &state.grant,
        "{} to be released by force when its own fenced transaction ends",
        slot.as_str()
    );
    let client = Arc::clone(client);
    let _ = runtime::spawn(async move {
        fence.await;
        let pending = client.pending_releases.begin();
        let (name, grant) = (&state.grant.name, state.grant.id.as_str());
        let forced = while_contended(REQUEST_TIMEOUT, || async {
            let row = read_row(&client, name, slot).await?;
            // Release only the grant of the fence, not a later one.
            if row.as_ref().and_then(|row| row.grant.as_deref()) != Some(grant) {
                return Ok(());
            }
            match force(&client, name, slot).await? {
                Force::Freed(_) | Force::WasFree => Ok(()),
                Force::Busy => Err(StoreError::row_locked()),
            }
        });
        match forced.await {
            Ok(()) => {
                client.queues(slot).wake(name);
                client.wake_shared(slot, name);
            }
            Err(failure) => tracing::warn!(
                lock.name = name.as_str(),
                "not released by force: {failure}"
            ),
        }
        drop(pending);
    });
    Some(holder)
}
