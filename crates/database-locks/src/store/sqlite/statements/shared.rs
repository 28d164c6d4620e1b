//! Shared grants: many holders at once, and never one beside an exclusive grant.
//!
//! Each shared grant is a row of the table of permits, with a slot of −2 or less. A shared grant is
//! made with the write lock of the file, while the lock's own row is free. An exclusive one counts
//! only when no row of a shared grant is left, which a later request checks.
//!
//! The lock's own row has `shared` set before the first shared grant, so that an exclusive acquire of
//! a lock that was never shared need not look for shared grants.

use rusqlite::ToSql;

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::modifier;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{
    AcquireCommand, GrantId, Holder, LockName, LockRow, Outcome, ReleaseCommand, Released, Sharing,
    Slot, Token, reader_in_the_way,
};

/// What a request without the write lock can tell: whether the lock is held.
pub(super) fn held(
    session: &Session<'_>,
    command: &AcquireCommand,
    beside: Option<GrantId>,
) -> rusqlite::Result<Outcome> {
    let row = session.read(&command.name, Slot::Lock)?;
    let sharing = row.map_or(Sharing::NotMarked, |row| row.sharing(beside, None));
    Ok(match sharing {
        Sharing::Held(holder) => Outcome::Held(holder),
        _ => Outcome::Busy,
    })
}

/// Make a shared grant. Needs the write lock. `beside`: the exclusive grant that it replaces.
pub(super) fn grant(
    session: &Session<'_>,
    command: &AcquireCommand,
    beside: Option<GrantId>,
) -> rusqlite::Result<Outcome> {
    let name = command.name.as_str();
    let row = session.read(&command.name, Slot::Lock)?;
    match row.map_or(Sharing::NotMarked, |row| row.sharing(beside, None)) {
        Sharing::Held(holder) => return Ok(Outcome::Held(holder)),
        // That of the grant that is replaced does no harm.
        _ if beside.is_none() && session.is_fenced(name, Slot::Lock)? => return Ok(Outcome::Busy),
        Sharing::Ended => {
            session.execute(Rows::Locks, Sql::EndLease, &[&name])?;
        }
        Sharing::NotMarked | Sharing::Open => {}
    }
    session.execute(Rows::Locks, Sql::MarkShared, &[&name])?;
    let slot = Slot::of_shared(command.grant);
    let params: [&dyn ToSql; 6] = [
        &name,
        &&*command.holder,
        &command.grant.as_str(),
        &&*command.metadata,
        &modifier(command.length),
        &slot.column(),
    ];
    let inserted = session.execute(Rows::Permits, Sql::InsertShared, &params)?;
    let Some(own) = session.read(&command.name, slot)? else {
        return Ok(Outcome::Busy);
    };
    // The reply to an earlier request was lost, and part of its lease has passed.
    if inserted == 0 {
        let outcome = own.failed_acquire_outcome(command);
        return Ok(outcome.of_shared(false));
    }
    let token = Token::from_db(own.token);
    Ok(Outcome::granted(slot, token, command.length))
}

/// Release a shared grant. Needs the write lock.
pub(super) fn release(
    session: &Session<'_>,
    command: &ReleaseCommand,
) -> rusqlite::Result<Released> {
    let row = session.read(&command.name, command.slot)?;
    if !row.is_some_and(|row| row.contains_grant_of(command)) {
        return Ok(Released::NotHeld);
    }
    if session.is_fenced(command.name.as_str(), command.slot)? {
        return Ok(Released::Busy);
    }
    delete(
        session,
        &command.name,
        command.slot,
        Some(command.grant.as_str()),
    )?;
    Ok(Released::Freed)
}

fn delete(
    session: &Session<'_>,
    name: &LockName,
    slot: Slot,
    grant: Option<&str>,
) -> rusqlite::Result<()> {
    let params: [&dyn ToSql; 3] = [&name.as_str(), &slot.column(), &grant];
    session.execute(Rows::Permits, Sql::DeleteShared, &params)?;
    Ok(())
}

fn all(session: &Session<'_>, name: &LockName) -> rusqlite::Result<Vec<LockRow>> {
    session.rows(Rows::Permits, Sql::Readers, &[&name.as_str()])
}

/// Delete the dead shared grants of a lock; the holder of one that is left.
pub(crate) fn readers(worker: &mut Worker, name: &LockName) -> Result<Option<Holder>, StoreError> {
    let rows = worker.with(|session| all(session, name))?;
    if rows.iter().all(LockRow::is_held) {
        return Ok(reader_in_the_way(&rows));
    }
    worker.write(|session| {
        let (mut left, rows) = (Vec::new(), all(session, name)?);
        for row in rows {
            // An open fence keeps the row of a dead holder.
            if row.is_held() || session.is_fenced(name.as_str(), row.slot)? {
                left.push(row);
            } else {
                delete(session, name, row.slot, row.grant.as_deref())?;
            }
        }
        Ok(reader_in_the_way(&left))
    })
}
