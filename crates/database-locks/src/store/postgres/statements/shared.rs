//! Shared grants: many holders at once, and never one beside an exclusive grant.
//!
//! Each shared grant is a row of the table of permits, with a slot of −2 or less. Neither side locks
//! the other's rows. Each first writes its own row, commits, and *in a later statement* reads the
//! other's: a shared grant counts only if the lock's own row is still free then, and an exclusive
//! one only if no row of a shared grant is left. Whichever committed second sees the other.
//!
//! The lock's own row has `shared` set before the first shared grant, so that an exclusive acquire of
//! a lock that was never shared need not look for shared grants.

use tokio_postgres::Row;

use super::read::read;
use super::renew::renew;
use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::{Kind as ErrorKind, ServerError};
use crate::store::postgres::rows::state;
use protocol::{
    AcquireCommand, Grant, GrantId, Holder, LockName, LockRow, Outcome, ReleaseCommand, Released,
    Sharing, Slot, Token, Ttl, reader_in_the_way,
};

/// Insert the row of a shared grant if the lock is free: parameters as for
/// [`ACQUIRE_ONE`](super::acquire::ACQUIRE_ONE), with `$6` the slot and `$7` the exclusive grant that
/// it replaces, or NULL. One row: inserted. It counts only after [`READ_SHARED`].
///
/// The lock's own row is not locked, so it may be acquired meanwhile. A lease that has run out does
/// not count as free here: [`END_LEASE`] comes first, which an open fence of the expired holder keeps
/// out.
pub(crate) const ACQUIRE_SHARED: Statement = Statement {
    name: "acquire, shared",
    text: "
INSERT INTO {table} (name, slot, shared, locked_by, grant_id, metadata, token,
       expires_at, granted_until, acquired_at, renewed_at)
SELECT name, $6, true, $3, $2, $5, token + 1,
       statement_timestamp() + $4 * interval '1 microsecond',
       statement_timestamp() + $4 * interval '1 microsecond',
       statement_timestamp(), statement_timestamp()
  FROM {locks}
 WHERE name = $1 AND shared AND (expires_at IS NULL OR grant_id = $7)
   AND set_config('lock_timeout', '50ms', true) IS NOT NULL
    ON CONFLICT (name, slot) DO NOTHING
RETURNING {durable}",
};

/// Read the lock's own row, and the token of this shared grant, or NULL: `$1` name, `$2` grant id,
/// `$3` slot. No row: the lock has none.
pub(crate) const READ_SHARED: Statement = Statement {
    name: "check a shared grant",
    text: "
SELECT l.name::text, {state}, (SELECT p.token FROM {table} p
             WHERE p.name = $1 AND p.slot = $3 AND p.grant_id = $2
               AND p.expires_at > statement_timestamp()) AS own
  FROM {locks} l
 WHERE l.name = $1",
};

/// Insert a free row, marked as shared, for a lock that has none: `$1` name. It may wait for another
/// client, for 50 ms.
pub(crate) const MAKE_SHARED: Statement = Statement {
    name: "make a row, shared",
    text: "
INSERT INTO {locks} (name, token, shared, renewed_at)
SELECT $1, {now_ms}, true, statement_timestamp()
 WHERE set_config('lock_timeout', '50ms', true) IS NOT NULL
    ON CONFLICT (name) DO NOTHING",
};

/// Mark a lock as shared: `$1` name. The first shared grant follows, so the row is locked as for a
/// grant: a fenced transaction of a holder that has released the lock may be open.
pub(crate) const MARK_SHARED: Statement = Statement {
    name: "mark a lock as shared",
    text: "
UPDATE {locks} SET shared = true
 WHERE id = (SELECT id FROM {locks} WHERE name = $1 AND NOT shared FOR UPDATE SKIP LOCKED)
RETURNING {durable}",
};

/// End a lease or a rest that has run out: `$1` name. Only then can a shared grant begin, so that a
/// fenced transaction of the expired holder keeps shared grants out as it does exclusive ones. The
/// grant id stays, which tells the holder that its lease has expired.
pub(crate) const END_LEASE: Statement = Statement {
    name: "end a lease that has run out",
    text: "
UPDATE {locks} SET expires_at = NULL, granted_until = NULL, renewed_at = statement_timestamp()
 WHERE id = (SELECT id FROM {locks}
              WHERE name = $1 AND expires_at <= statement_timestamp() AND granted_until = expires_at
                FOR UPDATE SKIP LOCKED)
RETURNING {durable}",
};

/// Release a shared grant: `$1` name, `$2` slot, `$3` grant id, `$4` holder, `$5` token or NULL. One
/// row: released.
pub(crate) const RELEASE_SHARED: Statement = Statement {
    name: "release, shared",
    text: "
DELETE FROM {table}
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND slot = $2 AND grant_id = $3 AND locked_by = $4
                AND ($5 IS NULL OR token = $5)
                FOR UPDATE SKIP LOCKED)
RETURNING CASE current_setting('synchronous_commit')
       WHEN 'on' THEN set_config('synchronous_commit', 'off', true) END",
};

/// The shared grants of a lock: `$1` name. Each row is one, a thousand at most, the one that ends
/// first in front. One that was released by force does not count: no fence was open, and its row
/// tells the holder.
pub(crate) const READERS: Statement = Statement {
    name: "read the shared grants",
    text: "
SELECT l.slot, l.name::text, {state}
  FROM {table} l
 WHERE l.name = $1 AND l.slot <= -2 AND l.expires_at IS NOT NULL
 ORDER BY l.expires_at LIMIT 1000",
};

/// Delete the shared grants of a lock that were released by force or whose leases have run out: `$1`
/// name. The row of one with an open fence is locked, and stays.
pub(crate) const RETIRE_READERS: Statement = Statement {
    name: "delete dead shared grants",
    text: "
WITH picked AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE name = $1 AND slot <= -2
       AND (expires_at IS NULL OR expires_at <= statement_timestamp())
     ORDER BY id
       FOR UPDATE SKIP LOCKED
)
DELETE FROM {table} l USING picked p WHERE l.id = p.id",
};

/// Acquire a lock for one more shared grant. `beside`: the exclusive grant that it replaces.
pub(super) async fn acquire_shared(
    session: &Session,
    command: &AcquireCommand,
    beside: Option<GrantId>,
) -> Result<Outcome, ServerError> {
    // The row of the lock may have to be made, or marked, or its lease ended, and then to be tried
    // again.
    for _ in 0..3 {
        let inserted = insert(session, command, beside).await?;
        let Some((row, own)) = check(session, command).await? else {
            make(session, &command.name).await?;
            continue;
        };
        let sharing = row.sharing(beside, None);
        if let Some(token) = own {
            if sharing == Sharing::Open && token.get() == row.token + 1 {
                return granted(session, command, token, inserted).await;
            }
            // Another client acquired the lock in between, and may have released it.
            let release = ReleaseCommand::of(&grant(command, token), Ttl::Finite(command.length));
            if release_shared(session, &release).await? == Released::Busy {
                // Repeated, the request finds its own row again.
                return Err(ServerError::new(
                    ErrorKind::Contention,
                    "its own row is locked",
                ));
            }
        }
        let name = command.name.as_str();
        let ready = match sharing {
            Sharing::Held(holder) => return Ok(Outcome::Held(holder)),
            Sharing::NotMarked => change(session, &MARK_SHARED, name).await?,
            Sharing::Ended => change(session, &END_LEASE, name).await?,
            Sharing::Open => true,
        };
        if !ready {
            break;
        }
    }
    // Another transaction has the row locked.
    Ok(Outcome::Busy)
}

fn grant(command: &AcquireCommand, token: Token) -> Grant {
    command.granted(Slot::of_shared(command.grant), token, None)
}

/// Whether the row was inserted now.
async fn insert(
    session: &Session,
    command: &AcquireCommand,
    beside: Option<GrantId>,
) -> Result<bool, ServerError> {
    let beside = beside.as_ref().map(GrantId::as_str);
    let params: [&dyn Param; 7] = [
        &command.name.as_str(),
        &command.grant.as_str(),
        &&*command.holder,
        &micros(command.length),
        &&*command.metadata,
        &Slot::of_shared(command.grant).column(),
        &beside,
    ];
    let inserted = session.write(Rows::Permits, &ACQUIRE_SHARED, 1, &params);
    match inserted.await {
        Err(error) if error.kind == ErrorKind::Contention => Ok(false),
        inserted => Ok(!inserted?.is_empty()),
    }
}

/// The lock's own row, and the token of the shared grant if it has a row.
async fn check(
    session: &Session,
    command: &AcquireCommand,
) -> Result<Option<(LockRow, Option<Token>)>, ServerError> {
    let params: [&dyn Param; 3] = [
        &command.name.as_str(),
        &command.grant.as_str(),
        &Slot::of_shared(command.grant).column(),
    ];
    let rows = session
        .read(Rows::Permits, &READ_SHARED, 1, &params)
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let own = row.try_get::<_, Option<i64>>("own")?.map(Token::from_db);
    let lock = LockRow {
        name: row.try_get("name")?,
        ..state(row)?
    };
    Ok(Some((lock, own)))
}

async fn make(session: &Session, name: &LockName) -> Result<(), ServerError> {
    let params: [&dyn Param; 1] = [&name.as_str()];
    match session.write(Rows::Permits, &MAKE_SHARED, 1, &params).await {
        // Another client is inserting it.
        Err(error) if error.kind == ErrorKind::Contention => Ok(()),
        made => made.map(drop),
    }
}

/// Whether the statement changed the row.
async fn change(session: &Session, statement: &Statement, name: &str) -> Result<bool, ServerError> {
    let changed = session.write(Rows::Permits, statement, 1, &[&name]).await?;
    Ok(!changed.is_empty())
}

async fn granted(
    session: &Session,
    command: &AcquireCommand,
    token: Token,
    inserted: bool,
) -> Result<Outcome, ServerError> {
    // The reply to an earlier request was lost, and part of its lease has passed.
    if !inserted {
        let leases = [(grant(command, token), Ttl::Finite(command.length))];
        let renewed = renew(session, &leases).await?;
        if !renewed.first().is_some_and(protocol::Renewal::is_renewed) {
            return Ok(Outcome::Busy);
        }
    }
    let granted = Outcome::granted(Slot::of_shared(command.grant), token, command.length);
    Ok(granted.confirmed_by(session.primary))
}

pub(super) async fn release_shared(
    session: &Session,
    command: &ReleaseCommand,
) -> Result<Released, ServerError> {
    let params: [&dyn Param; 5] = [
        &command.name.as_str(),
        &command.slot.column(),
        &command.grant.as_str(),
        &&*command.holder,
        &command.token.map(Token::get),
    ];
    let done = session.write(Rows::Permits, &RELEASE_SHARED, 1, &params);
    if !done.await?.is_empty() {
        return Ok(Released::Freed);
    }
    let rows = read(session, Rows::Permits, std::slice::from_ref(&command.name)).await?;
    let ours = |row: &LockRow| row.slot == command.slot && row.contains_grant_of(command);
    Ok(match rows.iter().any(ours) {
        true => Released::Busy,
        false => Released::NotHeld,
    })
}

/// Delete the dead shared grants of a lock; the holder of one that is left.
pub(crate) async fn readers(
    session: &Session,
    name: &LockName,
) -> Result<Option<Holder>, ServerError> {
    let mut rows = read_readers(session, name).await?;
    if rows.iter().any(|row| !row.is_held()) {
        session
            .write(Rows::Permits, &RETIRE_READERS, 1, &[&name.as_str()])
            .await?;
        rows = read_readers(session, name).await?;
    }
    Ok(reader_in_the_way(&rows))
}

async fn read_readers(session: &Session, name: &LockName) -> Result<Vec<LockRow>, ServerError> {
    let params: [&dyn Param; 1] = [&name.as_str()];
    let rows = session.read(Rows::Permits, &READERS, 1, &params).await?;
    let reader = |row: &Row| {
        Ok(LockRow {
            name: row.try_get("name")?,
            slot: Slot::from_db(row.try_get("slot")?).unwrap_or_default(),
            ..state(row)?
        })
    };
    rows.iter().map(reader).collect()
}
