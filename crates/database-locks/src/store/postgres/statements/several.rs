//! Acquiring several locks, all or none.

use super::acquire::send_many;
use super::read::read;
use crate::store::connect::table::Rows;
use crate::store::postgres::connection::session::{Session, Statement};
use crate::store::postgres::error::{Kind, ServerError};
use crate::store::postgres::rows::place;
use protocol::{AcquireCommand, AllOutcome, LockName, LockRow, Token};

/// Acquire all of these locks, or none: parameters as for [`ACQUIRE`](super::acquire::ACQUIRE).
/// No row: not granted, and a read finds out why.
///
/// No row is picked unless all are free, so that a try while one is held locks no row and writes
/// nothing. Then the rows are picked in the order of the request, which is that of the names: of
/// two overlapping requests, the one that picks their first common row first gets it. One that is
/// locked is skipped, and the count is short.
pub(crate) const ACQUIRE_ALL: Statement = Statement {
    name: "acquire all or none",
    text: "
WITH asked AS MATERIALIZED (
    SELECT a.*
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
           WITH ORDINALITY AS a(name, grant_id, holder, length, metadata, place)
), free AS MATERIALIZED (
    SELECT count(*) AS n
      FROM asked a,
           LATERAL (SELECT FROM {table}
                     WHERE name = a.name
                       AND (expires_at IS NULL OR expires_at <= statement_timestamp())) l
), picked AS MATERIALIZED (
    SELECT l.id, a.*
      FROM (SELECT * FROM asked
             WHERE (SELECT n FROM free) = cardinality($1::text[]) ORDER BY place) a,
           LATERAL (SELECT id FROM {table}
                     WHERE name = a.name
                       AND (expires_at IS NULL OR expires_at <= statement_timestamp())
                       FOR UPDATE SKIP LOCKED) l
)
UPDATE {table} l SET{grant_many}
  FROM picked p
 WHERE l.id = p.id AND (SELECT count(*) FROM picked) = cardinality($1::text[])
RETURNING p.place, l.token, l.shared,
       {durable}",
};

/// Insert free rows for those of the names `$1` that have none.
///
/// A row that is granted from the beginning would have to be taken back if another of the locks is
/// held. This may wait, as [`MAKE`](super::acquire::MAKE) does, for as long.
pub(crate) const MAKE_FREE: Statement = Statement {
    name: "make free rows",
    text: "
INSERT INTO {table} (name, renewed_at)
SELECT a.name, statement_timestamp()
  FROM unnest($1::text[]) AS a(name)
 WHERE a.name NOT IN (SELECT l.name FROM unnest($1::text[]) AS a(name) JOIN {table} l ON l.name = a.name)
   AND set_config('lock_timeout', '50ms', true) IS NOT NULL
 ORDER BY a.name COLLATE \"C\"
    ON CONFLICT (name) DO NOTHING",
};

pub(crate) async fn acquire_all(
    session: &Session,
    commands: &[AcquireCommand],
) -> Result<AllOutcome, ServerError> {
    if let Some(granted) = try_all(session, commands).await? {
        return Ok(granted);
    }
    let names: Vec<LockName> = commands
        .iter()
        .map(|command| command.name.clone())
        .collect();
    let seen = |rows: &[LockRow]| AllOutcome::of_rows(commands, rows).confirmed_by(session.primary);
    let rows = read(session, Rows::Locks, &names).await?;
    if rows.len() == names.len() || rows.iter().any(LockRow::is_taken) {
        return Ok(seen(&rows));
    }
    let texts: Vec<&str> = names.iter().map(LockName::as_str).collect();
    match session
        .write(Rows::Locks, &MAKE_FREE, names.len(), &[&texts])
        .await
    {
        // Another client is inserting one of them.
        Err(error) if error.kind == Kind::Contention => return Ok(AllOutcome::busy(commands)),
        made => made?,
    };
    match try_all(session, commands).await? {
        Some(granted) => Ok(granted),
        None => Ok(seen(&read(session, Rows::Locks, &names).await?)),
    }
}

/// Send [`ACQUIRE_ALL`]. `None`: nothing was granted.
async fn try_all(
    session: &Session,
    commands: &[AcquireCommand],
) -> Result<Option<AllOutcome>, ServerError> {
    let all: Vec<&AcquireCommand> = commands.iter().collect();
    let rows = send_many(session, &ACQUIRE_ALL, &all).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut grants = vec![(Token::from_db(0), false); commands.len()];
    for row in &rows {
        let token = Token::from_db(row.try_get("token")?);
        grants[place(row, commands.len())?] = (token, row.try_get("shared")?);
    }
    let granted = AllOutcome::granted(commands, grants);
    Ok(Some(granted.confirmed_by(session.primary)))
}
