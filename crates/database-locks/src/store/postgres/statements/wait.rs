//! Announcing waiters of a lock.

use std::time::Duration;

use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Session, Statement};
use crate::store::postgres::error::ServerError;
use protocol::LockName;

/// Announce that a client waits for a held lock: `$1` name, `$2` for how long from now, in
/// microseconds. One row: announced. No row: the lock is free, or its row is locked by another
/// transaction.
///
/// The time is never shortened, since other clients may wait for longer, and no statement clears
/// it, which would cost each grant another write. It need not survive a crash: waiters announce
/// themselves again on a new connection.
pub(crate) const WAIT: Statement = Statement {
    name: "wait",
    text: "
UPDATE {table}
   SET waiting_until = GREATEST(waiting_until, statement_timestamp() + $2 * interval '1 microsecond')
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND expires_at > statement_timestamp()
                FOR NO KEY UPDATE SKIP LOCKED)
RETURNING set_config('synchronous_commit', 'off', true)",
};

/// Answers whether it is announced.
pub(crate) async fn wait(
    session: &Session,
    name: &LockName,
    ahead: Duration,
) -> Result<bool, ServerError> {
    let rows = session
        .write(Rows::Locks, &WAIT, 1, &[&name.as_str(), &micros(ahead)])
        .await?;
    Ok(!rows.is_empty())
}
