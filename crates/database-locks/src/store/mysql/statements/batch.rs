//! Acquiring and releasing many locks at once: one statement and one commit for all of them.
//!
//! The server only counts the rows. The outcome of each is read afterwards, by grant id.

use std::collections::HashSet;

use mysql_async::params;
use serde_json::json;

use crate::store::api::{StoreError, micros, rest_micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::{QueryResult, Session};
use crate::store::mysql::rows::{by_slot, packed};
use protocol::{
    AcquireCommand, Kind, LockName, LockRow, Outcome, ReleaseCommand, Released, Slot, Token,
};

/// The commands as a table.
macro_rules! asked {
    () => {
        "JSON_TABLE(:asks, '$[*]' COLUMNS (
                           name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                           grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                           locked_by varchar(255) CHARACTER SET utf8mb4 PATH '$.holder',
                           length bigint PATH '$.length',
                           not_within bigint PATH '$.not_within'{?,
                           slot int PATH '$.slot', permits int PATH '$.permits'?},
                           seen_token bigint PATH '$.seen.token',
                           seen_expires_at bigint PATH '$.seen.expires_at',
                           seen_renewed_at bigint PATH '$.seen.renewed_at',
                           metadata longtext CHARACTER SET utf8mb4 PATH '$.metadata'))"
    };
}

impl Session {
    /// Acquire those of many locks that are free or whose leases have ended. A read finds out which
    /// were granted, and their tokens, by their grant ids.
    ///
    /// The insert id is the new `renewed_at`, in microseconds since 1970. It distinguishes the
    /// grants of this statement from those of an earlier request whose reply was lost, and whose
    /// leases end earlier.
    pub(crate) const ACQUIRE_BATCH: &str = concat!(
        "
        UPDATE (SELECT l.id, g.grant_id, g.locked_by, g.length, g.metadata{?, g.permits?}
                  FROM (SELECT j.* FROM ",
        asked!(),
        " j
                         LIMIT 1000000) g
                       STRAIGHT_JOIN {table} l FORCE INDEX (name)
                       ON l.name = g.name COLLATE {collation}{? AND l.slot = g.slot?}
                 WHERE (expires_at IS NULL OR {ended_each}) AND {due_each} AND {writable}{?
                   AND l.slot < IFNULL((SELECT s.permits FROM {table} s
                                         WHERE s.name = l.name AND s.slot = -1), g.permits)?}
                 LIMIT 1000000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET {?l.permits = q.permits, ?}l.token = GREATEST(l.token + 1 + l.shared, {clock} DIV 1000),
               l.locked_by = q.locked_by, l.grant_id = q.grant_id,
               l.expires_at = UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL q.length MICROSECOND,
               l.acquired_at = UTC_TIMESTAMP(6), l.metadata = q.metadata,
               l.renewed_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL LAST_INSERT_ID({clock}) MICROSECOND"
    );

    /// Fails at once if another client is creating one of these rows, or has one locked.
    pub(crate) const PROBE_BATCH: &str = "
        SELECT l.id
          FROM (SELECT j.* FROM JSON_TABLE(:names, '$[*]' COLUMNS (
                   name varchar(255) CHARACTER SET utf8mb4 PATH '$')) j
                 LIMIT 1000000) n
               STRAIGHT_JOIN {table} l FORCE INDEX (name) ON l.name = n.name COLLATE {collation}
           FOR UPDATE NOWAIT";

    /// Insert rows that are granted from the beginning.
    pub(crate) const CREATE_BATCH: &str = concat!(
        "
        INSERT INTO {table}
               (name, locked_by, grant_id, expires_at, granted_until,
                token, acquired_at, renewed_at, metadata)
        SELECT g.name, g.locked_by, g.grant_id,
               UTC_TIMESTAMP(6) + INTERVAL g.length MICROSECOND,
               UTC_TIMESTAMP(6) + INTERVAL g.length MICROSECOND,
               {clock} DIV 1000, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), g.metadata
          FROM ",
        asked!(),
        " g
         WHERE {writable}
         ORDER BY g.name"
    );

    /// Release what is still held by exactly these grants. A `rest` of null frees the lock at once.
    pub(crate) const RELEASE_BATCH: &str = "
        UPDATE (SELECT l.id, g.rest
                  FROM (SELECT j.* FROM JSON_TABLE(:grants, '$[*]' COLUMNS (
                           name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                           token bigint PATH '$.token',
                           grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                           locked_by varchar(255) CHARACTER SET utf8mb4 PATH '$.holder',
                           {?slot int PATH '$.slot', ?}rest bigint PATH '$.rest')) j
                         LIMIT 1000000) g
                       STRAIGHT_JOIN {table} l FORCE INDEX (name)
                       ON l.name = g.name COLLATE {collation}{? AND l.slot = g.slot?}
                 WHERE l.grant_id = g.grant_id AND l.token = IFNULL(g.token, l.token)
                   AND l.locked_by = g.locked_by COLLATE {collation}
                   AND l.granted_until = l.expires_at AND {writable}
                 LIMIT 1000000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = UTC_TIMESTAMP(6) + INTERVAL q.rest MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL q.rest MICROSECOND,
               l.grant_id = NULL,
               l.renewed_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL LAST_INSERT_ID({clock}) MICROSECOND";

    pub(crate) async fn acquire(
        &mut self,
        commands: &[AcquireCommand],
    ) -> Result<Vec<Outcome>, StoreError> {
        if let [command] = commands {
            return Ok(vec![self.acquire_any_kind(command).await?]);
        }
        let mut outcomes = vec![None; commands.len()];
        self.acquire_permits(commands, &mut outcomes).await?;
        for (command, outcome) in commands.iter().zip(&mut outcomes) {
            if command.kind != Kind::Exclusive && outcome.is_none() {
                *outcome = Some(self.acquire_any_kind(command).await?);
            }
        }
        let locks = without_outcome(commands, &outcomes);
        let done = match *locks {
            [one] => vec![Some(self.acquire_one(one).await?)],
            _ => self.acquire_on_mariadb(&locks).await?,
        };
        fill_in(&mut outcomes, done);
        let missing = without_outcome(commands, &outcomes);
        fill_in(&mut outcomes, self.acquire_batch(&missing).await?);
        let missing = without_outcome(commands, &outcomes);
        fill_in(&mut outcomes, self.create_batch(&missing).await?);
        let busy = |outcome: Option<_>| outcome.unwrap_or(Outcome::Busy);
        Ok(outcomes.into_iter().map(busy).collect())
    }

    pub(super) async fn acquire_any_kind(
        &mut self,
        command: &AcquireCommand,
    ) -> Result<Outcome, StoreError> {
        match &command.kind {
            Kind::Exclusive => self.acquire_one(command).await,
            Kind::Permit { limit, expired } => self.acquire_permit(command, *limit, expired).await,
            Kind::Shared { beside } => self.acquire_shared(command, *beside).await,
        }
    }

    /// `None`: there is no row.
    async fn acquire_batch(
        &mut self,
        commands: &[&AcquireCommand],
    ) -> Result<Vec<Option<Outcome>>, StoreError> {
        let mut made = Vec::new();
        for (_, text) in packed(commands, self.max_parameter_len, |it| described(it)) {
            let asks = params! { "asks" => text };
            made.push(self.execute(Rows::Locks, Self::ACQUIRE_BATCH, asks).await?);
        }
        let made_now = |row: &LockRow| made.iter().any(|done| done.wrote(row));
        self.found(commands, made_now).await
    }

    /// The outcome of each, from a read; `None` if there is no row. `made_now`: whether this
    /// request has just written the row.
    async fn found(
        &mut self,
        commands: &[&AcquireCommand],
        made_now: impl Fn(&LockRow) -> bool,
    ) -> Result<Vec<Option<Outcome>>, StoreError> {
        let names: Vec<&LockName> = commands.iter().map(|it| &it.name).collect();
        let rows = self.read(Rows::Locks, &names).await?;
        let rows = by_slot(&rows);
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            outcomes.push(match rows.get(&(command.name.as_str(), Slot::Lock)) {
                None => None,
                Some(row) if row.is_granted(command.grant.as_str()) && made_now(row) => {
                    let token = Token::from_db(row.token);
                    let granted = Outcome::granted(Slot::Lock, token, command.length);
                    Some(granted.of_shared(row.is_shared))
                }
                Some(row) => Some(self.refused(command, row).await?),
            });
        }
        Ok(outcomes)
    }

    async fn create_batch(
        &mut self,
        commands: &[&AcquireCommand],
    ) -> Result<Vec<Option<Outcome>>, StoreError> {
        let mut outcomes = Vec::with_capacity(commands.len());
        for (chunk, text) in packed(commands, self.max_parameter_len, |it| described(it)) {
            let names: Vec<&str> = chunk.iter().map(|command| command.name.as_str()).collect();
            let names = params! { "names" => json!(names).to_string() };
            let probed = self.probe(Rows::Locks, Self::PROBE_BATCH, names).await?;
            // None of the rows has been inserted since.
            if probed.is_some_and(|rows| rows.is_empty()) {
                let asks = params! { "asks" => text };
                let made = self.attempt(Rows::Locks, Self::CREATE_BATCH, asks).await?;
                if made.is_some() {
                    outcomes.extend(self.found(chunk, |_| true).await?);
                    continue;
                }
            }
            // A row that another client is inserting, or that is requested twice, must not keep the
            // others from being inserted.
            for command in chunk {
                outcomes.push(Some(self.create(command, None).await?));
            }
        }
        Ok(outcomes)
    }

    pub(crate) async fn release(
        &mut self,
        commands: &[ReleaseCommand],
    ) -> Result<Vec<Released>, StoreError> {
        let distinct: HashSet<_> = (commands.iter())
            .map(|command| (&command.name, command.slot))
            .collect();
        // Afterwards a row does not tell which of two grants of one lock has ended. A grant of any
        // permit may be two, and a shared one is a row to be deleted.
        let of = Rows::of(commands.first().map_or(Slot::Lock, |command| command.slot));
        let alike = |command: &ReleaseCommand| match command.slot {
            Slot::Lock | Slot::Permit(_) => Rows::of(command.slot) == of,
            Slot::AnyPermit | Slot::Shared(_) => false,
        };
        if commands.len() == 1 || distinct.len() < commands.len() || !commands.iter().all(alike) {
            let mut answers = Vec::with_capacity(commands.len());
            for command in commands {
                answers.push(self.release_one(command).await?);
            }
            return Ok(answers);
        }
        if of == Rows::Locks
            && let Some(done) = self.release_on_mariadb(commands).await?
        {
            return self.freed(of, commands, done).await;
        }
        let describe = |command: &ReleaseCommand| {
            json!({
                "name": command.name.as_str(), "grant": command.grant.as_str(),
                "token": command.token.map(Token::get), "holder": &*command.holder,
                "rest": rest_micros(command), "slot": command.slot.number(),
            })
        };
        let mut answers = Vec::with_capacity(commands.len());
        for (chunk, text) in packed(commands, self.max_parameter_len, describe) {
            let grants = params! { "grants" => text };
            let done = self.execute(of, Self::RELEASE_BATCH, grants).await?;
            answers.extend(self.freed(of, chunk, done).await?);
        }
        Ok(answers)
    }

    /// Which of them were freed.
    async fn freed(
        &mut self,
        of: Rows,
        commands: &[ReleaseCommand],
        done: QueryResult,
    ) -> Result<Vec<Released>, StoreError> {
        if done.rows == commands.len() as u64 {
            return Ok(vec![Released::Freed; commands.len()]);
        }
        let names: Vec<&LockName> = commands.iter().map(|it| &it.name).collect();
        let rows = self.read_latest(of, &names).await?;
        let rows = by_slot(&rows);
        let answer = |command: &ReleaseCommand| {
            match rows.get(&(command.name.as_str(), command.slot)) {
                Some(row) if row.contains_grant_of(command) => Some(Released::Busy),
                Some(row) if row.grant.is_none() && done.wrote(row) => Some(Released::Freed),
                // Another client has acquired the lock since, or it was lost before.
                _ => None,
            }
        };
        let answers: Vec<_> = commands.iter().map(answer).collect();
        let freed = |answer: &&Option<_>| **answer == Some(Released::Freed);
        let known = answers.iter().filter(freed).count() as u64;
        // A lock that another client has just acquired cannot be told from one that was lost
        // before. The guard knows of such a loss.
        let unclear = match known == done.rows {
            true => Released::NotHeld,
            false => Released::Freed,
        };
        let clear = |answer: Option<_>| answer.unwrap_or(unclear);
        Ok(answers.into_iter().map(clear).collect())
    }
}

/// The commands that have no outcome yet.
fn without_outcome<'a>(
    commands: &'a [AcquireCommand],
    outcomes: &[Option<Outcome>],
) -> Vec<&'a AcquireCommand> {
    let all = commands.iter().zip(outcomes);
    all.filter_map(|(command, outcome)| outcome.is_none().then_some(command))
        .collect()
}

/// Fill in the missing outcomes.
fn fill_in(outcomes: &mut [Option<Outcome>], of_those: Vec<Option<Outcome>>) {
    let empty = outcomes.iter_mut().filter(|outcome| outcome.is_none());
    for (outcome, known) in empty.zip(of_those) {
        *outcome = known;
    }
}

pub(super) fn described(command: &AcquireCommand) -> serde_json::Value {
    json!({
        "name": command.name.as_str(), "grant": command.grant.as_str(), "holder": &*command.holder,
        "length": micros(command.length), "metadata": &*command.metadata,
        "not_within": command.not_within.map(micros),
        "seen": seen(command),
    })
}

/// The version of the row whose expiry was observed.
pub(super) fn seen(command: &AcquireCommand) -> Option<serde_json::Value> {
    let seen = command.expired_version.as_ref()?;
    Some(json!({
        "token": seen.token, "expires_at": seen.expires_at, "renewed_at": seen.renewed_at,
    }))
}
