//! Freeing a lock: one's own, or by force; and waking those who wait for it.

use tokio_postgres::types::Type;

use super::super::{Force, Released, Return};
use super::connection::{Connection, Param};
use super::refusal::Refusal;
use super::rows::{place, seen};
use super::{LARGE, Sql};
use crate::name::LockName;
use crate::token::Token;

/// Free one lock that is still held by exactly this grant.
///
/// `$1` name, `$2` token or NULL, `$3` grant id, `$4` holder, `$5` whether it must survive a crash, `$6`
/// whether to wake nobody. One row: whether it is free now, or is still ours and locked by somebody, and
/// whether others wait for it. No row: not ours.
///
/// Nobody is woken where somebody of this process takes it next, with the statement behind this one: he
/// would be woken in vain. The process that releases so owes it to the others not to go on with that for
/// long, and to wake them (the statement "wake") where nobody takes it after all.
///
/// The holder, the token and the times stay, for people to read; the token because the next grant's
/// has to be greater. A crash that forgets a release costs the others a wait of one ttl, and not
/// waiting for the disk halves its price.
pub(super) const RELEASE_ONE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE WHEN NOT $5 THEN set_config('synchronous_commit', 'off', true)
                WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND grant_id = $3 AND locked_by = $4 AND ($2 IS NULL OR token = $2)
       AND granted_until = expires_at
       FOR NO KEY UPDATE SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.name, l.waiting_until > p.now AS awaited
)
SELECT 1::bigint, true, f.awaited, ",
    ring!("f.awaited AND NOT $6"),
    " FROM freed f
 UNION ALL
SELECT 1::bigint, false, NULL, NULL
  FROM {table}
 WHERE name = $1 AND grant_id = $3 AND locked_by = $4 AND ($2 IS NULL OR token = $2)
       AND granted_until = expires_at
   AND NOT EXISTS (SELECT FROM freed)"
);

/// The same for many: `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` whether they must
/// survive a crash, `$6` whether to wake nobody, for each.
pub(super) const RELEASE: &str = concat!(
    "
WITH durable AS MATERIALIZED (
    SELECT CASE WHEN NOT $5 THEN set_config('synchronous_commit', 'off', true)
                WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'on', true) END
), asked AS MATERIALIZED (
    SELECT a.*
      FROM durable, unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $6::boolean[])
           WITH ORDINALITY AS a(name, token, grant_id, holder, quietly, place)
), picked AS MATERIALIZED (
    SELECT l.id, a.place, a.quietly, clock_timestamp() AS now
      FROM asked a JOIN {table} l ON l.name = a.name
     WHERE l.grant_id = a.grant_id AND l.locked_by = a.holder
       AND (a.token IS NULL OR l.token = a.token) AND l.granted_until = l.expires_at
     ORDER BY l.id
       FOR NO KEY UPDATE OF l SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING p.place, p.quietly, l.name, l.waiting_until > p.now AS awaited
)
SELECT place, true, f.awaited, ",
    ring!("f.awaited AND NOT f.quietly"),
    " FROM freed f
 UNION ALL
SELECT a.place, false, NULL, NULL
  FROM asked a JOIN {table} l ON l.name = a.name
 WHERE l.grant_id = a.grant_id AND l.locked_by = a.holder
   AND (a.token IS NULL OR l.token = a.token) AND l.granted_until = l.expires_at
   AND a.place NOT IN (SELECT place FROM freed)"
);

pub(super) async fn release(on: &Connection, returns: &[Return]) -> Result<Vec<Released>, Refusal> {
    let durable = returns.iter().any(|what| what.durable);
    let token = |what: &Return| what.token.map(Token::get);
    let rows = match returns {
        [] => return Ok(Vec::new()),
        [what] => {
            let params: [Param<'_>; 6] = [
                (&what.name.as_str(), Type::TEXT),
                (&token(what), Type::INT8),
                (&what.grant.as_str(), Type::TEXT),
                (&&*what.holder, Type::TEXT),
                (&durable, Type::BOOL),
                (&what.quietly, Type::BOOL),
            ];
            on.rows(Sql::ReleaseOne as usize, true, &params).await?
        }
        many => {
            let names: Vec<_> = many.iter().map(|what| what.name.as_str()).collect();
            let tokens: Vec<_> = many.iter().map(token).collect();
            let grants: Vec<_> = many.iter().map(|what| what.grant.as_str()).collect();
            let holders: Vec<_> = many.iter().map(|what| &*what.holder).collect();
            let quietly: Vec<_> = many.iter().map(|what| what.quietly).collect();
            let params: [Param<'_>; 6] = [
                (&names, Type::TEXT_ARRAY),
                (&tokens, Type::INT8_ARRAY),
                (&grants, Type::TEXT_ARRAY),
                (&holders, Type::TEXT_ARRAY),
                (&durable, Type::BOOL),
                (&quietly, Type::BOOL_ARRAY),
            ];
            on.rows(Sql::Release as usize, many.len() < LARGE, &params)
                .await?
        }
    };
    let mut released = vec![Released::NotOurs; returns.len()];
    for row in &rows {
        let at = place(row, returns.len())?;
        let awaited = row.try_get::<_, Option<bool>>(2)? == Some(true);
        released[at] = match row.try_get(1)? {
            true if awaited => Released::Awaited,
            true => Released::Freed,
            false => Released::Busy,
        };
    }
    Ok(released)
}

/// Wake those who wait for `$1`.
pub(super) const RING: &str = "SELECT pg_notify('database_locks_' || '{table}'::regclass::oid, $1)";

/// Free a lock whoever has it. `$1` name. A row: whether it was freed, and who had it.
///
/// The holder stays in the row and the token goes up: that is how the holder learns that it was
/// freed by force and not taken over. It is notified, whether there are waiters or not: where it listens it
/// renews at once, and so learns of it at once.
pub(super) const FORCE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END,
           locked_by, token, grant_id, expires_at, granted_until, acquired_at
      FROM {table}
     WHERE name = $1 AND expires_at > clock_timestamp()
       FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = p.now,
           token = GREATEST(l.token + 1, (extract(epoch FROM p.now) * 1000)::bigint)
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.name
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
         WHERE name = $1 AND expires_at > clock_timestamp()
           AND NOT EXISTS (SELECT FROM picked)) l"
);

pub(super) async fn force(on: &Connection, name: &LockName) -> Result<Force, Refusal> {
    let params: [Param<'_>; 1] = [(&name.as_str(), Type::TEXT)];
    let rows = on.rows(Sql::Force as usize, true, &params).await?;
    Ok(match rows.first() {
        None => Force::WasFree,
        Some(row) if row.try_get(0)? => Force::Freed(seen(row, 1)?.occupant()),
        Some(_) => Force::Busy,
    })
}
