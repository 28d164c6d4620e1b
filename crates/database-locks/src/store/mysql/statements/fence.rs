//! The fence: a caller's transaction commits only while its grant holds the lock.
//!
//! The parameters of both statements are name, token and grant id. The session is the caller's:
//! nothing here depends on its time zone, its SQL mode, its isolation level or how it counts rows.

/// Sent before the fence. One row affected: the snapshot of the transaction is not older than the grant. No
/// row: it is older, or the grant is gone.
///
/// In REPEATABLE READ the first read fixes the snapshot of all later ones, while the fence reads
/// the current row. The fence would pass, and the transaction would write from values that it read
/// before the previous holder wrote. A plain read of the row uses the snapshot. If it is the first
/// read, it fixes the snapshot now; values that were read earlier, but after the grant, have not
/// been changed by another holder since.
///
/// It also adds the grant to the ticket that the session shows to guarded tables, in the same
/// statement: so it returns no row, and one row is affected. The variable outlives the transaction,
/// and a session in a pool. What the session shows by itself is before the first semicolon, and stays.
/// Behind it are the grants of fences, the latest first, and each once. Two hundred of them stay, twice
/// as many as can be acquired at once: a longer text would slow the triggers down. `SPACE(0)`, since
/// an empty literal is NULL in MariaDB's EMPTY_STRING_IS_NULL.
///
/// Any user may run it. Ways to see directly whether a transaction has begun to read do not help:
/// `information_schema.innodb_trx` takes the right PROCESS, `@@in_transaction`, which MariaDB alone
/// has, is 1 from BEGIN on, and an isolation level that was set for the next transaction only is
/// not shown.
pub(crate) const BEFORE: &str = "
        SELECT SUBSTRING_INDEX(CONCAT(SUBSTRING_INDEX(ticket, ';', 1), ';', grant_id,
                                      SUBSTRING(REPLACE(ticket, CONCAT(';', grant_id), SPACE(0)),
                                                1 + LENGTH(SUBSTRING_INDEX(ticket, ';', 1)))),
                               ';', 201)
          INTO @database_locks_ticket
          FROM (SELECT grant_id, CONVERT(IFNULL(@database_locks_ticket, SPACE(0)) USING ascii) AS ticket
                  FROM {table}
                 WHERE name = ? AND token = ? AND grant_id = ?{? AND slot = {slot}?}) held";

/// The fence. One row affected: the grant holds the lock. No row: the grant is gone.
///
/// It locks the row until the transaction ends, and acquires of other clients skip a locked row or
/// fail at once. The row is always *changed*: so one row is affected however the session counts,
/// and a cluster takes it into the set by which it certifies the transaction. The fence sets what a
/// renewal sets, to the same length as the latest one, since waiters on a cluster watch the length.
///
/// It does not check the clock. If the lease has ended and no other client has acquired the lock,
/// none can do so before the commit; and on a cluster the clock of this node decides nothing.
///
/// Each column is computed from its own old value and the old `renewed_at`, which is set last. So
/// assignment from left to right, and MariaDB's SIMULTANEOUS_ASSIGNMENT, give the same result.
pub(crate) const FENCE: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET expires_at = IF(expires_at = TIMESTAMP'9999-12-31 00:00:00', expires_at,
                   GREATEST(UTC_TIMESTAMP(6), renewed_at + INTERVAL 1 MICROSECOND)
                       + INTERVAL TIMESTAMPDIFF(MICROSECOND, renewed_at, expires_at) MICROSECOND),
               granted_until = IF(granted_until = TIMESTAMP'9999-12-31 00:00:00', granted_until,
                   GREATEST(UTC_TIMESTAMP(6), renewed_at + INTERVAL 1 MICROSECOND)
                       + INTERVAL TIMESTAMPDIFF(MICROSECOND, renewed_at, granted_until) MICROSECOND),
               renewed_at = GREATEST(UTC_TIMESTAMP(6), renewed_at + INTERVAL 1 MICROSECOND)
         WHERE name = ? AND token = ? AND grant_id = ?{? AND slot = {slot}?} AND granted_until = expires_at
           AND renewed_at <= expires_at";
