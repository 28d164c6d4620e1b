//! The statements of a fence, and the meaning of their failures.

use crate::metrics::Engine;
use crate::store::api::FenceText;
use protocol::{GrantId, LockName, Token};

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
/// 1. Call [`LockGuard::open_fence`](crate::LockGuard::open_fence), and keep its answer until the
///    transaction has ended.
/// 2. Run [`before`](Fence::before), if there is one, and then [`sql`](Fence::sql), if there is
///    one, with the same [`params`](Fence::params). Each must find exactly one row: count the
///    returned rows if it [`is_query`](Fence::is_query), else the affected ones.
/// 3. If one did not, or failed, roll back and ask
///    [`LockGuard::fence_failed`](crate::LockGuard::fence_failed) what that means.
///
/// From then on no other client is granted the lock until the transaction has ended. Do not do this
/// within a savepoint: rolling back to it removes the fence.
///
/// The statements also open [guarded tables](crate::Locks::guard_table) of this lock to the
/// transaction.
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
    pub(crate) engine: Engine,
    pub(crate) name: LockName,
    pub(crate) token: Token,
    pub(crate) grant: GrantId,
    pub(crate) text: Option<FenceText>,
}

impl Fence {
    /// The statement. `None` on SQLite and `memory:`, where the [`OpenFence`](crate::OpenFence) is
    /// the whole fence.
    pub fn sql(&self, style: ParamStyle) -> Option<String> {
        self.text.as_ref().map(|text| styled(&text.fence, style))
    }

    /// The statement to run before [`sql`](Fence::sql) on MySQL and MariaDB, with the same
    /// parameters. One row is affected if this transaction sees the grant; it returns none.
    ///
    /// In REPEATABLE READ the first read of a transaction fixes what all later ones see. If that
    /// was before the grant, the fence alone would pass although the transaction has read rows from
    /// before the previous holder's last writes. It needs only the right SELECT.
    ///
    /// It also shows the grant to [guarded tables](crate::Locks::guard_table), by the user variable
    /// `@database_locks_ticket`, which outlives the transaction: in a pool, `SET
    /// @database_locks_ticket = NULL` at its end. A ticket of a grant that is gone opens nothing. The
    /// variable keeps what the session shows by itself, and the grants of the latest 200 fences of
    /// different grants.
    pub fn before(&self, style: ParamStyle) -> Option<String> {
        let before = self.text.as_ref()?.before.as_ref()?;
        Some(styled(before, style))
    }

    /// The parameters of both statements, in order: name, token, grant id.
    pub fn params(&self) -> (&str, i64, &str) {
        (self.name.as_str(), self.token.get(), self.grant.as_str())
    }

    /// Whether the statement returns rows (PostgreSQL) rather than affecting them (MySQL, MariaDB).
    pub fn is_query(&self) -> bool {
        self.engine == "postgres"
    }

    /// Whether a statement that found this many rows has found the grant.
    pub fn passes(&self, rows: u64) -> bool {
        rows == 1
    }
}

/// Convert the parameters to another style.
fn styled(sql: &str, style: ParamStyle) -> String {
    let mut sql = sql.trim().to_owned();
    for (number, at) in ["$1", "$2", "$3"].into_iter().zip(1..) {
        let from = if sql.contains(number) { number } else { "?" };
        // Marked, so that a later iteration does not replace it again.
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
    /// A statement found no row or no table.
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
            // No such table or schema.
            "42P01" | "3F000" => Some(Self::NoRow),
            _ => None,
        }
    }

    /// The meaning of an error number of MySQL or MariaDB, likewise.
    pub fn of_mysql(code: u16) -> Option<Self> {
        match code {
            // Row changed since the snapshot, lock wait timeout, deadlock, NOWAIT, rollback by the
            // group, failed certification at commit.
            1020 | 1205 | 1213 | 3572 | 3101 | 1180 => Some(Self::Conflict),
            // No such table or database.
            1146 | 1049 => Some(Self::NoRow),
            _ => None,
        }
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
