//! Permits of a semaphore: a row each, with the columns of a lock.

use std::collections::{HashMap, HashSet};

use mysql_async::{Params, params};

use super::acquire::Permit;
use super::batch::described;
use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::{QueryResult, Session, typed};
use crate::store::mysql::rows::{packed, token};
use protocol::{
    AcquireCommand, Kind, LockName, LockRow, Outcome, Permits, Slot, Token, Version, no_permit_free,
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
           SET l.token = LAST_INSERT_ID(GREATEST(l.token + 1, {clock} DIV 1000) * 65536 + l.slot)
                   DIV 65536,
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
        limit: u32,
        expired: &[(Slot, Version)],
    ) -> Result<Outcome, StoreError> {
        if self.cluster.is_none()
            && let Some(decided) = self.acquire_any(command, limit).await?
        {
            return Ok(decided);
        }
        let known = self.known(&command.name, limit).await?;
        // The reply to an earlier request of this grant was lost.
        if let Some(own) = known.granted(command) {
            return self.refused(command, own).await;
        }
        // Another client may have been granted the permit since.
        let seen = |row: &LockRow| {
            let (_, present) = row.observed_slot()?;
            let mut seen = expired.iter().filter(|(slot, _)| *slot == row.slot);
            let (_, version) = seen.find(|(_, version)| *version == present.version)?;
            Some(version)
        };
        let free = |row: &&LockRow| !row.is_taken() || seen(row).is_some();
        let free: Vec<&LockRow> = known.below().filter(free).collect();
        let permit = |slot, expired_version| Permit {
            slot,
            limit,
            expired_version,
        };
        match (fastrand::choice(free), self.cluster) {
            (Some(row), Some(_)) => {
                let permit = permit(row.slot, seen(row));
                Ok(match self.acquire_row(command, Some(permit)).await? {
                    Some(QueryResult { rows, id }) if rows > 0 => {
                        Outcome::granted(row.slot, token(id), command.length)
                    }
                    _ => Outcome::Busy,
                })
            }
            // Another transaction has its row locked.
            (Some(_), None) => Ok(Outcome::Busy),
            (None, _) => match fastrand::choice(known.missing()) {
                Some(slot) => self.create(command, Some(permit(slot, None))).await,
                None => {
                    if self.may_be_behind() {
                        self.read_to_wait(Rows::Permits, &[&command.name]).await?;
                    }
                    Ok(known.none_free())
                }
            },
        }
    }

    /// Acquire permits, those of one semaphore at once, on a single server. Those that have no outcome
    /// then are asked for one by one.
    pub(crate) async fn acquire_permits(
        &mut self,
        commands: &[AcquireCommand],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), StoreError> {
        let mut semaphores: HashMap<(&LockName, u32), Vec<(usize, &AcquireCommand)>> =
            HashMap::new();
        for (at, command) in commands.iter().enumerate() {
            if let Kind::Permit { limit, .. } = command.kind {
                let of = semaphores.entry((&command.name, limit)).or_default();
                of.push((at, command));
            }
        }
        for ((name, limit), of) in semaphores {
            if of.len() > 1 && self.cluster.is_none() {
                self.acquire_of(name, limit, of, outcomes).await?;
            }
        }
        Ok(())
    }

    /// Acquire permits of one semaphore: a read chooses a free one for each command, and the statement
    /// acquires those that are still free and below the limit.
    async fn acquire_of(
        &mut self,
        name: &LockName,
        limit: u32,
        mut commands: Vec<(usize, &AcquireCommand)>,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), StoreError> {
        let known = self.known(name, limit).await?;
        // The reply to an earlier request of such a grant was lost.
        commands.retain(|(_, command)| known.granted(command).is_none());
        let mut free: Vec<Slot> = (known.below())
            .filter(|row| !row.is_taken())
            .map(|row| row.slot)
            .collect();
        fastrand::shuffle(&mut free);
        let chosen: Vec<_> = commands.iter().copied().zip(free).collect();
        let describe = |((_, command), slot): &((usize, &AcquireCommand), Slot)| {
            let mut described = described(command);
            described["slot"] = slot.number().into();
            described["permits"] = limit.into();
            described
        };
        let mut made = Vec::new();
        for (_, text) in packed(&chosen, self.max_parameter_len, describe) {
            let asks = params! { "asks" => text };
            let done = self.attempt(Rows::Permits, Self::ACQUIRE_BATCH, asks);
            made.extend(done.await?);
        }
        let known = self.known(name, limit).await?;
        let full = known.missing().is_empty() && known.below().all(LockRow::is_taken);
        // The first that is not granted decides for the rest, so that a thousand callers of a full
        // semaphore cost no thousand statements.
        let mut decided = full.then(|| known.none_free());
        for (at, command) in commands {
            let outcome = match (known.granted(command), &decided) {
                (Some(row), _) if made.iter().any(|done| done.wrote(row)) => {
                    Outcome::granted(row.slot, Token::from_db(row.token), command.length)
                }
                (None, Some(decided)) => decided.clone(),
                _ => self.acquire_any_kind(command).await?,
            };
            if !matches!(outcome, Outcome::Granted { .. }) {
                decided = Some(outcome.clone());
            }
            outcomes[at] = Some(outcome);
        }
        Ok(())
    }

    /// Acquire a free permit, on a single server. `None`: there is none with a row.
    async fn acquire_any(
        &mut self,
        command: &AcquireCommand,
        limit: u32,
    ) -> Result<Option<Outcome>, StoreError> {
        let params = params! {
            "start" => fastrand::u32(..limit.max(1)), "permits" => limit,
            "name" => command.name.as_str(), "holder" => &*command.holder,
            "grant" => command.grant.as_str(), "length" => micros(command.length),
            "metadata" => &*command.metadata,
        };
        let done = self.attempt(Rows::Permits, Self::ACQUIRE_PERMIT, params);
        Ok(match done.await? {
            None => Some(Outcome::Busy),
            Some(QueryResult { rows: 0, .. }) => None,
            Some(QueryResult { id, .. }) => {
                let slot = u16::try_from(id % SLOTS).map_or(Slot::AnyPermit, Slot::Permit);
                Some(Outcome::granted(slot, token(id / SLOTS), command.length))
            }
        })
    }

    async fn known(&mut self, name: &LockName, limit: u32) -> Result<Known, StoreError> {
        Ok(Known::new(self.read(Rows::Permits, &[name]).await?, limit))
    }

    /// The limits that operators have set.
    pub(crate) const LIMITS: &str = "
    SELECT name, permits FROM {table} WHERE slot = -1 AND permits IS NOT NULL";

    pub(crate) async fn limits(&mut self) -> Result<Vec<(LockName, u32)>, StoreError> {
        let rows = self
            .rows(Rows::Permits, Self::LIMITS, Params::Empty)
            .await?;
        let rows: Vec<(String, u32)> = typed(rows);
        let limit = |(name, limit)| (LockName::from_db(name), limit);
        Ok(rows.into_iter().map(limit).collect())
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

/// The permits that have a row, and the limit that counts.
struct Known {
    permits: Vec<LockRow>,
    limit: u32,
}

impl Known {
    fn new(rows: Vec<LockRow>, callers: u32) -> Self {
        let (permits, operators) = LockRow::permits_and_limit(rows);
        Self {
            permits,
            limit: operators.unwrap_or(callers),
        }
    }

    fn is_below(&self, row: &LockRow) -> bool {
        let slot = row.slot.number();
        slot.is_some_and(|slot| u32::from(slot) < self.limit)
    }

    /// The one that the command has.
    fn granted(&self, command: &AcquireCommand) -> Option<&LockRow> {
        let mut permits = self.permits.iter();
        permits.find(|row| row.is_granted(command.grant.as_str()))
    }

    /// Those below the limit.
    fn below(&self) -> impl Iterator<Item = &LockRow> {
        self.permits.iter().filter(|row| self.is_below(row))
    }

    /// The slots below the limit that have no row.
    fn missing(&self) -> Vec<Slot> {
        let made: HashSet<Slot> = self.below().map(|row| row.slot).collect();
        let slots = (0..=u16::MAX).take(self.limit as usize).map(Slot::Permit);
        match made.len() >= self.limit as usize {
            true => Vec::new(),
            false => slots.filter(|slot| !made.contains(slot)).collect(),
        }
    }

    /// The outcome if none is free.
    fn none_free(&self) -> Outcome {
        let taken = || self.permits.iter().filter(|row| row.is_taken());
        let first = taken().filter(|row| self.is_below(row));
        let permits = Permits {
            limit: self.limit,
            held: u32::try_from(taken().count()).unwrap_or(u32::MAX),
            observed: taken().filter_map(LockRow::observed_slot).collect(),
        };
        no_permit_free(
            permits,
            first.min_by_key(|row| row.expires_in.unwrap_or(i64::MAX)),
        )
    }
}
