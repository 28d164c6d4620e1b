//! Releasing a lock, by its grant or by force, and notifying its waiters.

use super::read::read;
use super::shared::release_shared;
use crate::store::api::rest_micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::ServerError;
use crate::store::postgres::rows::{place, state};
use protocol::{Force, LockName, ReleaseCommand, Released, Slot, Token};

/// Release one lock if this grant still holds it.
///
/// `$1` name, `$2` token or NULL, `$3` grant id, `$4` holder, `$5` whether it must survive a crash,
/// `$6` for how long the lock rests in microseconds, or NULL if it is free at once, `$7` and `$8` the
/// first and the last slot.
/// One row: released; its place in the request, and whether it has waiters, which are notified. No
/// row: another grant has it, or its row is locked, which a read finds out.
///
/// The holder and the times stay, for people to read, and the token, since that of the next grant
/// has to be greater. A release that a crash has undone costs the waiters one ttl. Not waiting for
/// the disk halves the cost of a release.
///
/// A lock that was ever shared rests for no time in place of NULL: a fenced transaction of the holder may
/// be open still. It keeps an exclusive grant out, which locks the row, and in this way also a shared one,
/// which has to end the rest first: see [`END_LEASE`](super::shared::END_LEASE).
pub(crate) const RELEASE_ONE: Statement = Statement {
    name: "release one",
    text: "
UPDATE {table} f SET
       expires_at = statement_timestamp() + COALESCE($6, CASE WHEN f.shared THEN 0 END) * interval '1 microsecond',
       granted_until = statement_timestamp() + COALESCE($6, CASE WHEN f.shared THEN 0 END) * interval '1 microsecond',
       grant_id = NULL, renewed_at = statement_timestamp()
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1{? AND slot BETWEEN $7 AND $8?} AND grant_id = $3 AND locked_by = $4 AND ($2 IS NULL OR token = $2)
                AND granted_until = expires_at
                FOR NO KEY UPDATE SKIP LOCKED)
RETURNING 1::bigint AS place, waiting_until > statement_timestamp() AS awaited,
       CASE WHEN (current_setting('synchronous_commit') = 'off') = $5
       THEN set_config('synchronous_commit', CASE WHEN $5 THEN 'on' ELSE 'off' END, true) END,
       CASE WHEN waiting_until > statement_timestamp() THEN
       {notify} END",
};

/// [`RELEASE_ONE`] for many: `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` whether
/// they must survive a crash, `$6` rests.
pub(crate) const RELEASE: Statement = Statement {
    name: "release many",
    text: "
WITH picked AS MATERIALIZED (
    SELECT l.id, a.rest, a.place
      FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $6::bigint[]
                  {?, $7::int[], $8::int[]?})
           WITH ORDINALITY AS a(name, token, grant_id, holder, rest{?, first, last?}, place),
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name{? AND slot BETWEEN a.first AND a.last?} AND grant_id = a.grant_id AND locked_by = a.holder
                       AND (a.token IS NULL OR token = a.token) AND granted_until = expires_at
                       FOR NO KEY UPDATE SKIP LOCKED) l
)
UPDATE {table} f SET
       expires_at = statement_timestamp() + COALESCE(p.rest, CASE WHEN f.shared THEN 0 END) * interval '1 microsecond',
       granted_until = statement_timestamp() + COALESCE(p.rest, CASE WHEN f.shared THEN 0 END) * interval '1 microsecond',
       grant_id = NULL, renewed_at = statement_timestamp()
  FROM picked p
 WHERE f.id = p.id
RETURNING p.place, f.waiting_until > statement_timestamp() AS awaited,
       CASE WHEN (current_setting('synchronous_commit') = 'off') = $5
       THEN set_config('synchronous_commit', CASE WHEN $5 THEN 'on' ELSE 'off' END, true) END,
       CASE WHEN f.waiting_until > statement_timestamp() THEN
       {notify} END",
};

pub(crate) async fn release(
    session: &Session,
    commands: &[ReleaseCommand],
) -> Result<Vec<Released>, ServerError> {
    let mut released = vec![None; commands.len()];
    for of in [Rows::Locks, Rows::Permits] {
        let ours = commands.iter().enumerate();
        let ours = ours.filter(|(_, command)| Rows::of(command.slot) == of);
        let ours = ours.filter(|(_, command)| !command.slot.is_shared());
        let (at, ours): (Vec<usize>, Vec<&ReleaseCommand>) = ours.unzip();
        for (at, done) in at.into_iter().zip(release_in(session, of, &ours).await?) {
            released[at] = Some(done);
        }
    }
    for (at, command) in commands.iter().enumerate() {
        if command.slot.is_shared() {
            released[at] = Some(release_shared(session, command).await?);
        }
    }
    Ok(released.into_iter().flatten().collect())
}

async fn release_in(
    session: &Session,
    of: Rows,
    commands: &[&ReleaseCommand],
) -> Result<Vec<Released>, ServerError> {
    let durable = commands.iter().any(|command| command.durable);
    let token = |command: &&ReleaseCommand| command.token.map(Token::get);
    let rows = match commands {
        [] => return Ok(Vec::new()),
        // A request that was repeated may have been granted two permits.
        [command] if command.slot != Slot::AnyPermit => {
            let (first, last) = command.slot.range();
            let params: [&dyn Param; 8] = [
                &command.name.as_str(),
                &token(command),
                &command.grant.as_str(),
                &&*command.holder,
                &durable,
                &rest_micros(command),
                &first,
                &last,
            ];
            session.write(of, &RELEASE_ONE, 1, &params).await?
        }
        many => {
            let names: Vec<_> = many.iter().map(|command| command.name.as_str()).collect();
            let tokens: Vec<_> = many.iter().map(token).collect();
            let grants: Vec<_> = many.iter().map(|command| command.grant.as_str()).collect();
            let holders: Vec<_> = many.iter().map(|command| &*command.holder).collect();
            let rests: Vec<_> = many.iter().map(|command| rest_micros(command)).collect();
            let slots = many.iter().map(|command| command.slot.range());
            let (first, last): (Vec<_>, Vec<_>) = slots.unzip();
            let params: [&dyn Param; 8] = [
                &names, &tokens, &grants, &holders, &durable, &rests, &first, &last,
            ];
            session.write(of, &RELEASE, many.len(), &params).await?
        }
    };
    let mut released = vec![None; commands.len()];
    for row in &rows {
        released[place(row, commands.len())?] = Some(match row.try_get("awaited")? {
            Some(true) => Released::Awaited,
            _ => Released::Freed,
        });
    }
    let answers = commands.iter().zip(&released);
    let unknown = answers.filter(|(_, done)| done.is_none());
    let names: Vec<LockName> = unknown.map(|(command, _)| command.name.clone()).collect();
    let rows = match names.is_empty() {
        true => Vec::new(),
        false => read(session, of, &names).await?,
    };
    let unreleased =
        |command: &&ReleaseCommand| match rows.iter().any(|row| row.contains_grant_of(command)) {
            true => Released::Busy,
            false => Released::NotHeld,
        };
    let answers = commands.iter().zip(released);
    Ok(answers
        .map(|(command, done)| done.unwrap_or_else(|| unreleased(command)))
        .collect())
}

/// Release a lock by force. `$1` name, `$2` slot. One row: whether it was released, and the holder.
///
/// The holder stays in the row and the token goes up, which tells the holder that the lock was
/// freed by force and not taken over. The holder is notified, whether there are waiters or not: a
/// holder that listens renews at once, and so learns of it.
pub(crate) const FORCE: Statement = Statement {
    name: "release by force",
    text: "
WITH picked AS MATERIALIZED (
    SELECT id, locked_by, token, grant_id, shared, expires_at, granted_until, acquired_at
      FROM {table}
     WHERE name = $1{? AND slot = $2?} AND expires_at > statement_timestamp()
       FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL,
           renewed_at = statement_timestamp(),
           token = GREATEST(l.token + 1, {now_ms})
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.name, {durable}
)
SELECT freed, {state}, (SELECT {notify} FROM freed f)
  FROM (SELECT true AS freed, locked_by, token, grant_id, shared, expires_at, granted_until, acquired_at
          FROM picked
         UNION ALL
        SELECT false, locked_by, token, grant_id, shared, expires_at, granted_until, acquired_at
          FROM {table}
         WHERE name = $1{? AND slot = $2?} AND expires_at > statement_timestamp()
           AND NOT EXISTS (SELECT FROM picked)) l",
};

pub(crate) async fn force(
    session: &Session,
    name: &LockName,
    slot: Slot,
) -> Result<Force, ServerError> {
    let params: [&dyn Param; 2] = [&name.as_str(), &slot.range().0];
    let rows = session.write(Rows::of(slot), &FORCE, 1, &params).await?;
    Ok(match rows.first() {
        None => Force::WasFree,
        Some(row) if row.try_get("freed")? => Force::Freed(state(row)?.holder()),
        Some(_) => Force::Busy,
    })
}
