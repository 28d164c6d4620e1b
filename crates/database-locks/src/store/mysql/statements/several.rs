//! Acquiring several locks, all or none.

use mysql_async::{Value, params};
use serde_json::json;

use super::acquire::ended;
use super::batch::seen;
use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use protocol::{AcquireCommand, AllOutcome, LockName, LockRow, Slot, Token};

impl Session {
    /// Acquire all of these locks, or none: the rows that are free are picked and counted first.
    ///
    /// A read finds out whether they were granted, and their tokens, by their grant ids. The window
    /// function keeps the server from merging the derived tables.
    pub(crate) const ACQUIRE_ALL: &str = "
        UPDATE (SELECT x.id, x.grant_id, COUNT(*) OVER () AS picked
                  FROM (SELECT l.id, g.grant_id
                          FROM (SELECT j.* FROM JSON_TABLE(:asks, '$[*]' COLUMNS (
                                   name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                                   grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                                   seen_token bigint PATH '$.seen.token',
                                   seen_expires_at bigint PATH '$.seen.expires_at',
                                   seen_renewed_at bigint PATH '$.seen.renewed_at')) j
                                 LIMIT 1000000) g
                               STRAIGHT_JOIN {table} l FORCE INDEX (name)
                               ON l.name = g.name COLLATE {collation}
                         WHERE (expires_at IS NULL OR {ended_each}) AND {writable}
                         LIMIT 1000000 FOR UPDATE SKIP LOCKED) x) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = GREATEST(l.token + 1 + l.shared, {clock} DIV 1000),
               l.locked_by = :holder, l.grant_id = q.grant_id,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.renewed_at = UTC_TIMESTAMP(6),
               l.metadata = :metadata
         WHERE q.picked = :asked";

    /// Insert free rows. A row that is granted from the beginning would have to be taken back if
    /// another of the locks is held.
    pub(crate) const CREATE_FREE: &str = "
        INSERT INTO {table} (name, renewed_at)
        SELECT n.name, UTC_TIMESTAMP(6)
          FROM JSON_TABLE(:names, '$[*]' COLUMNS (
                   name varchar(255) CHARACTER SET utf8mb4 PATH '$')) n
         WHERE {writable}
         ORDER BY n.name";

    pub(crate) async fn acquire_all(
        &mut self,
        commands: &[AcquireCommand],
    ) -> Result<AllOutcome, StoreError> {
        let names: Vec<&LockName> = commands.iter().map(|it| &it.name).collect();
        let (outcome, rows) = self.try_all(commands, &names).await?;
        let mut missing = names.clone();
        missing.retain(|name| rows.iter().all(|row| row.name != name.as_str()));
        // A lease whose end was observed is as good as free.
        let is_held = match &outcome {
            AllOutcome::Granted { .. } => true,
            AllOutcome::NotGranted(holders) => holders.iter().any(Option::is_some),
        };
        if missing.is_empty() || is_held {
            return Ok(outcome);
        }
        match self.create_free(&missing).await? {
            true => Ok(self.try_all(commands, &names).await?.0),
            false => Ok(outcome),
        }
    }

    /// Send [`ACQUIRE_ALL`](Self::ACQUIRE_ALL); the outcome, and the rows after it.
    async fn try_all(
        &mut self,
        commands: &[AcquireCommand],
        names: &[&LockName],
    ) -> Result<(AllOutcome, Vec<LockRow>), StoreError> {
        let Some(first) = commands.first() else {
            return Ok((AllOutcome::busy(commands), Vec::new()));
        };
        let described = |command: &AcquireCommand| {
            json!({
                "name": command.name.as_str(), "grant": command.grant.as_str(),
                "seen": seen(command),
            })
        };
        let asks: Vec<_> = commands.iter().map(described).collect();
        let params = params! {
            "asks" => Value::from(json!(asks).to_string()), "holder" => &*first.holder,
            "length" => micros(first.length), "metadata" => &*first.metadata,
            "asked" => commands.len(),
        };
        let done = self.attempt(Rows::Locks, Self::ACQUIRE_ALL, params).await;
        if let Err(failure @ StoreError::Unavailable(_)) = done {
            return self.all_held_or(failure, commands, names).await;
        }
        let made = done?.is_some_and(|done| done.rows > 0);
        let rows = match made {
            true => self.read(Rows::Locks, names).await?,
            false => self.read_to_wait(Rows::Locks, names).await?,
        };
        let mut outcome = AllOutcome::of_rows(commands, &rows);
        match &mut outcome {
            AllOutcome::Granted { tokens, length, .. } if made || self.cluster.is_some() => {
                // As for one lock: the clock of this node cannot tell what is left.
                if !made && !self.renewed_all(commands, tokens).await? {
                    return Ok((AllOutcome::busy(commands), rows));
                }
                *length = first.length;
            }
            AllOutcome::Granted { .. } => {}
            AllOutcome::NotGranted(holders) => {
                for (command, holder) in commands.iter().zip(holders) {
                    holder.take_if(|holder| ended(command, holder));
                }
            }
        }
        Ok((outcome, rows))
    }

    /// The outcome of an attempt that could not write: some are held, or the error.
    async fn all_held_or(
        &mut self,
        failure: StoreError,
        commands: &[AcquireCommand],
        names: &[&LockName],
    ) -> Result<(AllOutcome, Vec<LockRow>), StoreError> {
        if self.is_broken() || !failure.is_answer() {
            return Err(failure);
        }
        let Ok(rows) = self.read(Rows::Locks, names).await else {
            return Err(failure);
        };
        match AllOutcome::of_rows(commands, &rows) {
            // An earlier request may have made the grants.
            AllOutcome::Granted { .. } => Err(failure),
            AllOutcome::NotGranted(holders) if holders.iter().all(Option::is_none) => {
                Err(failure.undone())
            }
            held => Ok((held, rows)),
        }
    }

    /// Renew the grants of an earlier request to the requested length; whether all were renewed.
    async fn renewed_all(
        &mut self,
        commands: &[AcquireCommand],
        tokens: &[Token],
    ) -> Result<bool, StoreError> {
        let lease = |(command, token): (&AcquireCommand, &Token)| {
            let grant = command.granted(Slot::Lock, *token, None);
            (grant, command.length.into())
        };
        let leases: Vec<_> = commands.iter().zip(tokens).map(lease).collect();
        self.renews(&leases).await
    }

    /// Insert free rows for these names. `false`: another client is creating one of them.
    async fn create_free(&mut self, names: &[&LockName]) -> Result<bool, StoreError> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let names = || params! { "names" => json!(names).to_string() };
        let probed = self.probe(Rows::Locks, Self::PROBE_BATCH, names()).await?;
        if probed.is_none() {
            return Ok(false);
        }
        let made = self
            .attempt(Rows::Locks, Self::CREATE_FREE, names())
            .await?;
        Ok(made.is_some())
    }
}
