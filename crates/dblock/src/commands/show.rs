//! `dblock list` and `dblock show NAME`

use database_locks::{ListFilter, LockName};

use crate::exit::{self, Failure};
use crate::output;
use crate::target::Target;

pub(crate) async fn list(target: &Target, all: bool, json: bool) -> Result<u8, Failure> {
    let filter = match all {
        true => ListFilter::new(),
        false => ListFilter::new().not_free(),
    };
    let locks = target.connect().await?.list_filtered(&filter).await?;
    output::print(&match json {
        true => output::locks_json(&locks),
        false => output::locks_table(&locks, all),
    })?;
    Ok(0)
}

pub(crate) async fn show(target: &Target, name: &LockName, json: bool) -> Result<u8, Failure> {
    let Some(lock) = target.connect().await?.show(name.as_str()).await? else {
        let message = format!(
            "there is no lock `{name}`: it was never acquired, or its row was pruned; see \
             `dblock list --all` for all names"
        );
        return Err(Failure::new(exit::UNKNOWN_LOCK, message));
    };
    output::print(&match json {
        true => output::lock_json(&lock),
        false => output::lock_details(&lock),
    })?;
    Ok(0)
}
