//! Calls of a guard about its lease: check it in the database, and extend it.

use std::sync::Arc;

use super::LockGuard;
use crate::client::Client;
use crate::client::read::read_row;
use crate::client::renewal::grant_state::{GrantState, Status};
use crate::error::Error;
use crate::runtime;
use crate::store::api::StoreError;
use protocol::{Gone, LockState, REQUEST_TIMEOUT, Renewal, Timing, Ttl};

impl LockGuard {
    /// Ask the database whether this grant still holds the lock. Renews nothing.
    ///
    /// One read, with a timeout of 5 s. It finds a release by force before the next renewal does.
    /// In other cases [`is_held`](LockGuard::is_held) is enough.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the lock is not held; the guard is lost from then on.
    /// [`Error::Unavailable`] or [`Error::Rejected`] if the database cannot be read, which changes
    /// nothing. [`Error::Conflict`] while the guard is [suspended](LockGuard::is_suspended).
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time.
    ///
    /// # Example
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("report").acquire().await?;
    /// guard.check().await?;
    /// locks.force_release("report").await?;
    /// assert!(guard.is_held(), "not known yet");
    /// assert!(guard.check().await.is_err() && !guard.is_held());
    /// # Ok(()) }
    /// ```
    pub async fn check(&self) -> Result<(), Error> {
        self.still_trusted()?;
        let (client, state) = (Arc::clone(&self.client), Arc::clone(&self.state));
        let ttl = *self.longest_ttl();
        runtime::run(async move {
            let op = || format!("check {}", state.grant.slot.named(&state.grant.name));
            let row = read_row(&client, &state.grant.name, state.grant.slot).await;
            let own = row.map_err(|e| e.into_error(op()))?.is_some_and(|row| {
                row.token == state.grant.token
                    && row.grant.as_deref() == Some(state.grant.id.as_str())
                    && matches!(row.state, LockState::Held { .. })
            });
            if own {
                return Ok(());
            }
            match why_lost(&client, &state, ttl)
                .await
                .map_err(|e| e.into_error(op()))?
            {
                Some(gone) => Err(mark_lost(&client, &state, gone)),
                None => Ok(()),
            }
        })
        .await
    }

    /// Renew to `ttl` at once, and use `ttl` for all later renewals.
    ///
    /// Returns when the database has confirmed the new end; while the database cannot be reached it
    /// waits. The present lease is never shortened: a shorter `ttl` counts once less than that is
    /// left. A margin that was set is kept, and so is a renewal period unless it is too long for
    /// the new ttl; defaults follow the new ttl.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a ttl out of range (100 ms to 10 years, or infinite), or one of at
    /// most twice the margin that was set. [`Error::Lost`] if trust ends before the database has
    /// confirmed it. [`Error::Conflict`] while the guard is [suspended](LockGuard::is_suspended).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the lease may or may not be extended.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
    /// # let locks = database_locks::Locks::connect("memory:").await?;
    /// let guard = locks.lock("import").acquire().await?;
    /// guard.extend(Duration::from_secs(600)).await?; // the next step needs no database for minutes
    /// assert!(guard.trusted_for() > Duration::from_secs(500));
    /// # guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub async fn extend(&self, ttl: impl Into<Ttl>) -> Result<(), Error> {
        let ttl = ttl.into();
        self.still_trusted()?;
        let Some(timing) = self.client.scheduler.timing(self.state.grant.id) else {
            return self.still_trusted();
        };
        self.renew_to(timing.with_ttl(ttl)?).await
    }

    /// Renew the lease at once, with this timing from now on.
    pub(crate) async fn renew_to(&self, timing: Timing) -> Result<(), Error> {
        let (ttl, id) = (timing.ttl(), self.state.grant.id);
        {
            // The database never shortens a lease.
            let mut longest = self.longest_ttl();
            *longest = match (*longest, ttl) {
                (Ttl::Finite(before), Ttl::Finite(now)) => Ttl::Finite(before.max(now)),
                _ => Ttl::Infinite,
            };
        }
        let mut status = self.state.watch();
        let scheduler = &self.client.scheduler;
        scheduler.update(id, |lease, now| lease.extend(timing, now));
        let settled = status
            .wait_for(|status| *status != Status::Held(None))
            .await;
        drop(settled);
        self.still_trusted()
    }
}

/// Why the grant is lost, by the answer to a renewal of it; `None` if it is not lost.
pub(super) async fn why_lost(
    client: &Client,
    state: &GrantState,
    ttl: Ttl,
) -> Result<Option<Gone>, StoreError> {
    let answers = client
        .store
        .renew(&[(state.latest_grant(), ttl)], REQUEST_TIMEOUT)
        .await?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        Renewal::Lost(gone) => Some(gone),
        Renewal::Renewed { confirmed_by } => {
            state.confirmed_by(confirmed_by);
            None
        }
        Renewal::Busy => None,
    }))
}

/// Mark a grant lost, as the database reported outside of a renewal.
pub(crate) fn mark_lost(client: &Client, state: &GrantState, gone: Gone) -> Error {
    let loss = state.lose(gone);
    client.scheduler.remove(state.grant.id);
    Error::lost(&state.grant.name, loss)
}
