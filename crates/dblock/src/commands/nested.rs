//! A `dblock run` within another one.
//!
//! CMD that runs `dblock run` on the lock it runs under would wait for its own end. The grants of all
//! runs around it are in its environment; whether one of them holds the lock the database says, since
//! the same name in another database is another lock.

use std::time::Duration;

use database_locks::{Error, LockName, LockState, Locks};
use tokio::time::sleep;

use crate::exit::Failure;

/// The grant ids of this run and of those around it, separated by commas.
pub(crate) const VARIABLE: &str = "DBLOCK_GRANTS";

/// How long until a database that is away is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// The grants of the runs around this process; none where there are none.
pub(crate) fn grants_around() -> Vec<String> {
    let grants = std::env::var(VARIABLE).unwrap_or_default();
    let grants = grants.split(',').filter(|grant| !grant.is_empty());
    grants.map(str::to_owned).collect()
}

/// The variable's value for CMD.
pub(crate) fn with(grant: &str) -> String {
    let mut grants = grants_around();
    grants.push(grant.to_owned());
    grants.join(",")
}

/// Completes if one of the grants holds the lock.
pub(crate) async fn seen_held(locks: &Locks, name: &LockName, grants: &[String]) {
    loop {
        match holds(locks, name, grants).await {
            Ok(true) => return,
            Err(Error::Unavailable { .. }) => sleep(PAUSE).await,
            // Another error is the answer to the acquire as well.
            Ok(false) | Err(_) => return std::future::pending().await,
        }
    }
}

/// Whether one of the grants holds the lock, as far as that can be read.
pub(crate) async fn is_held(locks: &Locks, name: &LockName, grants: &[String]) -> bool {
    holds(locks, name, grants).await.unwrap_or_default()
}

async fn holds(locks: &Locks, name: &LockName, grants: &[String]) -> Result<bool, Error> {
    let row = locks.show(name.as_str()).await?;
    Ok(row.is_some_and(|row| {
        matches!(row.state, LockState::Held { .. })
            && row.grant.is_some_and(|grant| grants.contains(&grant))
    }))
}

pub(crate) fn refused(name: &LockName) -> Failure {
    Failure::usage(format!(
        "lock `{name}` is held by the `dblock run` that this one runs under, and would never be \
         free: leave the inner one out, or give it another name"
    ))
}
