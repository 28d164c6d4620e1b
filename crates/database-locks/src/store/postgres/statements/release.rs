//! Freeing a lock: one's own, or by force; and notifying the clients that wait for it.

use tokio_postgres::types::Type;

use crate::store::postgres::connection::{Connection, Param};
use crate::store::postgres::error::Refusal;
use crate::store::postgres::rows::{place, seen};
use crate::store::postgres::{LARGE, Sql, read};
use protocol::{Force, LockName, ReleaseCommand, Released, Token};

/// Let a release not wait for the disk, unless it must survive a crash (`$5`).
macro_rules! durable_if_asked {
    () => {
        "CASE WHEN (current_setting('synchronous_commit') = 'off') = $5
       THEN set_config('synchronous_commit', CASE WHEN $5 THEN 'on' ELSE 'off' END, true) END"
    };
}

/// Free one lock that is still held by exactly this grant.
///
/// `$1` name, `$2` token or NULL, `$3` grant id, `$4` holder, `$5` whether it must survive a crash. One row: it
/// is free now; its place among what was asked, and whether clients wait for it, which are notified. No row: it
/// was not ours, or its row was locked, which a read tells.
///
/// The holder, the token and the times stay, for people to read; the token because the next grant's
/// has to be greater. A crash that forgets a release costs the others a wait of one ttl, and not
/// waiting for the disk halves its price.
pub(crate) const RELEASE_ONE: &str = concat!(
    "
UPDATE {table} f SET
       expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = statement_timestamp()
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND grant_id = $3 AND locked_by = $4 AND ($2 IS NULL OR token = $2)
                AND granted_until = expires_at
                FOR NO KEY UPDATE SKIP LOCKED)
RETURNING 1::bigint, waiting_until > statement_timestamp(),
       ",
    durable_if_asked!(),
    ",
       ",
    ring!("waiting_until > statement_timestamp()")
);

/// The same for many: `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` whether they must
/// survive a crash, for each.
pub(crate) const RELEASE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT l.id, a.place
      FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[])
           WITH ORDINALITY AS a(name, token, grant_id, holder, place),
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name AND grant_id = a.grant_id AND locked_by = a.holder
                       AND (a.token IS NULL OR token = a.token) AND granted_until = expires_at
                       FOR NO KEY UPDATE SKIP LOCKED) l
)
UPDATE {table} f SET
       expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = statement_timestamp()
  FROM picked p
 WHERE f.id = p.id
RETURNING p.place, f.waiting_until > statement_timestamp(),
       ",
    durable_if_asked!(),
    ",
       ",
    ring!("f.waiting_until > statement_timestamp()")
);

pub(crate) async fn release(
    on: &Connection,
    returns: &[ReleaseCommand],
) -> Result<Vec<Released>, Refusal> {
    let durable = returns.iter().any(|what| what.durable);
    let token = |what: &ReleaseCommand| what.token.map(Token::get);
    let rows = match returns {
        [] => return Ok(Vec::new()),
        [what] => {
            let params: [Param<'_>; 5] = [
                (&what.name.as_str(), Type::TEXT),
                (&token(what), Type::INT8),
                (&what.grant.as_str(), Type::TEXT),
                (&&*what.holder, Type::TEXT),
                (&durable, Type::BOOL),
            ];
            on.rows(Sql::ReleaseOne as usize, true, &params).await?
        }
        many => {
            let names: Vec<_> = many.iter().map(|what| what.name.as_str()).collect();
            let tokens: Vec<_> = many.iter().map(token).collect();
            let grants: Vec<_> = many.iter().map(|what| what.grant.as_str()).collect();
            let holders: Vec<_> = many.iter().map(|what| &*what.holder).collect();
            let params: [Param<'_>; 5] = [
                (&names, Type::TEXT_ARRAY),
                (&tokens, Type::INT8_ARRAY),
                (&grants, Type::TEXT_ARRAY),
                (&holders, Type::TEXT_ARRAY),
                (&durable, Type::BOOL),
            ];
            on.rows(Sql::Release as usize, many.len() < LARGE, &params)
                .await?
        }
    };
    let mut released = vec![None; returns.len()];
    for row in &rows {
        released[place(row, returns.len())?] = Some(match row.try_get(1)? {
            Some(true) => Released::Awaited,
            _ => Released::Freed,
        });
    }
    let left = |done: &Option<Released>| done.is_none();
    let unknown: Vec<LockName> = returns
        .iter()
        .zip(&released)
        .filter(|(_, done)| left(done))
        .map(|(what, _)| what.name.clone())
        .collect();
    let rows = match unknown.is_empty() {
        true => Vec::new(),
        false => read(on, &unknown).await?,
    };
    let ours = |what: &ReleaseCommand| rows.iter().any(|row| row.is_of(what));
    let told = |(what, done): (&ReleaseCommand, Option<Released>)| match done {
        Some(done) => done,
        None if ours(what) => Released::Busy,
        None => Released::NotHeld,
    };
    Ok(returns.iter().zip(released).map(told).collect())
}

/// Free a lock whoever has it. `$1` name. A row: whether it was freed, and who had it.
///
/// The holder stays in the row and the token goes up: that is how the holder learns that it was
/// freed by force and not taken over. It is notified, whether there are waiters or not: where it listens it
/// renews at once, and so learns of it at once.
pub(crate) const FORCE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, locked_by, token, grant_id, expires_at, granted_until, acquired_at
      FROM {table}
     WHERE name = $1 AND expires_at > statement_timestamp()
       FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL,
           renewed_at = statement_timestamp(),
           token = GREATEST(l.token + 1, ",
    clock_ms!(),
    ")
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.name, ",
    durable!(),
    "
)
SELECT freed, ",
    seen!(),
    ", (SELECT ",
    ring!("true"),
    " FROM freed f)
  FROM (SELECT true AS freed, locked_by, token, grant_id, expires_at, granted_until, acquired_at
          FROM picked
         UNION ALL
        SELECT false, locked_by, token, grant_id, expires_at, granted_until, acquired_at
          FROM {table}
         WHERE name = $1 AND expires_at > statement_timestamp()
           AND NOT EXISTS (SELECT FROM picked)) l"
);

pub(crate) async fn force(on: &Connection, name: &LockName) -> Result<Force, Refusal> {
    let params: [Param<'_>; 1] = [(&name.as_str(), Type::TEXT)];
    let rows = on.rows(Sql::Force as usize, true, &params).await?;
    Ok(match rows.first() {
        None => Force::WasFree,
        Some(row) if row.try_get(0)? => Force::Freed(seen(row, 1)?.holder()),
        Some(_) => Force::Busy,
    })
}
