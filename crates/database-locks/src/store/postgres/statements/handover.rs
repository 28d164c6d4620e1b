//! Replacing a grant: preemption by the same holder, and resumption from a ticket.

use std::slice;

use super::acquire::granted;
use super::read::read;
use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::ServerError;
use protocol::{Outcome, Renewal, ResumeCommand, TakeOverCommand, failed_resume_outcome};

/// Take a lock over from an earlier grant of the same holder: parameters as for
/// [`ACQUIRE_ONE`](super::acquire::ACQUIRE_ONE), with `$6` the token and `$7` the grant id that
/// were read. One row: granted, with its token. No row: a read finds out why.
///
/// The holder of the grant that ends is notified, as by a release by force.
///
/// The `expires_at` that was read is not a parameter: a renewal in between does not make it another
/// grant. A row of this library without a grant id rests, and its rest is not ended.
pub(crate) const TAKE_OVER: Statement = Statement {
    name: "preempt",
    text: "
UPDATE {table} f SET
       grant_id = $2, metadata = $5,
       token = GREATEST(token + 1 + shared::int, {now_ms}),
       expires_at = statement_timestamp() + $4 * interval '1 microsecond',
       granted_until = statement_timestamp() + $4 * interval '1 microsecond',
       acquired_at = statement_timestamp(), renewed_at = statement_timestamp()
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND locked_by = $3 AND token = $6
                AND grant_id IS NOT DISTINCT FROM $7 AND expires_at > statement_timestamp()
                AND (grant_id IS NOT NULL OR granted_until IS DISTINCT FROM expires_at)
                FOR UPDATE SKIP LOCKED)
RETURNING token, shared,
       {durable},
       {notify}",
};

pub(crate) async fn take_over(
    session: &Session,
    command: &TakeOverCommand,
) -> Result<Outcome, ServerError> {
    let to = &command.to;
    let params: [&dyn Param; 7] = [
        &to.name.as_str(),
        &to.grant.as_str(),
        &&*to.holder,
        &micros(to.length),
        &&*to.metadata,
        &command.token.get(),
        &command.grant.as_deref(),
    ];
    let rows = session.write(Rows::Locks, &TAKE_OVER, 1, &params).await?;
    if let Some(row) = rows.first() {
        return granted(session, to.length, row);
    }
    let rows = read(session, Rows::Locks, slice::from_ref(&to.name)).await?;
    let outcome = rows
        .first()
        .map_or(Outcome::Busy, |row| row.failed_take_over_outcome(command));
    Ok(outcome.confirmed_by(session.primary))
}

/// Replace a grant that still holds the lock.
///
/// `$1` name, `$2` token, `$3` the grant that ends, `$4` the one that begins, `$5` its holder, `$6`
/// its metadata, `$7` length in microseconds, `$8` slot. One row: resumed. No row: a read finds out why.
///
/// The row may already have `$4`, from an earlier request whose reply was lost.
pub(crate) const RESUME: Statement = Statement {
    name: "resume",
    text: "
UPDATE {table} SET
       locked_by = $5, grant_id = $4, metadata = $6, renewed_at = statement_timestamp(),
       expires_at = GREATEST(expires_at, statement_timestamp() + $7 * interval '1 microsecond'),
       granted_until = GREATEST(expires_at, statement_timestamp() + $7 * interval '1 microsecond')
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1{? AND slot = $8?} AND token = $2 AND grant_id IN ($3, $4)
                AND expires_at > statement_timestamp() AND granted_until = expires_at
                FOR UPDATE SKIP LOCKED)
RETURNING {durable}",
};

pub(crate) async fn resume(
    session: &Session,
    command: &ResumeCommand,
) -> Result<Renewal, ServerError> {
    let to = &command.to;
    let (of, slot) = (Rows::of(command.slot), command.slot.range().0);
    let params: [&dyn Param; 8] = [
        &to.name.as_str(),
        &command.token.get(),
        &command.from.as_str(),
        &to.grant.as_str(),
        &&*to.holder,
        &&*to.metadata,
        &micros(to.length),
        &slot,
    ];
    if session.write(of, &RESUME, 1, &params).await?.is_empty() {
        let rows = read(session, of, slice::from_ref(&to.name)).await?;
        let row = rows.iter().find(|row| row.slot == command.slot);
        return Ok(failed_resume_outcome(command, row));
    }
    Ok(Renewal::Renewed {
        confirmed_by: session.primary,
    })
}
