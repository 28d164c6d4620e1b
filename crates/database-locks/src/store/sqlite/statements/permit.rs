//! Permits of a semaphore: a row each, with the columns of a lock.

use std::collections::BTreeMap;

use super::grant::write;
use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{AcquireCommand, LockName, Outcome, Permits, Slot, no_permit_free};

/// The permits below the limit that are not held; if there are none, the outcome of the acquire.
pub(super) fn free(
    session: &Session<'_>,
    command: &AcquireCommand,
    limit: u32,
) -> rusqlite::Result<Result<Vec<(u16, bool)>, Outcome>> {
    let (name, grant) = (command.name.as_str(), command.grant.as_str());
    let first = session.rows(Rows::Permits, Sql::FirstPermit, &[&name, &grant])?;
    let first = first.first();
    // The reply to an earlier request of this grant was lost.
    if let Some(own) = first.filter(|row| row.is_granted(grant)) {
        return Ok(Err(own.failed_acquire_outcome(command)));
    }
    // Whether each permit that has a row is held.
    let (mut made, mut limit) = (BTreeMap::new(), limit);
    let known: Vec<(i32, Option<u32>, Option<bool>)> =
        session.query(Rows::Permits, Sql::Permits, &[&name], |row| {
            Ok((row.get("slot")?, row.get("permits")?, row.get("held")?))
        })?;
    for (slot, operators, held) in known {
        match u16::try_from(slot) {
            Ok(permit) => {
                made.insert(permit, held == Some(true));
            }
            Err(_) => limit = operators.unwrap_or(limit),
        }
    }
    let below = (0..=u16::MAX).take(limit as usize);
    let free = below.filter(|slot| made.get(slot) != Some(&true));
    let free: Vec<(u16, bool)> = free.map(|slot| (slot, made.contains_key(&slot))).collect();
    if !free.is_empty() {
        return Ok(Ok(free));
    }
    let held = made.values().filter(|held| **held).count();
    let permits = Permits {
        limit,
        held: u32::try_from(held).unwrap_or(u32::MAX),
        observed: Vec::new(),
    };
    Ok(Err(no_permit_free(permits, first)))
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
        if let Some(granted) = write(session, sql, command, slot, limit)? {
            return Ok(granted);
        }
    }
    Ok(Outcome::Busy)
}

pub(crate) fn limits(worker: &mut Worker) -> Result<Vec<(LockName, u32)>, StoreError> {
    worker.with(|session| {
        session.query(Rows::Permits, Sql::Limits, &[], |row| {
            Ok((LockName::from_db(row.get("name")?), row.get("permits")?))
        })
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
