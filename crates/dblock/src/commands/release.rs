//! `dblock release NAME --ticket T` and `dblock release NAME --force`

use database_locks::LockName;

use crate::exit::Failure;
use crate::output;
use crate::place::Place;
use crate::release_notice::ReleaseNotice;
use crate::ticket::TicketFrom;

use super::take::of_ticket;

pub(crate) async fn release(
    place: &Place,
    name: &LockName,
    from: &TicketFrom,
) -> Result<u8, Failure> {
    let ticket = from.read(name)?;
    let locks = place.connect().await?;
    let notice = ReleaseNotice::begin(&ticket);
    if let Err(error) = locks.release(&ticket).await {
        drop(notice);
        return Err(of_ticket(&locks, error).await);
    }
    notice.done();
    output::notice(&format!("lock `{name}` is released"));
    Ok(0)
}

pub(crate) async fn release_by_force(place: &Place, name: &LockName) -> Result<u8, Failure> {
    let freed = place.connect().await?.force_release(name.as_str()).await?;
    let said = match freed {
        None => format!("lock `{name}` was free already"),
        Some(from) => {
            let who = from.holder.as_deref().unwrap_or("a holder without a name");
            let age = from
                .held_for
                .map(|age| format!(" for {}", output::human(age)));
            let age = age.unwrap_or_default();
            format!("lock `{name}` released by force: {who} had held it{age}")
        }
    };
    output::notice(&said);
    Ok(0)
}
