//! The fence: a transaction commits only while its grant holds the lock.

/// The first statement of an application's own transaction: `$1` name, `$2` token, `$3` grant id.
/// One row: the transaction may go on. No row, or a serialisation failure (40001): the grant is
/// gone, or was made after the transaction's snapshot.
///
/// `FOR KEY SHARE` is what `FOR UPDATE` skips, and nothing weaker is. So renewals go on, other
/// fences of the same grant pass, and no other client gets the lock until this transaction has
/// ended. If the snapshot is old, it follows the row to its latest version, and fails if a `FOR
/// UPDATE` is under way.
///
/// It also adds the grant to the ticket that the transaction shows to guarded tables: for this
/// transaction only, since behind a pooler the session is shared, and beside the tickets of other
/// fences, once: each write to a guarded table reads all of it. That is done above the sub-select, so
/// only with the row locked.
///
/// It does not check whether the lease has ended: an old snapshot does not see the renewals, and no
/// harm is done until another client acquires the lock.
pub(crate) const FENCE: &str = "
SELECT id,
       CASE WHEN strpos(coalesce(current_setting('database_locks.ticket', true), ''), grant_id) = 0
            THEN set_config('database_locks.ticket',
                     concat_ws(',', nullif(current_setting('database_locks.ticket', true), ''), grant_id),
                     true)
       END
  FROM (SELECT id, grant_id
          FROM {table}
         WHERE name = $1{? AND slot = {slot}?} AND token = $2 AND grant_id = $3
           AND granted_until = expires_at
           FOR KEY SHARE) held";
