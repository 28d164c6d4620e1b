//! Acquiring locks.

use std::time::Duration;

use crate::store::api::StoreError;
use crate::store::sqlite::connection::session::Session;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::{granted, modifier};
use crate::store::sqlite::statements::sql::Sql;
use protocol::{AcquireCommand, AllOutcome, LockRow, Outcome};

/// Held locks are refused without the write lock. Only the others take it.
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

/// Grant all of them or none. Only if all look free does it take the write lock.
pub(crate) fn acquire_all(
    worker: &mut Worker,
    commands: &[AcquireCommand],
) -> Result<AllOutcome, StoreError> {
    let rows = worker.with(|session| read_all(session, commands))?;
    worker.database.note_used();
    if rows.iter().any(LockRow::is_held) {
        return Ok(AllOutcome::of_rows(commands, &rows));
    }
    worker.write(|session| {
        // No other client writes from here on.
        let rows = read_all(session, commands)?;
        let mut blocked = rows.iter().any(LockRow::is_held);
        for command in commands {
            blocked = blocked || session.is_fenced(command.name.as_str())?;
        }
        if blocked {
            return Ok(AllOutcome::of_rows(commands, &rows));
        }
        let mut tokens = Vec::with_capacity(commands.len());
        for command in commands {
            match grant(session, command)? {
                Outcome::Granted { token, .. } => tokens.push(token),
                // The statements disagree with the read: undo the others.
                Outcome::Held(_) | Outcome::Busy => return Err(contention()),
            }
        }
        Ok(AllOutcome::Granted {
            tokens,
            length: commands
                .first()
                .map_or(Duration::ZERO, |command| command.length),
            confirmed_by: None,
        })
    })
}

fn contention() -> rusqlite::Error {
    let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(busy, Some("one of the locks is held".into()))
}

fn read_all(session: &Session<'_>, commands: &[AcquireCommand]) -> rusqlite::Result<Vec<LockRow>> {
    let rows = commands.iter().map(|command| session.read(&command.name));
    rows.filter_map(Result::transpose).collect()
}

/// Grant a lock unless it is held. Needs the write lock.
fn grant(session: &Session<'_>, command: &AcquireCommand) -> rusqlite::Result<Outcome> {
    let name = command.name.as_str();
    let writes_row = |sql| {
        let length = modifier(command.length);
        let params = (
            name,
            &*command.holder,
            command.grant.as_str(),
            &*command.metadata,
            length,
        );
        Ok::<_, rusqlite::Error>(session.prepare(sql)?.execute(params)? == 1)
    };
    if !writes_row(Sql::Acquire)? && !writes_row(Sql::Insert)? {
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
    Ok(row.map_or(Outcome::Busy, |row| {
        row.failed_acquire_outcome(command.grant.as_str())
    }))
}
