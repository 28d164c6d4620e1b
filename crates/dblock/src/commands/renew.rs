//! `dblock renew NAME --ticket TICKET`

use database_locks::{LockInfo, LockName, Ttl};

use crate::cli::DEFAULT_ACQUIRE_TTL;
use crate::exit::Failure;
use crate::names;
use crate::output;
use crate::target::Target;
use crate::ticket::TicketSource;

use super::acquire_lock::{row_of_ticket, ticket_failure};

pub(crate) async fn renew(
    target: &Target,
    name: &LockName,
    source: &TicketSource,
    ttl: Option<Ttl>,
) -> Result<u8, Failure> {
    let ticket = source.read(name)?;
    let locks = target.connect().await?;
    let ttl = match ttl {
        Some(ttl) => ttl,
        // Not that of the name: a lock and a semaphore may have the same one.
        None => present_ttl(row_of_ticket(&locks, &ticket).await.as_ref()),
    };
    if let Err(error) = locks.renew(&ticket, ttl).await {
        return Err(ticket_failure(&locks, error).await);
    }
    let row = row_of_ticket(&locks, &ticket).await;
    let end = output::lease_end(row.as_ref());
    let what = names::what(name, ticket.slot());
    output::notice(&format!("{what} is renewed, and held {end}"));
    Ok(0)
}

/// The length of the present lease. Both of its ends are times of the database's clock.
fn present_ttl(row: Option<&LockInfo>) -> Ttl {
    let length = row.and_then(|row| {
        let Some(end) = row.expires_at else {
            return Some(Ttl::Infinite);
        };
        Some(end.duration_since(row.renewed_at?).ok()?.into())
    });
    length.unwrap_or(DEFAULT_ACQUIRE_TTL.into())
}
