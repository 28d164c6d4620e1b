//! Keeping what is held.

use std::collections::HashMap;

use tokio_postgres::types::Type;

use crate::store::postgres::connection::{Connection, Param};
use crate::store::postgres::error::Refusal;
use crate::store::postgres::rows::{micros, place};
use crate::store::postgres::{LARGE, Sql, failover, read};
use protocol::{Grant, LockName, LockRow, Renewal, Ttl};

/// Lengthen what is still held by exactly these grants.
///
/// `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` lengths in microseconds, NULL for a
/// lease without end. A row for each that was renewed: its place among what was asked. Of the others a
/// read tells whether they are gone, or their rows were locked.
///
/// A lease that has run out is not revived, one that 0.5 wrote (`granted_until` differs) is not ours,
/// and none is ever shortened. It is as durable as the grant: after a crash that forgot it the lock
/// would be given away while its holder trusts it.
///
/// Each row is looked up by its name. As a plain join this lost 98,788 of 100,000 leases: once the statistics are older
/// than a ttl, all that they know of has expired, the server expects one row, and compares each with each.
pub(crate) const RENEW: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT l.id, a.place,
           coalesce(statement_timestamp() + a.length * interval '1 microsecond',
                    '9999-12-31 00:00:00+00') AS until
      FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[])
           WITH ORDINALITY AS a(name, token, grant_id, holder, length, place),
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name AND token = a.token AND grant_id = a.grant_id
                       AND locked_by = a.holder AND expires_at > statement_timestamp()
                       AND granted_until = expires_at
                       FOR NO KEY UPDATE SKIP LOCKED) l
)
UPDATE {table} l SET
       expires_at = GREATEST(l.expires_at, p.until),
       granted_until = GREATEST(l.expires_at, p.until),
       renewed_at = statement_timestamp()
  FROM picked p
 WHERE l.id = p.id
RETURNING p.place,
       ",
    durable!()
);

pub(crate) async fn renew(
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
    let mut renewals = vec![None; grants.len()];
    for row in &rows {
        renewals[place(row, grants.len())?] = Some(Renewal::Renewed);
    }
    let of = |renewed: bool| {
        let all = grants.iter().zip(&renewals);
        all.filter(move |(_, done)| done.is_some() == renewed)
            .map(|((grant, _), _)| grant)
    };
    failover::confirmed(on, of(true).map(|grant| &grant.id));
    let names: Vec<LockName> = of(false).map(|grant| grant.name.clone()).collect();
    let rows = match names.is_empty() {
        true => return Ok(vec![Renewal::Renewed; grants.len()]),
        false => read(on, &names).await?,
    };
    let rows: HashMap<&str, &LockRow> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
    let unrenewed = of(false).map(|grant| (grant, rows.get(grant.name.as_str()).copied()));
    let mut verdicts = failover::judge_all(on, unrenewed.collect())
        .await?
        .into_iter();
    Ok(renewals
        .into_iter()
        .map(|done| done.or_else(|| verdicts.next()).unwrap_or(Renewal::Busy))
        .collect())
}
