//! The operator, who changes the limit of a semaphore while processes use it.

use std::time::Duration;

use database_locks::Locks;
use testkit::time::{now, sleep};

use crate::check::LimitChange;
use crate::clock;
use crate::engine::{Database, Engine};
use crate::lock_rows::Rows;
use crate::target::{Kind, RAISED_BY, Target};

/// How long a change may take.
const CHANGED_WITHIN: Duration = Duration::from_secs(20);
/// How long another node of a cluster may take to apply a change.
const APPLIED_WITHIN: Duration = Duration::from_secs(4);

/// Lowers the limit of each semaphore to one permit, pauses it, raises it above the limit of the
/// callers, and removes the limit. `lasting` is the time for which each counts.
///
/// # Errors
///
/// A limit could not be set, or the database has another one afterwards.
pub fn change(
    database: &Database,
    targets: &[Target],
    lasting: Duration,
    changes: &mut Vec<LimitChange>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let locks = runtime
        .block_on(Locks::connect(&database.url))
        .map_err(|error| error.chain())?;
    let mut rows = Rows::connect(&database.url)?;
    for target in targets {
        let Kind::Semaphore(permits) = target.kind else {
            continue;
        };
        for limit in [Some(1), Some(0), Some(permits + RAISED_BY), None] {
            let from = clock::now();
            // Until it is known that the change was made, both limits count.
            changes.push(LimitChange {
                lock: target.name.clone(),
                limit,
                from,
                until: u64::MAX,
            });
            runtime.block_on(set(&locks, &target.name, limit))?;
            let lag = match database.engine() {
                Engine::Galera => APPLIED_WITHIN,
                _ => Duration::ZERO,
            };
            if let Some(change) = changes.last_mut() {
                change.until = clock::now() + lag.as_micros() as u64;
            }
            let there = rows.limit(&target.name)?;
            if there != limit {
                return Err(format!("the limit is {there:?} and not {limit:?}"));
            }
            if limit.is_some() {
                sleep(lasting);
            }
        }
    }
    Ok(())
}

/// Sets a limit, again and again until it is confirmed.
async fn set(locks: &Locks, semaphore: &str, limit: Option<u32>) -> Result<(), String> {
    let begun = now();
    loop {
        match locks.set_limit(semaphore, limit).await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() >= CHANGED_WITHIN => return Err(error.chain()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
