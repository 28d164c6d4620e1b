//! `dblock list` and `dblock show NAME`

use database_locks::{Error, ListFilter, LockName};

use crate::exit::{self, Failure};
use crate::output::{self, Limits};
use crate::target::Target;

pub(crate) async fn list(target: &Target, all: bool, json: bool) -> Result<u8, Failure> {
    let filter = match all {
        true => ListFilter::new(),
        false => ListFilter::new().not_free(),
    };
    let locks = target.connect().await?;
    let limits = Limits(locks.limits().await?);
    let locks = locks.list_filtered(&filter).await?;
    output::print(&match json {
        true => output::locks_json(&locks, &limits, all),
        false => output::locks_table(&locks, &limits, all),
    })?;
    Ok(0)
}

pub(crate) async fn show(target: &Target, name: &LockName, json: bool) -> Result<u8, Failure> {
    let locks = target.connect().await?;
    let lock = locks.show(name.as_str()).await?;
    let semaphore = match locks.show_semaphore(name.as_str()).await {
        Ok(semaphore) => Some(semaphore).filter(|it| it.limit.is_some() || !it.permits.is_empty()),
        // A table of an earlier version has no permits.
        Err(Error::Rejected { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let shared = match locks.show_shared(name.as_str()).await {
        Ok(shared) => shared,
        Err(Error::Rejected { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    if lock.is_none() && semaphore.is_none() {
        let message = format!(
            "there is no lock `{name}`: it was never acquired, or its row was pruned; see \
             `dblock list --all` for all names"
        );
        return Err(Failure::new(exit::UNKNOWN_LOCK, message));
    }
    output::print(&match json {
        true => output::lock_json(lock.as_ref(), semaphore.as_ref(), &shared),
        false => {
            let mut text = lock.as_ref().map(output::lock_details).unwrap_or_default();
            text.push_str(&output::shared_details(&shared));
            if let Some(semaphore) = &semaphore {
                text.push_str(&output::semaphore_details(semaphore));
            }
            text
        }
    })?;
    Ok(0)
}
