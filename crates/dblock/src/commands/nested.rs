//! A `dblock run` inside another one.
//!
//! A `dblock run` for a lock that an outer one holds would wait for ever. The environment contains
//! the grants of all outer runs, and the row of the lock shows whether one of them holds it: the
//! same name in another database is another lock.

use std::time::Duration;

use database_locks::{Error, LockInfo, LockName, LockState, Locks};
use tokio::time::sleep;

use crate::cli::AcquireArgs;
use crate::exit::Failure;

/// The grant ids of this run and of the outer ones, separated by commas.
pub(super) const VARIABLE: &str = "DBLOCK_GRANTS";

/// The pause between reads while the database cannot be reached.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The grants of the outer runs.
pub(super) fn outer_grants() -> Vec<String> {
    let grants = std::env::var(VARIABLE).unwrap_or_default();
    let grants = grants.split(',').filter(|grant| !grant.is_empty());
    grants.map(str::to_owned).collect()
}

/// The value of the variable for CMD.
pub(super) fn grants_with<'a>(these: impl IntoIterator<Item = &'a str>) -> String {
    let mut grants = outer_grants();
    grants.extend(these.into_iter().map(str::to_owned));
    grants.join(",")
}

/// Completes only if one of the grants holds one of the locks, and returns its name.
pub(super) async fn wait_until_known_held(
    locks: &Locks,
    args: &AcquireArgs,
    grants: &[String],
) -> LockName {
    loop {
        match held(locks, args, grants).await {
            Ok(Some(name)) => return name,
            Err(Error::Unavailable { .. }) => sleep(RETRY_PAUSE).await,
            // The acquire reports other errors.
            Ok(None) | Err(_) => return std::future::pending().await,
        }
    }
}

/// The first of the locks that one of the grants holds.
pub(super) async fn held(
    locks: &Locks,
    args: &AcquireArgs,
    grants: &[String],
) -> Result<Option<LockName>, Error> {
    for name in args.names() {
        if holds(locks, name, grants).await? {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

async fn holds(locks: &Locks, name: &LockName, grants: &[String]) -> Result<bool, Error> {
    let is_outer = |row: &LockInfo| {
        matches!(row.state, LockState::Held { .. })
            && (row.grant.as_ref()).is_some_and(|grant| grants.contains(grant))
    };
    if locks
        .show(name.as_str())
        .await?
        .as_ref()
        .is_some_and(is_outer)
    {
        return Ok(true);
    }
    // A writer that waits for the outer one keeps the inner one out, even if both share the lock.
    match locks.show_shared(name.as_str()).await {
        Ok(shared) => Ok(shared.iter().any(is_outer)),
        // A table of an earlier version has no shared locks.
        Err(Error::Rejected { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn refusal(name: &LockName) -> Failure {
    Failure::usage(format!(
        "lock `{name}` is held by the `dblock run` that this one runs under, and would never be \
         free: leave the inner one out, or give it another name"
    ))
}
