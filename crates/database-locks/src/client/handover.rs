//! Resume, renew and release by ticket.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::client::acquire::request::AcquireRequest;
use crate::client::grant_id::random_grant_id;
use crate::client::guard::LockGuard;
use crate::client::guard::start::start_renewing;
use crate::client::own_grants::OwnGrant;
use crate::client::read::read_row;
use crate::client::release::{ReleaseRequest, defer};
use crate::client::renewal::grant_state::log_grant;
use crate::error::Error;
use crate::error::loss::Loss;
use crate::metrics;
use crate::runtime;
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{
    AcquireCommand, BootInstant, Gone, Grant, Kind, Lease, LockInfo, LockName, LostReason, Primary,
    REQUEST_TIMEOUT, ReleaseCommand, Released, Renewal, ResumeCommand, Slot, Ticket, Ttl,
};

/// Resume the grant of a ticket. Trust is checked last, on the caller's thread, so that the guard
/// is held when it is returned.
pub(crate) async fn resume(
    client: Arc<Client>,
    request: AcquireRequest,
    ticket: Ticket,
) -> Result<LockGuard, Error> {
    let resumed = runtime::run(async move {
        let to = AcquireCommand {
            name: request.name,
            grant: random_grant_id()?,
            holder: request.holder,
            length: request.timing.first_grant(),
            not_within: None,
            metadata: request.metadata,
            expired_version: None,
            kind: Kind::Exclusive,
        };
        let command = ResumeCommand {
            slot: ticket.slot,
            token: ticket.token,
            from: ticket.grant,
            to,
        };
        // Registered before the request is sent: from then on the row may contain the grant.
        let _own = OwnGrant::new(command.to.grant);
        let mut unresumed = ReleaseUnlessResumed {
            client: Arc::clone(&client),
            command: Some(&command),
        };
        let (sent, confirmed_by) = retry_resume(&client, &command).await?;
        let to = &command.to;
        let lease = Lease::granted(request.timing, sent, to.length);
        if lease.trusted_until() <= clock::now() {
            return Err(lost(&to.name, command.slot, LostReason::Expired));
        }
        unresumed.command = None;
        let grant = command.granted(confirmed_by);
        let until = sent + request.at_least;
        // A ticket does not contain the ttl, which may be infinite.
        let guard = start_renewing(&client, grant, lease, Ttl::Infinite, until).await;
        let guard = guard.map_err(|loss| Error::lost(&to.name, loss))?;
        metrics::resumed(client.store.engine());
        log_grant!(
            debug,
            &guard.state.grant,
            "{} resumed",
            command.slot.as_str()
        );
        Ok(guard)
    });
    let guard = resumed.await?;
    guard.still_trusted().map(|()| guard)
}

/// The loss of the grant of a ticket.
fn lost(name: &LockName, slot: Slot, gone: impl Into<Gone>) -> Error {
    Error::lost(name, Loss::of_ticket(slot, gone))
}

/// Send the request until it succeeds or the timeout ends. Returns when the successful request was
/// sent, and which server confirmed it.
async fn retry_resume(
    client: &Client,
    command: &ResumeCommand,
) -> Result<(BootInstant, Option<Primary>), Error> {
    let until = clock::now() + REQUEST_TIMEOUT;
    loop {
        let sent = clock::now();
        let failure = match client.store.resume(command, REQUEST_TIMEOUT).await {
            Ok(Renewal::Renewed { confirmed_by }) => return Ok((sent, confirmed_by)),
            Ok(Renewal::Lost(gone)) => return Err(lost(&command.to.name, command.slot, gone)),
            Ok(Renewal::Busy) => StoreError::row_locked(),
            Err(failure) => failure,
        };
        if matches!(failure, StoreError::Rejected { .. }) || clock::now() >= until {
            let what = command.slot.named(&command.to.name);
            return Err(failure.into_error(format!("resume {what}")));
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(10..60))).await;
    }
}

/// Releases the grant on drop, unless its guard is returned to the caller.
struct ReleaseUnlessResumed<'a> {
    client: Arc<Client>,
    command: Option<&'a ResumeCommand>,
}

impl Drop for ReleaseUnlessResumed<'_> {
    fn drop(&mut self) {
        let Some(command) = self.command else { return };
        let (client, ttl) = (Arc::clone(&self.client), Ttl::Infinite);
        let release = ReleaseCommand::of(&command.granted(None), ttl);
        // The background completes it.
        let request = ReleaseRequest::new(client, release, BootInstant::ZERO, ttl, None);
        drop(request);
    }
}

/// An operation by ticket that needs no guard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ByTicket {
    Renew(Ttl),
    Release,
}

/// Carry out an operation, if the row still contains the ticket's grant.
pub(crate) async fn by_ticket(
    client: Arc<Client>,
    ticket: Ticket,
    operation: ByTicket,
) -> Result<(), Error> {
    let what = ticket.slot.named(&ticket.name).to_string();
    let op = match operation {
        ByTicket::Renew(_) => format!("renew {what}"),
        ByTicket::Release => format!("release {what}"),
    };
    runtime::run(async move {
        let done = while_contended(REQUEST_TIMEOUT, || async {
            match run_by_ticket(&client, &ticket, operation).await? {
                Renewal::Busy => Err(StoreError::row_locked()),
                done => Ok(done),
            }
        });
        match done.await.map_err(|e| e.into_error(op))? {
            Renewal::Lost(gone) => Err(lost(&ticket.name, ticket.slot, gone)),
            Renewal::Renewed { .. } | Renewal::Busy => Ok(()),
        }
    })
    .await
}

async fn run_by_ticket(
    client: &Arc<Client>,
    ticket: &Ticket,
    operation: ByTicket,
) -> Result<Renewal, StoreError> {
    // The store's statements compare the holder, and a ticket does not contain it.
    let holder = match read_row(client, &ticket.name, ticket.slot).await? {
        Some(row) if row.grant.as_deref() == Some(ticket.grant.as_str()) => row.holder,
        Some(row) => {
            return Ok(Renewal::Lost(Gone {
                reason: loss_reason(ticket, &row),
                now: row.held_by(),
            }));
        }
        None => return Ok(Renewal::Lost(LostReason::RowGone.into())),
    };
    let grant = Grant {
        name: ticket.name.clone(),
        slot: ticket.slot,
        token: ticket.token,
        id: ticket.grant,
        holder: holder.unwrap_or_default().into(),
        confirmed_by: None,
    };
    match operation {
        ByTicket::Renew(ttl) => {
            let answers = client.store.renew(&[(grant, ttl)], REQUEST_TIMEOUT).await?;
            Ok(answers.into_iter().next().unwrap_or(Renewal::Busy))
        }
        ByTicket::Release => {
            // A ticket does not contain the ttl, which may be infinite.
            let releases = [ReleaseCommand::of(&grant, Ttl::Infinite)];
            let answers = client.store.release(&releases, REQUEST_TIMEOUT).await?;
            Ok(match answers.first() {
                Some(Released::Freed | Released::Awaited) => {
                    client.queues(grant.slot).wake(&grant.name);
                    client.wake_shared(grant.slot, &grant.name);
                    Renewal::Renewed { confirmed_by: None }
                }
                Some(Released::NotHeld) => Renewal::Lost(LostReason::Released.into()),
                Some(Released::Busy) if defer(client, &releases[0]) => {
                    Renewal::Renewed { confirmed_by: None }
                }
                Some(Released::Busy) | None => Renewal::Busy,
            })
        }
    }
}

/// Why a ticket is no longer valid, according to the row.
fn loss_reason(ticket: &Ticket, row: &LockInfo) -> LostReason {
    let resumed = |metadata: &String| metadata.contains(ticket.grant.as_str());
    match row.token.cmp(&ticket.token) {
        Ordering::Greater => LostReason::Preempted,
        Ordering::Less => LostReason::Failover,
        Ordering::Equal if row.metadata.as_ref().is_some_and(resumed) => LostReason::Resumed,
        Ordering::Equal => LostReason::Released,
    }
}
