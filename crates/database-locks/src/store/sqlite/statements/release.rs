//! Releasing locks, by their holder or by force.

use rusqlite::{Row, ToSql};

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::modifier;
use crate::store::sqlite::statements::{shared, sql::Sql};
use protocol::{Force, LockName, LockRow, ReleaseCommand, Released, Slot, Token};

pub(crate) fn release(
    worker: &mut Worker,
    commands: &[ReleaseCommand],
) -> Result<Vec<Released>, StoreError> {
    worker.write(|session| {
        let one = |command: &ReleaseCommand| {
            if command.slot.is_shared() {
                return shared::release(session, command);
            }
            let rest = (!command.rest.is_zero()).then(|| modifier(command.rest));
            let (first, last) = command.slot.range();
            let params: [&dyn ToSql; 7] = [
                &command.name.as_str(),
                &command.token.map(Token::get),
                &command.grant.as_str(),
                &&*command.holder,
                &rest,
                &first,
                &last,
            ];
            Ok(
                match session.execute(Rows::of(command.slot), Sql::Release, &params)? {
                    1 => Released::Freed,
                    _ => Released::NotHeld,
                },
            )
        };
        commands.iter().map(one).collect()
    })
}

pub(crate) fn force(worker: &mut Worker, name: &LockName, slot: Slot) -> Result<Force, StoreError> {
    worker.write(|session| {
        let row = session.read(name, slot)?;
        let taken = row.as_ref().is_some_and(LockRow::is_taken);
        if taken && session.is_fenced(name.as_str(), slot)? {
            return Ok(Force::Busy);
        }
        let params: [&dyn ToSql; 2] = [&name.as_str(), &slot.range().0];
        // Beyond the greatest integer the token would be a float, which no client could read. Then
        // this fails.
        let token = |row: &Row<'_>| row.get::<_, i64>("token");
        let freed = session.query(Rows::of(slot), Sql::Force, &params, token)?;
        Ok(match row {
            Some(row) if !freed.is_empty() => Force::Freed(row.holder()),
            _ => Force::WasFree,
        })
    })
}
