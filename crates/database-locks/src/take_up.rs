//! Going on with a lock that somebody handed over.

use std::sync::Arc;
use std::time::Duration;

use crate::acquire::{PATIENCE, Want, begin};
use crate::clock::{self, Time};
use crate::error::Error;
use crate::guard::LockGuard;
use crate::lease::Lease;
use crate::locks::Inner;
use crate::release::give_back;
use crate::store::{Ask, Grant, Renewal, Return, StoreError, TakeUp};
use crate::ticket::Ticket;
use crate::timing::{MAX_FIRST_GRANT, Ttl};
use crate::token::GrantId;

/// Take up a ticket on the background thread.
pub(crate) async fn take_up(
    inner: Arc<Inner>,
    want: Want,
    ticket: Ticket,
) -> Result<LockGuard, Error> {
    crate::runtime::run(async move {
        let to = Ask {
            name: want.name,
            grant: GrantId::random()?,
            holder: want.holder,
            length: want.timing.first_grant(),
            metadata: want.metadata,
        };
        let what = TakeUp {
            token: ticket.token,
            from: ticket.grant,
            to,
        };
        let mut unsettled = Unsettled {
            inner: Arc::clone(&inner),
            what: Some(&what),
        };
        let sent = until_answered(&inner, &what).await?;
        unsettled.what = None;
        let to = &what.to;
        let grant = Grant {
            name: to.name.clone(),
            token: what.token,
            id: to.grant,
            holder: Arc::clone(&to.holder),
        };
        let lease = Lease::granted(want.timing, sent, to.length);
        let begun = begin(&inner, grant, lease).await;
        begun.map_err(|reason| Error::Lost {
            name: to.name.clone(),
            reason,
        })
    })
    .await
}

/// Ask until there is an answer; when it was sent that was answered with yes.
async fn until_answered(inner: &Inner, what: &TakeUp) -> Result<Time, Error> {
    let until = clock::now() + PATIENCE;
    loop {
        let sent = clock::now();
        let failure = match inner.store.take_up(what, PATIENCE).await {
            Ok(Renewal::Renewed) => return Ok(sent),
            Ok(Renewal::Lost(reason)) => {
                return Err(Error::Lost {
                    name: what.to.name.clone(),
                    reason,
                });
            }
            Ok(Renewal::Busy) => StoreError::Contention("its row is locked by somebody".into()),
            Err(failure) => failure,
        };
        if matches!(failure, StoreError::Rejected { .. }) || clock::now() >= until {
            return Err(failure.into_error(format!("take up lock `{}`", what.to.name)));
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(10..60))).await;
    }
}

/// Gives back what was perhaps taken up, if nobody learns whether it was.
struct Unsettled<'a> {
    inner: Arc<Inner>,
    what: Option<&'a TakeUp>,
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        let Some(TakeUp { token, to, .. }) = self.what else {
            return;
        };
        let what = Return {
            name: to.name.clone(),
            token: Some(*token),
            grant: to.grant,
            holder: Arc::clone(&to.holder),
            durable: false,
        };
        tokio::spawn(give_back(
            Arc::clone(&self.inner),
            what,
            Ttl::Lasting(MAX_FIRST_GRANT),
        ));
    }
}
