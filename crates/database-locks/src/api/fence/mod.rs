//! Fenced writes: a transaction that commits only while the lock is still held.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Inner;
use crate::client::guard::{LockGuard, not_ours};
use crate::client::renewal::grant_state::{Held, Status};
use crate::error::Error;
use crate::metrics::Engine;
use crate::runtime;
use crate::runtime::fork::Here;
use crate::store::api::{Barrier, FenceText};
use crate::store::retry::while_contended;
use protocol::{GrantId, Human, LockName, REQUEST_TIMEOUT, Renewing, Timing, Token, Ttl};

#[cfg(any(
    feature = "sqlx-postgres",
    feature = "sqlx-mysql",
    feature = "sqlx-sqlite"
))]
mod sqlx;
mod transaction;

pub(crate) use transaction::Failed;
pub use transaction::FenceTransaction;

/// What a renewal that covers a transaction asks for on top of what it was told: the transaction
/// begins only after the reply.
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// The placeholder style of a statement's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamStyle {
    /// `$1`, `$2`, …: PostgreSQL itself.
    Numbered,
    /// `?` each: MySQL, ODBC, JDBC.
    Question,
    /// `%s` each: most drivers of Python.
    Format,
}

/// The statements of a fence, for any driver: a transaction that runs them commits only while the
/// lock is held.
///
/// In the transaction, on your own connection, before anything else:
///
/// 1. Call [`LockGuard::open_fence`], and keep its answer until the transaction has ended.
/// 2. Run [`before`](Fence::before), if there is one, and then [`sql`](Fence::sql), if there is
///    one, with the same [`params`](Fence::params). Each must find exactly one row: count the
///    returned rows if it [`is_query`](Fence::is_query), else the affected ones.
/// 3. If one did not, or failed, roll back and ask [`LockGuard::fence_failed`] what that means.
///
/// From then on no other client is granted the lock until the transaction has ended. Do not do this
/// within a savepoint: rolling back to it removes the fence.
///
/// It contains no secret, only the lock's name and its grant.
///
/// # Example
///
/// ```
/// use database_locks::{Locks, ParamStyle};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
/// # let locks = Locks::connect("memory:").await?;
/// let guard = locks.lock("report").acquire().await?;
/// let (open, fence) = (guard.open_fence(None).await?, guard.fence_statement()?);
/// if let Some(sql) = fence.sql(ParamStyle::Numbered) {
///     // … run it in your transaction with fence.params() …
/// #   unreachable!("{sql}")
/// }
/// // … write, commit …
/// drop(open);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    engine: Engine,
    name: LockName,
    token: Token,
    grant: GrantId,
    text: Option<FenceText>,
}

impl Fence {
    /// The statement. `None` on SQLite and `memory:`, where the [`OpenFence`] is the whole fence.
    pub fn sql(&self, style: ParamStyle) -> Option<String> {
        self.text.as_ref().map(|text| styled(&text.fence, style))
    }

    /// The statement to run before [`sql`](Fence::sql) on MySQL and MariaDB, with the same
    /// parameters. It finds a row if this transaction sees the grant.
    ///
    /// In REPEATABLE READ the first read of a transaction fixes what all later ones see. If that
    /// was before the grant, the fence alone would pass although the transaction has read rows from
    /// before the previous holder's last writes. It needs only the right SELECT.
    pub fn before(&self, style: ParamStyle) -> Option<String> {
        let before = self.text.as_ref()?.before.as_ref()?;
        Some(styled(before, style))
    }

    /// The parameters of both statements, in order: name, token, grant id.
    pub fn params(&self) -> (&str, i64, &str) {
        (self.name.as_str(), self.token.get(), self.grant.as_str())
    }

    /// Whether [`sql`](Fence::sql) returns rows (PostgreSQL) rather than affecting them (MySQL,
    /// MariaDB).
    pub fn is_query(&self) -> bool {
        self.engine == "postgres"
    }

    /// Whether a statement that found this many rows has found the grant.
    pub fn passes(&self, rows: u64) -> bool {
        rows == 1
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }
}

/// Write the parameters in another style.
fn styled(sql: &str, style: ParamStyle) -> String {
    let mut sql = sql.trim().to_owned();
    for (number, at) in ["$1", "$2", "$3"].into_iter().zip(1..) {
        let from = if sql.contains(number) { number } else { "?" };
        // Not one that a later round would take for another's.
        sql = sql.replacen(from, &format!("\0{at}"), 1);
    }
    for at in 1..=3 {
        let to = match style {
            ParamStyle::Numbered => format!("${at}"),
            ParamStyle::Question => "?".to_owned(),
            ParamStyle::Format => "%s".to_owned(),
        };
        sql = sql.replacen(&format!("\0{at}"), &to, 1);
    }
    sql
}

/// Why the statements of a [`Fence`] did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FenceFailure {
    /// One of them found no row, or no table.
    NoRow,
    /// The database decided a conflict against this transaction: a serialization failure, a
    /// deadlock, a lock timeout.
    Conflict,
}

impl FenceFailure {
    /// The meaning of a PostgreSQL `SQLSTATE` with which a statement of a fence failed. `None`: it
    /// says nothing about the fence.
    pub fn of_sqlstate(code: &str) -> Option<Self> {
        match code {
            "40001" | "40P01" | "55P03" => Some(Self::Conflict),
            // No such table, or schema.
            "42P01" | "3F000" => Some(Self::NoRow),
            _ => None,
        }
    }

    /// The meaning of an error number of MySQL or MariaDB, likewise.
    pub fn of_mysql(code: u16) -> Option<Self> {
        match code {
            // Changed since the snapshot, lock wait, deadlock, NOWAIT, rolled back by the group, not
            // passed by the cluster at the commit.
            1020 | 1205 | 1213 | 3572 | 3101 | 1180 => Some(Self::Conflict),
            // No such table, no such database.
            1146 | 1049 => Some(Self::NoRow),
            _ => None,
        }
    }
}

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
pub struct OpenFence(Here<Open>);

struct Open {
    inner: Arc<Inner>,
    grant: GrantId,
    holds_back: bool,
    /// Gone before the renewals go on.
    barrier: Option<Barrier>,
}

impl Open {
    fn new(
        inner: &Arc<Inner>,
        held: &Arc<Held>,
        holds_back: bool,
        barrier: Option<Barrier>,
    ) -> Self {
        inner.fences.opened(held);
        Self {
            inner: Arc::clone(inner),
            grant: held.grant.id,
            holds_back,
            barrier,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.barrier = None;
        // What waits for this end finds the row unlocked.
        self.inner.fences.closed(self.grant);
        if self.holds_back {
            self.inner.scheduler.with(self.grant, |lease, now| {
                lease.fence_closed(now);
                true
            });
        }
    }
}

impl fmt::Debug for OpenFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFence")
            .field("here", &self.0.is_here())
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
        let grant = &self.held.grant;
        Ok(Fence {
            engine: self.inner.store.engine(),
            name: grant.name.clone(),
            token: grant.token,
            grant: grant.id,
            text: self.inner.store.fence().cloned(),
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
        let id = self.held.grant.id;
        let holds_back = !self.inner.store.renews_under_fence();
        if let Some(lasting) = lasting {
            let length = self.covering(lasting)?;
            if holds_back && self.trusted_for() < lasting {
                let mut status = self.held.watch();
                self.inner.scheduler.with(id, |lease, now| {
                    lease.cover(length, now);
                    true
                });
                let settled = status
                    .wait_for(|status| *status != Status::Held(None))
                    .await;
                drop(settled);
                self.still_trusted()?;
            }
        }
        let (inner, held) = (Arc::clone(&self.inner), Arc::clone(&self.held));
        if holds_back {
            let opened = inner
                .scheduler
                .with(id, |lease, now| lease.fence_opened(now));
            if !opened {
                self.still_trusted()?;
            }
            return Ok(OpenFence(Here::new(Open::new(&inner, &held, opened, None))));
        }
        runtime::run(async move {
            let name = &held.grant.name;
            let opened = while_contended(REQUEST_TIMEOUT, || {
                inner.store.open_fence(&held.grant, REQUEST_TIMEOUT)
            })
            .await;
            let opened = opened.map_err(|e| e.into_error(format!("fence lock `{name}`")))?;
            match opened {
                Ok(barrier) => {
                    let open = Open::new(&inner, &held, false, Some(barrier));
                    Ok(OpenFence(Here::new(open)))
                }
                Err(gone) => Err(not_ours(&inner, &held, gone)),
            }
        })
        .await
    }

    /// What to renew to so that a transaction of that length is covered.
    fn covering(&self, lasting: Duration) -> Result<Duration, Error> {
        let refuse = || {
            let allowed = "less than 10 years";
            Error::config("lasting", Human(lasting).to_string(), allowed)
        };
        let timing = self.inner.scheduler.timing(self.held.grant.id);
        let trusted = lasting.saturating_add(ROUND_TRIP);
        let length = timing.map_or(trusted, |timing| timing.length_for(trusted));
        Timing::new(Ttl::Finite(length), Renewing::Never, None).map_err(|_| refuse())?;
        Ok(length)
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
        let name = self.name();
        let conflict = |source: &str| Error::Conflict {
            op: format!("fence lock `{name}`"),
            source: source.into(),
        };
        let may_lag = self.inner.store.fence().is_some_and(|text| text.may_lag);
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
                format!("in a transaction that does not see the grant of lock `{name}`"),
                "the first statement of a transaction in the database of the lock, begun after it was \
                 acquired",
            ),
        }
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

    async fn fence_within<T: FenceTransaction>(
        &self,
        tx: &mut T,
        lasting: Option<Duration>,
    ) -> Result<OpenFence, Error> {
        let fence = self.fence_statement()?;
        if fence.engine() != T::ENGINE && fence.engine() != "memory" {
            return Err(Error::config(
                "fence",
                format!("in a transaction of {}", T::ENGINE),
                format!(
                    "in one of {}, where lock `{}` is",
                    fence.engine(),
                    self.name()
                ),
            ));
        }
        let open = self.open_fence(lasting).await?;
        let failed = match tx.pass(&fence).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_written_in_each_style() {
        for (sql, ours) in [
            ("a = $1 AND b = $2 AND c = $3", ParamStyle::Numbered),
            ("a = ? AND b = ? AND c = ?", ParamStyle::Question),
        ] {
            assert_eq!(styled(sql, ours), sql);
            assert_eq!(
                styled(sql, ParamStyle::Numbered),
                "a = $1 AND b = $2 AND c = $3"
            );
            assert_eq!(
                styled(sql, ParamStyle::Question),
                "a = ? AND b = ? AND c = ?"
            );
            assert_eq!(
                styled(sql, ParamStyle::Format),
                "a = %s AND b = %s AND c = %s"
            );
        }
    }
}
