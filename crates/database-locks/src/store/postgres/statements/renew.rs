//! Renewing leases, and judging those that were not renewed.

use std::collections::HashMap;

use super::read::read;
use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::{Kind, ServerError};
use crate::store::postgres::failover;
use crate::store::postgres::rows::place;
use protocol::{
    Grant, LockName, LockRow, Renewal, Slot, Ttl, failed_renewal_outcome,
    failed_renewal_outcome_elsewhere,
};

/// Extend the leases of these grants, if they still hold their locks.
///
/// `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` lengths in microseconds, NULL for a
/// lease without end, `$6` slots. One row for each renewed lease: its place in the request. A read finds out
/// whether the others are gone, or their rows were locked.
///
/// An expired lease is not revived, a lease that legacy (django-database-locks 0.5) wrote
/// (`granted_until` differs) is another grant, and no lease is shortened. A renewal is as durable
/// as the grant: if a crash undid it, the lock would be granted to another client while its holder
/// trusts it.
///
/// Each row is looked up by its name. A plain join lost 98,788 of 100,000 leases: once the
/// statistics are older than a ttl, every lease in them has expired, so the server expects one row
/// and chooses nested loops over all rows.
pub(crate) const RENEW: Statement = Statement {
    name: "renew",
    text: "
WITH picked AS MATERIALIZED (
    SELECT l.id, a.place,
           coalesce(statement_timestamp() + a.length * interval '1 microsecond',
                    '9999-12-31 00:00:00+00') AS until
      FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[]{?, $6::int[]?})
           WITH ORDINALITY AS a(name, token, grant_id, holder, length{?, slot?}, place),
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name{? AND slot = a.slot?} AND token = a.token AND grant_id = a.grant_id
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
       {durable}",
};

pub(crate) async fn renew(
    session: &Session,
    grants: &[(Grant, Ttl)],
) -> Result<Vec<Renewal>, ServerError> {
    let mut renewals = vec![None; grants.len()];
    for of in [Rows::Locks, Rows::Permits] {
        let ours = grants.iter().enumerate();
        let ours = ours.filter(|(_, (grant, _))| Rows::of(grant.slot) == of);
        let (at, ours): (Vec<usize>, Vec<&(Grant, Ttl)>) = ours.unzip();
        for (at, renewal) in at.into_iter().zip(renew_in(session, of, &ours).await?) {
            renewals[at] = Some(renewal);
        }
    }
    Ok(renewals.into_iter().flatten().collect())
}

async fn renew_in(
    session: &Session,
    of: Rows,
    leases: &[&(Grant, Ttl)],
) -> Result<Vec<Renewal>, ServerError> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let grants = || leases.iter().map(|(grant, _)| grant);
    let names: Vec<_> = grants().map(|grant| grant.name.as_str()).collect();
    let tokens: Vec<_> = grants().map(|grant| grant.token.get()).collect();
    let ids: Vec<_> = grants().map(|grant| grant.id.as_str()).collect();
    let holders: Vec<_> = grants().map(|grant| &*grant.holder).collect();
    let slots: Vec<_> = grants().map(|grant| grant.slot.range().0).collect();
    let length = |ttl: &Ttl| match ttl {
        Ttl::Finite(length) => Some(micros(*length)),
        Ttl::Infinite => None,
    };
    let lengths: Vec<_> = leases.iter().map(|(_, ttl)| length(ttl)).collect();
    let params: [&dyn Param; 6] = [&names, &tokens, &ids, &holders, &lengths, &slots];
    let rows = session.write(of, &RENEW, leases.len(), &params).await?;
    let mut renewals = vec![None; leases.len()];
    for row in &rows {
        renewals[place(row, leases.len())?] = Some(Renewal::Renewed {
            confirmed_by: session.primary,
        });
    }
    let unrenewed: Vec<&Grant> = (grants().zip(&renewals))
        .filter(|(_, done)| done.is_none())
        .map(|(grant, _)| grant)
        .collect();
    let mut verdicts = judge_all(session, of, &unrenewed).await?.into_iter();
    Ok(renewals
        .into_iter()
        .map(|done| done.or_else(|| verdicts.next()).unwrap_or(Renewal::Busy))
        .collect())
}

/// Judge each grant that was not renewed, by a plain read.
///
/// If the read is answered by another server than the one that confirmed the grant last, a missing
/// grant only means that this server does not have it.
async fn judge_all(
    session: &Session,
    of: Rows,
    grants: &[&Grant],
) -> Result<Vec<Renewal>, ServerError> {
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<LockName> = grants.iter().map(|grant| grant.name.clone()).collect();
    let rows = read(session, of, &names).await?;
    let rows: HashMap<(&str, Slot), &LockRow> = rows
        .iter()
        .map(|row| ((row.name.as_str(), row.slot), row))
        .collect();
    let judge = |grant: &&Grant| {
        let row = rows.get(&(grant.name.as_str(), grant.slot)).copied();
        match (grant.confirmed_by, session.primary) {
            (Some(before), Some(now)) if before != now => {
                failed_renewal_outcome_elsewhere(grant, row)
            }
            _ => failed_renewal_outcome(grant, row),
        }
    };
    let verdicts: Vec<_> = grants.iter().map(judge).collect();
    let lost = verdicts.iter().any(|it| matches!(it, Renewal::Lost(_)));
    if lost
        && !session.is_unpooled
        && session.primary.is_some()
        && failover::ask(&session.client).await != session.primary
    {
        // The pooler has moved to another server while this connection stayed open. A new
        // connection finds out which server it is, and reads again.
        let message = "the pooler leads to another server than before";
        return Err(ServerError::new(Kind::Gone, message));
    }
    Ok(verdicts)
}
