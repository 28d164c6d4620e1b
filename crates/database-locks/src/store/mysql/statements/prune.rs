//! Deleting the rows of locks that are no longer used.

use std::time::Duration;

use mysql_async::params;

use crate::store::api::{StoreError, bounded, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use protocol::Pruned;

impl Session {
    /// Delete the rows of a page whose locks were not held for that time.
    ///
    /// A row whose `granted_until` is set while `expires_at` is null was released by legacy
    /// (django-database-locks 0.5), which does not record when. A row whose token is ahead of the
    /// clock, after more than a thousand grants a second, stays: the token of a new row starts at
    /// the clock, and has to be greater. The row of a lock that was ever shared stays: without its
    /// mark an exclusive grant would not look for shared ones.
    pub(crate) const PRUNE: &str = "
        DELETE l FROM (SELECT id FROM {table} FORCE INDEX (PRIMARY)
                        WHERE id > :after AND id <= :last{? AND slot <> -1?}
                          AND (NOT shared{? OR slot < -1?})
                          AND (expires_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND
                           OR (expires_at IS NULL AND granted_until IS NULL
                               AND renewed_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND)
                           OR (expires_at IS NULL AND :unknown
                               AND (granted_until IS NOT NULL OR renewed_at IS NULL)))
                          AND token < {clock} DIV 1000
                          AND {writable}
                        LIMIT 1000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    /// [`PRUNE`](Self::PRUNE) on a cluster.
    ///
    /// Only rows that were released, since no clock tells when an abandoned lease ended; after a
    /// rest, when that has ended. A row deleted too early, by a clock that is ahead, does no harm.
    /// But the token of a new row starts at the clock of the node that inserts it, and it has to be
    /// greater although that clock may be behind, by less than a day.
    pub(crate) const PRUNE_ON_CLUSTER: &str = "
        DELETE l FROM (SELECT id FROM {table} FORCE INDEX (PRIMARY)
                        WHERE id > :after AND id <= :last{? AND slot <> -1?}
                          AND (NOT shared{? OR slot < -1?})
                          AND ((expires_at IS NULL AND granted_until IS NULL
                                AND renewed_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND)
                            OR (grant_id IS NULL AND granted_until = expires_at
                                AND expires_at <= UTC_TIMESTAMP(6) - INTERVAL :idle MICROSECOND)
                            OR (expires_at IS NULL AND :unknown
                                AND (granted_until IS NOT NULL OR renewed_at IS NULL)))
                          AND token < TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00',
                                  UTC_TIMESTAMP(6) - INTERVAL 1 DAY) DIV 1000
                          AND {writable}
                        LIMIT 1000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    pub(crate) async fn prune(
        &mut self,
        of: Rows,
        idle: Duration,
        include_legacy: bool,
        after: Option<i64>,
    ) -> Result<Pruned, StoreError> {
        let (first, after) = (after.is_none(), after.unwrap_or(i64::MIN));
        let end = self.page_end(of, after).await?;
        if end.is_none() && !first {
            return Ok(Pruned::default());
        }
        // An empty table is pruned as well, so that a missing right is reported.
        let last = end.unwrap_or(after);
        let params = params! {
            "idle" => micros(bounded(idle)), "unknown" => include_legacy, "after" => after, "last" => last,
        };
        let statement = match self.cluster {
            None => Self::PRUNE,
            Some(_) => Self::PRUNE_ON_CLUSTER,
        };
        Ok(Pruned {
            deleted: self.execute(of, statement, params).await?.rows,
            last: end,
        })
    }
}
