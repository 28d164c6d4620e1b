//! Acquiring one lock.

use mysql_async::{Params, params};

use crate::runtime::clock;
use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::cluster::with_version;
use crate::store::mysql::connection::session::{QueryResult, Session, TABLE_WAIT};
use crate::store::mysql::rows::granted_as;
use protocol::{
    AcquireCommand, Grant, Holder, LockRow, Outcome, Renewal, Slot, Token, Ttl, Version,
};

impl Session {
    /// Acquire a lock that is free or whose lease has ended.
    ///
    /// One row: granted. The insert id is the token, with its highest bit set if the lock was ever
    /// shared. No row: the lock is held, its row is locked, or there is no row. The token of a row that was
    /// never granted starts at the time in ms. That of a lock that was ever shared rises by 2: the
    /// token between them is that of the shared grants.
    pub(crate) const ACQUIRE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name{? AND slot = :slot?} AND (expires_at IS NULL OR {ended})
                   AND {due} AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET {?l.permits = :permits, ?}l.token = LAST_INSERT_ID(GREATEST(l.token + 1 + l.shared, {clock} DIV 1000)
                   + l.shared * 9223372036854775808) & 9223372036854775807,
               l.locked_by = :holder, l.grant_id = :grant,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.renewed_at = UTC_TIMESTAMP(6),
               l.metadata = :metadata";

    /// [`ACQUIRE`](Self::ACQUIRE) on MariaDB, which can be set not to wait at all: a locked row
    /// fails the statement at once (error 1205), as if it were skipped.
    ///
    /// The values that a join sets go through a temporary table. Since `locked_by` and `metadata`
    /// are longtext, MariaDB writes it to disk: 0.2 ms, as much as the rest of the statement and
    /// its commit. `WHERE id = (SELECT … SKIP LOCKED)` would read the whole table.
    pub(crate) const ACQUIRE_ON_MARIADB: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET {?permits = :permits, ?}token = LAST_INSERT_ID(GREATEST(token + 1 + shared, {clock} DIV 1000)
                   + shared * 9223372036854775808) & 9223372036854775807,
               locked_by = :holder, grant_id = :grant,
               expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               acquired_at = UTC_TIMESTAMP(6), renewed_at = UTC_TIMESTAMP(6),
               metadata = :metadata
         WHERE name = :name{? AND slot = :slot?} AND (expires_at IS NULL OR {ended}) AND {due}
           AND {writable}";

    /// Send [`ACQUIRE`](Self::ACQUIRE) for a lock, or for this permit.
    pub(super) async fn acquire_row(
        &mut self,
        command: &AcquireCommand,
        permit: Option<Permit<'_>>,
    ) -> Result<Option<QueryResult>, StoreError> {
        let of = permit.map_or(Rows::Locks, |_| Rows::Permits);
        let statement = match self.mariadb {
            true => Self::ACQUIRE_ON_MARIADB,
            false => Self::ACQUIRE,
        };
        let params = params_for(command, permit);
        self.attempt(of, statement, params).await
    }

    pub(crate) async fn acquire_one(
        &mut self,
        command: &AcquireCommand,
    ) -> Result<Outcome, StoreError> {
        let done = self.acquire_row(command, None).await;
        if let Err(failure @ StoreError::Unavailable(_)) = done {
            return self.held_or(failure, command).await;
        }
        let Some(QueryResult { rows, id }) = done? else {
            return Ok(Outcome::Busy);
        };
        if rows > 0 {
            return Ok(granted_as(id, command.length));
        }
        match self.row(&command.name, Slot::Lock).await? {
            Some(row) => self.refused(command, &row).await,
            None => self.create(command, None).await,
        }
    }

    /// The outcome of an attempt that could not write: the lock is held, or its latest grant is too
    /// recent, or the error.
    async fn held_or(
        &mut self,
        failure: StoreError,
        command: &AcquireCommand,
    ) -> Result<Outcome, StoreError> {
        if self.is_broken() || !failure.is_answer() {
            return Err(failure);
        }
        match self.row(&command.name, Slot::Lock).await {
            Ok(Some(row)) => match self.refused(command, &row).await? {
                decided @ (Outcome::Held(_) | Outcome::TooRecent(_)) => Ok(decided),
                // An earlier request of this grant may have made it.
                Outcome::Granted { .. } => Err(failure),
                Outcome::Busy => Err(failure.undone()),
            },
            // No row, so no grant that would have to be released.
            Ok(None) => Err(failure.undone()),
            Err(_) => Err(failure),
        }
    }

    /// Fails at once if another client is creating this row.
    ///
    /// The INSERT would wait for that client, and MySQL cannot be set to wait for less than a
    /// second. On MariaDB the INSERT itself fails at once.
    pub(crate) const PROBE: &str =
        "SELECT id FROM {table} WHERE name = :name{? AND slot = :slot?} FOR UPDATE NOWAIT";

    /// Insert a row that is granted from the beginning.
    pub(crate) const CREATE: &str = "
        INSERT INTO {table}
               (name, {?slot, permits, ?}locked_by, grant_id, expires_at, granted_until,
                token, acquired_at, renewed_at, metadata)
        VALUES (:name, {?:slot, :permits, ?}:holder, :grant,
                UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
                UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
                {clock} DIV 1000, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), :metadata)";

    /// Insert the row of a lock, or of this permit.
    pub(crate) async fn create(
        &mut self,
        command: &AcquireCommand,
        permit: Option<Permit<'_>>,
    ) -> Result<Outcome, StoreError> {
        let slot = permit.map_or(Slot::Lock, |permit| permit.slot);
        let of = Rows::of(slot);
        let params = || params_for(command, permit);
        if !self.mariadb && self.probe(of, Self::PROBE, params()).await?.is_none() {
            return Ok(Outcome::Busy);
        }
        let began = clock::now();
        if self.attempt(of, Self::CREATE, params()).await?.is_none() {
            // On MySQL it may have waited for a row that was inserted after the probe, or for the
            // table.
            if clock::now() - began >= TABLE_WAIT {
                let probed = self.probe(of, Self::PROBE, params()).await?;
                if probed.is_some_and(|rows| rows.is_empty()) {
                    return Err(self.blocked());
                }
            }
            return Ok(Outcome::Busy);
        }
        // The insert id is that of the column `id` here, so the token is read back.
        let row = self.row(&command.name, slot).await?;
        Ok(match row.map(|row| row.failed_acquire_outcome(command)) {
            Some(Outcome::Granted { token, .. }) => Outcome::granted(slot, token, command.length),
            Some(other) => other,
            None => Outcome::Busy,
        })
    }

    /// The outcome of an acquire that granted nothing, from the row that it found.
    pub(crate) async fn refused(
        &mut self,
        command: &AcquireCommand,
        row: &LockRow,
    ) -> Result<Outcome, StoreError> {
        if self.cluster.is_none() || !row.is_granted(command.grant.as_str()) {
            return Ok(match row.failed_acquire_outcome(command) {
                Outcome::Held(holder) if ended(command, &holder) => Outcome::Busy,
                outcome => outcome,
            });
        }
        // The reply to an earlier request of this grant was lost. The clock of this node cannot
        // tell how much of its lease is left, so the lease is renewed to the requested length.
        let token = Token::from_db(row.token);
        let grant = command.granted(row.slot, token, None);
        Ok(
            match self.renews(&[(grant, command.length.into())]).await? {
                true => Outcome::granted(row.slot, token, command.length).of_shared(row.is_shared),
                false => Outcome::Busy,
            },
        )
    }

    /// Whether all of these leases were renewed.
    pub(super) async fn renews(&mut self, leases: &[(Grant, Ttl)]) -> Result<bool, StoreError> {
        let renewals = self.renew(leases).await?;
        Ok(renewals.iter().all(Renewal::is_renewed))
    }
}

/// One permit of a semaphore that is to be granted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit<'a> {
    pub(crate) slot: Slot,
    /// The caller's limit.
    pub(crate) limit: u32,
    /// The version of its row whose expiry was observed.
    pub(crate) expired_version: Option<&'a Version>,
}

/// Whether this holder's lease is the one whose end was observed. Then a transaction has the row
/// locked, this node has not applied another node's change yet, or another lock of a set was not free.
pub(super) fn ended(command: &AcquireCommand, holder: &Holder) -> bool {
    let seen = holder.observed_expiry.as_ref().map(|it| &it.version);
    seen.is_some() && seen == command.expired_version.as_ref()
}

/// The parameters of an acquire. The driver leaves out parameters that a statement does not name.
fn params_for(command: &AcquireCommand, permit: Option<Permit<'_>>) -> Params {
    let seen = match permit {
        None => command.expired_version.as_ref(),
        Some(permit) => permit.expired_version,
    };
    let params = params! {
        "name" => command.name.as_str(), "holder" => &*command.holder,
        "grant" => command.grant.as_str(), "length" => micros(command.length),
        "not_within" => command.not_within.map(micros), "metadata" => &*command.metadata,
        "slot" => permit.map(|permit| permit.slot.range().0),
        "permits" => permit.map(|permit| permit.limit),
    };
    with_version(params, seen)
}
