//! Acquiring locks.

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::statements::grant::write;
use crate::store::sqlite::statements::permit;
use crate::store::sqlite::statements::shared;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{AcquireCommand, AllOutcome, Kind, LockRow, Outcome, Slot};

/// Locks that are held or rest are refused without the write lock. Only the others take it.
pub(crate) fn acquire(
    worker: &mut Worker,
    commands: &[AcquireCommand],
) -> Result<Vec<Outcome>, StoreError> {
    let mut outcomes: Vec<Outcome> = worker.with(|session| {
        let mut is_held = session.prepare(Rows::Locks, Sql::IsHeld)?;
        let one = |command: &AcquireCommand| match command.kind {
            Kind::Permit { limit, .. } => permit::free(session, command, limit).map(|free| {
                // Which one is granted is decided with the write lock.
                free.map_or_else(|held| held, |_| Outcome::Busy)
            }),
            Kind::Shared { beside } => shared::held(session, command, beside),
            Kind::Exclusive => match is_held.exists([command.name.as_str()])? {
                true => failed_acquire_outcome(session, command),
                false => Ok(Outcome::Busy),
            },
        };
        commands.iter().map(one).collect()
    })?;
    worker.database.note_used();
    if !outcomes.contains(&Outcome::Busy) {
        return Ok(outcomes);
    }
    worker.write(|session| {
        for (command, outcome) in commands.iter().zip(&mut outcomes) {
            if *outcome != Outcome::Busy {
                continue;
            }
            match command.kind {
                Kind::Permit { limit, .. } => *outcome = permit::grant(session, command, limit)?,
                Kind::Shared { beside } => *outcome = shared::grant(session, command, beside)?,
                Kind::Exclusive => {
                    if !session.is_fenced(command.name.as_str(), Slot::Lock)? {
                        *outcome = grant(session, command)?;
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Grant all of them or none. Only if all look free does it take the write lock.
pub(crate) fn acquire_all(
    worker: &mut Worker,
    commands: &[AcquireCommand],
) -> Result<AllOutcome, StoreError> {
    let rows = worker.with(|session| read_all(session, commands))?;
    worker.database.note_used();
    if rows.iter().any(LockRow::is_taken) {
        return Ok(AllOutcome::of_rows(commands, &rows));
    }
    worker.write(|session| {
        // No other client writes from here on.
        let rows = read_all(session, commands)?;
        let mut blocked = rows.iter().any(LockRow::is_taken);
        for command in commands {
            blocked = blocked || session.is_fenced(command.name.as_str(), Slot::Lock)?;
        }
        if blocked {
            return Ok(AllOutcome::of_rows(commands, &rows));
        }
        let mut grants = Vec::with_capacity(commands.len());
        for command in commands {
            match grant(session, command)? {
                Outcome::Granted {
                    token, is_shared, ..
                } => grants.push((token, is_shared)),
                // The statements disagree with the read: undo the others.
                Outcome::Held(_) | Outcome::TooRecent(_) | Outcome::Busy => {
                    return Err(contention());
                }
            }
        }
        Ok(AllOutcome::granted(commands, grants))
    })
}

fn contention() -> rusqlite::Error {
    let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(busy, Some("one of the locks is held".into()))
}

fn read_all(session: &Session<'_>, commands: &[AcquireCommand]) -> rusqlite::Result<Vec<LockRow>> {
    let rows = commands
        .iter()
        .map(|command| session.read(&command.name, Slot::Lock));
    rows.filter_map(Result::transpose).collect()
}

/// Grant a lock unless it is held or rests, or its latest grant is too recent. Needs the write
/// lock.
fn grant(session: &Session<'_>, command: &AcquireCommand) -> rusqlite::Result<Outcome> {
    for sql in [Sql::Acquire, Sql::Insert] {
        if let Some(granted) = write(session, sql, command, Slot::Lock, 0)? {
            return Ok(granted);
        }
    }
    failed_acquire_outcome(session, command)
}

/// The outcome of a refused acquire. The lock may be held by the requested grant.
fn failed_acquire_outcome(
    session: &Session<'_>,
    command: &AcquireCommand,
) -> rusqlite::Result<Outcome> {
    let row = session.read(&command.name, Slot::Lock)?;
    Ok(row.map_or(Outcome::Busy, |row| row.failed_acquire_outcome(command)))
}
