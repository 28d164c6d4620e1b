//! For tests of programs that use locks: to lose one on purpose, and without waiting.

use std::time::Duration;

use crate::api::locks::Locks;
use crate::client;
use crate::error::Error;
use protocol::{GrantId, LockName, LostReason};

/// The error of a wait that is over, which no other crate can make.
pub fn timed_out(name: LockName, waited: Duration, holder: &str, held_for: Duration) -> Error {
    Error::TimedOut {
        name,
        waited,
        holder: Some(holder.to_owned()),
        held_for: Some(held_for),
    }
}

/// Let the lease of a lock end now, as if its time had passed; only in memory. Its holder in this
/// process is told at once that it has expired. Answers whether it was held.
///
/// # Errors
///
/// [`Error::Config`] for a bad name, and for another engine than `memory:`: nobody sets its clock.
pub async fn expire(locks: &Locks, name: impl AsRef<str>) -> Result<bool, Error> {
    let (inner, name) = (locks.inner()?, LockName::new(name)?);
    crate::runtime::run(async move {
        let Some(expired) = inner.store.expire(&name) else {
            let got = format!("for {}, whose clock goes on", inner.store.engine());
            return Err(Error::config("url", got, "memory: or memory:NAME"));
        };
        tell(expired.as_deref(), LostReason::Expired);
        inner.queues.wake(&name);
        Ok(expired.is_some())
    })
    .await
}

/// Take a lock from whoever has it, as [`Locks::force_release`] does; its holder in this process is
/// told at once, and not at its next renewal. Answers whether it was held.
///
/// # Errors
///
/// As [`Locks::force_release`].
pub async fn lose(locks: &Locks, name: impl AsRef<str>) -> Result<bool, Error> {
    let from = locks.force(LockName::new(name)?).await?;
    let grant = from.as_ref().filter(|from| !from.is_legacy);
    let grant = grant.and_then(|from| from.grant.as_deref());
    tell(grant, LostReason::Forced);
    Ok(from.is_some())
}

/// Whichever [`Locks`] of this process has it.
fn tell(grant: Option<&str>, reason: LostReason) {
    if let Some(grant) = grant.and_then(GrantId::parse) {
        for inner in client::all() {
            inner.scheduler.lost(grant, reason.into());
        }
    }
}
