//! Renewing leases.

use mysql_async::params;
use serde_json::json;

use crate::store::api::{StoreError, ttl_micros};
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::{QueryResult, Session};
use crate::store::mysql::rows::{by_slot, packed};
use protocol::{Grant, LockName, Renewal, Ttl, failed_renewal_outcome};

pub(crate) const RENEWED: Renewal = Renewal::Renewed { confirmed_by: None };

impl Session {
    /// Extend what is still held by exactly these grants; `length` is null for a lease without end.
    ///
    /// `expires_at` and `granted_until` come out the same whichever is set first. The insert id is
    /// the new `renewed_at`, in microseconds since 1970. It distinguishes the rows that this
    /// statement has renewed from any others. The list has no longtext: see
    /// [`ACQUIRE_ON_MARIADB`](Self::ACQUIRE_ON_MARIADB).
    pub(crate) const RENEW: &str = "
        UPDATE (SELECT l.id, {length} AS length
                  FROM (SELECT j.* FROM JSON_TABLE(:grants, '$[*]' COLUMNS (
                           name varchar(255) CHARACTER SET utf8mb4 PATH '$.name',
                           {?slot int PATH '$.slot',?}
                           token bigint PATH '$.token',
                           grant_id char(32) CHARACTER SET ascii PATH '$.grant',
                           locked_by varchar(255) CHARACTER SET utf8mb4 PATH '$.holder',
                           length bigint PATH '$.length')) j
                         LIMIT 1000000) g
                       STRAIGHT_JOIN {table} l FORCE INDEX (name)
                       ON l.name = g.name COLLATE {collation}{? AND l.slot = g.slot?}
                 WHERE l.token = g.token AND l.grant_id = g.grant_id
                   AND l.locked_by = g.locked_by COLLATE {collation}
                   AND {live} AND l.granted_until = l.expires_at AND {writable}
                 LIMIT 1000000 FOR UPDATE SKIP LOCKED) q
               STRAIGHT_JOIN {table} l FORCE INDEX (PRIMARY) ON l.id = q.id
           SET l.expires_at = {until}, l.granted_until = {until},
               l.renewed_at = TIMESTAMP'1970-01-01 00:00:00'
                   + INTERVAL LAST_INSERT_ID({clock}) MICROSECOND";

    pub(crate) async fn renew(
        &mut self,
        grants: &[(Grant, Ttl)],
    ) -> Result<Vec<Renewal>, StoreError> {
        let mut answers = vec![None; grants.len()];
        for of in [Rows::Locks, Rows::Permits] {
            let ours = grants.iter().enumerate();
            let ours = ours.filter(|(_, (grant, _))| Rows::of(grant.slot) == of);
            let (at, ours): (Vec<usize>, Vec<&(Grant, Ttl)>) = ours.unzip();
            for (at, answer) in at.into_iter().zip(self.renew_in(of, &ours).await?) {
                answers[at] = Some(answer);
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn renew_in(
        &mut self,
        of: Rows,
        grants: &[&(Grant, Ttl)],
    ) -> Result<Vec<Renewal>, StoreError> {
        let mut answers = Vec::with_capacity(grants.len());
        let describe = |(grant, ttl): &&(Grant, Ttl)| {
            json!({
                "name": grant.name.as_str(), "token": grant.token.get(),
                "grant": grant.id.as_str(), "holder": &*grant.holder,
                "slot": grant.slot.column(), "length": ttl_micros(*ttl),
            })
        };
        for (chunk, text) in packed(grants, self.max_parameter_len, describe) {
            let grants = params! { "grants" => text };
            let done = self.execute(of, Self::RENEW, grants).await?;
            answers.extend(match done.rows == chunk.len() as u64 {
                true => vec![RENEWED; chunk.len()],
                false => self.renewed_of(of, chunk, done).await?,
            });
        }
        Ok(answers)
    }

    /// Which grants were renewed, and what became of the others, where not all were.
    async fn renewed_of(
        &mut self,
        of: Rows,
        grants: &[&(Grant, Ttl)],
        done: QueryResult,
    ) -> Result<Vec<Renewal>, StoreError> {
        let names: Vec<&LockName> = grants.iter().map(|(grant, _)| &grant.name).collect();
        let rows = self.read_latest(of, &names).await?;
        let rows = by_slot(&rows);
        let outcome = |(grant, _): &&(Grant, Ttl)| {
            let row = rows.get(&(grant.name.as_str(), grant.slot)).copied();
            match failed_renewal_outcome(grant, row) {
                Renewal::Busy if row.is_some_and(|row| done.wrote(row)) => RENEWED,
                outcome => outcome,
            }
        };
        Ok(grants.iter().map(outcome).collect())
    }
}
