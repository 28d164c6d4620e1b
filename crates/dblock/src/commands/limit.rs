//! `dblock limit NAME N`

use database_locks::LockName;

use crate::cli::Limit;
use crate::exit::Failure;
use crate::output;
use crate::target::Target;

pub(crate) async fn limit(target: &Target, name: &LockName, limit: Limit) -> Result<u8, Failure> {
    let locks = target.connect().await?;
    locks.set_limit(name.as_str(), limit.0).await?;
    let held = locks.show_semaphore(name.as_str()).await?.held();
    output::notice(&match limit.0 {
        None => format!("semaphore `{name}` has no limit in the database: each caller's counts"),
        Some(0) => format!("semaphore `{name}` is paused; {held} permits are held"),
        Some(limit) => format!("semaphore `{name}` has the limit {limit}; {held} permits are held"),
    });
    Ok(0)
}
