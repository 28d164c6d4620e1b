//! Tables under the guard of a lock.

use crate::values::name::LockName;

/// A request to put a table under the guard of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardCommand {
    /// The table, as the caller wrote it.
    pub table: String,
    /// The lock.
    pub lock: LockName,
    /// Whether foreign keys whose cascades pass by the guard are accepted.
    pub allow_cascades: bool,
}

/// A table under guard: the database refuses every write to it in a transaction that does not hold
/// the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableGuard {
    /// The table, as SQL names it.
    pub table: String,
    /// The lock.
    pub lock: LockName,
    /// What is wrong with the guard, such as a disabled trigger. Guarding the table again mends it,
    /// unless the text says what else does. Empty: the guard is intact.
    pub gaps: Vec<String>,
    /// Writes that fire no trigger of the table, which guarding it again does not change: on MySQL and
    /// MariaDB the cascades of foreign keys, on PostgreSQL those to a table of which this one has
    /// become a part, and those to a foreign part at its own server.
    pub bypasses: Vec<String>,
}

impl TableGuard {
    /// A guard that is intact.
    #[doc(hidden)]
    pub fn intact(table: String, lock: LockName) -> Self {
        Self {
            table,
            lock,
            gaps: Vec::new(),
            bypasses: Vec::new(),
        }
    }
}
