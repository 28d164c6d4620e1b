//! Permits of a semaphore. All other statements serve locks and permits alike.
//!
//! Each permit is a row of the table of permits, with the columns of a lock. A caller acquires one
//! free row below the limit. To count the holders and then to add one would let two callers pass at
//! once.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Row;

use crate::store::api::micros;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Param, Session, Statement};
use crate::store::postgres::error::{Kind as ErrorKind, ServerError};
use crate::store::postgres::rows::{only, place, state};
use protocol::{
    AcquireCommand, Kind, LockName, LockRow, Outcome, Permits, Slot, Token, no_permit_free,
};

/// Acquire a free permit below the limit: parameters as for
/// [`ACQUIRE_ONE`](super::acquire::ACQUIRE_ONE), with `$6` the caller's limit. One row: granted; the
/// slot and the token. No row: [`STATE`] finds out why.
///
/// If an earlier request, whose reply was lost, has a permit already, no other one is granted.
/// `LIMIT` stands above the row lock, so one row is locked. The order is random, so that callers
/// seldom meet at the same row.
pub(crate) const ACQUIRE_PERMIT: Statement = Statement {
    name: "acquire a permit",
    text: "
UPDATE {table} l SET
       permits = $6,{grant}
 WHERE id = (SELECT id FROM {table}
              WHERE name = $1 AND slot >= 0 AND slot < COALESCE({limit}, $6)
                AND (expires_at IS NULL OR expires_at <= statement_timestamp())
                AND NOT EXISTS (SELECT FROM {table} WHERE name = $1 AND grant_id = $2)
              ORDER BY random() LIMIT 1
                FOR UPDATE SKIP LOCKED)
RETURNING slot, token,
       {durable}",
};

/// [`ACQUIRE_PERMIT`] for many permits of one semaphore: `$1` name, `$2` grant ids, `$3` holders, `$4`
/// lengths, `$5` metadata, `$6` the caller's limit. Each row: a grant, its place in the request, the
/// slot and the token. Those that are missing are asked for one by one.
pub(crate) const ACQUIRE_PERMITS: Statement = Statement {
    name: "acquire permits",
    text: "
WITH asked AS MATERIALIZED (
    SELECT a.*, row_number() OVER (ORDER BY place) AS number
      FROM unnest($2::text[], $3::text[], $4::bigint[], $5::text[])
           WITH ORDINALITY AS a(grant_id, holder, length, metadata, place)
     WHERE NOT EXISTS (SELECT FROM {table} WHERE name = $1 AND grant_id = a.grant_id)
), free AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE name = $1 AND slot >= 0 AND slot < COALESCE({limit}, $6)
       AND (expires_at IS NULL OR expires_at <= statement_timestamp())
     ORDER BY random() LIMIT (SELECT count(*) FROM asked)
       FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT free.id, asked.*
      FROM (SELECT id, row_number() OVER () AS number FROM free) free JOIN asked USING (number)
)
UPDATE {table} l SET
       permits = $6,{grant_many}
  FROM picked p
 WHERE l.id = p.id
RETURNING p.place, l.slot, l.token,
       {durable}",
};

/// Read a semaphore of which no permit was acquired: `$1` name, `$2` grant ids, `$3` the caller's
/// limit. One row: the limit, how many rows there are below it, how many of them are held, how many
/// are held in all; and the state of one permit: one that has such a grant, or else that whose lease
/// ends first.
pub(crate) const STATE: Statement = Statement {
    name: "read permits",
    text: "
WITH known AS MATERIALIZED (
    SELECT *, expires_at > statement_timestamp() AS held FROM {table} WHERE name = $1 AND slot >= 0
), counts AS MATERIALIZED (
    SELECT COALESCE({limit}, $3) AS allowed
)
SELECT allowed::bigint,
       (SELECT count(*) FROM known WHERE slot < allowed) AS made,
       (SELECT count(*) FROM known WHERE slot < allowed AND held) AS held_below,
       (SELECT count(*) FROM known WHERE held) AS held,
       l.slot, l.name::text, {state}
  FROM counts
  LEFT JOIN LATERAL (SELECT * FROM known WHERE held
                      ORDER BY grant_id = ANY ($2) DESC NULLS LAST, slot >= allowed, expires_at
                      LIMIT 1) l ON true",
};

/// Insert a missing permit below the limit, granted from the beginning. Parameters as for
/// [`ACQUIRE_PERMIT`]. One row: granted. No row: another client has just inserted it.
///
/// Like [`MAKE_ONE`](super::acquire::MAKE_ONE), it may wait for another client, for 50 ms.
pub(crate) const MAKE_PERMIT: Statement = Statement {
    name: "make a permit",
    text: "
INSERT INTO {table} (name, slot, permits, locked_by, grant_id, metadata, token,
       expires_at, granted_until, acquired_at, renewed_at)
SELECT $1, slot, $6, $3, $2, $5, {now_ms},
       statement_timestamp() + $4 * interval '1 microsecond',
       statement_timestamp() + $4 * interval '1 microsecond',
       statement_timestamp(), statement_timestamp()
  FROM generate_series(0, COALESCE({limit}, $6) - 1) AS slot
 WHERE NOT EXISTS (SELECT FROM {table} l WHERE l.name = $1 AND l.slot = slot.slot)
   AND set_config('lock_timeout', '50ms', true) IS NOT NULL
 ORDER BY random() LIMIT 1
    ON CONFLICT (name, slot) DO NOTHING
RETURNING slot, token,
       {durable}",
};

/// The limits that operators have set.
pub(crate) const LIMITS: Statement = Statement {
    name: "read limits",
    text: "
SELECT name::text, permits::bigint FROM {table} WHERE slot = -1 AND permits IS NOT NULL",
};

/// Set the operator's limit: `$1` name, `$2` the limit, or NULL for none. Waiters are notified.
pub(crate) const SET_LIMIT: Statement = Statement {
    name: "set a limit",
    text: "
INSERT INTO {table} AS f (name, slot, permits, renewed_at)
VALUES ($1, -1, $2, statement_timestamp())
    ON CONFLICT (name, slot) DO UPDATE SET permits = $2, renewed_at = statement_timestamp()
RETURNING {notify}",
};

fn granted(session: &Session, length: Duration, row: &Row) -> Result<Outcome, ServerError> {
    let slot = slot(row)?.unwrap_or(Slot::AnyPermit);
    let token = Token::from_db(row.try_get("token")?);
    Ok(Outcome::granted(slot, token, length).confirmed_by(session.primary))
}

fn slot(row: &Row) -> Result<Option<Slot>, ServerError> {
    Ok(row
        .try_get::<_, Option<i32>>("slot")?
        .and_then(Slot::from_db))
}

/// Acquire permits, those of one semaphore at once. The outcomes of those that were granted.
pub(super) async fn acquire_permits(
    session: &Session,
    commands: &[(usize, &AcquireCommand)],
) -> Result<Vec<(usize, Outcome)>, ServerError> {
    let mut semaphores: HashMap<(&str, u32), Vec<(usize, &AcquireCommand)>> = HashMap::new();
    for (at, command) in commands {
        if let Kind::Permit { limit, .. } = command.kind {
            let of = semaphores
                .entry((command.name.as_str(), limit))
                .or_default();
            of.push((*at, command));
        }
    }
    let mut outcomes = Vec::with_capacity(commands.len());
    for ((name, limit), many) in semaphores {
        if many.len() == 1 {
            continue;
        }
        let all = || many.iter().map(|(_, command)| command);
        let grants: Vec<_> = all().map(|command| command.grant.as_str()).collect();
        let holders: Vec<_> = all().map(|command| &*command.holder).collect();
        let lengths: Vec<_> = all().map(|command| micros(command.length)).collect();
        let metadata: Vec<_> = all().map(|command| &*command.metadata).collect();
        let callers = limit.cast_signed();
        let params: [&dyn Param; 6] = [&name, &grants, &holders, &lengths, &metadata, &callers];
        let rows = session
            .write(Rows::Permits, &ACQUIRE_PERMITS, many.len(), &params)
            .await?;
        let mut left = many.clone();
        for row in &rows {
            let (at, command) = many[place(row, many.len())?];
            outcomes.push((at, granted(session, command.length, row)?));
            left.retain(|(other, _)| *other != at);
        }
        outcomes.extend(acquire_rest(session, left, limit).await?);
    }
    Ok(outcomes)
}

/// Acquire permits of one semaphore, of which none was free with a row. The first that is not granted
/// decides for the rest, so that a thousand callers of a full semaphore cost no thousand statements.
async fn acquire_rest(
    session: &Session,
    commands: Vec<(usize, &AcquireCommand)>,
    limit: u32,
) -> Result<Vec<(usize, Outcome)>, ServerError> {
    let Some((_, first)) = commands.first() else {
        return Ok(Vec::new());
    };
    let grants: Vec<_> = commands.iter().map(|(_, it)| it.grant.as_str()).collect();
    let known = Known::read(session, &first.name, limit, &grants).await?;
    // The reply to an earlier request was lost: each has to look for its own grant.
    if known.is_granted_to(&grants) {
        return Ok(Vec::new());
    }
    let mut decided = known.is_full().then(|| known.none_free());
    let mut outcomes = Vec::with_capacity(commands.len());
    for (at, command) in commands {
        let outcome = match &decided {
            Some(decided) => decided.clone(),
            None => acquire_permit(session, command, limit).await?,
        };
        if !matches!(outcome, Outcome::Granted { .. }) {
            decided = Some(outcome.clone());
        }
        outcomes.push((at, outcome));
    }
    Ok(outcomes)
}

/// A semaphore of which no permit was acquired.
struct Known {
    allowed: u32,
    /// How many permits below the limit have a row, and how many of them are held.
    made: u32,
    held_below: u32,
    held: u32,
    /// One that has the grant, or else that whose lease ends first.
    first: Option<LockRow>,
}

impl Known {
    async fn read(
        session: &Session,
        name: &LockName,
        limit: u32,
        grants: &[&str],
    ) -> Result<Self, ServerError> {
        let params: [&dyn Param; 3] = [&name.as_str(), &grants, &limit.cast_signed()];
        let rows = session.read(Rows::Permits, &STATE, 1, &params).await?;
        let row = only(&rows)?;
        let count =
            |of| Ok::<_, ServerError>(u32::try_from(row.try_get::<_, i64>(of)?).unwrap_or(0));
        let first = match slot(row)? {
            None => None,
            Some(slot) => Some(LockRow {
                slot,
                ..state(row)?
            }),
        };
        Ok(Self {
            allowed: count("allowed")?,
            made: count("made")?,
            held_below: count("held_below")?,
            held: count("held")?,
            first,
        })
    }

    fn is_granted_to(&self, grants: &[&str]) -> bool {
        let granted = |row: &LockRow| grants.iter().any(|grant| row.is_granted(grant));
        self.first.as_ref().is_some_and(granted)
    }

    fn is_full(&self) -> bool {
        self.held_below >= self.allowed
    }

    fn none_free(&self) -> Outcome {
        let permits = Permits {
            limit: self.allowed,
            held: self.held,
            observed: Vec::new(),
        };
        no_permit_free(permits, self.first.as_ref())
    }
}

/// Acquire one permit of a semaphore.
pub(super) async fn acquire_permit(
    session: &Session,
    command: &AcquireCommand,
    limit: u32,
) -> Result<Outcome, ServerError> {
    let grant = command.grant.as_str();
    let params: [&dyn Param; 6] = [
        &command.name.as_str(),
        &grant,
        &&*command.holder,
        &micros(command.length),
        &&*command.metadata,
        &limit.cast_signed(),
    ];
    let rows = session
        .write(Rows::Permits, &ACQUIRE_PERMIT, 1, &params)
        .await?;
    if let Some(row) = rows.first() {
        return granted(session, command.length, row);
    }
    let known = Known::read(session, &command.name, limit, &[grant]).await?;
    // The reply to an earlier request of this grant was lost.
    if let Some(own) = known.first.as_ref().filter(|row| row.is_granted(grant)) {
        let outcome = own.failed_acquire_outcome(command);
        return Ok(outcome.confirmed_by(session.primary));
    }
    if known.is_full() {
        return Ok(known.none_free());
    }
    if known.made >= known.allowed {
        return Ok(Outcome::Busy);
    }
    match session.write(Rows::Permits, &MAKE_PERMIT, 1, &params).await {
        Err(error) if error.kind == ErrorKind::Contention => Ok(Outcome::Busy),
        made => match made?.first() {
            Some(row) => granted(session, command.length, row),
            None => Ok(Outcome::Busy),
        },
    }
}

pub(crate) async fn limits(session: &Session) -> Result<Vec<(LockName, u32)>, ServerError> {
    let rows = session.read(Rows::Permits, &LIMITS, 1, &[]).await?;
    let limit = |row: &Row| {
        let limit: i64 = row.try_get("permits")?;
        let name = LockName::from_db(row.try_get("name")?);
        Ok((name, u32::try_from(limit).unwrap_or(0)))
    };
    rows.iter().map(limit).collect()
}

pub(crate) async fn set_limit(
    session: &Session,
    name: &LockName,
    limit: Option<u32>,
) -> Result<(), ServerError> {
    let limit = limit.map(u32::cast_signed);
    let params: [&dyn Param; 2] = [&name.as_str(), &limit];
    session
        .write(Rows::Permits, &SET_LIMIT, 1, &params)
        .await
        .map(drop)
}
