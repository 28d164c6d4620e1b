//! `dblock renew NAME --ticket T`

use database_locks::{LockInfo, LockName, Locks, Ticket, Ttl};

use crate::args::DEFAULT_HAND_TTL;
use crate::exit::Failure;
use crate::output;
use crate::place::Place;
use crate::ticket::TicketFrom;

use super::take::of_ticket;

pub(crate) async fn renew(
    place: &Place,
    name: &LockName,
    from: &TicketFrom,
    ttl: Option<Ttl>,
) -> Result<u8, Failure> {
    let ticket = from.read(name)?;
    let locks = place.connect().await?;
    let ttl = match ttl {
        Some(ttl) => ttl,
        None => usual(locks.show(name.as_str()).await?.as_ref()),
    };
    if let Err(error) = locks.renew(&ticket, ttl).await {
        return Err(of_ticket(&locks, error).await);
    }
    let lasts = output::lasts(held(&locks, &ticket).await.as_ref());
    output::notice(&format!("lock `{name}` is renewed, and held {lasts}"));
    Ok(0)
}

/// The length that the lease has had. Both ends were written by the database's clock.
fn usual(row: Option<&LockInfo>) -> Ttl {
    let length = row.and_then(|row| {
        let end = match row.expires_at {
            Some(end) => end,
            None => return Some(Ttl::Infinite),
        };
        Some(end.duration_since(row.renewed_at?).ok()?.into())
    });
    length.unwrap_or(DEFAULT_HAND_TTL.into())
}

/// The row, while it is the ticket's. None where it cannot be had: it is for display only.
pub(super) async fn held(locks: &Locks, ticket: &Ticket) -> Option<LockInfo> {
    let row = locks.show(ticket.name().as_str()).await.ok()??;
    (row.token == ticket.token()).then_some(row)
}
