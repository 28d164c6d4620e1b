//! Acquiring locks that have a row, and inserting the rows of new ones.

use std::time::Duration;

use tokio_postgres::Row;

use super::permit::{acquire_permit, acquire_permits};
use super::shared::acquire_shared;
use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::{Kind as ErrorKind, ServerError};
use crate::store::postgres::rows::{place, state};
use protocol::{AcquireCommand, Kind, Outcome, Slot, Token};

/// Acquire one lock that is free or whose lease has ended.
///
/// `$1` name, `$2` grant id, `$3` holder, `$4` length in microseconds, `$5` metadata, `$6` how long
/// ago the latest grant has to have begun, in microseconds, or NULL. One row: granted; its place in
/// the request, and the token. No row: not granted, and [`MAKE_ONE`] finds out why.
///
/// The sub-select is run once and first, since it stands behind a plain `=`. It picks the newest
/// version of the row. A lock that is held is not picked, so a losing try writes nothing, not even
/// a transaction id.
///
/// The latest grant began too long ago to keep this one from beginning. `$6` is NULL if it keeps none,
/// and an `acquired_at` further in the future is from before the clock was set back. Of a lock that was
/// ever shared every grant is due: the client refuses it then, since the latest one may have given up
/// while it waited for shared ones.
///
/// A grant must survive a crash, or a second one could be made.
///
/// The token is the greater of the old one + 1 and the database's clock in milliseconds. So it
/// exceeds the tokens of a deleted row, and of one that a backup or a copied table has brought
/// back. Of a lock that was ever shared it exceeds the old one by 2: the token between them is that
/// of the shared grants.
pub(crate) const ACQUIRE_ONE: Statement = Statement {
    name: "acquire one",
    text: "
UPDATE {table} l SET{grant}
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND (expires_at IS NULL OR expires_at <= statement_timestamp())
                AND (NOT shared AND acquired_at BETWEEN statement_timestamp() - $6 * interval '1 microsecond'
                                     AND statement_timestamp() + $6 * interval '1 microsecond')
                    IS NOT TRUE
                FOR UPDATE SKIP LOCKED)
RETURNING 1::bigint AS place, token, shared,
       {durable}",
};

/// [`ACQUIRE_ONE`] for many: `$1` names, `$2` grant ids, `$3` holders, `$4` lengths, `$5` metadata,
/// `$6` windows.
///
/// A lock that is requested twice is granted once, since an UPDATE writes a row only once. Each row
/// is looked up by its name: see [`RENEW`](super::renew::RENEW).
pub(crate) const ACQUIRE: Statement = Statement {
    name: "acquire many",
    text: "
WITH picked AS MATERIALIZED (
    SELECT l.id, a.*
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[])
           WITH ORDINALITY AS a(name, grant_id, holder, length, metadata, not_within, place),
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name
                       AND (expires_at IS NULL OR expires_at <= statement_timestamp())
                       AND (NOT shared AND acquired_at BETWEEN statement_timestamp() - a.not_within * interval '1 microsecond'
                                     AND statement_timestamp() + a.not_within * interval '1 microsecond')
                    IS NOT TRUE
                       FOR UPDATE SKIP LOCKED) l
)
UPDATE {table} l SET{grant_many}
  FROM picked p
 WHERE l.id = p.id
RETURNING p.place, l.token, l.shared,
       {durable}",
};

/// Read the row of a lock that was not acquired; if there is none, insert one that is granted.
/// Parameters as for [`ACQUIRE_ONE`], without the last. One row: its place, whether it is granted,
/// and either the token or the state of the lock. No row: another client is inserting it.
///
/// This is the one statement that may wait: for a client that has inserted the same name and not
/// yet committed. It gives up after 50 ms, since the renewals on this connection wait behind it.
/// The lease counts from before the wait, as trust does.
pub(crate) const MAKE_ONE: Statement = Statement {
    name: "read or make one",
    text: "
WITH made AS (
    INSERT INTO {table} (name, locked_by, grant_id, metadata, token,
           expires_at, granted_until, acquired_at, renewed_at)
    SELECT $1, $3, $2, $5, {now_ms},
           statement_timestamp() + $4 * interval '1 microsecond',
           statement_timestamp() + $4 * interval '1 microsecond',
           statement_timestamp(), statement_timestamp()
     WHERE NOT EXISTS (SELECT FROM {table} WHERE name = $1)
       AND set_config('lock_timeout', '50ms', true) IS NOT NULL
        ON CONFLICT (name) DO NOTHING
 RETURNING token, {durable}
)
SELECT 1::bigint AS place, true AS granted, NULL::text AS locked_by, token, NULL::text AS grant_id,
       false AS shared,
       NULL::bigint AS expires_in, NULL::boolean AS is_infinite, false AS is_legacy, NULL::bigint AS held_for
  FROM made
 UNION ALL
SELECT 1::bigint, false, {state}
  FROM {table} l
 WHERE name = $1",
};

/// [`MAKE_ONE`] for many; parameters as for [`ACQUIRE`], without the last.
pub(crate) const MAKE: Statement = Statement {
    name: "read or make many",
    text: "
WITH asked AS MATERIALIZED (
    SELECT a.*
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
           WITH ORDINALITY AS a(name, grant_id, holder, length, metadata, place)
), made AS (
    INSERT INTO {table} (name, locked_by, grant_id, metadata, token,
           expires_at, granted_until, acquired_at, renewed_at)
    SELECT a.name, a.holder, a.grant_id, a.metadata, {now_ms},
           statement_timestamp() + a.length * interval '1 microsecond',
           statement_timestamp() + a.length * interval '1 microsecond',
           statement_timestamp(), statement_timestamp()
      FROM asked a
     WHERE a.name NOT IN (SELECT l.name FROM asked a JOIN {table} l ON l.name = a.name)
       AND set_config('lock_timeout', '50ms', true) IS NOT NULL
     ORDER BY a.name COLLATE \"C\"
        ON CONFLICT (name) DO NOTHING
 RETURNING grant_id::text, token, {durable}
)
SELECT a.place, true AS granted, NULL::text AS locked_by, m.token, NULL::text AS grant_id,
       false AS shared,
       NULL::bigint AS expires_in, NULL::boolean AS is_infinite, false AS is_legacy, NULL::bigint AS held_for
  FROM asked a JOIN made m ON m.grant_id = a.grant_id
 UNION ALL
SELECT a.place, false, {state}
  FROM asked a JOIN {table} l ON l.name = a.name",
};

pub(crate) async fn acquire(
    session: &Session,
    commands: &[AcquireCommand],
) -> Result<Vec<Outcome>, ServerError> {
    let mut outcomes = vec![None; commands.len()];
    let of_locks = |(_, command): &(usize, &AcquireCommand)| command.kind == Kind::Exclusive;
    let (locks, others): (Vec<_>, Vec<_>) = commands.iter().enumerate().partition(of_locks);
    let (at, locks): (Vec<usize>, Vec<&AcquireCommand>) = locks.into_iter().unzip();
    let rows = send(session, [&ACQUIRE_ONE, &ACQUIRE], &locks).await?;
    for row in &rows {
        let place = place(row, locks.len())?;
        outcomes[at[place]] = Some(granted(session, locks[place].length, row)?);
    }
    for (at, outcome) in acquire_permits(session, &others).await? {
        outcomes[at] = Some(outcome);
    }
    for (at, command) in others {
        outcomes[at] = Some(match command.kind {
            Kind::Permit { limit, .. } if outcomes[at].is_none() => {
                acquire_permit(session, command, limit).await?
            }
            Kind::Shared { beside } => acquire_shared(session, command, beside).await?,
            _ => continue,
        });
    }
    let unknown = (commands.iter().zip(0..)).filter(|(_, at)| outcomes[*at].is_none());
    let (not_granted, at): (Vec<&AcquireCommand>, Vec<usize>) = unknown.unzip();
    for (at, outcome) in at
        .into_iter()
        .zip(read_or_make(session, &not_granted).await?)
    {
        outcomes[at] = Some(outcome);
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// The grant of a lock, by its row.
pub(super) fn granted(
    session: &Session,
    length: Duration,
    row: &Row,
) -> Result<Outcome, ServerError> {
    let token = Token::from_db(row.try_get("token")?);
    let granted = Outcome::granted(Slot::Lock, token, length).of_shared(row.try_get("shared")?);
    Ok(granted.confirmed_by(session.primary))
}

/// Run the statement for one, or the one for many. Some do not use the last parameter.
async fn send(
    session: &Session,
    [one, many]: [&Statement; 2],
    commands: &[&AcquireCommand],
) -> Result<Vec<Row>, ServerError> {
    match commands {
        [] => Ok(Vec::new()),
        [command] => {
            let params: [&dyn Param; 6] = [
                &command.name.as_str(),
                &command.grant.as_str(),
                &&*command.holder,
                &micros(command.length),
                &&*command.metadata,
                &command.not_within.map(micros),
            ];
            session.write(Rows::Locks, one, 1, &params).await
        }
        commands => send_many(session, many, commands).await,
    }
}

/// Run a statement for many.
pub(super) async fn send_many(
    session: &Session,
    statement: &Statement,
    commands: &[&AcquireCommand],
) -> Result<Vec<Row>, ServerError> {
    let all = || commands.iter();
    let names: Vec<_> = all().map(|command| command.name.as_str()).collect();
    let grants: Vec<_> = all().map(|command| command.grant.as_str()).collect();
    let holders: Vec<_> = all().map(|command| &*command.holder).collect();
    let lengths: Vec<_> = all().map(|command| micros(command.length)).collect();
    let metadata: Vec<_> = all().map(|command| &*command.metadata).collect();
    let windows: Vec<_> = all()
        .map(|command| command.not_within.map(micros))
        .collect();
    let params: [&dyn Param; 6] = [&names, &grants, &holders, &lengths, &metadata, &windows];
    session
        .write(Rows::Locks, statement, commands.len(), &params)
        .await
}

/// The outcomes of the commands that were not granted. A row that another client is inserting is
/// busy.
async fn read_or_make(
    session: &Session,
    commands: &[&AcquireCommand],
) -> Result<Vec<Outcome>, ServerError> {
    match made(session, commands).await {
        // One name whose row another client is inserting must not keep a thousand others from being
        // inserted. So each is tried alone, from a random start, until a second one fails.
        Err(error) if error.kind == ErrorKind::Contention => {
            let mut outcomes = vec![Outcome::Busy; commands.len()];
            if commands.len() == 1 {
                return Ok(outcomes);
            }
            let (start, mut failures) = (fastrand::usize(..commands.len()), 0);
            for at in (start..commands.len()).chain(0..start) {
                match made(session, &commands[at..=at]).await {
                    Err(error) if error.kind == ErrorKind::Contention => failures += 1,
                    done => outcomes[at] = done?.remove(0),
                }
                if failures == 2 {
                    break;
                }
            }
            Ok(outcomes)
        }
        done => done,
    }
}

async fn made(
    session: &Session,
    commands: &[&AcquireCommand],
) -> Result<Vec<Outcome>, ServerError> {
    let rows = send(session, [&MAKE_ONE, &MAKE], commands).await?;
    let mut outcomes = vec![Outcome::Busy; commands.len()];
    for row in &rows {
        let at = place(row, commands.len())?;
        outcomes[at] = match row.try_get("granted")? {
            true => granted(session, commands[at].length, row)?,
            false => {
                let outcome = state(row)?.failed_acquire_outcome(commands[at]);
                outcome.confirmed_by(session.primary)
            }
        };
    }
    Ok(outcomes)
}
