//! Permits of a semaphore: a row each, with the columns of a lock.

use std::collections::BTreeSet;

use rusqlite::OptionalExtension;

use super::grant::write;
use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::{granted, lock_row};
use crate::store::sqlite::statements::sql::Sql;
use protocol::{
    AcquireCommand, LockName, LockRow, Outcome, Permits, Semaphore, Slot, no_permit_free,
};

/// The permits that have a row, and the limit.
#[derive(Debug, Default)]
struct Known {
    operators: Option<u32>,
    made: BTreeSet<u16>,
    held: BTreeSet<u16>,
}

fn known(session: &Session<'_>, name: &LockName) -> rusqlite::Result<Known> {
    let mut known = Known::default();
    let mut permits = session.prepare(Rows::Permits, Sql::Permits)?;
    let mut rows = permits.query([name.as_str()])?;
    while let Some(row) = rows.next()? {
        match Slot::from_db(row.get("slot")?).and_then(Slot::number) {
            None => known.operators = row.get("permits")?,
            Some(slot) => {
                known.made.insert(slot);
                if row.get::<_, Option<bool>>("held")? == Some(true) {
                    known.held.insert(slot);
                }
            }
        }
    }
    Ok(known)
}

/// The permits below the limit that are not held; if there are none, the outcome of the acquire.
pub(super) fn free(
    session: &Session<'_>,
    command: &AcquireCommand,
    limit: u32,
) -> rusqlite::Result<Result<Vec<(u16, bool)>, Outcome>> {
    let known = known(session, &command.name)?;
    let mut first = session.prepare(Rows::Permits, Sql::FirstPermit)?;
    let grant = command.grant.as_str();
    let first = first.query_row((command.name.as_str(), grant), |row| {
        lock_row(Rows::Permits, row)
    });
    let first = first.optional()?;
    // The reply to an earlier request of this grant was lost.
    if let Some(own) = first.as_ref().filter(|row| row.is_granted(grant)) {
        return Ok(Err(own.failed_acquire_outcome(command)));
    }
    let limit = known.operators.unwrap_or(limit);
    let below = (0..=u16::MAX).take(limit as usize);
    let free: Vec<(u16, bool)> = below
        .filter(|slot| !known.held.contains(slot))
        .map(|slot| (slot, known.made.contains(&slot)))
        .collect();
    Ok(match free.is_empty() {
        false => Ok(free),
        true => Err(no_permit_free(
            Permits {
                limit,
                held: u32::try_from(known.held.len()).unwrap_or(u32::MAX),
                observed: Vec::new(),
            },
            first.as_ref(),
        )),
    })
}

/// Grant a permit that is free. Needs the write lock.
pub(super) fn grant(
    session: &Session<'_>,
    command: &AcquireCommand,
    limit: u32,
) -> rusqlite::Result<Outcome> {
    let mut free = match free(session, command, limit)? {
        Ok(free) => free,
        Err(outcome) => return Ok(outcome),
    };
    while !free.is_empty() {
        let (number, made) = free.swap_remove(fastrand::usize(..free.len()));
        let slot = Slot::Permit(number);
        if session.is_fenced(command.name.as_str(), slot)? {
            continue;
        }
        let sql = if made { Sql::Acquire } else { Sql::Insert };
        if write(session, sql, command, Some((number, limit)))? == 1 {
            let mut token = session.prepare(Rows::Permits, Sql::ReadToken)?;
            let params = (command.name.as_str(), number);
            let token = token.query_row(params, |row| row.get("token"))?;
            return Ok(granted(slot, token, command.length));
        }
    }
    Ok(Outcome::Busy)
}

pub(crate) fn semaphore(worker: &mut Worker, name: &LockName) -> Result<Semaphore, StoreError> {
    worker.with(|session| {
        let known = known(session, name)?;
        let rows = known
            .made
            .iter()
            .map(|slot| session.read(name, Slot::Permit(*slot)));
        let rows: Vec<LockRow> = rows
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?;
        let permits = rows.into_iter().map(LockRow::into_info).collect();
        Ok(Semaphore::new(name.clone(), known.operators, permits))
    })
}

pub(crate) fn limits(worker: &mut Worker) -> Result<Vec<(LockName, u32)>, StoreError> {
    worker.with(|session| {
        let mut limits = session.prepare(Rows::Permits, Sql::Limits)?;
        let limits = limits.query_map([], |row| {
            Ok((LockName::from_db(row.get("name")?), row.get("permits")?))
        })?;
        limits.collect()
    })
}

pub(crate) fn set_limit(
    worker: &mut Worker,
    name: &LockName,
    limit: Option<u32>,
) -> Result<(), StoreError> {
    worker.write(|session| {
        session.execute(Rows::Permits, Sql::SetLimit, &[&name.as_str(), &limit])?;
        Ok(())
    })
}
