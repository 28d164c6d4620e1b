//! Acquiring locks.

use crate::store::api::StoreError;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::{ago, granted, modifier};
use crate::store::sqlite::statements::sql::Sql;
use protocol::{AcquireCommand, Outcome};

/// Locks that are held or rest are refused without the write lock. Only the others take it.
pub(crate) fn acquire(
    worker: &mut Worker,
    commands: &[AcquireCommand],
) -> Result<Vec<Outcome>, StoreError> {
    let mut outcomes: Vec<Outcome> = worker.with(|session| {
        let mut is_held = session.prepare(Sql::IsHeld)?;
        let one = |command: &AcquireCommand| match is_held.exists([command.name.as_str()])? {
            true => failed_acquire_outcome(session, command),
            false => Ok(Outcome::Busy),
        };
        commands.iter().map(one).collect()
    })?;
    worker.database.note_used();
    if !outcomes.contains(&Outcome::Busy) {
        return Ok(outcomes);
    }
    worker.write(|session| {
        for (command, outcome) in commands.iter().zip(&mut outcomes) {
            if *outcome == Outcome::Busy && !session.is_fenced(command.name.as_str())? {
                *outcome = grant(session, command)?;
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Grant a lock unless it is held or rests, or its latest grant is too recent. Needs the write
/// lock.
fn grant(session: &Session<'_>, command: &AcquireCommand) -> rusqlite::Result<Outcome> {
    let name = command.name.as_str();
    let (holder, grant) = (&*command.holder, command.grant.as_str());
    let (metadata, length) = (&*command.metadata, modifier(command.length));
    let window = command.not_within;
    let (past, future) = (window.map(ago), window.map(modifier));
    let grant_again = (name, holder, grant, metadata, &length, past, future);
    let insert = (name, holder, grant, metadata, &length);
    let made = session.prepare(Sql::Acquire)?.execute(grant_again)? == 1
        || session.prepare(Sql::Insert)?.execute(insert)? == 1;
    if !made {
        return failed_acquire_outcome(session, command);
    }
    let mut token = session.prepare(Sql::ReadToken)?;
    let token = token.query_row([name], |row| row.get("token"))?;
    Ok(granted(token, command.length))
}

/// The outcome of a refused acquire. The lock may be held by the requested grant.
fn failed_acquire_outcome(
    session: &Session<'_>,
    command: &AcquireCommand,
) -> rusqlite::Result<Outcome> {
    let row = session.read(&command.name)?;
    Ok(row.map_or(Outcome::Busy, |row| row.failed_acquire_outcome(command)))
}
