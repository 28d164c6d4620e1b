//! Renews a lease by a statement that waits for its row.
//!
//! A row that short transactions lock one after another is hardly ever unlocked: each try that does not
//! wait meets one of them. InnoDB grants the locks of a row in the order of the requests, so a statement
//! that waits is next when the present transaction ends, and later transactions wait behind it.
//!
//! It waits on a connection of its own, since the transaction that has the row locked may be a long one.

use std::sync::Arc;

use mysql_async::prelude::Queryable;
use mysql_async::{Error, params};

use super::config::Server;
use super::interpolate;
use super::panic::or_panicked;
use super::session::Session;
use crate::store::api::{StoreError, ttl_micros};
use crate::store::connect::table::Rows;
use protocol::{Grant, Renewal, Ttl, failed_renewal_outcome};

impl Session {
    /// A second is the least that MySQL allows, and both servers may exceed it by one. The time zone is
    /// that of `SYSDATE`.
    pub(crate) const LONGEST_WAIT: &str = "SET innodb_lock_wait_timeout = 1, time_zone = '+00:00'";

    /// [`RENEW`](Self::RENEW) for one grant, which waits for the row. `:length` is null for a lease
    /// without end.
    ///
    /// `UTC_TIMESTAMP` is when the statement began. The lease may end while it waits, and then it stays
    /// ended: `SYSDATE` is when the row was locked and read. The new lease counts from the beginning,
    /// which is after the request was sent.
    pub(crate) const RENEW_WAITING: &str = "
        UPDATE {table} FORCE INDEX (name)
           SET expires_at = GREATEST(expires_at, IFNULL(
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00')),
               granted_until = GREATEST(expires_at, IFNULL(
                   UTC_TIMESTAMP(6) + INTERVAL :length MICROSECOND,
                   TIMESTAMP'9999-12-31 00:00:00')),
               renewed_at = UTC_TIMESTAMP(6)
         WHERE name = :name{? AND slot = :slot?}
           AND token = :token AND grant_id = :grant AND locked_by = :holder COLLATE {collation}
           AND {live} AND expires_at > SYSDATE(6) AND granted_until = expires_at AND {writable}";

    async fn renew_waiting(&mut self, (grant, ttl): &(Grant, Ttl)) -> Result<Renewal, StoreError> {
        self.execute_unprepared(Self::LONGEST_WAIT).await?;
        let of = Rows::of(grant.slot);
        let params = params! {
            "name" => grant.name.as_str(), "slot" => grant.slot.column(),
            "token" => grant.token.get(), "grant" => grant.id.as_str(),
            "holder" => &*grant.holder, "length" => ttl_micros(*ttl),
        };
        // The connection is used once, so the statement is not prepared.
        let text = interpolate::interpolate(&self.fill(of, Self::RENEW_WAITING), &params)?;
        match self.conn.query_drop(text).await {
            Ok(()) if self.conn.affected_rows() > 0 => {
                return Ok(Renewal::Renewed { confirmed_by: None });
            }
            Ok(()) => {}
            // The transaction in the way is a long one, or waits for this statement (1213).
            Err(Error::Server(refused)) if matches!(refused.code, 1205 | 1213) => {
                return Ok(Renewal::Busy);
            }
            Err(error) => return Err(self.failed(&error)),
        }
        let row = self.latest_row(&grant.name, grant.slot).await?;
        Ok(failed_renewal_outcome(grant, row.as_ref()))
    }
}

/// Renew one lease on a connection of its own. Not on a cluster, where no clock tells whether the lease
/// has ended.
pub(crate) async fn renew_waiting(
    server: &Arc<Server>,
    renewal: &(Grant, Ttl),
) -> Result<Renewal, StoreError> {
    let renewed = or_panicked(async {
        let mut session = Session::open(server).await?;
        match session.cluster {
            None => session.renew_waiting(renewal).await,
            Some(_) => Ok(Renewal::Busy),
        }
    });
    renewed.await
}
