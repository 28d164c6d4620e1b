//! Lose a lock on purpose, for tests of programs that use locks.

use std::time::Duration;

use crate::api::busy::Busy;
use crate::api::locks::Locks;
use crate::client;
use crate::error::Error;
use protocol::{GrantId, Holder, LockName, LostReason, Slot};

/// Makes an [`Error::TimedOut`], which no other crate can make.
pub fn timed_out(name: LockName, waited: Duration, holder: &str, held_for: Duration) -> Error {
    let busy = Busy {
        holder: Some(holder.to_owned()),
        held_for: Some(held_for),
        ..Busy::default()
    };
    busy.timed_out(name, waited)
}

/// Let the lease of a lock end now, those of all shared holders too, on `memory:` only. Its holders
/// in this process are notified at once. Returns whether the lock was held.
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
        for grant in &expired {
            report_loss(Some(grant), LostReason::Expired);
        }
        client.queues(Slot::Lock).wake(&name);
        client.wake_shared(Slot::Lock, &name);
        Ok(!expired.is_empty())
    })
    .await
}

/// Release a lock by force, as [`Locks::force_release`] and [`Locks::force_release_shared`] do. Its
/// holders in this process are notified at once, not at their next renewal. Returns whether the lock
/// was held.
///
/// # Errors
///
/// As [`Locks::force_release`].
pub async fn lose(locks: &Locks, name: impl AsRef<str>) -> Result<bool, Error> {
    let name = LockName::new(name)?;
    let mut lost = locks.force(name.clone(), Slot::Lock).await?.map_or(0, tell);
    let shared = match locks.show_shared(&name).await {
        // A database of an earlier version has no table of permits.
        Err(Error::Rejected { .. }) => Vec::new(),
        rows => rows?,
    };
    for row in shared {
        let from = locks.force(name.clone(), row.row_slot()).await?;
        lost += from.map_or(0, tell);
    }
    Ok(lost > 0)
}

/// Report the loss of a grant that was released by force; 1.
fn tell(from: Holder) -> usize {
    report_loss(
        from.grant.as_deref().filter(|_| !from.is_legacy),
        LostReason::Forced,
    );
    1
}

/// Report the loss to the client of this process that holds the grant.
fn report_loss(grant: Option<&str>, reason: LostReason) {
    if let Some(grant) = grant.and_then(GrantId::parse) {
        for client in client::all() {
            client.scheduler.mark_lost(grant, reason.into());
        }
    }
}
