//! Renewing leases.

use crate::store::api::StoreError;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::modifier;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{Grant, Renewal, Ttl, failed_renewal_outcome};

pub(crate) fn renew(
    worker: &mut Worker,
    grants: &[(Grant, Ttl)],
) -> Result<Vec<Renewal>, StoreError> {
    worker.write(|session| {
        let mut renew = session.prepare(Sql::Renew)?;
        let one = |(grant, ttl): &(Grant, Ttl)| {
            let length = match ttl {
                Ttl::Finite(length) => Some(modifier(*length)),
                Ttl::Infinite => None,
            };
            let (name, token) = (grant.name.as_str(), grant.token.get());
            let params = (name, token, grant.id.as_str(), &*grant.holder, length);
            Ok(match renew.execute(params)? {
                1 => Renewal::Renewed { confirmed_by: None },
                _ => failed_renewal_outcome(grant, session.read(&grant.name)?.as_ref()),
            })
        };
        grants.iter().map(one).collect()
    })
}
