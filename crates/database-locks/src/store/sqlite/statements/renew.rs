//! Renewing leases.

use rusqlite::ToSql;

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::modifier;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{Grant, Renewal, Ttl, failed_renewal_outcome};

pub(crate) fn renew(
    worker: &mut Worker,
    grants: &[(Grant, Ttl)],
) -> Result<Vec<Renewal>, StoreError> {
    worker.write(|session| {
        let one = |(grant, ttl): &(Grant, Ttl)| {
            let length = match ttl {
                Ttl::Finite(length) => Some(modifier(*length)),
                Ttl::Infinite => None,
            };
            let params: [&dyn ToSql; 6] = [
                &grant.name.as_str(),
                &grant.token.get(),
                &grant.id.as_str(),
                &&*grant.holder,
                &length,
                &grant.slot.range().0,
            ];
            Ok(
                match session.execute(Rows::of(grant.slot), Sql::Renew, &params)? {
                    1 => Renewal::Renewed { confirmed_by: None },
                    _ => {
                        let row = session.read(&grant.name, grant.slot)?;
                        failed_renewal_outcome(grant, row.as_ref())
                    }
                },
            )
        };
        grants.iter().map(one).collect()
    })
}
