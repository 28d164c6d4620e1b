//! PostgreSQL 12 and later.
//!
//! Each call is one statement, and so one transaction and one round trip; only a name that has no
//! row yet costs a second one. The statements hold these rules, which whoever joins from another
//! language has to hold too:
//!
//! - The time is `clock_timestamp()`, never `now()`, which is when the transaction began. It is asked
//!   once for each row, so that `granted_until` is the same as `expires_at` to the microsecond.
//! - No statement waits for a row. What is locked by somebody is skipped, and the answer says so.
//! - Whatever changes a token, a grant id, or frees a row by force, picks it with `FOR UPDATE`, which
//!   is what a fence (`FOR KEY SHARE`) keeps out. Renewal and release pick with `FOR NO KEY UPDATE`,
//!   which passes it.
//! - A lease without end ends at 9999-12-31 00:00:00 UTC. Others may have written `infinity`, from
//!   which nothing can be subtracted.
//! - Nothing is set but for the statement's own transaction (`set_config(…, true)`), since behind a
//!   pooler a session is not ours.
//!
//! What is picked stands in a CTE of its own, `MATERIALIZED`: an UPDATE would wait for a row, a
//! `SELECT … FOR UPDATE SKIP LOCKED` does not, and it has to be carried out once and first.

#[macro_use]
mod rows;

mod acquire;
mod bells;
mod cancel;
mod connection;
mod dial;
mod doctor;
mod ends;
mod hello;
mod identity;
mod link;
mod refusal;
mod tls;

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use self::acquire::{ACQUIRE, ACQUIRE_ONE, INSERT, acquire};
use self::bells::{ABOUT, Bells, WAIT};
use self::connection::Connection;
use self::link::Link;
use self::refusal::{Kind, Refusal};
use self::rows::{micros, place, seen};
use super::rows::{Seen, judge_ticket};
use super::url::Server;
use super::{
    Ask, FenceText, Force, Grant, Occupant, Outcome, Pauses, Released, Renewal, Reply, Return,
    Store, Table, TakeOver, TakeUp, Woken, bounded,
};
use crate::doctor::Report;
use crate::error::Error;
use crate::info::LockInfo;
use crate::name::LockName;
use crate::timing::Ttl;
use crate::token::Token;

/// What makes the table, or adds to it what it lacks.
const INSTALL: &str = include_str!("../../../schema/postgres.sql");

/// From this size on a statement is planned each time, for its size. A prepared one may have been
/// planned for a handful, with loops within loops.
const LARGE: usize = 64;

/// The statements that may be prepared; the number of each is its place here.
#[derive(Clone, Copy)]
enum Sql {
    AcquireOne,
    Acquire,
    Insert,
    Renew,
    TakeOver,
    TakeUp,
    ReleaseOne,
    Release,
    Force,
    Read,
    ReadAll,
    Prune,
    Wait,
    Ring,
}

const STATEMENTS: [&str; 14] = [
    ACQUIRE_ONE,
    ACQUIRE,
    INSERT,
    RENEW,
    TAKE_OVER,
    TAKE_UP,
    RELEASE_ONE,
    RELEASE,
    FORCE,
    READ,
    READ_ALL,
    PRUNE,
    WAIT,
    RING,
];

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(super) const PUBLISHED: &[(&str, &str)] = &[
    ("acquire one", ACQUIRE_ONE),
    ("acquire many", ACQUIRE),
    ("make a row, granted", INSERT),
    ("renew", RENEW),
    ("take over from the same holder", TAKE_OVER),
    ("take up", TAKE_UP),
    ("release one", RELEASE_ONE),
    ("release many", RELEASE),
    ("release by force", FORCE),
    ("wait", WAIT),
    ("wake", RING),
    ("read", READ),
    ("prune", PRUNE),
    ("fence", FENCE),
];

/// The engine of `postgres:` URLs.
#[derive(Debug)]
pub(super) struct Postgres {
    link: Link,
    bells: Bells,
    table: Table,
    install: String,
    fence: FenceText,
}

impl Postgres {
    pub(super) fn new(server: &Server, table: &Table) -> Result<Self, Error> {
        let texts: Vec<_> = STATEMENTS.iter().map(|text| table.fill(text)).collect();
        let bells = Bells::new(table.fill(ABOUT), |bells| {
            let link = |listen: &Server| Link::new(listen, table, texts.clone(), bells);
            server.listen.as_deref().map(link).transpose()
        })?;
        Ok(Self {
            link: Link::new(server, table, texts, bells.listener())?,
            bells,
            table: table.clone(),
            install: table.fill(INSTALL),
            fence: FenceText {
                before: None,
                fence: table.fill(FENCE),
                may_lag: false,
            },
        })
    }
}

/// Lengthen what is still held by exactly these grants.
///
/// `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` lengths in microseconds, NULL for a
/// lease without end. A row for each: renewed, or what a plain read says of it; no row: it is gone.
///
/// A lease that has run out is not revived, one that 0.5 wrote (`granted_until` differs) is not ours,
/// and none is ever shortened. It is as durable as the grant: after a crash that forgot it the lock
/// would be given away while its holder trusts it.
const RENEW: &str = concat!(
    "
WITH durable AS MATERIALIZED (
    SELECT CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS MATERIALIZED (
    SELECT a.*
      FROM durable, unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[])
           WITH ORDINALITY AS a(name, token, grant_id, holder, length, place)
), picked AS MATERIALIZED (
    SELECT l.id, a.place, clock_timestamp() AS now, a.length
      FROM asked a JOIN {table} l ON l.name = a.name
     WHERE l.token = a.token AND l.grant_id = a.grant_id AND l.locked_by = a.holder
       AND l.expires_at > clock_timestamp() AND l.granted_until = l.expires_at
     ORDER BY l.id
       FOR NO KEY UPDATE OF l SKIP LOCKED
), renewed AS (
    UPDATE {table} l SET
           expires_at = GREATEST(l.expires_at, coalesce(
                p.now + p.length * interval '1 microsecond', '9999-12-31 00:00:00+00')),
           granted_until = GREATEST(l.expires_at, coalesce(
                p.now + p.length * interval '1 microsecond', '9999-12-31 00:00:00+00')),
           renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING p.place
)
SELECT place, true, NULL::text, 0::bigint, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint, NULL::text
  FROM renewed
 UNION ALL
SELECT a.place, false, ",
    seen!(),
    ", l.metadata::text
  FROM asked a JOIN {table} l ON l.name = a.name
 WHERE a.place NOT IN (SELECT place FROM renewed)"
);

async fn renew(on: &Connection, grants: &[(Grant, Ttl)]) -> Result<Vec<Renewal>, Refusal> {
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<_> = grants
        .iter()
        .map(|(grant, _)| grant.name.as_str())
        .collect();
    let tokens: Vec<_> = grants.iter().map(|(grant, _)| grant.token.get()).collect();
    let ids: Vec<_> = grants.iter().map(|(grant, _)| grant.id.as_str()).collect();
    let holders: Vec<_> = grants.iter().map(|(grant, _)| &*grant.holder).collect();
    let length = |ttl: &Ttl| match ttl {
        Ttl::Lasting(length) => Some(micros(*length)),
        Ttl::Endless => None,
    };
    let lengths: Vec<_> = grants.iter().map(|(_, ttl)| length(ttl)).collect();
    let params: [connection::Param<'_>; 5] = [
        (&names, Type::TEXT_ARRAY),
        (&tokens, Type::INT8_ARRAY),
        (&ids, Type::TEXT_ARRAY),
        (&holders, Type::TEXT_ARRAY),
        (&lengths, Type::INT8_ARRAY),
    ];
    let rows = on
        .rows(Sql::Renew as usize, grants.len() < LARGE, &params)
        .await?;
    let (mut renewals, mut found) = (vec![None; grants.len()], HashMap::new());
    for row in &rows {
        let at = place(row, grants.len())?;
        if row.try_get(1)? {
            renewals[at] = Some(Renewal::Renewed);
        } else {
            let metadata = row.try_get(9)?;
            let as_read = seen(row, 2)?;
            found.insert(
                at,
                Seen {
                    metadata,
                    ..as_read
                },
            );
        }
    }
    let of = |renewed: bool| {
        let all = grants.iter().zip(&renewals).enumerate();
        all.filter(move |(_, (_, done))| done.is_some() == renewed)
            .map(|(at, ((grant, _), _))| (at, grant))
    };
    identity::confirmed(on, of(true).map(|(_, grant)| &grant.id));
    let unrenewed = of(false).map(|(at, grant)| (grant, found.remove(&at)));
    let mut verdicts = identity::judge_all(on, unrenewed.collect())
        .await?
        .into_iter();
    Ok(renewals
        .into_iter()
        .map(|done| done.or_else(|| verdicts.next()).unwrap_or(Renewal::Busy))
        .collect())
}

/// Take a lock from its own holder, who comes again: parameters and rows as for [`ACQUIRE_ONE`], with
/// `$6` the token and `$7` the grant id that were seen.
///
/// The end of the lease is not asked for: a renewal in between makes it no other grant. `FOR UPDATE`
/// as for every new token, so that an open fence keeps it out.
const TAKE_OVER: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND locked_by = $3 AND token = $6 AND grant_id IS NOT DISTINCT FROM $7
       AND expires_at > clock_timestamp()
       FOR UPDATE SKIP LOCKED
), granted AS (
    UPDATE {table} l SET
           grant_id = $2, metadata = $5,
           token = CASE l.token WHEN 0 THEN (extract(epoch FROM p.now) * 1000)::bigint
                   ELSE l.token + 1 END,
           expires_at = p.now + $4 * interval '1 microsecond',
           granted_until = p.now + $4 * interval '1 microsecond',
           acquired_at = p.now, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.token
)
SELECT 1::bigint, true, NULL::text, token, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint
  FROM granted
 UNION ALL
SELECT 1::bigint, false, ",
    seen!(),
    "
  FROM {table} l
 WHERE name = $1 AND NOT EXISTS (SELECT FROM granted)"
);

async fn take_over(on: &Connection, what: &TakeOver) -> Result<Outcome, Refusal> {
    let to = &what.to;
    let params: [connection::Param<'_>; 7] = [
        (&to.name.as_str(), Type::TEXT),
        (&to.grant.as_str(), Type::TEXT),
        (&&*to.holder, Type::TEXT),
        (&micros(to.length), Type::INT8),
        (&&*to.metadata, Type::TEXT),
        (&what.token.get(), Type::INT8),
        (&what.grant.as_deref(), Type::TEXT),
    ];
    let rows = on.rows(Sql::TakeOver as usize, true, &params).await?;
    let outcome = match rows.first() {
        Some(row) if row.try_get(1)? => Outcome::Granted {
            token: Token::from_db(row.try_get(3)?),
            length: to.length,
        },
        Some(row) => seen(row, 2)?.not_taken_over(what),
        None => Outcome::Busy,
    };
    identity::granted(on, [(to, &outcome)].into_iter());
    Ok(outcome)
}

/// Put another grant in the place of one that is still held.
///
/// `$1` name, `$2` token, `$3` the grant that ends, `$4` the one that begins, `$5` its holder, `$6` its
/// metadata, `$7` length in microseconds. One row: taken up, or what a plain read says. No row: gone.
///
/// That `$4` may stand there already is for a request that is made again, since its reply was lost.
const TAKE_UP: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND token = $2 AND grant_id IN ($3, $4)
       AND expires_at > clock_timestamp() AND granted_until = expires_at
       FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE {table} l SET
           locked_by = $5, grant_id = $4, metadata = $6, renewed_at = p.now,
           expires_at = GREATEST(l.expires_at, p.now + $7 * interval '1 microsecond'),
           granted_until = GREATEST(l.expires_at, p.now + $7 * interval '1 microsecond')
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.id
)
SELECT true, NULL::text, 0::bigint, NULL::text, NULL::bigint, NULL::boolean, true,
       NULL::bigint, NULL::text
  FROM taken
 UNION ALL
SELECT false, ",
    seen!(),
    ", l.metadata::text
  FROM {table} l
 WHERE l.name = $1 AND NOT EXISTS (SELECT FROM taken)"
);

async fn take_up(on: &Connection, what: &TakeUp) -> Result<Renewal, Refusal> {
    let to = &what.to;
    let params: [connection::Param<'_>; 7] = [
        (&to.name.as_str(), Type::TEXT),
        (&what.token.get(), Type::INT8),
        (&what.from.as_str(), Type::TEXT),
        (&to.grant.as_str(), Type::TEXT),
        (&&*to.holder, Type::TEXT),
        (&&*to.metadata, Type::TEXT),
        (&micros(to.length), Type::INT8),
    ];
    let rows = on.rows(Sql::TakeUp as usize, true, &params).await?;
    Ok(match rows.first() {
        Some(row) if row.try_get(0)? => {
            identity::confirmed(on, [&to.grant].into_iter());
            Renewal::Renewed
        }
        Some(row) => {
            let row = Seen {
                metadata: row.try_get(8)?,
                ..seen(row, 1)?
            };
            judge_ticket(what, Some(&row))
        }
        None => judge_ticket(what, None),
    })
}

/// Free one lock that is still held by exactly this grant.
///
/// `$1` name, `$2` token or NULL, `$3` grant id, `$4` holder, `$5` whether it must survive a crash, `$6`
/// whether to wake nobody. One row: whether it is free now, or is still ours and locked by somebody, and
/// whether others wait for it. No row: not ours.
///
/// Nobody is woken where somebody of this process takes it next, with the statement behind this one: he
/// would be woken in vain. The process that releases so owes it to the others not to go on with that for
/// long, and to wake them (the statement "wake") where nobody takes it after all.
///
/// The holder, the token and the times stay, for people to read; the token because the next grant's
/// has to be greater. A crash that forgets a release costs the others a wait of one ttl, and not
/// waiting for the disk halves its price.
const RELEASE_ONE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE WHEN NOT $5 THEN set_config('synchronous_commit', 'off', true)
                WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'on', true) END
      FROM {table}
     WHERE name = $1 AND grant_id = $3 AND locked_by = $4 AND ($2 IS NULL OR token = $2)
       AND granted_until = expires_at
       FOR NO KEY UPDATE SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.name, l.waiting_until > p.now AS awaited
)
SELECT 1::bigint, true, f.awaited, ",
    ring!("f.awaited AND NOT $6"),
    " FROM freed f
 UNION ALL
SELECT 1::bigint, false, NULL, NULL
  FROM {table}
 WHERE name = $1 AND grant_id = $3 AND locked_by = $4 AND ($2 IS NULL OR token = $2)
       AND granted_until = expires_at
   AND NOT EXISTS (SELECT FROM freed)"
);

/// The same for many: `$1` names, `$2` tokens, `$3` grant ids, `$4` holders, `$5` whether they must
/// survive a crash, `$6` whether to wake nobody, for each.
const RELEASE: &str = concat!(
    "
WITH durable AS MATERIALIZED (
    SELECT CASE WHEN NOT $5 THEN set_config('synchronous_commit', 'off', true)
                WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'on', true) END
), asked AS MATERIALIZED (
    SELECT a.*
      FROM durable, unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $6::boolean[])
           WITH ORDINALITY AS a(name, token, grant_id, holder, quietly, place)
), picked AS MATERIALIZED (
    SELECT l.id, a.place, a.quietly, clock_timestamp() AS now
      FROM asked a JOIN {table} l ON l.name = a.name
     WHERE l.grant_id = a.grant_id AND l.locked_by = a.holder
       AND (a.token IS NULL OR l.token = a.token) AND l.granted_until = l.expires_at
     ORDER BY l.id
       FOR NO KEY UPDATE OF l SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = p.now
      FROM picked p
     WHERE l.id = p.id
 RETURNING p.place, p.quietly, l.name, l.waiting_until > p.now AS awaited
)
SELECT place, true, f.awaited, ",
    ring!("f.awaited AND NOT f.quietly"),
    " FROM freed f
 UNION ALL
SELECT a.place, false, NULL, NULL
  FROM asked a JOIN {table} l ON l.name = a.name
 WHERE l.grant_id = a.grant_id AND l.locked_by = a.holder
   AND (a.token IS NULL OR l.token = a.token) AND l.granted_until = l.expires_at
   AND a.place NOT IN (SELECT place FROM freed)"
);

async fn release(on: &Connection, returns: &[Return]) -> Result<Vec<Released>, Refusal> {
    let durable = returns.iter().any(|what| what.durable);
    let token = |what: &Return| what.token.map(Token::get);
    let rows = match returns {
        [] => return Ok(Vec::new()),
        [what] => {
            let params: [connection::Param<'_>; 6] = [
                (&what.name.as_str(), Type::TEXT),
                (&token(what), Type::INT8),
                (&what.grant.as_str(), Type::TEXT),
                (&&*what.holder, Type::TEXT),
                (&durable, Type::BOOL),
                (&what.quietly, Type::BOOL),
            ];
            on.rows(Sql::ReleaseOne as usize, true, &params).await?
        }
        many => {
            let names: Vec<_> = many.iter().map(|what| what.name.as_str()).collect();
            let tokens: Vec<_> = many.iter().map(token).collect();
            let grants: Vec<_> = many.iter().map(|what| what.grant.as_str()).collect();
            let holders: Vec<_> = many.iter().map(|what| &*what.holder).collect();
            let quietly: Vec<_> = many.iter().map(|what| what.quietly).collect();
            let params: [connection::Param<'_>; 6] = [
                (&names, Type::TEXT_ARRAY),
                (&tokens, Type::INT8_ARRAY),
                (&grants, Type::TEXT_ARRAY),
                (&holders, Type::TEXT_ARRAY),
                (&durable, Type::BOOL),
                (&quietly, Type::BOOL_ARRAY),
            ];
            on.rows(Sql::Release as usize, many.len() < LARGE, &params)
                .await?
        }
    };
    let mut released = vec![Released::NotOurs; returns.len()];
    for row in &rows {
        let at = place(row, returns.len())?;
        let awaited = row.try_get::<_, Option<bool>>(2)? == Some(true);
        released[at] = match row.try_get(1)? {
            true if awaited => Released::Awaited,
            true => Released::Freed,
            false => Released::Busy,
        };
    }
    Ok(released)
}

/// Wake those who wait for `$1`.
const RING: &str = "SELECT pg_notify('database_locks_' || '{table}'::regclass::oid, $1)";

/// Free a lock whoever has it. `$1` name. A row: whether it was freed, and who had it.
///
/// The holder stays in the row and the token goes up: that is how the holder learns that it was
/// freed by force and not taken over. A row of 0.5 gets its first token here as well.
const FORCE: &str = concat!(
    "
WITH picked AS MATERIALIZED (
    SELECT id, clock_timestamp() AS now,
           CASE current_setting('synchronous_commit')
           WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END,
           locked_by, token, grant_id, expires_at, granted_until, acquired_at
      FROM {table}
     WHERE name = $1 AND expires_at > clock_timestamp()
       FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE {table} l SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL, renewed_at = p.now,
           token = CASE l.token WHEN 0 THEN (extract(epoch FROM p.now) * 1000)::bigint
                   ELSE l.token + 1 END
      FROM picked p
     WHERE l.id = p.id
 RETURNING l.name, l.waiting_until > p.now AS awaited
)
SELECT freed, ",
    seen!(),
    ", (SELECT ",
    ring!("f.awaited"),
    " FROM freed f)
  FROM (SELECT true AS freed, locked_by, token, grant_id, expires_at, granted_until, acquired_at
          FROM picked
         UNION ALL
        SELECT false, locked_by, token, grant_id, expires_at, granted_until, acquired_at
          FROM {table}
         WHERE name = $1 AND expires_at > clock_timestamp()
           AND NOT EXISTS (SELECT FROM picked)) l"
);

async fn force(on: &Connection, name: &LockName) -> Result<Force, Refusal> {
    let params: [connection::Param<'_>; 1] = [(&name.as_str(), Type::TEXT)];
    let rows = on.rows(Sql::Force as usize, true, &params).await?;
    Ok(match rows.first() {
        None => Force::WasFree,
        Some(row) if row.try_get(0)? => Force::Freed(seen(row, 1)?.occupant()),
        Some(_) => Force::Busy,
    })
}

macro_rules! info {
    ($rest:literal) => {
        concat!(
            "
SELECT name::text, ",
            seen!(),
            ",
       ",
            micros!("acquired_at", "acquired_at"),
            ",
       ",
            micros!("renewed_at", "renewed_at"),
            ",
       ",
            micros!("expires_at", "expires_at"),
            ",
       metadata::text
  FROM {table} l",
            $rest
        )
    };
}

/// Read the locks of these names: `$1`. Locks nothing.
const READ: &str = info!(" WHERE name = ANY ($1) ORDER BY name COLLATE \"C\"");

/// The same for all.
const READ_ALL: &str = info!(" ORDER BY name COLLATE \"C\"");

async fn read(on: &Connection, names: Option<&[LockName]>) -> Result<Vec<Seen>, Refusal> {
    let rows = match names {
        None => on.rows(Sql::ReadAll as usize, true, &[]).await?,
        Some(names) => {
            let texts: Vec<_> = names.iter().map(LockName::as_str).collect();
            let params: [connection::Param<'_>; 1] = [(&texts, Type::TEXT_ARRAY)];
            on.rows(Sql::Read as usize, names.len() < LARGE, &params)
                .await?
        }
    };
    let whole = |row: &Row| -> Result<Seen, Refusal> {
        Ok(Seen {
            name: row.try_get(0)?,
            acquired_at: row.try_get(8)?,
            renewed_at: row.try_get(9)?,
            expires_at: row.try_get(10)?,
            metadata: row.try_get(11)?,
            ..seen(row, 1)?
        })
    };
    rows.iter().map(whole).collect()
}

/// Delete what nobody has had for so long; `$1` microseconds, `$2` whether rows that do not say so too.
///
/// A row whose `granted_until` is set while `expires_at` is null was freed by 0.5, at a time that it
/// does not tell. One whose token is ahead of the clock, after more than a thousand grants a second,
/// stays: the row made anew begins at the clock, and its token has to be greater.
const PRUNE: &str = "
WITH picked AS MATERIALIZED (
    SELECT id
      FROM {table}
     WHERE (expires_at <= clock_timestamp() - $1 * interval '1 microsecond'
        OR (expires_at IS NULL AND granted_until IS NULL
            AND renewed_at <= clock_timestamp() - $1 * interval '1 microsecond')
        OR (expires_at IS NULL AND (granted_until IS NOT NULL OR renewed_at IS NULL) AND $2))
       AND token < (extract(epoch FROM clock_timestamp()) * 1000)::bigint
     LIMIT 500
       FOR UPDATE SKIP LOCKED
)
DELETE FROM {table} l USING picked p WHERE l.id = p.id RETURNING l.id";

async fn prune(on: &Connection, idle: Duration, unknown: bool) -> Result<u64, Refusal> {
    let params: [connection::Param<'_>; 2] =
        [(&micros(bounded(idle)), Type::INT8), (&unknown, Type::BOOL)];
    let rows = on.rows(Sql::Prune as usize, false, &params).await?;
    Ok(rows.len() as u64)
}

/// The fence: let this transaction commit only while the grant is there. In somebody's own transaction,
/// as its first statement: `$1` name, `$2` token, `$3` grant id. One row: it passes. No row, or a
/// serialisation failure (40001): the grant is gone, or was made after this transaction's snapshot.
///
/// `FOR KEY SHARE` is what `FOR UPDATE` skips, and nothing weaker: so renewals go on, other fences of the
/// same grant pass, and nobody gets the lock until this transaction has ended. Where a snapshot is old
/// it follows the row to its latest version, and fails where a `FOR UPDATE` is on the way.
///
/// It does not ask whether the lease has ended: an old snapshot does not see the renewals, and as long
/// as nobody was granted the lock nobody is harmed.
const FENCE: &str = "
SELECT id
  FROM {table}
 WHERE name = $1 AND token = $2 AND grant_id = $3 AND granted_until = expires_at
   FOR KEY SHARE";

async fn install(on: &Connection, script: &str) -> Result<(), Refusal> {
    // Two that make the table at once: the loser of the race is told one of many things. Some have no
    // code of their own ("tuple concurrently updated", XX000).
    let raced = ["42P07", "42701", "42710", "XX000"];
    on.script(script)
        .await
        .map_err(|refusal| match &refusal.code {
            Some(code) if raced.contains(&code.code()) => Refusal {
                kind: Kind::Contention,
                ..refusal
            },
            _ => refusal,
        })
}

impl Store for Postgres {
    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        let within = self.link.patience(within);
        Box::pin(self.link.on(within, |_| std::future::ready(Ok(()))))
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask], within: Duration) -> Reply<'a, Vec<Outcome>> {
        Box::pin(async move {
            let looks = self.bells.looking(asks);
            let outcomes = self
                .link
                .on(within, move |on| async move { acquire(&on, asks).await })
                .await?;
            self.bells.looked(asks, looks, &outcomes);
            Ok(outcomes)
        })
    }

    fn freed<'a>(
        &'a self,
        name: &'a LockName,
        pauses: Pauses,
    ) -> Pin<Box<dyn Future<Output = Woken> + Send + 'a>> {
        Box::pin(self.bells.wait(&self.link, name, pauses))
    }

    fn ring<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, ()> {
        Box::pin(self.link.on(within, move |on| async move {
            let params: [connection::Param<'_>; 1] = [(&name.as_str(), Type::TEXT)];
            on.rows(Sql::Ring as usize, true, &params).await.map(drop)
        }))
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        Box::pin(
            self.link
                .on(within, move |on| async move { renew(&on, grants).await }),
        )
    }

    fn release<'a>(&'a self, returns: &'a [Return], within: Duration) -> Reply<'a, Vec<Released>> {
        Box::pin(
            self.link
                .on(within, move |on| async move { release(&on, returns).await }),
        )
    }

    fn read<'a>(
        &'a self,
        names: Option<&'a [LockName]>,
        within: Duration,
    ) -> Reply<'a, Vec<LockInfo>> {
        Box::pin(self.link.on(within, move |on| async move {
            let rows = read(&on, names).await?;
            Ok(rows.into_iter().map(Seen::into_info).collect())
        }))
    }

    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Occupant>>> {
        Box::pin(self.link.on(within, move |on| async move {
            let rows = read(&on, Some(names)).await?;
            Ok(Seen::occupants(names, &rows))
        }))
    }

    fn take_over<'a>(&'a self, what: &'a TakeOver, within: Duration) -> Reply<'a, Outcome> {
        Box::pin(
            self.link
                .on(within, move |on| async move { take_over(&on, what).await }),
        )
    }

    fn take_up<'a>(&'a self, what: &'a TakeUp, within: Duration) -> Reply<'a, Renewal> {
        Box::pin(
            self.link
                .on(within, move |on| async move { take_up(&on, what).await }),
        )
    }

    fn prune(&self, idle: Duration, unknown: bool, within: Duration) -> Reply<'_, u64> {
        Box::pin(self.link.on_patiently(within, move |on| async move {
            prune(&on, idle, unknown).await
        }))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        Box::pin(
            self.link
                .on(within, move |on| async move { force(&on, name).await }),
        )
    }

    fn fence(&self) -> Option<&FenceText> {
        Some(&self.fence)
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(self.link.on_patiently(within, move |on| async move {
            install(&on, &self.install).await
        }))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        Box::pin(self.link.on_patiently(within, move |on| async move {
            doctor::examine(&on, &self.table, &self.bells).await
        }))
    }
}
