//! Two semaphores: one by slots, without a mistake, and one that counts.

use super::{Claim, ControlClient, PERMITS, Row, Times};
use crate::clock;
use crate::sql::Sql;

impl ControlClient {
    /// Without a mistake: looks for a slot that is free, and takes that one if it still is.
    pub(super) async fn take_a_slot(
        &self,
        sql: &mut Sql,
        name: &str,
        limit: u32,
    ) -> Result<Option<Claim>, String> {
        let now = self.times().now;
        let free = sql
            .run(&format!(
                "SELECT slot FROM {PERMITS} WHERE name = '{name}' AND slot >= 0 AND slot < {limit} \
                 AND (expires_at IS NULL OR expires_at <= {now}) ORDER BY token"
            ))
            .await?;
        let slot = free.rows.first().and_then(|row| row.first()?.parse().ok());
        let Some(slot) = slot else { return Ok(None) };
        self.looked(name).await;
        let row = Row::of_permit(name, i64::from(slot), false);
        let taken = self.take(sql, row, 1).await?;
        Ok(taken.map(|claim| Claim {
            slot: Some(slot),
            ..claim
        }))
    }

    /// The mistake of [`Client::CountsThenEnters`](crate::worker::Client): another client may have
    /// entered since the count.
    pub(super) async fn count_then_enter(
        &self,
        sql: &mut Sql,
        name: &str,
        limit: u32,
    ) -> Result<Option<Claim>, String> {
        let Times { now, end } = self.times();
        let count = sql
            .run(&format!(
                "SELECT COUNT(*) FROM {PERMITS} WHERE name = '{name}' AND expires_at > {now}"
            ))
            .await?;
        let held: Option<u32> = count.rows.first().and_then(|row| row.first()?.parse().ok());
        if held.is_none_or(|held| held >= limit) {
            return Ok(None);
        }
        self.looked(name).await;
        // A row for each holder, with a number that nobody else has.
        let number = i64::from(fastrand::i32(65_536..));
        let (sent, process) = (clock::now(), &self.process);
        sql.run(&format!(
            "INSERT INTO {PERMITS} (name, slot, locked_by, token, expires_at) \
             VALUES ('{name}', {number}, '{process}', 0, {end})"
        ))
        .await?;
        Ok(Some(Claim {
            row: Row::of_permit(name, number, true),
            token: 0,
            slot: None,
            sent,
        }))
    }
}
