//! Releasing one lock, by its holder or by force.

use mysql_async::params;

use crate::store::api::{StoreError, rest_micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use protocol::{Force, LockName, LockRow, ReleaseCommand, Released, Slot, Token};

impl Session {
    /// Release what is still held by exactly this grant, with any token where it is not known. A
    /// `:rest` of null frees the lock at once.
    pub(crate) const RELEASE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name{? AND slot BETWEEN :first AND :last?}
           AND grant_id = :grant AND token = IFNULL(:token, token)
                   AND locked_by = :holder COLLATE {collation} AND granted_until = expires_at
                   AND {writable}
                 LIMIT 1{?00000?} FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = UTC_TIMESTAMP(6) + INTERVAL :rest MICROSECOND,
               l.granted_until = UTC_TIMESTAMP(6) + INTERVAL :rest MICROSECOND,
               l.grant_id = NULL, l.renewed_at = UTC_TIMESTAMP(6)";

    /// [`RELEASE`](Self::RELEASE) on MariaDB; see [`ACQUIRE_ON_MARIADB`](Self::ACQUIRE_ON_MARIADB).
    pub(crate) const RELEASE_ON_MARIADB: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET expires_at = UTC_TIMESTAMP(6) + INTERVAL :rest MICROSECOND,
               granted_until = UTC_TIMESTAMP(6) + INTERVAL :rest MICROSECOND,
               grant_id = NULL, renewed_at = UTC_TIMESTAMP(6)
         WHERE name = :name{? AND slot BETWEEN :first AND :last?}
           AND grant_id = :grant AND token = IFNULL(:token, token)
           AND locked_by = :holder COLLATE {collation} AND granted_until = expires_at
           AND {writable}";

    pub(crate) async fn release_one(
        &mut self,
        command: &ReleaseCommand,
    ) -> Result<Released, StoreError> {
        let (of, (first, last)) = (Rows::of(command.slot), command.slot.range());
        let params = params! {
            "slot" => first, "first" => first, "last" => last,
            "name" => command.name.as_str(), "grant" => command.grant.as_str(),
            "token" => command.token.map(Token::get), "holder" => &*command.holder,
            "rest" => rest_micros(command),
        };
        let statement = match command.slot {
            Slot::Shared(_) => Self::RELEASE_SHARED,
            _ if self.mariadb => Self::RELEASE_ON_MARIADB,
            _ => Self::RELEASE,
        };
        match self.attempt(of, statement, params).await? {
            None => return Ok(Released::Busy),
            Some(done) if done.rows > 0 => return Ok(Released::Freed),
            Some(_) => {}
        }
        let rows = self.read_latest(of, &[&command.name]).await?;
        Ok(
            match rows.iter().any(|row| row.contains_grant_of(command)) {
                true => Released::Busy,
                false => Released::NotHeld,
            },
        )
    }

    /// Release a lock by force, as long as the row still has the holder and token that were read.
    ///
    /// The token rises, so the holder learns of it at its next renewal; `locked_by` stays.
    pub(crate) const FORCE: &str = "
        UPDATE (SELECT id FROM {table}
                 WHERE name = :name{? AND slot = :slot?} AND {live} AND {writable}
                   AND token = :token AND locked_by <=> :holder COLLATE {collation}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.token = GREATEST(l.token + 1, {clock} DIV 1000),
               l.expires_at = NULL, l.granted_until = NULL, l.grant_id = NULL,
               l.renewed_at = UTC_TIMESTAMP(6)";

    pub(crate) async fn force(&mut self, name: &LockName, slot: Slot) -> Result<Force, StoreError> {
        let row = self.latest_row(name, slot).await?;
        let Some(row) = row.filter(LockRow::is_taken) else {
            return Ok(Force::WasFree);
        };
        let params = params! {
            "name" => name.as_str(), "slot" => slot.range().0, "token" => row.token, "holder" => row.holder.as_deref(),
        };
        let freed = self.changes(Rows::of(slot), Self::FORCE, params).await?;
        Ok(match freed {
            true => Force::Freed(row.holder()),
            false => Force::Busy,
        })
    }
}
