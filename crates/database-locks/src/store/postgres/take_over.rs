//! Taking a lock from whoever has it: from the same holder, or by a ticket.

use tokio_postgres::types::Type;

use super::super::rows::{Seen, judge_ticket};
use super::super::{Outcome, Renewal, Resume, TakeOver};
use super::connection::{Connection, Param};
use super::refusal::Refusal;
use super::rows::{micros, seen};
use super::{Sql, identity};
use crate::token::Token;

/// Take a lock from its own holder, who comes again: parameters and rows as for [`ACQUIRE_ONE`], with
/// `$6` the token and `$7` the grant id that were seen.
///
/// The grant that ends is notified, as by a release by force.
///
/// The end of the lease is not asked for: a renewal in between makes it no other grant. `FOR UPDATE`
/// as for every new token, so that an open fence keeps it out.
pub(super) const TAKE_OVER: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND locked_by = $3 AND token = $6 AND grant_id IS NOT DISTINCT FROM $7
       AND expires_at > clock_timestamp()
       FOR UPDATE SKIP LOCKED
), granted AS (
    UPDATE {table} l SET
           grant_id = $2, metadata = $5,
           token = GREATEST(l.token + 1, (extract(epoch FROM p.now) * 1000)::bigint),
           expires_at = p.now + $4 * interval '1 microsecond',
           granted_until = p.now + $4 * interval '1 microsecond',
           acquired_at = p.now, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.token, l.name
)
SELECT 1::bigint, true, NULL::text, token, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint, ",
    ring!("true"),
    "
  FROM granted f
 UNION ALL
SELECT 1::bigint, false, ",
    seen!(),
    ", NULL
  FROM {table} l
 WHERE name = $1 AND NOT EXISTS (SELECT FROM granted)"
);

pub(super) async fn take_over(on: &Connection, what: &TakeOver) -> Result<Outcome, Refusal> {
    let to = &what.to;
    let params: [Param<'_>; 7] = [
        (&to.name.as_str(), Type::TEXT),
        (&to.grant.as_str(), Type::TEXT),
        (&&*to.holder, Type::TEXT),
        (&micros(to.length), Type::INT8),
        (&&*to.metadata, Type::TEXT),
        (&what.token.get(), Type::INT8),
        (&what.grant.as_deref(), Type::TEXT),
    ];
    let rows = on.rows(Sql::TakeOver as usize, true, &params).await?;
    let outcome = match rows.first() {
        Some(row) if row.try_get(1)? => Outcome::Granted {
            token: Token::from_db(row.try_get(3)?),
            length: to.length,
        },
        Some(row) => seen(row, 2)?.not_taken_over(what),
        None => Outcome::Busy,
    };
    identity::granted(on, [(to, &outcome)].into_iter());
    Ok(outcome)
}

/// Put another grant in the place of one that is still held.
///
/// `$1` name, `$2` token, `$3` the grant that ends, `$4` the one that begins, `$5` its holder, `$6` its
/// metadata, `$7` length in microseconds. One row: resumed, or what a plain read says. No row: gone.
///
/// That `$4` may stand there already is for a request that is made again, since its reply was lost.
pub(super) const RESUME: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND token = $2 AND grant_id IN ($3, $4)
       AND expires_at > clock_timestamp() AND granted_until = expires_at
       FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE {table} l SET
           locked_by = $5, grant_id = $4, metadata = $6, renewed_at = p.now,
           expires_at = GREATEST(l.expires_at, p.now + $7 * interval '1 microsecond'),
           granted_until = GREATEST(l.expires_at, p.now + $7 * interval '1 microsecond')
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.id
)
SELECT true, NULL::text, 0::bigint, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint, NULL::text
  FROM taken
 UNION ALL
SELECT false, ",
    seen!(),
    ", l.metadata::text
  FROM {table} l
 WHERE l.name = $1 AND NOT EXISTS (SELECT FROM taken)"
);

pub(super) async fn resume(on: &Connection, what: &Resume) -> Result<Renewal, Refusal> {
    let to = &what.to;
    let params: [Param<'_>; 7] = [
        (&to.name.as_str(), Type::TEXT),
        (&what.token.get(), Type::INT8),
        (&what.from.as_str(), Type::TEXT),
        (&to.grant.as_str(), Type::TEXT),
        (&&*to.holder, Type::TEXT),
        (&&*to.metadata, Type::TEXT),
        (&micros(to.length), Type::INT8),
    ];
    let rows = on.rows(Sql::Resume as usize, true, &params).await?;
    Ok(match rows.first() {
        Some(row) if row.try_get(0)? => {
            identity::confirmed(on, [&to.grant].into_iter());
            Renewal::Renewed
        }
        Some(row) => {
            let row = Seen {
                metadata: row.try_get(8)?,
                ..seen(row, 1)?
            };
            judge_ticket(what, Some(&row))
        }
        None => judge_ticket(what, None),
    })
}
