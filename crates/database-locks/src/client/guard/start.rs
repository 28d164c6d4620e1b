//! From a grant to its guard.

use std::sync::Arc;

use super::LockGuard;
use crate::client::Client;
use crate::client::renewal::grant_state::{GrantState, Status};
use crate::error::loss::Loss;
use protocol::{BootInstant, Grant, Lease, LostReason, Ttl};

/// Renew a grant from now on. For a long lease, wait until the database has confirmed its full
/// length. A release has to assume that the row has `longest_ttl`, and lets the lock rest until
/// `unavailable_until`.
///
/// # Errors
///
/// Trust ended before the confirmation. The rest of the grant is released.
pub(crate) async fn start_renewing(
    client: &Arc<Client>,
    grant: Grant,
    lease: Lease,
    longest_ttl: Ttl,
    unavailable_until: BootInstant,
) -> Result<LockGuard, Loss> {
    let state = GrantState::new(client.store.engine(), grant, &lease, unavailable_until);
    let guard = LockGuard::new(Arc::clone(client), Arc::clone(&state), longest_ttl);
    client.scheduler.add(lease, Arc::clone(&state));
    let settled = state
        .watch()
        .wait_for(|status| !matches!(status, Status::Held(None)))
        .await
        .map_or(Status::Released, |status| status.clone());
    match settled {
        Status::Lost(loss) => Err(loss),
        Status::Held(_) | Status::Released if guard.is_held() => Ok(guard),
        // The scheduler has not marked the loss yet.
        Status::Held(_) | Status::Released => Err(guard.state.lose(LostReason::Expired)),
    }
}
