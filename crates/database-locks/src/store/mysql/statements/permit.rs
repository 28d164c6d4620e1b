//! Permits of a semaphore: a row each, with the columns of a lock.

use mysql_async::params;

use super::acquire::{Permit, params_for};
use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::{QueryResult, Session};
use crate::store::mysql::rows::{granted, token};
use protocol::{
    AcquireCommand, Kind, LockName, LockRow, Outcome, Permits, Semaphore, Slot, no_permit_free,
};

/// The insert id of an acquire is the token times this, plus the slot.
const SLOTS: u64 = 65_536;

impl Session {
    /// Acquire a free permit below the limit, on a single server. One row: granted; the insert id is
    /// token * 65536 + slot.
    ///
    /// `:start` is a random number below the limit: the first free slot from there on, or else the
    /// first from 0. If an earlier request, whose reply was lost, has a permit already, no other one
    /// is granted. `ORDER BY RAND()` would lock every free slot. A permit that is held, or whose
    /// row is locked, is not waited for.
    pub(crate) const ACQUIRE_PERMIT: &str = "
        UPDATE ((SELECT id FROM {table} FORCE INDEX (name)
                  WHERE name = :name AND slot >= :start
                    AND slot < IFNULL((SELECT s.permits FROM {table} s
                                        WHERE s.name = :name AND s.slot = -1), :permits)
                    AND (expires_at IS NULL OR {ended}) AND {writable}
                    AND NOT EXISTS (SELECT 1 FROM {table} o
                                     WHERE o.name = :name AND o.grant_id = :grant)
                  ORDER BY slot LIMIT 1 FOR UPDATE SKIP LOCKED)
                UNION ALL
                (SELECT id FROM {table} FORCE INDEX (name)
                  WHERE name = :name AND slot >= 0
                    AND slot < LEAST(:start, IFNULL((SELECT s.permits FROM {table} s
                                        WHERE s.name = :name AND s.slot = -1), :permits))
                    AND (expires_at IS NULL OR {ended}) AND {writable}
                    AND NOT EXISTS (SELECT 1 FROM {table} o
                                     WHERE o.name = :name AND o.grant_id = :grant)
                  ORDER BY slot LIMIT 1 FOR UPDATE SKIP LOCKED)
                LIMIT 1) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = LAST_INSERT_ID(GREATEST(l.token + 1,
                   TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))
                       DIV 1000) * 65536 + l.slot) DIV 65536,
               l.permits = :permits, l.locked_by = :holder, l.grant_id = :grant,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.renewed_at = UTC_TIMESTAMP(6),
               l.metadata = :metadata";

    /// Set the operator's limit, or remove it.
    pub(crate) const SET_LIMIT: &str = "
        INSERT INTO {table} (name, slot, permits) VALUES (:name, -1, :permits)
        ON DUPLICATE KEY UPDATE permits = :permits";

    pub(crate) async fn acquire_permit(
        &mut self,
        command: &AcquireCommand,
    ) -> Result<Outcome, StoreError> {
        let Kind::Permit { limit, expired } = &command.kind else {
            return Ok(Outcome::Busy);
        };
        if self.cluster.is_none() {
            let start = fastrand::u32(..(*limit).max(1));
            let params = params! {
                "start" => start, "permits" => limit, "name" => command.name.as_str(),
                "holder" => &*command.holder, "grant" => command.grant.as_str(),
                "length" => micros(command.length),
                "metadata" => &*command.metadata,
            };
            let done = self
                .execute(Rows::Permits, Self::ACQUIRE_PERMIT, params)
                .await;
            match self.none_if_contended(done)? {
                Some(QueryResult { rows, id }) if rows > 0 => {
                    let slot = i32::try_from(id % SLOTS).ok().and_then(Slot::from_db);
                    let slot = slot.unwrap_or(Slot::AnyPermit);
                    return Ok(granted(slot, token(id / SLOTS), command.length));
                }
                None => return Ok(Outcome::Busy),
                Some(_) => {}
            }
        }
        let rows = self
            .read(Rows::Permits, std::slice::from_ref(&command.name))
            .await?;
        let (permits, operators) = split(rows);
        // The reply to an earlier request of this grant was lost.
        let is_own = |row: &&LockRow| row.is_granted(command.grant.as_str());
        if let Some(own) = permits.iter().find(is_own) {
            return self.refused(command, own).await;
        }
        let allowed = operators.unwrap_or(*limit);
        let is_below = |slot: Slot| slot.number().is_some_and(|at| u32::from(at) < allowed);
        let seen = |row: &LockRow| {
            let seen = expired.iter().find(|(slot, _)| *slot == row.slot);
            seen.map(|(_, version)| version)
        };
        let (held, free): (Vec<&LockRow>, Vec<&LockRow>) =
            permits.iter().partition(|row| row.is_taken());
        let ended = held.iter().copied().filter(|row| seen(row).is_some());
        let below = free.iter().copied().chain(ended);
        let candidates: Vec<&LockRow> = below.filter(|row| is_below(row.slot)).collect();
        if let Some(row) = fastrand::choice(&candidates) {
            // On a single server another transaction has its row locked.
            return match self.cluster {
                None => Ok(Outcome::Busy),
                Some(_) => {
                    let permit = Permit {
                        slot: row.slot,
                        limit: *limit,
                        expired_version: seen(row),
                    };
                    self.acquire_slot(command, permit).await
                }
            };
        }
        let taken = |slot: &Slot| permits.iter().any(|row| row.slot == *slot);
        let slots = (0..=u16::MAX).take(allowed as usize).map(Slot::Permit);
        let missing: Vec<Slot> = match permits.iter().filter(|row| is_below(row.slot)).count() {
            made if made >= allowed as usize => Vec::new(),
            _ => slots.filter(|slot| !taken(slot)).collect(),
        };
        if let Some(slot) = fastrand::choice(missing) {
            let permit = Permit {
                slot,
                limit: *limit,
                expired_version: None,
            };
            return self.create(command, Some(permit)).await;
        }
        let first = held.iter().filter(|row| is_below(row.slot));
        let first = first.min_by_key(|row| row.expires_in.unwrap_or(i64::MAX));
        let permits = Permits {
            limit: allowed,
            held: u32::try_from(held.len()).unwrap_or(u32::MAX),
            observed: held.iter().filter_map(|row| row.observed_slot()).collect(),
        };
        Ok(no_permit_free(permits, first.copied()))
    }

    /// Acquire this permit, on a cluster, where an ended lease is one that was observed.
    async fn acquire_slot(
        &mut self,
        command: &AcquireCommand,
        permit: Permit<'_>,
    ) -> Result<Outcome, StoreError> {
        let statement = match self.mariadb {
            true => Self::ACQUIRE_ON_MARIADB,
            false => Self::ACQUIRE,
        };
        let params = params_for(command, Some(permit));
        let done = self.execute(Rows::Permits, statement, params).await;
        Ok(match self.none_if_contended(done)? {
            Some(QueryResult { rows, id }) if rows > 0 => {
                granted(permit.slot, token(id), command.length)
            }
            _ => Outcome::Busy,
        })
    }

    pub(crate) async fn semaphore(&mut self, name: &LockName) -> Result<Semaphore, StoreError> {
        let rows = self
            .read_latest(Rows::Permits, std::slice::from_ref(name))
            .await?;
        let (permits, limit) = split(rows);
        let permits = permits.into_iter().map(LockRow::into_info).collect();
        Ok(Semaphore::new(name.clone(), limit, permits))
    }

    pub(crate) async fn set_limit(
        &mut self,
        name: &LockName,
        limit: Option<u32>,
    ) -> Result<(), StoreError> {
        let params = params! { "name" => name.as_str(), "permits" => limit };
        self.execute(Rows::Permits, Self::SET_LIMIT, params)
            .await
            .map(drop)
    }
}

/// The permits, and the operator's limit.
fn split(rows: Vec<LockRow>) -> (Vec<LockRow>, Option<u32>) {
    let (permits, others): (Vec<_>, Vec<_>) = rows
        .into_iter()
        .partition(|row| row.slot != Slot::AnyPermit);
    let limit = others.iter().find_map(|row| row.permits);
    (permits, limit.and_then(|limit| u32::try_from(limit).ok()))
}
