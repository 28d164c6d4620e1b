//! Taking locks: those whose rows are there, and those that have none yet.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::{Ask, Outcome};
use super::connection::{Connection, Param};
use super::identity;
use super::refusal::{Kind, Refusal};
use super::rows::{micros, place, seen};
use super::{LARGE, Sql};
use crate::token::Token;

/// Take one lock that is free or whose lease has run out.
///
/// `$1` name, `$2` grant id, `$3` holder, `$4` length in microseconds, `$5` metadata. One row: granted,
/// with its token; or what stands in the way, as it was when the statement began. No row: there is
/// no lock of that name yet.
///
/// A lock that is held is not picked, so losing writes nothing, not even a transaction id.
///
/// A grant must survive a crash, or two could be made. So where the role's `synchronous_commit` is off
/// it is switched on, for this transaction; a stricter setting (`remote_apply`) stays.
///
/// The token is the greater of the old one + 1 and the database's clock in milliseconds: so it exceeds
/// those of a row that was deleted, and of one that a backup or a copied table has put back.
pub(super) const ACQUIRE_ONE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND (expires_at IS NULL OR expires_at <= clock_timestamp())
       FOR UPDATE SKIP LOCKED
), granted AS (
    UPDATE {table} l SET
           locked_by = $3, grant_id = $2, metadata = $5,
           token = GREATEST(l.token + 1, (extract(epoch FROM p.now) * 1000)::bigint),
           expires_at = p.now + $4 * interval '1 microsecond',
           granted_until = p.now + $4 * interval '1 microsecond',
           acquired_at = p.now, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.token
)
SELECT 1::bigint, true, NULL::text, token, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint
  FROM granted
 UNION ALL
SELECT 1::bigint, false, ",
    seen!(),
    "
  FROM {table} l
 WHERE name = $1 AND NOT EXISTS (SELECT FROM granted)"
);

/// The same for many: `$1` names, `$2` grant ids, `$3` holders, `$4` lengths, `$5` metadata.
///
/// Asked for twice, a lock is granted once: an UPDATE writes a row only once. Rows are told apart by
/// their place among what was asked; `NOT IN`, because it is looked up in a hash table whatever
/// number of rows was expected when the statement was prepared.
pub(super) const ACQUIRE: &str = concat!(
    "
WITH durable AS MATERIALIZED (
    SELECT CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS MATERIALIZED (
    SELECT a.*
      FROM durable, unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
           WITH ORDINALITY AS a(name, grant_id, holder, length, metadata, place)
), picked AS MATERIALIZED (
    SELECT l.id, a.*, clock_timestamp() AS now
      FROM asked a JOIN {table} l ON l.name = a.name
     WHERE l.expires_at IS NULL OR l.expires_at <= clock_timestamp()
     ORDER BY l.id
       FOR UPDATE OF l SKIP LOCKED
), granted AS (
    UPDATE {table} l SET
           locked_by = p.holder, grant_id = p.grant_id, metadata = p.metadata,
           token = GREATEST(l.token + 1, (extract(epoch FROM p.now) * 1000)::bigint),
           expires_at = p.now + p.length * interval '1 microsecond',
           granted_until = p.now + p.length * interval '1 microsecond',
           acquired_at = p.now, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING p.place, l.token
)
SELECT place, true, NULL::text, token, NULL::text, NULL::bigint, NULL::boolean, true, NULL::bigint
  FROM granted
 UNION ALL
SELECT a.place, false, ",
    seen!(),
    "
  FROM asked a JOIN {table} l ON l.name = a.name
 WHERE a.place NOT IN (SELECT place FROM granted)"
);

/// Make the rows of locks that have none, granted at once; parameters as for [`ACQUIRE`]. Rows come
/// back for those that were granted.
///
/// This is the one statement that may have to wait: for somebody who has just inserted the same name
/// and not yet committed. It gives up after 50 ms, since the renewals on this connection wait behind
/// it.
pub(super) const INSERT: &str = "
WITH settings AS MATERIALIZED (
    SELECT set_config('lock_timeout', '50ms', true),
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
)
INSERT INTO {table} (name, locked_by, expires_at, token, grant_id, granted_until, acquired_at,
                     renewed_at, metadata)
SELECT a.name, a.holder, a.now + a.length * interval '1 microsecond',
       (extract(epoch FROM a.now) * 1000)::bigint,
       a.grant_id, a.now + a.length * interval '1 microsecond', a.now, a.now, a.metadata
  FROM (SELECT u.*, clock_timestamp() AS now
          FROM settings, unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
               AS u(name, grant_id, holder, length, metadata)
         ORDER BY u.name COLLATE \"C\") a
    ON CONFLICT (name) DO NOTHING
RETURNING grant_id::text, token";

pub(super) async fn acquire(on: &Connection, asks: &[Ask]) -> Result<Vec<Outcome>, Refusal> {
    let rows = match asks {
        [] => return Ok(Vec::new()),
        [ask] => {
            let params: [Param<'_>; 5] = [
                (&ask.name.as_str(), Type::TEXT),
                (&ask.grant.as_str(), Type::TEXT),
                (&&*ask.holder, Type::TEXT),
                (&micros(ask.length), Type::INT8),
                (&&*ask.metadata, Type::TEXT),
            ];
            on.rows(Sql::AcquireOne as usize, true, &params).await?
        }
        many => with_asks(on, Sql::Acquire, &many.iter().collect::<Vec<_>>()).await?,
    };
    let mut outcomes = vec![None; asks.len()];
    for row in &rows {
        let at = place(row, asks.len())?;
        outcomes[at] = Some(if row.try_get(1)? {
            Outcome::Granted {
                token: Token::from_db(row.try_get(3)?),
                length: asks[at].length,
            }
        } else {
            seen(row, 2)?.refusal(asks[at].grant.as_str())
        });
    }
    let (missing, at): (Vec<&Ask>, Vec<usize>) = asks
        .iter()
        .zip(0..)
        .filter(|(_, at)| outcomes[*at].is_none())
        .unzip();
    for (at, outcome) in at.into_iter().zip(make(on, &missing).await?) {
        outcomes[at] = Some(outcome);
    }
    let outcomes: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_or(Outcome::Busy))
        .collect();
    identity::granted(on, asks.iter().zip(&outcomes));
    Ok(outcomes)
}

/// Run a statement that takes many asks.
async fn with_asks(on: &Connection, sql: Sql, asks: &[&Ask]) -> Result<Vec<Row>, Refusal> {
    let names: Vec<_> = asks.iter().map(|ask| ask.name.as_str()).collect();
    let grants: Vec<_> = asks.iter().map(|ask| ask.grant.as_str()).collect();
    let holders: Vec<_> = asks.iter().map(|ask| &*ask.holder).collect();
    let lengths: Vec<_> = asks.iter().map(|ask| micros(ask.length)).collect();
    let metadata: Vec<_> = asks.iter().map(|ask| &*ask.metadata).collect();
    let params: [Param<'_>; 5] = [
        (&names, Type::TEXT_ARRAY),
        (&grants, Type::TEXT_ARRAY),
        (&holders, Type::TEXT_ARRAY),
        (&lengths, Type::INT8_ARRAY),
        (&metadata, Type::TEXT_ARRAY),
    ];
    on.rows(sql as usize, asks.len() < LARGE, &params).await
}

/// Make the rows of these names, granted. What somebody else is making just now is busy.
async fn make(on: &Connection, asks: &[&Ask]) -> Result<Vec<Outcome>, Refusal> {
    if asks.is_empty() {
        return Ok(Vec::new());
    }
    match insert(on, asks).await {
        // One name that somebody else holds back must not keep a thousand others from being made:
        // each alone, in any order, until it is clear that there is more than one.
        Err(refusal) if refusal.kind == Kind::Contention && asks.len() > 1 => {
            let mut outcomes = vec![Outcome::Busy; asks.len()];
            let (start, mut failures) = (fastrand::usize(..asks.len()), 0);
            for at in (start..asks.len()).chain(0..start) {
                match insert(on, &asks[at..=at]).await {
                    Err(refusal) if refusal.kind == Kind::Contention => failures += 1,
                    done => outcomes[at] = done?.remove(0),
                }
                if failures == 2 {
                    break;
                }
            }
            Ok(outcomes)
        }
        Err(refusal) if refusal.kind == Kind::Contention => Ok(vec![Outcome::Busy]),
        done => done,
    }
}

async fn insert(on: &Connection, asks: &[&Ask]) -> Result<Vec<Outcome>, Refusal> {
    let rows = with_asks(on, Sql::Insert, asks).await?;
    let mut tokens = std::collections::HashMap::new();
    for row in &rows {
        tokens.insert(row.try_get::<_, &str>(0)?, Token::from_db(row.try_get(1)?));
    }
    let outcome = |ask: &&Ask| match tokens.get(ask.grant.as_str()) {
        Some(&token) => Outcome::Granted {
            token,
            length: ask.length,
        },
        None => Outcome::Busy,
    };
    Ok(asks.iter().map(outcome).collect())
}
