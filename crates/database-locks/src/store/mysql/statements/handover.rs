//! Replacing a grant: preemption by the same holder, and resumption from a ticket.

use mysql_async::params;

use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::rows::granted_as;
use crate::store::mysql::statements::renew::RENEWED;
use protocol::{Outcome, Renewal, ResumeCommand, Slot, TakeOverCommand, failed_resume_outcome};

impl Session {
    /// Preempt a grant of the same holder, as long as the row still has the grant that was read.
    /// The `expires_at` that was read is not a parameter: a renewal in between does not make it
    /// another grant. A row of this library without a grant id rests, and its rest is not ended.
    pub(crate) const TAKE_OVER: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name AND locked_by = :holder COLLATE {collation}
                   AND token = :seen_token AND grant_id <=> :seen_grant
                   AND (grant_id IS NOT NULL OR NOT granted_until <=> expires_at)
                   AND {live} AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = LAST_INSERT_ID(GREATEST(l.token + 1 + l.shared, {clock} DIV 1000)
                   + l.shared * 9223372036854775808) & 9223372036854775807,
               l.grant_id = :grant,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.renewed_at = UTC_TIMESTAMP(6),
               l.metadata = :metadata";

    pub(crate) async fn take_over(
        &mut self,
        command: &TakeOverCommand,
    ) -> Result<Outcome, StoreError> {
        let to = &command.to;
        let params = params! {
            "name" => to.name.as_str(), "holder" => &*to.holder, "grant" => to.grant.as_str(),
            "length" => micros(to.length), "metadata" => &*to.metadata,
            "seen_token" => command.token.get(), "seen_grant" => command.grant.as_deref(),
        };
        match self.attempt(Rows::Locks, Self::TAKE_OVER, params).await? {
            None => return Ok(Outcome::Busy),
            Some(done) if done.rows > 0 => return Ok(granted_as(done.id, to.length)),
            Some(_) => {}
        }
        let Some(row) = self.row(&to.name, Slot::Lock).await? else {
            return Ok(Outcome::Busy);
        };
        Ok(match self.refused(to, &row).await? {
            Outcome::Held(_) | Outcome::TooRecent(_) => row.failed_take_over_outcome(command),
            outcome => outcome,
        })
    }

    /// Replace a grant that still holds the lock. The row may have the new grant already, since the
    /// request is repeated when its reply was lost.
    pub(crate) const RESUME: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name{? AND slot = :slot?} AND token = :token AND grant_id IN (:from, :grant)
                   AND {live} AND granted_until = expires_at AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.locked_by = :holder, l.grant_id = :grant, l.metadata = :metadata,
               l.expires_at = GREATEST(l.expires_at,
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND),
               l.granted_until = GREATEST(l.expires_at,
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND),
               l.renewed_at = UTC_TIMESTAMP(6)";

    /// [`RESUME`](Self::RESUME) on a cluster.
    pub(crate) const RESUME_ON_CLUSTER: &str = "
        UPDATE (SELECT id,
                       IF(expires_at = TIMESTAMP'9999-12-31 00:00:00', NULL,
                          GREATEST(:length, IFNULL(
                              TIMESTAMPDIFF(MICROSECOND, renewed_at, expires_at), 0))) AS length
                  FROM {table}
                 WHERE name = :name{? AND slot = :slot?} AND token = :token AND grant_id IN (:from, :grant)
                   AND {live} AND granted_until = expires_at AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.locked_by = :holder, l.grant_id = :grant, l.metadata = :metadata,
               l.expires_at = {until}, l.granted_until = {until},
               l.renewed_at = UTC_TIMESTAMP(6)";

    pub(crate) async fn resume(&mut self, command: &ResumeCommand) -> Result<Renewal, StoreError> {
        let (to, of) = (&command.to, Rows::of(command.slot));
        let params = params! {
            "slot" => command.slot.range().0,
            "name" => to.name.as_str(), "token" => command.token.get(),
            "from" => command.from.as_str(), "grant" => to.grant.as_str(),
            "holder" => &*to.holder, "metadata" => &*to.metadata, "length" => micros(to.length),
        };
        let statement = match self.cluster {
            None => Self::RESUME,
            Some(_) => Self::RESUME_ON_CLUSTER,
        };
        match self.attempt(of, statement, params).await? {
            None => return Ok(Renewal::Busy),
            Some(done) if done.rows > 0 => return Ok(RENEWED),
            Some(_) => {}
        }
        let row = self.latest_row(&to.name, command.slot).await?;
        Ok(failed_resume_outcome(command, row.as_ref()))
    }
}
