//! Opening a fence: see [`fence`](crate::store::sqlite::fence).

use crate::store::api::{Barrier, StoreError};
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::error::io_error;
use protocol::{Gone, Grant, Renewal, failed_renewal_outcome};

/// Lock the file of the fence, then check that the grant holds the lock.
pub(crate) fn open_fence(
    worker: &mut Worker,
    grant: &Grant,
) -> Result<Result<Barrier, Gone>, StoreError> {
    let opened = worker.write(|session| {
        let open = session.fences.open(grant.name.as_str(), grant.slot);
        let Some(open) = open.map_err(io_error)? else {
            return Ok(None);
        };
        let row = session.read(&grant.name, grant.slot)?;
        Ok(Some(match failed_renewal_outcome(grant, row.as_ref()) {
            Renewal::Lost(gone) => Err(gone),
            Renewal::Busy | Renewal::Renewed { .. } => Ok(Barrier::new(open)),
        }))
    });
    opened?.ok_or_else(|| StoreError::Contention("its file is just being removed".into()))
}
