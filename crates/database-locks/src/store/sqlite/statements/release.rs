//! Releasing locks, by their holder or by force.

use rusqlite::OptionalExtension;

use crate::store::api::StoreError;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::modifier;
use crate::store::sqlite::statements::sql::Sql;
use protocol::{Force, LockName, LockRow, ReleaseCommand, Released, Token};

pub(crate) fn release(
    worker: &mut Worker,
    commands: &[ReleaseCommand],
) -> Result<Vec<Released>, StoreError> {
    worker.write(|session| {
        let mut release = session.prepare(Sql::Release)?;
        let one = |command: &ReleaseCommand| {
            let (name, token) = (command.name.as_str(), command.token.map(Token::get));
            let rest = (!command.rest.is_zero()).then(|| modifier(command.rest));
            let params = (name, token, command.grant.as_str(), &*command.holder, rest);
            Ok(match release.execute(params)? {
                1 => Released::Freed,
                _ => Released::NotHeld,
            })
        };
        commands.iter().map(one).collect()
    })
}

pub(crate) fn force(worker: &mut Worker, name: &LockName) -> Result<Force, StoreError> {
    worker.write(|session| {
        let row = session.read(name)?;
        let taken = row.as_ref().is_some_and(LockRow::is_taken);
        if taken && session.is_fenced(name.as_str())? {
            return Ok(Force::Busy);
        }
        let mut force = session.prepare(Sql::Force)?;
        // Beyond the greatest integer the token would be a float, which no client could read. Then
        // this fails.
        let freed = force.query_row([name.as_str()], |row| row.get::<_, i64>("token"));
        let freed = freed.optional()?;
        Ok(match row {
            Some(row) if freed.is_some() => Force::Freed(row.holder()),
            _ => Force::WasFree,
        })
    })
}
