//! Lose a lock on purpose, for tests of programs that use locks.

use std::time::Duration;

use crate::api::locks::Locks;
use crate::client;
use crate::error::Error;
use protocol::{GrantId, LockName, LostReason, Slot};

/// Makes an [`Error::TimedOut`], which no other crate can make.
pub fn timed_out(name: LockName, waited: Duration, holder: &str, held_for: Duration) -> Error {
    Error::TimedOut {
        name,
        waited,
        holder: Some(holder.to_owned()),
        held_for: Some(held_for),
        permits: None,
        shared_by: None,
        rests_for: None,
    }
}

/// Let the lease of a lock end now, on `memory:` only. Its holder in this process is notified at
/// once. Returns whether the lock was held.
///
/// # Errors
///
/// [`Error::Config`] for an invalid name, and for another engine than `memory:`, whose clock cannot
/// be set.
pub async fn expire(locks: &Locks, name: impl AsRef<str>) -> Result<bool, Error> {
    let (client, name) = (locks.client()?, LockName::new(name)?);
    crate::runtime::run(async move {
        let Some(expired) = client.store.expire(&name) else {
            let got = format!("for {}, whose clock goes on", client.store.engine());
            return Err(Error::config("url", got, "memory: or memory:NAME"));
        };
        report_loss(expired.as_deref(), LostReason::Expired);
        client.queues(Slot::Lock).wake(&name);
        Ok(expired.is_some())
    })
    .await
}

/// Release a lock by force, as [`Locks::force_release`] does. Its holder in this process is
/// notified at once, not at its next renewal. Returns whether the lock was held.
///
/// # Errors
///
/// As [`Locks::force_release`].
pub async fn lose(locks: &Locks, name: impl AsRef<str>) -> Result<bool, Error> {
    let from = locks.force(LockName::new(name)?, Slot::Lock).await?;
    let grant = from.as_ref().filter(|from| !from.is_legacy);
    let grant = grant.and_then(|from| from.grant.as_deref());
    report_loss(grant, LostReason::Forced);
    Ok(from.is_some())
}

/// Report the loss to the client of this process that holds the grant.
fn report_loss(grant: Option<&str>, reason: LostReason) {
    if let Some(grant) = grant.and_then(GrantId::parse) {
        for client in client::all() {
            client.scheduler.mark_lost(grant, reason.into());
        }
    }
}
