//! Readers and writers: a reader has a row of its own, a writer the row of the lock. Without a
//! mistake each sets its flag first, and then checks the flags of the others.

use std::time::Duration;

use super::{Claim, ControlClient, LOCKS, PERMITS, Row, Times};
use crate::clock;
use crate::sql::Sql;
use crate::worker::Client;

impl ControlClient {
    /// Whether each looks only once, before it enters.
    fn looks_only(&self) -> bool {
        self.client == Client::LooksThenEnters
    }

    async fn count(sql: &mut Sql, from: &str) -> Result<u32, String> {
        let count = sql.run(&format!("SELECT COUNT(*) FROM {from}")).await?;
        let count = count.rows.first().and_then(|row| row.first()?.parse().ok());
        count.ok_or_else(|| "no count".to_owned())
    }

    /// Whether no writer is in, and none waits. A lease that has expired counts: its holder may have
    /// a fence open.
    async fn no_writer(sql: &mut Sql, name: &str) -> Result<bool, String> {
        let held = format!("{LOCKS} WHERE name = '{name}' AND expires_at IS NOT NULL");
        Ok(Self::count(sql, &held).await? == 0)
    }

    /// Whether no reader is in. A row that has expired counts too.
    async fn no_reader(sql: &mut Sql, name: &str) -> Result<bool, String> {
        let readers = format!("{PERMITS} WHERE name = '{name}' AND slot <= -2");
        Ok(Self::count(sql, &readers).await? == 0)
    }

    pub(super) async fn enter_as_reader(
        &self,
        sql: &mut Sql,
        name: &str,
    ) -> Result<Option<Claim>, String> {
        self.retire_writer(sql, name).await?;
        if !Self::no_writer(sql, name).await? {
            return Ok(None);
        }
        self.looked(name).await;
        let slot = i64::from(fastrand::i32(..=-2));
        let row = Row::of_permit(name, slot, true);
        let end = self.times().end;
        let (sent, process) = (clock::now(), &self.process);
        sql.run(&format!(
            "INSERT INTO {PERMITS} (name, slot, locked_by, token, expires_at) \
             SELECT name, {slot}, '{process}', token + 1, {end} FROM {LOCKS} WHERE name = '{name}'"
        ))
        .await?;
        let token = sql
            .run(&format!("SELECT token FROM {PERMITS} WHERE {}", row.key))
            .await?;
        let token = token.rows.first().and_then(|row| row.first()?.parse().ok());
        let token = token.ok_or("the reader's row is gone")?;
        if !self.looks_only() && !Self::no_writer(sql, name).await? {
            self.give_back(sql, &row, token).await?;
            return Ok(None);
        }
        Ok(Some(Claim {
            row,
            token,
            slot: None,
            sent,
        }))
    }

    pub(super) async fn enter_as_writer(
        &self,
        sql: &mut Sql,
        name: &str,
    ) -> Result<Option<Claim>, String> {
        if self.looks_only() {
            self.retire_readers(sql, name).await?;
            if !Self::no_reader(sql, name).await? {
                return Ok(None);
            }
        }
        self.looked(name).await;
        let Some(claim) = self.take(sql, Row::of_lock(name), 2).await? else {
            return Ok(None);
        };
        // Its lease is not renewed yet.
        let patience = self.ttl.as_micros() as u64 / 2;
        while !self.looks_only() {
            self.retire_readers(sql, name).await?;
            if Self::no_reader(sql, name).await? {
                break;
            }
            if clock::now() > claim.sent + patience {
                self.give_back(sql, &claim.row, claim.token).await?;
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Some(claim))
    }

    /// Frees the row of a dead writer that has no fence open. Its own fence fails from then on.
    async fn retire_writer(&self, sql: &mut Sql, name: &str) -> Result<(), String> {
        let now = self.times().now;
        let dead = format!("SELECT id FROM {LOCKS} WHERE name = '{name}' AND expires_at <= {now}");
        let free = match self.url.split(':').next() {
            Some("postgres") => format!(
                "UPDATE {LOCKS} SET expires_at = NULL, locked_by = NULL \
                 WHERE id = ({dead} FOR UPDATE SKIP LOCKED)"
            ),
            Some("mysql") => format!(
                "UPDATE ({dead} LIMIT 1 FOR UPDATE SKIP LOCKED) q \
                 STRAIGHT_JOIN {LOCKS} l FORCE INDEX (PRIMARY) ON l.id = q.id \
                 SET l.expires_at = NULL, l.locked_by = NULL"
            ),
            _ => format!(
                "UPDATE {LOCKS} SET expires_at = NULL, locked_by = NULL WHERE id IN ({dead})"
            ),
        };
        sql.run(&free).await.map(drop)
    }

    /// Deletes the rows of dead readers that have no fence open.
    async fn retire_readers(&self, sql: &mut Sql, name: &str) -> Result<(), String> {
        let Times { now, .. } = self.times();
        let dead = format!(
            "SELECT id FROM {PERMITS} WHERE name = '{name}' AND slot <= -2 AND expires_at <= {now}"
        );
        let delete = match self.url.split(':').next() {
            Some("postgres") => format!(
                "DELETE FROM {PERMITS} WHERE id = ANY (ARRAY({dead} FOR UPDATE SKIP LOCKED))"
            ),
            Some("mysql") => format!(
                "DELETE p FROM ({dead} LIMIT 1000 FOR UPDATE SKIP LOCKED) q \
                 STRAIGHT_JOIN {PERMITS} p FORCE INDEX (PRIMARY) ON p.id = q.id"
            ),
            _ => format!("DELETE FROM {PERMITS} WHERE id IN ({dead})"),
        };
        sql.run(&delete).await.map(drop)
    }
}
