//! Shared grants: many holders at once, and never one beside an exclusive grant.
//!
//! Each shared grant is a row of the table of permits, with a slot of −2 or less. Neither side locks
//! the other's rows. Each first writes its own row, commits, and *in a later statement* reads the
//! other's: a shared grant counts only if the lock's own row is still free then, and an exclusive
//! one only if no row of a shared grant is left. Whichever committed second sees the other; on a
//! cluster the reads wait until the node has applied the earlier commits of the others.
//!
//! The lock's own row has `shared` set before the first shared grant, so that an exclusive acquire of
//! a lock that was never shared need not look for shared grants.

use mysql_async::params;

use crate::store::api::{StoreError, micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::cluster::with_version;
use crate::store::mysql::connection::session::Session;
use protocol::{
    AcquireCommand, Grant, GrantId, Holder, LockName, LockRow, Outcome, ReleaseCommand, Released,
    Sharing, Slot, Token, Ttl, Version, reader_in_the_way,
};

impl Session {
    /// Insert the row of a shared grant if the lock is free, or held by the exclusive grant `:beside`
    /// that it replaces. It counts only after [`READ_SHARED`](Self::READ_SHARED).
    ///
    /// The lock's own row is not locked, so it may be acquired meanwhile. A lease that has run out
    /// does not count as free here: [`END_LEASE`](Self::END_LEASE) comes first, which an open fence
    /// of the expired holder keeps out.
    pub(crate) const ACQUIRE_SHARED: &str = "
        INSERT INTO {permits}
               (name, slot, shared, locked_by, grant_id, expires_at, granted_until,
                token, acquired_at, renewed_at, metadata)
        SELECT name, :slot, 1, :holder, :grant,
               UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
               token + 1, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), :metadata
          FROM {locks}
         WHERE name = :name AND shared AND (expires_at IS NULL OR grant_id = :beside)
           AND {writable}";

    /// Read the lock's own row, and the token of this shared grant.
    pub(crate) const READ_SHARED: &str = read!(
        ",
               (SELECT p.token FROM {permits} p
                 WHERE p.name = :name AND p.slot = :slot AND p.grant_id = :grant
                   AND p.expires_at IS NOT NULL) AS own",
        "{locks} l WHERE l.name = :name"
    );

    /// Insert a free row, marked as shared.
    pub(crate) const MAKE_SHARED: &str = "
        INSERT INTO {locks} (name, token, shared, renewed_at)
        SELECT :name, {clock} DIV 1000, 1, UTC_TIMESTAMP(6)
          FROM (SELECT 1) one WHERE {writable}";

    /// Mark a lock as shared.
    pub(crate) const MARK_SHARED: &str = "
        UPDATE (SELECT id FROM {locks} WHERE name = :name AND NOT shared AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {locks} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.shared = 1";

    /// End a lease or a rest that has run out. Only then can a shared grant begin, so that a fenced
    /// transaction of the expired holder keeps shared grants out as it does exclusive ones. The
    /// grant id stays, which tells the holder that its lease has expired.
    pub(crate) const END_LEASE: &str = "
        UPDATE (SELECT id FROM {locks}
                 WHERE name = :name AND ({ended}) AND granted_until = expires_at AND {writable}
                 LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {locks} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = NULL, l.granted_until = NULL, l.renewed_at = UTC_TIMESTAMP(6)";

    /// Release a shared grant, with any token where it is not known.
    pub(crate) const RELEASE_SHARED: &str = "
        DELETE l FROM (SELECT id FROM {permits}
                        WHERE name = :name AND slot = :slot AND grant_id = :grant
                          AND token = IFNULL(:token, token)
                          AND locked_by = :holder COLLATE {collation} AND {writable}
                        LIMIT 1 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {permits} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    /// The shared grants of a lock, a thousand at most, the one that ends first in front. One that
    /// was released by force does not count: no fence was open, and its row tells the holder.
    pub(crate) const READERS: &str = read!(
        "{permits} l
         WHERE l.name = :name AND l.slot <= -2 AND l.expires_at IS NOT NULL
         ORDER BY l.expires_at LIMIT 1000"
    );

    /// Delete the shared grants of a lock that were released by force or whose leases have run out.
    /// The row of one with an open fence is locked, and stays.
    pub(crate) const RETIRE_READERS: &str = "
        DELETE l FROM (SELECT id FROM {permits} FORCE INDEX (name)
                        WHERE name = :name AND slot BETWEEN :first AND :last
                          AND (expires_at IS NULL OR {ended}) AND {writable}
                        LIMIT 1000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {permits} l FORCE INDEX (PRIMARY) ON l.id = q.id";

    /// Acquire a lock for one more shared grant. `beside`: the exclusive grant that it replaces.
    pub(crate) async fn acquire_shared(
        &mut self,
        command: &AcquireCommand,
        beside: Option<GrantId>,
    ) -> Result<Outcome, StoreError> {
        // The row of the lock may have to be made, or marked, or its lease ended, and then to be
        // tried again.
        for _ in 0..3 {
            let inserted = self.insert_shared(command, beside).await?;
            let Some((row, own)) = self.check_shared(command).await? else {
                self.make_shared(&command.name).await?;
                continue;
            };
            let sharing = row.sharing(beside, command.expired_version.as_ref());
            if let Some(token) = own {
                if sharing == Sharing::Open && token.get() == row.token + 1 {
                    return self.granted_shared(command, token, inserted).await;
                }
                // Another client acquired the lock in between, and may have released it.
                let grant = shared_grant(command, token);
                let release = ReleaseCommand::of(&grant, Ttl::Finite(command.length));
                if self.release_one(&release).await? == Released::Busy {
                    // Repeated, the request finds its own row again.
                    return Err(StoreError::Contention("its own row is locked".into()));
                }
            }
            let changed = match sharing {
                Sharing::Held(holder) => return Ok(Outcome::Held(holder)),
                Sharing::NotMarked => self.change(Self::MARK_SHARED, command).await?,
                Sharing::Ended => self.change(Self::END_LEASE, command).await?,
                Sharing::Open => true,
            };
            if !changed {
                break;
            }
        }
        // Another transaction has the row locked.
        Ok(Outcome::Busy)
    }

    /// Whether the row was inserted now.
    async fn insert_shared(
        &mut self,
        command: &AcquireCommand,
        beside: Option<GrantId>,
    ) -> Result<bool, StoreError> {
        let params = params! {
            "name" => command.name.as_str(), "holder" => &*command.holder,
            "slot" => Slot::of_shared(command.grant).column(),
            "grant" => command.grant.as_str(), "length" => micros(command.length),
            "metadata" => &*command.metadata,
            "beside" => beside.as_ref().map(GrantId::as_str),
        };
        let statement = Self::ACQUIRE_SHARED;
        self.changes(Rows::Permits, statement, params).await
    }

    /// The lock's own row, and the token of the shared grant if it has a row.
    async fn check_shared(
        &mut self,
        command: &AcquireCommand,
    ) -> Result<Option<(LockRow, Option<Token>)>, StoreError> {
        let params = params! {
            "name" => command.name.as_str(), "grant" => command.grant.as_str(),
            "slot" => Slot::of_shared(command.grant).column(),
        };
        self.catch_up_to_decide().await?;
        let rows = self.query(Rows::Locks, Self::READ_SHARED, params).await;
        self.stop_catching_up().await?;
        let rows = rows?;
        let own = rows.first().and_then(|row| row.get_opt("own")?.ok());
        let own: Option<i64> = own.flatten();
        let row = self.lock_rows(Rows::Locks, rows)?.pop();
        Ok(row.map(|row| (row, own.map(Token::from_db))))
    }

    async fn make_shared(&mut self, name: &LockName) -> Result<(), StoreError> {
        let params = || params! { "name" => name.as_str() };
        if !self.mariadb {
            let probed = self.probe(Rows::Locks, Self::PROBE, params()).await?;
            // Another client is inserting it.
            if probed.is_none() {
                return Ok(());
            }
        }
        let made = self.attempt(Rows::Locks, Self::MAKE_SHARED, params());
        made.await.map(drop)
    }

    /// Whether the statement changed the lock's own row.
    async fn change(
        &mut self,
        statement: &'static str,
        command: &AcquireCommand,
    ) -> Result<bool, StoreError> {
        let name = params! { "name" => command.name.as_str() };
        let params = with_version(name, command.expired_version.as_ref());
        self.changes(Rows::Permits, statement, params).await
    }

    async fn granted_shared(
        &mut self,
        command: &AcquireCommand,
        token: Token,
        inserted: bool,
    ) -> Result<Outcome, StoreError> {
        // The reply to an earlier request was lost, and part of its lease has passed.
        if !inserted {
            let lease = (shared_grant(command, token), command.length.into());
            if !self.renews(&[lease]).await? {
                return Ok(Outcome::Busy);
            }
        }
        let slot = Slot::of_shared(command.grant);
        Ok(Outcome::granted(slot, token, command.length))
    }

    /// Delete the dead shared grants of a lock, among them those whose expiry was observed; the
    /// holder of one that is left.
    pub(crate) async fn readers(
        &mut self,
        name: &LockName,
        expired: &[(Slot, Version)],
    ) -> Result<Option<Holder>, StoreError> {
        let rows = self.shared_rows(name).await?;
        let mut retired = 0;
        match self.cluster {
            None if rows.iter().any(|row| !row.is_held()) => {
                retired += self.retire(name, (i32::MIN, -2), None).await?;
            }
            None => {}
            Some(_) => {
                for row in &rows {
                    let seen = expired.iter().find(|(slot, _)| *slot == row.slot);
                    let seen = seen.map(|(_, version)| version);
                    if seen.is_some() {
                        retired += self.retire(name, row.slot.range(), seen).await?;
                    }
                }
            }
        }
        Ok(match retired {
            0 => reader_in_the_way(&rows),
            _ => reader_in_the_way(&self.shared_rows(name).await?),
        })
    }

    async fn shared_rows(&mut self, name: &LockName) -> Result<Vec<LockRow>, StoreError> {
        let params = params! { "name" => name.as_str() };
        self.catch_up_to_decide().await?;
        let rows = self.query(Rows::Permits, Self::READERS, params).await;
        self.stop_catching_up().await?;
        self.lock_rows(Rows::Permits, rows?)
    }

    /// The number of rows that were deleted.
    async fn retire(
        &mut self,
        name: &LockName,
        (first, last): (i32, i32),
        seen: Option<&Version>,
    ) -> Result<u64, StoreError> {
        let these = params! { "name" => name.as_str(), "first" => first, "last" => last };
        let params = with_version(these, seen);
        let done = self.attempt(Rows::Permits, Self::RETIRE_READERS, params);
        Ok(done.await?.map_or(0, |done| done.rows))
    }
}

/// The grant that such a command makes.
fn shared_grant(command: &AcquireCommand, token: Token) -> Grant {
    command.granted(Slot::of_shared(command.grant), token, None)
}
