//! Fenced writes: a transaction that commits only while the lock is still held.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::client::guard::LockGuard;
use crate::client::guard::lease::mark_lost;
use crate::client::renewal::grant_state::{GrantState, Status};
use crate::error::Error;
use crate::runtime;
use crate::runtime::fork::ForkSafe;
use crate::store::api::{Barrier, FenceText};
use crate::store::retry::while_contended;
use protocol::{GrantId, Human, REQUEST_TIMEOUT, Renewing, Timing, Ttl};

#[cfg(any(
    feature = "sqlx-postgres",
    feature = "sqlx-mysql",
    feature = "sqlx-sqlite"
))]
mod sqlx;
mod statement;
mod transaction;

pub use statement::{Fence, FenceFailure, ParamStyle};
pub(crate) use transaction::Failed;
pub use transaction::FenceTransaction;

/// Added to the duration of a transaction when its lease is extended, because the transaction
/// begins only after the reply.
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// An open fenced transaction. Drop this when the transaction has ended, committed or rolled back.
///
/// | | while it is open | dropped too early |
/// | --- | --- | --- |
/// | PostgreSQL | renewals go on | no harm: the transaction's statement is the fence |
/// | MySQL, MariaDB | renewals are held back, since none can pass the fence | no harm likewise |
/// | SQLite, `memory:` | it is the fence itself | **the fence ends** |
///
/// It may outlive its guard: a lock that is released under its own open fence is free when the
/// transaction ends. It ends with the process.
#[must_use = "the fenced transaction counts as ended when this is dropped"]
pub struct OpenFence(ForkSafe<FencedTransaction>);

struct FencedTransaction {
    client: Arc<Client>,
    grant: GrantId,
    /// Whether renewals are held back while it is open.
    holds_back: bool,
    /// Dropped before renewals continue.
    barrier: Option<Barrier>,
}

impl OpenFence {
    fn new(
        client: &Arc<Client>,
        state: &Arc<GrantState>,
        holds_back: bool,
        barrier: Option<Barrier>,
    ) -> Self {
        client.fences.opened(state);
        Self(ForkSafe::new(FencedTransaction {
            client: Arc::clone(client),
            grant: state.grant.id,
            holds_back,
            barrier,
        }))
    }
}

impl Drop for FencedTransaction {
    fn drop(&mut self) {
        self.barrier = None;
        // A release that waits for this fence finds the row unlocked.
        self.client.fences.closed(self.grant);
        if self.holds_back {
            let scheduler = &self.client.scheduler;
            scheduler.update(self.grant, |lease, now| lease.fence_closed(now));
        }
    }
}

impl fmt::Debug for OpenFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFence")
            .field("here", &self.0.is_in_owner_process())
            .finish_non_exhaustive()
    }
}

impl LockGuard {
    /// The statements that fence a transaction of any driver. No I/O.
    ///
    /// With a driver that [`fence`](LockGuard::fence) supports, use that instead. [`Fence`] has an
    /// example.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`]; [`Error::Conflict`] while the guard is
    /// [suspended](LockGuard::is_suspended).
    pub fn fence_statement(&self) -> Result<Fence, Error> {
        self.still_trusted()?;
        let grant = &self.state.grant;
        Ok(Fence {
            engine: self.client.store.engine(),
            name: grant.name.clone(),
            token: grant.token,
            grant: grant.id,
            text: self.fence_text(),
        })
    }

    /// Announce a fenced transaction, before its first statement.
    ///
    /// `lasting` is how long it may last. On MySQL and MariaDB no renewal can pass a fence, so a
    /// lease with less than that left is renewed to it first; on the other engines renewals go on
    /// and `lasting` changes nothing. A transaction that outlasts the lease is still safe, since no
    /// other client is granted the lock before its end. But the guard is
    /// [suspended](LockGuard::is_suspended) meanwhile, and lost afterwards if the lease has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`]; [`Error::Conflict`] while the guard is
    /// [suspended](LockGuard::is_suspended); [`Error::Config`] for `lasting` out of range;
    /// [`Error::Unavailable`], [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no fence is open; the lease may have been renewed.
    pub async fn open_fence(&self, lasting: Option<Duration>) -> Result<OpenFence, Error> {
        self.still_trusted()?;
        let id = self.state.grant.id;
        let holds_back = !self.client.store.renews_under_fence();
        if let Some(lasting) = lasting {
            let length = self.ttl_for(lasting)?;
            if holds_back && self.trusted_for() < lasting {
                let mut status = self.state.watch();
                let scheduler = &self.client.scheduler;
                scheduler.update(id, |lease, now| lease.cover(length, now));
                let settled = status
                    .wait_for(|status| *status != Status::Held(None))
                    .await;
                drop(settled);
                self.still_trusted()?;
            }
        }
        let (client, state) = (Arc::clone(&self.client), Arc::clone(&self.state));
        if holds_back {
            let opened = client
                .scheduler
                .update(id, |lease, now| lease.fence_opened(now))
                .unwrap_or_default();
            if !opened {
                self.still_trusted()?;
            }
            return Ok(OpenFence::new(&client, &state, opened, None));
        }
        runtime::run(async move {
            let what = state.grant.slot.named(&state.grant.name);
            let opened = while_contended(REQUEST_TIMEOUT, || {
                client.store.open_fence(&state.grant, REQUEST_TIMEOUT)
            })
            .await;
            let opened = opened.map_err(|e| e.into_error(format!("fence {what}")))?;
            match opened {
                Ok(barrier) => Ok(OpenFence::new(&client, &state, false, Some(barrier))),
                Err(gone) => Err(mark_lost(&client, &state, gone)),
            }
        })
        .await
    }

    /// The ttl that covers a transaction of this duration.
    fn ttl_for(&self, lasting: Duration) -> Result<Duration, Error> {
        let timing = self.client.scheduler.timing(self.state.grant.id);
        let trusted = lasting.saturating_add(ROUND_TRIP);
        let length = timing.map_or(trusted, |timing| timing.length_for(trusted));
        match Timing::new(Ttl::Finite(length), Renewing::Never, None) {
            Ok(_) => Ok(length),
            Err(_) => {
                let got = Human(lasting).to_string();
                Err(Error::config("lasting", got, "less than 10 years"))
            }
        }
    }

    /// The error that explains why the statements of a [`Fence`] did not pass. Roll the transaction
    /// back first.
    ///
    /// It asks the database, on the connection of the locks, whether the grant is still there.
    ///
    /// | returned | meaning |
    /// | --- | --- |
    /// | [`Error::Lost`] | the grant is gone; the guard is lost from then on |
    /// | [`Error::Conflict`] | the grant is there; the transaction had a conflict of its own: try it again |
    /// | [`Error::Config`] | the grant is there, but the transaction does not see it |
    /// | [`Error::Unavailable`], [`Error::Rejected`] | the database does not say |
    pub async fn fence_failed(&self, failure: FenceFailure) -> Error {
        if let Err(error) = self.check().await {
            return error;
        }
        let what = self.what();
        let conflict = |source: &str| Error::Conflict {
            op: format!("fence {what}"),
            source: source.into(),
        };
        let may_lag = self.fence_text().is_some_and(|text| text.may_lag);
        match failure {
            FenceFailure::Conflict => {
                conflict("it is still held: roll back, and try the transaction again")
            }
            FenceFailure::NoRow if may_lag => conflict(
                "it is still held, which the transaction does not see: roll back and try it again, \
                 begun after the lock was acquired, in the database of the lock, when its node of \
                 the cluster has caught up",
            ),
            FenceFailure::NoRow => Error::config(
                "fence",
                format!("in a transaction that does not see the grant of {what}"),
                "the first statement of a transaction in the database of the lock, begun after it was \
                 acquired",
            ),
        }
    }

    fn fence_text(&self) -> Option<FenceText> {
        self.client.store.fence(self.state.grant.slot)
    }

    /// Fence a transaction, before its first statement: it then commits only while this lock is
    /// held.
    ///
    /// From then on no other client is granted the lock until the transaction has ended. A holder
    /// that was frozen for an hour cannot write.
    ///
    /// Works in any isolation level. Do not use it within a savepoint (a transaction within a
    /// transaction): rolling back to it would remove the fence.
    ///
    /// | transaction | versions | feature |
    /// | --- | --- | --- |
    /// | `tokio_postgres::Transaction`, and `tokio_postgres::Client` after `BEGIN` | 0.7.18 and later of 0.7 | `postgres` |
    /// | `mysql_async::Transaction` | 0.37 | `mysql` |
    /// | `rusqlite::Transaction`, in any file but that of the locks | 0.32 to 0.43 | `sqlite`, `sqlite-unbundled` |
    /// | `sqlx::Transaction` and `sqlx::PgConnection`, … while one is open | 0.9 | `sqlx-postgres`, `sqlx-mysql`, `sqlx-sqlite` |
    ///
    /// This crate re-exports each driver, as `database_locks::tokio_postgres` and so on. For
    /// another driver or version use [`LockGuard::fence_statement`].
    ///
    /// Keep the [`OpenFence`] until the transaction has ended.
    ///
    /// # Errors
    ///
    /// | error | meaning | what to do |
    /// | --- | --- | --- |
    /// | [`Error::Lost`] | the grant is gone | roll back and stop |
    /// | [`Error::Conflict`] | the transaction conflicts with another | roll back and try it again |
    /// | [`Error::Config`] | another database than the lock's, no transaction, or one that read before the lock was acquired | begin it there, after the acquire |
    /// | [`Error::Unavailable`], [`Error::Rejected`] | the database did not answer, or refused | roll back |
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transaction may or may not be fenced: roll it back.
    pub async fn fence<T: FenceTransaction>(&self, tx: &mut T) -> Result<OpenFence, Error> {
        self.fence_within(tx, None).await
    }

    /// [`fence`](LockGuard::fence) for a transaction that may last for `lasting`: see
    /// [`LockGuard::open_fence`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::fence`], and [`Error::Config`] for `lasting` out of range.
    ///
    /// # Cancel safety
    ///
    /// As [`LockGuard::fence`].
    pub async fn fence_with_duration<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Duration,
    ) -> Result<OpenFence, Error> {
        self.fence_within(tx, Some(lasting)).await
    }

    pub(super) async fn fence_within<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Option<Duration>,
    ) -> Result<OpenFence, Error> {
        let fence = self.fence_statement()?;
        if fence.engine != T::ENGINE && fence.engine != "memory" {
            return Err(Error::config(
                "fence",
                format!("in a transaction of {}", T::ENGINE),
                format!("in one of {}, where {} is", fence.engine, self.what()),
            ));
        }
        let open = self.open_fence(lasting).await?;
        let failed = match tx.run_fence(&fence).await {
            Ok(()) => return Ok(open),
            Err(failed) => failed,
        };
        drop(open);
        Err(match failed {
            Failed::Fence(failure) => self.fence_failed(failure).await,
            Failed::Otherwise(error) => error,
        })
    }
}
