//! Replacing a grant: preemption by the same holder, and resumption from a ticket.

use rusqlite::{Row, ToSql};

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::sqlite::connection::worker::Worker;
use crate::store::sqlite::rows::{granted, modifier};
use crate::store::sqlite::statements::sql::Sql;
use protocol::{Outcome, Renewal, ResumeCommand, Slot, TakeOverCommand, failed_resume_outcome};

pub(crate) fn take_over(
    worker: &mut Worker,
    command: &TakeOverCommand,
) -> Result<Outcome, StoreError> {
    let to = &command.to;
    worker.write(|session| {
        if session.is_fenced(to.name.as_str(), Slot::Lock)? {
            return Ok(Outcome::Busy);
        }
        let params: [&dyn ToSql; 7] = [
            &to.name.as_str(),
            &&*to.holder,
            &to.grant.as_str(),
            &&*to.metadata,
            &modifier(to.length),
            &command.token.get(),
            &command.grant.as_deref(),
        ];
        let made = |row: &Row<'_>| granted(Slot::Lock, to.length, row);
        let mut made = session.query(Rows::Locks, Sql::Preempt, &params, made)?;
        if let Some(granted) = made.pop() {
            return Ok(granted);
        }
        let row = session.read(&to.name, Slot::Lock)?;
        Ok(row.map_or(Outcome::Busy, |row| row.failed_take_over_outcome(command)))
    })
}

pub(crate) fn resume(worker: &mut Worker, command: &ResumeCommand) -> Result<Renewal, StoreError> {
    let to = &command.to;
    worker.write(|session| {
        let slot = command.slot;
        if !session.is_fenced(to.name.as_str(), slot)? {
            let params: [&dyn ToSql; 8] = [
                &to.name.as_str(),
                &command.token.get(),
                &command.from.as_str(),
                &to.grant.as_str(),
                &&*to.holder,
                &&*to.metadata,
                &modifier(to.length),
                &slot.range().0,
            ];
            if session.execute(Rows::of(slot), Sql::Resume, &params)? == 1 {
                return Ok(Renewal::Renewed { confirmed_by: None });
            }
        }
        Ok(failed_resume_outcome(
            command,
            session.read(&to.name, slot)?.as_ref(),
        ))
    })
}
