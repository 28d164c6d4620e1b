//! `dblock release NAME --ticket TICKET` and `dblock release NAME --force`

use database_locks::LockName;

use crate::exit::Failure;
use crate::output;
use crate::target::Target;
use crate::ticket::TicketSource;
use crate::time::human;

use super::acquire_lock::ticket_failure;
use super::release_notice::ReleaseNotice;

pub(crate) async fn release(
    target: &Target,
    name: &LockName,
    source: &TicketSource,
) -> Result<u8, Failure> {
    let ticket = source.read(name)?;
    let locks = target.connect().await?;
    let notice = ReleaseNotice::begin(&ticket);
    if let Err(error) = locks.release(&ticket).await {
        drop(notice);
        return Err(ticket_failure(&locks, error).await);
    }
    notice.done();
    output::notice(&format!("lock `{name}` is released"));
    Ok(0)
}

pub(crate) async fn force_release(target: &Target, name: &LockName) -> Result<u8, Failure> {
    let locks = target.connect().await?;
    let message = match locks.force_release(name.as_str()).await? {
        None => format!("lock `{name}` was free already"),
        Some(previous) => {
            let holder = previous.holder.as_deref();
            let holder = holder.unwrap_or("a holder without a name");
            if previous.rested {
                output::notice(&format!(
                    "lock `{name}` is free: its rest after {holder} is ended"
                ));
                return Ok(0);
            }
            let age = previous.held_for.map(|age| format!(" for {}", human(age)));
            let age = age.unwrap_or_default();
            format!("lock `{name}` released by force: {holder} had held it{age}")
        }
    };
    output::notice(&message);
    Ok(0)
}
