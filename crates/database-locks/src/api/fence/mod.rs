//! Fenced writes: a transaction that commits only while the lock is still held.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::locks::again;
use crate::client::Inner;
use crate::client::acquire::PATIENCE;
use crate::client::guard::{LockGuard, not_ours};
use crate::client::renewal::grant_state::{Held, Status};
use crate::error::Error;
use crate::metrics::Engine;
use crate::runtime;
use crate::runtime::fork::Here;
use crate::store::{Barrier, FenceText};
use protocol::{GrantId, Human, LockName, Renewing, Timing, Token, Ttl};

#[cfg(any(
    feature = "sqlx-postgres",
    feature = "sqlx-mysql",
    feature = "sqlx-sqlite"
))]
mod sqlx;
mod transaction;

pub(crate) use crate::client::open_fences::OpenFences;
pub(crate) use transaction::Failed;
pub use transaction::FenceTransaction;

/// What a renewal that covers a transaction asks for on top of what it was told: the transaction begins
/// only after the reply.
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// How a statement's parameters are written.
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

/// What a transaction runs so that it commits only while one grant of a lock is there, for any driver.
///
/// In the transaction that is to be fenced, on your own connection, before anything else:
///
/// 1. [`LockGuard::open_fence`] says that it begins. Keep what it answers until the transaction has
///    ended, committed or rolled back.
/// 2. Run [`before`](Fence::before), where there is one, and then [`sql`](Fence::sql), where there is
///    one, with the same [`params`](Fence::params). Each must find exactly one row: count the rows that
///    come back where it [`is_query`](Fence::is_query), else those that it affected.
/// 3. Where one did not, or failed, roll back and ask [`LockGuard::fence_failed`] what that means.
///
/// From then on no other client is granted the lock until the transaction has ended. Not within a
/// savepoint: to roll back to it takes the fence away.
///
/// No secret: it names the lock and its grant.
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
    /// The statement. None where none is needed, on SQLite and `memory:`: the open fence is all.
    pub fn sql(&self, style: ParamStyle) -> Option<String> {
        self.text.as_ref().map(|text| styled(&text.fence, style))
    }

    /// What to run before it, with the same parameters, on MySQL and MariaDB. It reads, and finds a row
    /// where this transaction sees the grant.
    ///
    /// In REPEATABLE READ the first read of a transaction fixes what all later ones see. Where that was
    /// before the lock was granted, the fence would pass, and yet what has been read would be older than
    /// what the lock's holder before has written. Takes no right but SELECT.
    pub fn before(&self, style: ParamStyle) -> Option<String> {
        let before = self.text.as_ref()?.before.as_ref()?;
        Some(styled(before, style))
    }

    /// The parameters of both, in their order: name, token, grant id.
    pub fn params(&self) -> (&str, i64, &str) {
        (self.name.as_str(), self.token.get(), self.grant.as_str())
    }

    /// Whether [`sql`](Fence::sql) returns rows (PostgreSQL), or else affects them (MySQL, MariaDB).
    pub fn is_query(&self) -> bool {
        self.engine == "postgres"
    }

    /// Whether a statement that found so many rows says that the grant is there.
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

/// How the statements of a [`Fence`] did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FenceFailure {
    /// One of them found no row, or no table.
    NoRow,
    /// The database ended a conflict against this transaction: a serialisation failure, a deadlock, a
    /// lock timeout.
    Conflict,
}

impl FenceFailure {
    /// What a `SQLSTATE` of PostgreSQL means that a statement of a fence failed with. None: nothing about
    /// the fence.
    pub fn of_sqlstate(code: &str) -> Option<Self> {
        match code {
            "40001" | "40P01" | "55P03" => Some(Self::Conflict),
            // No such table, or schema.
            "42P01" | "3F000" => Some(Self::NoRow),
            _ => None,
        }
    }

    /// The same of an error number of MySQL or MariaDB.
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

/// Says that a fenced transaction is open. Drop it when that has ended, committed or rolled back.
///
/// On MySQL and MariaDB no renewal gets past the fence, so they are held back meanwhile; on SQLite and
/// `memory:` it is the fence itself, and keeps all others from getting the lock.
///
/// Dropped too early, it does no harm on a server: there the transaction's own statement is the fence.
/// On SQLite and `memory:` the fence ends there and then. It may outlive its guard: a lock that is
/// released under its own open fence is free when the transaction ends. When the process
/// dies, it ends with it.
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
    /// What to run in a transaction so that it commits only while this grant is there. No I/O.
    ///
    /// With a driver that [`fence`](LockGuard::fence) knows, use that instead.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`]; [`Error::Conflict`] while trust has run out under another open fence.
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

    /// Say that a fenced transaction begins, before its first statement.
    ///
    /// `lasting` is how long it may last. On MySQL and MariaDB no renewal gets past a fence, so where the
    /// lease has less than that, it is renewed to as much first; in the other engines renewals go on,
    /// and it changes nothing. A transaction that lasts longer than the lease is still safe: no other
    /// client is granted the lock before its end. But the guard is not [held](LockGuard::is_held) meanwhile, and
    /// lost after it if the lease has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`]. [`Error::Conflict`] while trust has run out under another open fence.
    /// [`Error::Config`] for `lasting` out of range. [`Error::Unavailable`], [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, no fence is open; the lease may have been renewed.
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
            let opened = again(PATIENCE, || inner.store.open_fence(&held.grant, PATIENCE)).await;
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

    /// Why the statements of a [`Fence`] did not pass, as an error that says what to do next. Roll the
    /// transaction back first.
    ///
    /// It asks the database, on the connection of the locks, whether the grant is still there.
    ///
    /// # Errors
    ///
    /// It answers [`Error::Lost`] where the grant is gone, and the guard is lost from then on;
    /// [`Error::Conflict`] where it is there: a conflict of the transaction itself, to be tried again
    /// from its beginning; [`Error::Config`] where it is there and the transaction does not see it;
    /// [`Error::Unavailable`] or [`Error::Rejected`] where the database does not say.
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

    /// Let a transaction commit only while this lock is really still held. Its first statement.
    ///
    /// From then on no other client is granted the lock until the transaction has ended: a holder that
    /// was frozen for an hour and thawed cannot write, and neither can one that reads and writes in between.
    ///
    /// In any isolation level. Not in a savepoint (a transaction within a transaction): to roll back to
    /// it would take the fence away.
    ///
    /// | transaction | versions | feature |
    /// | --- | --- | --- |
    /// | `tokio_postgres::Transaction`, and `tokio_postgres::Client` after `BEGIN` | 0.7.18 and later of 0.7 | `postgres` |
    /// | `mysql_async::Transaction` | 0.37 | `mysql` |
    /// | `rusqlite::Transaction`, in any file but that of the locks | 0.32 to 0.43 | `sqlite`, `sqlite-unbundled` |
    /// | `sqlx::Transaction` and `sqlx::PgConnection`, … while one is open | 0.9 | `sqlx-postgres`, `sqlx-mysql`, `sqlx-sqlite` |
    ///
    /// This crate re-exports each driver, as `database_locks::tokio_postgres` and so on. For another
    /// driver or version: [`LockGuard::fence_statement`].
    ///
    /// Keep what it answers until the transaction has ended; see [`OpenFence`].
    ///
    /// # Errors
    ///
    /// [`Error::Lost`]: roll back. [`Error::Conflict`]: a conflict; roll back and try the transaction
    /// again. [`Error::Config`]: a transaction in another database than the lock's, or one that has read
    /// before the lock was acquired. [`Error::Unavailable`], [`Error::Rejected`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, the transaction may be fenced or not: roll it back.
    pub async fn fence<T: FenceTransaction>(&self, tx: &mut T) -> Result<OpenFence, Error> {
        self.fence_within(tx, None).await
    }

    /// The same for a transaction that may last so long: see [`LockGuard::open_fence`].
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
