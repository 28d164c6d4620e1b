//! Announcing waiters of a lock, or of a semaphore.

use std::time::Duration;

use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::ServerError;
use crate::store::postgres::rows::only;
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

/// Announce that a client waits for a permit: `$1` name, `$2` for how long from now, in
/// microseconds, `$3` the caller's limit. One row: the limit, how many permits below it are held,
/// and in how many it is announced.
///
/// Nothing is announced if more than 64 are held: the caller polls. It has to stand in every row that
/// is held, where the release reads it: a release does not see what was committed to another row while
/// it waited for its own.
pub(crate) const WAIT_FOR_PERMIT: Statement = Statement {
    name: "wait for a permit",
    text: "
WITH held AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE name = $1 AND slot >= 0 AND slot < COALESCE({limit}, $3)
       AND expires_at > statement_timestamp()
), picked AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE id IN (SELECT id FROM held) AND (SELECT count(*) FROM held) <= 64
       AND expires_at > statement_timestamp()
     ORDER BY id
       FOR NO KEY UPDATE SKIP LOCKED
), announced AS (
    UPDATE {table} l
       SET waiting_until = GREATEST(waiting_until,
                                    statement_timestamp() + $2 * interval '1 microsecond')
      FROM picked p
     WHERE l.id = p.id
 RETURNING set_config('synchronous_commit', 'off', true)
)
SELECT COALESCE({limit}, $3)::bigint AS allowed,
       (SELECT count(*) FROM held) AS held, (SELECT count(*) FROM announced) AS announced",
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

/// Answers whether the release of any permit will be notified.
pub(crate) async fn wait_for_permit(
    session: &Session,
    name: &LockName,
    limit: u32,
    ahead: Duration,
) -> Result<bool, ServerError> {
    let params: [&dyn Param; 3] = [&name.as_str(), &micros(ahead), &limit.cast_signed()];
    let rows = session
        .write(Rows::Permits, &WAIT_FOR_PERMIT, 1, &params)
        .await?;
    let row = only(&rows)?;
    let count = |of| row.try_get::<_, i64>(of);
    let (allowed, held, announced) = (count("allowed")?, count("held")?, count("announced")?);
    // A permit that is not held may be free, and one that is not announced may be released now.
    Ok(announced == held && held >= allowed)
}
