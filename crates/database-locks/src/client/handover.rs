//! Resuming, renewing and releasing by ticket.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Inner;
use crate::client::acquire::attempt::begin;
use crate::client::acquire::request::Want;
use crate::client::grant_id::random_grant_id;
use crate::client::guard::LockGuard;
use crate::client::own_grants::Ours;
use crate::client::release::{defer, give_back};
use crate::error::Error;
use crate::error::loss::Loss;
use crate::metrics;
use crate::runtime::clock;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{
    AcquireCommand, BootInstant, Gone, Grant, Lease, LockInfo, LostReason, REQUEST_TIMEOUT,
    ReleaseCommand, Released, Renewal, ResumeCommand, Ticket, Ttl,
};

/// Take a ticket up. What is handed out is held: trust is checked at the last moment, on the caller's thread.
pub(crate) async fn resume(
    inner: Arc<Inner>,
    want: Want,
    ticket: Ticket,
) -> Result<LockGuard, Error> {
    let guard = in_background(inner, want, ticket).await?;
    guard.still_trusted().map(|()| guard)
}

async fn in_background(inner: Arc<Inner>, want: Want, ticket: Ticket) -> Result<LockGuard, Error> {
    crate::runtime::run(async move {
        let to = AcquireCommand {
            name: want.name,
            grant: random_grant_id()?,
            holder: want.holder,
            length: want.timing.first_grant(),
            metadata: want.metadata,
            expired_version: None,
        };
        let what = ResumeCommand {
            token: ticket.token,
            from: ticket.grant,
            to,
        };
        // Before the request is sent: from then on it may stand in the row.
        let _ours = Ours::new(what.to.grant);
        let mut unsettled = Unsettled {
            inner: Arc::clone(&inner),
            what: Some(&what),
        };
        let sent = until_answered(&inner, &what).await?;
        let to = &what.to;
        let lease = Lease::granted(want.timing, sent, to.length);
        if lease.trusted_until() <= clock::now() {
            return Err(Error::lost(&to.name, Loss::of_another(LostReason::Expired)));
        }
        unsettled.what = None;
        let grant = Grant {
            name: to.name.clone(),
            token: what.token,
            id: to.grant,
            holder: Arc::clone(&to.holder),
        };
        let begun = begin(&inner, grant, lease).await;
        if let Ok(guard) = &begun {
            metrics::resumed(inner.store.engine());
            tracing::debug!(
                lock.name = guard.name().as_str(),
                lock.token = guard.token().get(),
                lock.holder = guard.holder(),
                "lock resumed"
            );
        }
        begun
            .map(LockGuard::perhaps_endless)
            .map_err(|loss| Error::lost(&to.name, loss))
    })
    .await
}

/// Ask until there is an answer; when it was sent that was answered with yes.
async fn until_answered(inner: &Inner, what: &ResumeCommand) -> Result<BootInstant, Error> {
    let until = clock::now() + REQUEST_TIMEOUT;
    loop {
        let sent = clock::now();
        let failure = match inner.store.resume(what, REQUEST_TIMEOUT).await {
            Ok(Renewal::Renewed) => return Ok(sent),
            Ok(Renewal::Lost(gone)) => {
                return Err(Error::lost(&what.to.name, Loss::of_another(gone)));
            }
            Ok(Renewal::Busy) => {
                StoreError::Contention("its row is locked by another transaction".into())
            }
            Err(failure) => failure,
        };
        if matches!(failure, StoreError::Rejected { .. }) || clock::now() >= until {
            return Err(failure.into_error(format!("take up lock `{}`", what.to.name)));
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(10..60))).await;
    }
}

/// Gives back a grant if the caller never learns whether it was resumed.
struct Unsettled<'a> {
    inner: Arc<Inner>,
    what: Option<&'a ResumeCommand>,
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        let Some(ResumeCommand { token, to, .. }) = self.what else {
            return;
        };
        let what = ReleaseCommand {
            name: to.name.clone(),
            token: Some(*token),
            grant: to.grant,
            holder: Arc::clone(&to.holder),
            durable: true,
        };
        tokio::spawn(give_back(
            Arc::clone(&self.inner),
            what,
            Ttl::Infinite,
            None,
        ));
    }
}

/// What can be done with a ticket without taking it up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ByTicket {
    Renew(Ttl),
    Release,
}

/// Do it, while the row says that it is the ticket's grant.
pub(crate) async fn by_ticket(
    inner: Arc<Inner>,
    ticket: Ticket,
    what: ByTicket,
) -> Result<(), Error> {
    let op = match what {
        ByTicket::Renew(_) => format!("renew lock `{}`", ticket.name),
        ByTicket::Release => format!("release lock `{}`", ticket.name),
    };
    crate::runtime::run(async move {
        let done = while_contended(REQUEST_TIMEOUT, || async {
            match do_it(&inner, &ticket, what).await? {
                Renewal::Busy => Err(StoreError::Contention(
                    "its row is locked by another transaction".into(),
                )),
                done => Ok(done),
            }
        });
        match done.await.map_err(|e| e.into_error(op))? {
            Renewal::Lost(gone) => Err(Error::lost(&ticket.name, Loss::of_another(gone))),
            Renewal::Renewed | Renewal::Busy => Ok(()),
        }
    })
    .await
}

async fn do_it(inner: &Arc<Inner>, ticket: &Ticket, what: ByTicket) -> Result<Renewal, StoreError> {
    let names = [ticket.name.clone()];
    // A ticket does not know who holds it, which a statement asks for.
    let holder = match inner.store.read(&names, REQUEST_TIMEOUT).await?.pop() {
        Some(row) if row.grant.as_deref() == Some(ticket.grant.as_str()) => row.holder,
        Some(row) => {
            return Ok(Renewal::Lost(Gone {
                reason: why_dead(ticket, &row),
                now: row.held_by(),
            }));
        }
        None => return Ok(Renewal::Lost(LostReason::RowGone.into())),
    };
    let grant = Grant {
        name: ticket.name.clone(),
        token: ticket.token,
        id: ticket.grant,
        holder: holder.unwrap_or_default().into(),
    };
    match what {
        ByTicket::Renew(ttl) => {
            let answers = inner.store.renew(&[(grant, ttl)], REQUEST_TIMEOUT).await?;
            Ok(answers.into_iter().next().unwrap_or(Renewal::Busy))
        }
        ByTicket::Release => {
            // It may be without end, which a ticket does not know either.
            let returns = [ReleaseCommand::of(&grant, Ttl::Infinite)];
            let answers = inner.store.release(&returns, REQUEST_TIMEOUT).await?;
            Ok(match answers.first() {
                Some(Released::Freed | Released::Awaited) => {
                    inner.queues.wake(&grant.name);
                    Renewal::Renewed
                }
                Some(Released::NotHeld) => Renewal::Lost(LostReason::Released.into()),
                Some(Released::Busy) if defer(inner, &returns[0]) => Renewal::Renewed,
                Some(Released::Busy) | None => Renewal::Busy,
            })
        }
    }
}

/// Why a ticket is dead, from the row that says so.
fn why_dead(ticket: &Ticket, row: &LockInfo) -> LostReason {
    let resumed = |said: &String| said.contains(ticket.grant.as_str());
    match row.token.cmp(&ticket.token) {
        Ordering::Greater => LostReason::Preempted,
        Ordering::Less => LostReason::Failover,
        Ordering::Equal if row.metadata.as_ref().is_some_and(resumed) => LostReason::Resumed,
        Ordering::Equal => LostReason::Released,
    }
}
