//! Keeping what is held.

use std::collections::HashMap;

use tokio_postgres::types::Type;

use super::super::rows::Seen;
use super::super::{Grant, Renewal};
use super::connection::{Connection, Param};
use super::refusal::Refusal;
use super::rows::{micros, place, seen};
use super::{LARGE, Sql, identity};
use crate::timing::Ttl;

/// Lengthen what is still held by exactly these grants.
///
/// `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` lengths in microseconds, NULL for a
/// lease without end. A row for each: renewed, or what a plain read says of it; no row: it is gone.
///
/// A lease that has run out is not revived, one that 0.5 wrote (`granted_until` differs) is not ours,
/// and none is ever shortened. It is as durable as the grant: after a crash that forgot it the lock
/// would be given away while its holder trusts it.
pub(super) const RENEW: &str = concat!(
    "
WITH durable AS MATERIALIZED (
    SELECT CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS MATERIALIZED (
    SELECT a.*
      FROM durable, unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[])
           WITH ORDINALITY AS a(name, token, grant_id, holder, length, place)
), picked AS MATERIALIZED (
    SELECT l.id, a.place, clock_timestamp() AS now, a.length
      FROM asked a JOIN {table} l ON l.name = a.name
     WHERE l.token = a.token AND l.grant_id = a.grant_id AND l.locked_by = a.holder
       AND l.expires_at > clock_timestamp() AND l.granted_until = l.expires_at
     ORDER BY l.id
       FOR NO KEY UPDATE OF l SKIP LOCKED
), renewed AS (
    UPDATE {table} l SET
           expires_at = GREATEST(l.expires_at, coalesce(
                p.now + p.length * interval '1 microsecond', '9999-12-31 00:00:00+00')),
           granted_until = GREATEST(l.expires_at, coalesce(
                p.now + p.length * interval '1 microsecond', '9999-12-31 00:00:00+00')),
           renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING p.place
)
SELECT place, true, NULL::text, 0::bigint, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint, NULL::text
  FROM renewed
 UNION ALL
SELECT a.place, false, ",
    seen!(),
    ", l.metadata::text
  FROM asked a JOIN {table} l ON l.name = a.name
 WHERE a.place NOT IN (SELECT place FROM renewed)"
);

pub(super) async fn renew(
    on: &Connection,
    grants: &[(Grant, Ttl)],
) -> Result<Vec<Renewal>, Refusal> {
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<_> = grants
        .iter()
        .map(|(grant, _)| grant.name.as_str())
        .collect();
    let tokens: Vec<_> = grants.iter().map(|(grant, _)| grant.token.get()).collect();
    let ids: Vec<_> = grants.iter().map(|(grant, _)| grant.id.as_str()).collect();
    let holders: Vec<_> = grants.iter().map(|(grant, _)| &*grant.holder).collect();
    let length = |ttl: &Ttl| match ttl {
        Ttl::Finite(length) => Some(micros(*length)),
        Ttl::Infinite => None,
    };
    let lengths: Vec<_> = grants.iter().map(|(_, ttl)| length(ttl)).collect();
    let params: [Param<'_>; 5] = [
        (&names, Type::TEXT_ARRAY),
        (&tokens, Type::INT8_ARRAY),
        (&ids, Type::TEXT_ARRAY),
        (&holders, Type::TEXT_ARRAY),
        (&lengths, Type::INT8_ARRAY),
    ];
    let rows = on
        .rows(Sql::Renew as usize, grants.len() < LARGE, &params)
        .await?;
    let (mut renewals, mut found) = (vec![None; grants.len()], HashMap::new());
    for row in &rows {
        let at = place(row, grants.len())?;
        if row.try_get(1)? {
            renewals[at] = Some(Renewal::Renewed);
        } else {
            let metadata = row.try_get(9)?;
            let as_read = seen(row, 2)?;
            found.insert(
                at,
                Seen {
                    metadata,
                    ..as_read
                },
            );
        }
    }
    let of = |renewed: bool| {
        let all = grants.iter().zip(&renewals).enumerate();
        all.filter(move |(_, (_, done))| done.is_some() == renewed)
            .map(|(at, ((grant, _), _))| (at, grant))
    };
    identity::confirmed(on, of(true).map(|(_, grant)| &grant.id));
    let unrenewed = of(false).map(|(at, grant)| (grant, found.remove(&at)));
    let mut verdicts = identity::judge_all(on, unrenewed.collect())
        .await?
        .into_iter();
    Ok(renewals
        .into_iter()
        .map(|done| done.or_else(|| verdicts.next()).unwrap_or(Renewal::Busy))
        .collect())
}
