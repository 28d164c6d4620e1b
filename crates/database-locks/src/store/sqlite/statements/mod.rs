//! The statements, and how each call carries them out.

use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row};

use super::super::Barrier;
use super::super::StoreError;
use super::super::Table;
use super::super::bounded;
use crate::store::sqlite::connection::worker::{Worker, of_file};
use protocol::{
    AcquireCommand, Force, Gone, Grant, Holder, ListFilter, LockInfo, LockName, LockRow, Outcome,
    Page, Pruned, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand, Token, Ttl,
    judge, judge_ticket,
};

/// What a DBA reads is what runs.
const INSTALL: &str = include_str!("../../../../schema/sqlite.sql");

/// A row as `LockRow` wants it. `unixepoch` answers NULL for what is no time.
macro_rules! seen {
    ($rest:literal) => {
        concat!(
            "SELECT name, locked_by, token, grant_id,
                    unixepoch(expires_at, 'subsec') - unixepoch('now', 'subsec'),
                    expires_at LIKE '9999-12-31 00:00:00%',
                    granted_until IS NOT expires_at,
                    unixepoch('now', 'subsec') - unixepoch(acquired_at, 'subsec'),
                    unixepoch(acquired_at, 'subsec'),
                    unixepoch(renewed_at, 'subsec'),
                    unixepoch(expires_at, 'subsec'),
                    metadata
               FROM {table} ",
            $rest
        )
    };
}

/// Who has this lock. It takes no lock, so that a losing try writes nothing and waits for nobody.
const LOOK: &str = seen!("WHERE name = ?1");

/// The last of the next thousand ids behind `?1`; null where there are no more.
const PAGE_END: &str = "
    SELECT max(id) FROM (SELECT id FROM {table} WHERE id > ?1 ORDER BY id LIMIT 1000)";

/// The rows of such a page, from behind `?1` to `?2`: all or, where `?3`, those that are not free; with
/// names that begin with `?4`.
const PAGE: &str = seen!(
    "WHERE id > ?1 AND id <= ?2 AND NOT (?3 AND expires_at IS NULL)
                AND substr(name, 1, length(?4)) = ?4
              ORDER BY id"
);

/// Whether this lock is held. One row: it is, and a try would only wait for the lock on the file.
const IS_HELD: &str = "
    SELECT 1 FROM {table} WHERE name = ?1 AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')";

/// Take a lock that is free, or whose lease has run out. One row changed: granted.
///
/// The token is the greater of the old one + 1 and the clock in milliseconds: so it exceeds those of a
/// row that was deleted, and of one that a backup or a copied table has put back.
const ACQUIRE: &str = "
    UPDATE {table} SET
           locked_by = ?2, grant_id = ?3, metadata = ?4,
           token = max(token + 1, CAST(unixepoch('now', 'subsec') * 1000 AS integer)),
           expires_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           granted_until = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           acquired_at = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1
       AND (expires_at IS NULL OR expires_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now'))";

/// The token of a grant that was just made. `RETURNING` would make a table in memory for its one row, which takes
/// longer than the rest of the statement.
const TOKEN: &str = "SELECT token FROM {table} WHERE name = ?1";

/// The same of a lock that has no row. It comes second: an INSERT writes the row of `sqlite_sequence` too, in
/// another page.
const MAKE: &str = "
    INSERT INTO {table}
           (name, locked_by, grant_id, metadata, token,
            expires_at, granted_until, acquired_at, renewed_at)
    VALUES (?1, ?2, ?3, ?4, CAST(unixepoch('now', 'subsec') * 1000 AS integer),
            strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5), strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
            strftime('%Y-%m-%d %H:%M:%f000', 'now'), strftime('%Y-%m-%d %H:%M:%f000', 'now'))
    ON CONFLICT (name) DO NOTHING";

/// Lengthen one lease, never shorten it. One row changed: renewed.
const RENEW: &str = "
    UPDATE {table} SET
           expires_at = max(expires_at, ifnull(strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
                                               '9999-12-31 00:00:00.000000')),
           granted_until = max(expires_at, ifnull(strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
                                                  '9999-12-31 00:00:00.000000')),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1 AND token = ?2 AND grant_id = ?3 AND locked_by = ?4
       AND granted_until = expires_at
       AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')";

/// Take a lock from its own holder, who comes again: `?6` token and `?7` grant id are those that were
/// seen. One row: granted.
const TAKE_OVER: &str = "
    UPDATE {table} SET
           grant_id = ?3, metadata = ?4,
           token = max(token + 1, CAST(unixepoch('now', 'subsec') * 1000 AS integer)),
           expires_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           granted_until = strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
           acquired_at = strftime('%Y-%m-%d %H:%M:%f000', 'now'),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1 AND locked_by = ?2 AND token = ?6 AND grant_id IS ?7
       AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
    RETURNING token";

/// Put another grant in the place of one that is still held. That the second may stand there already
/// is for a request that is made again, since its reply was lost.
const RESUME: &str = "
    UPDATE {table} SET
           locked_by = ?5, grant_id = ?4, metadata = ?6,
           expires_at = max(expires_at, strftime('%Y-%m-%d %H:%M:%f000', 'now', ?7)),
           granted_until = max(expires_at, strftime('%Y-%m-%d %H:%M:%f000', 'now', ?7)),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1 AND token = ?2 AND grant_id IN (?3, ?4)
       AND granted_until = expires_at
       AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')";

/// Look for what nobody has had for so long, on a page from behind `?3` to `?4`.
///
/// Not where the token is ahead of the clock, after more than a thousand grants a second: the row made
/// anew begins at the clock, and its token has to be greater.
const IDLE: &str = "
    SELECT id, name FROM {table}
     WHERE id > ?3 AND id <= ?4
       AND (expires_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now', ?1)
        OR (expires_at IS NULL AND granted_until IS NULL
            AND renewed_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now', ?1))
        OR (expires_at IS NULL AND (granted_until IS NOT NULL OR renewed_at IS NULL) AND ?2))
       AND token < CAST(unixepoch('now', 'subsec') * 1000 AS integer)";

/// Delete one of them.
const PRUNE: &str = "DELETE FROM {table} WHERE id = ?1";

/// Free what is still held by this grant; a token of NULL is one that we never learnt.
const RELEASE: &str = "
    UPDATE {table} SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL,
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1 AND token = ifnull(?2, token) AND grant_id = ?3 AND locked_by = ?4
       AND granted_until = expires_at";

/// Free a lock whoever has it. The token is raised, so that its holder can tell this from a release
/// with its own ticket.
const FORCE: &str = "
    UPDATE {table} SET
           expires_at = NULL, granted_until = NULL, grant_id = NULL,
           token = max(token + 1, CAST(unixepoch('now', 'subsec') * 1000 AS integer)),
           renewed_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')
     WHERE name = ?1 AND expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now')
    RETURNING token";

/// What `docs/protocol.md` publishes.
#[cfg(test)]
pub(crate) const PUBLISHED: &[(&str, &str)] = &[
    ("read", LOOK),
    ("find the end of a page", PAGE_END),
    ("read a page", PAGE),
    ("check whether it is held", IS_HELD),
    ("acquire", ACQUIRE),
    ("acquire a lock that has no row", MAKE),
    ("read the token of a grant", TOKEN),
    ("renew", RENEW),
    ("preempt", TAKE_OVER),
    ("resume", RESUME),
    ("release", RELEASE),
    ("release by force", FORCE),
    ("find rows to prune", IDLE),
    ("prune", PRUNE),
];

/// The statements with the table's name in them.
pub(crate) struct Statements {
    pub(crate) look: String,
    pub(crate) page_end: String,
    pub(crate) page: String,
    pub(crate) is_held: String,
    pub(crate) acquire: String,
    pub(crate) make: String,
    pub(crate) token: String,
    pub(crate) renew: String,
    pub(crate) take_over: String,
    pub(crate) resume: String,
    pub(crate) release: String,
    pub(crate) force: String,
    pub(crate) idle: String,
    pub(crate) prune: String,
    pub(crate) install: String,
}

impl Statements {
    pub(crate) fn of(table: &Table) -> Self {
        Self {
            look: table.fill(LOOK),
            page_end: table.fill(PAGE_END),
            page: table.fill(PAGE),
            is_held: table.fill(IS_HELD),
            acquire: table.fill(ACQUIRE),
            make: table.fill(MAKE),
            token: table.fill(TOKEN),
            renew: table.fill(RENEW),
            take_over: table.fill(TAKE_OVER),
            resume: table.fill(RESUME),
            release: table.fill(RELEASE),
            force: table.fill(FORCE),
            idle: table.fill(IDLE),
            prune: table.fill(PRUNE),
            install: table.fill(INSTALL),
        }
    }
}

/// A length as SQLite's date functions add it. Rounded up: never shorter than what is trusted.
pub(crate) fn modifier(length: Duration) -> String {
    let ms = length.as_micros().div_ceil(1000);
    format!("+{}.{:03} seconds", ms / 1000, ms % 1000)
}

/// The same backwards.
pub(crate) fn ago(length: Duration) -> String {
    let ms = bounded(length).as_micros().div_ceil(1000);
    format!("-{}.{:03} seconds", ms / 1000, ms % 1000)
}

pub(crate) fn seen(row: &Row<'_>) -> rusqlite::Result<LockRow> {
    let micros = |i| -> rusqlite::Result<Option<i64>> {
        Ok(row
            .get::<_, Option<f64>>(i)?
            .map(|secs| (secs * 1e6) as i64))
    };
    Ok(LockRow {
        name: row.get(0)?,
        holder: row.get(1)?,
        token: row.get(2)?,
        grant: row.get(3)?,
        expires_in: micros(4)?,
        is_infinite: row.get::<_, Option<bool>>(5)?.unwrap_or_default(),
        is_legacy: row.get(6)?,
        held_for: micros(7)?,
        acquired_at: micros(8)?,
        renewed_at: micros(9)?,
        expires_at: micros(10)?,
        metadata: row.get(11)?,
        ..LockRow::default()
    })
}

pub(crate) fn look(
    statement: &mut CachedStatement<'_>,
    name: &LockName,
) -> rusqlite::Result<Option<LockRow>> {
    statement.query_row([name.as_str()], seen).optional()
}

pub(crate) fn look_at(
    worker: &mut Worker,
    names: &[LockName],
) -> Result<Vec<Option<Holder>>, StoreError> {
    worker.with(|connection, sql| {
        let mut statement = connection.prepare_cached(&sql.look)?;
        let rows = names.iter().map(|name| look(&mut statement, name));
        let rows: Vec<Option<LockRow>> = rows.collect::<Result<_, _>>()?;
        let rows: Vec<LockRow> = rows.into_iter().flatten().collect();
        Ok(LockRow::holders(names, &rows))
    })
}

pub(crate) fn acquire(
    worker: &mut Worker,
    asks: &[AcquireCommand],
) -> Result<Vec<Outcome>, StoreError> {
    let looked = worker.with(|connection, sql| {
        let mut is_held = connection.prepare_cached(&sql.is_held)?;
        let one = |ask: &AcquireCommand| match is_held.exists([ask.name.as_str()])? {
            true => refusal(connection, sql, ask),
            false => Ok(Outcome::Busy),
        };
        asks.iter().map(one).collect()
    });
    let mut outcomes: Vec<Outcome> = looked?;
    worker.database.note_used();
    if !outcomes.contains(&Outcome::Busy) {
        return Ok(outcomes);
    }
    worker.write_unless_fenced(|tx, sql, fences| {
        for (ask, outcome) in asks.iter().zip(&mut outcomes) {
            let fenced = || fences.is_open(ask.name.as_str()).map_err(of_file);
            if *outcome == Outcome::Busy && !fenced()? {
                *outcome = take(tx, sql, ask)?;
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

/// Take it, with the write lock.
fn take(tx: &Connection, sql: &Statements, ask: &AcquireCommand) -> rusqlite::Result<Outcome> {
    let granted = |statement: &String| {
        let changed = tx.prepare_cached(statement)?.execute((
            ask.name.as_str(),
            &*ask.holder,
            ask.grant.as_str(),
            &*ask.metadata,
            modifier(ask.length),
        ))?;
        Ok::<_, rusqlite::Error>(changed == 1)
    };
    if !granted(&sql.acquire)? && !granted(&sql.make)? {
        return refusal(tx, sql, ask);
    }
    let mut token = tx.prepare_cached(&sql.token)?;
    let token = token.query_row([ask.name.as_str()], |row| row.get(0))?;
    Ok(Outcome::Granted {
        token: Token::from_db(token),
        length: ask.length,
    })
}

/// Who has it, or that its own grant does.
fn refusal(on: &Connection, sql: &Statements, ask: &AcquireCommand) -> rusqlite::Result<Outcome> {
    let row = look(&mut on.prepare_cached(&sql.look)?, &ask.name)?;
    Ok(row.map_or(Outcome::Busy, |row| row.refusal(ask.grant.as_str())))
}

pub(crate) fn renew(
    worker: &mut Worker,
    grants: &[(Grant, Ttl)],
) -> Result<Vec<Renewal>, StoreError> {
    worker.write(|tx, sql| {
        let mut renew = tx.prepare_cached(&sql.renew)?;
        let mut read = tx.prepare_cached(&sql.look)?;
        let one = |(grant, ttl): &(Grant, Ttl)| {
            let length = match ttl {
                Ttl::Finite(length) => Some(modifier(*length)),
                Ttl::Infinite => None,
            };
            let renewed = renew.execute((
                grant.name.as_str(),
                grant.token.get(),
                grant.id.as_str(),
                &*grant.holder,
                length,
            ))?;
            if renewed == 1 {
                return Ok(Renewal::Renewed);
            }
            Ok(judge(grant, look(&mut read, &grant.name)?.as_ref()))
        };
        grants.iter().map(one).collect()
    })
}

pub(crate) fn release(
    worker: &mut Worker,
    returns: &[ReleaseCommand],
) -> Result<Vec<Released>, StoreError> {
    worker.write(|tx, sql| {
        let mut release = tx.prepare_cached(&sql.release)?;
        let one = |what: &ReleaseCommand| {
            let token = what.token.map(Token::get);
            let freed = release.execute((
                what.name.as_str(),
                token,
                what.grant.as_str(),
                &*what.holder,
            ))?;
            Ok(if freed == 1 {
                Released::Freed
            } else {
                Released::NotHeld
            })
        };
        returns.iter().map(one).collect()
    })
}

pub(crate) fn take_over(
    worker: &mut Worker,
    what: &TakeOverCommand,
) -> Result<Outcome, StoreError> {
    let to = &what.to;
    worker.write_unless_fenced(|tx, sql, fences| {
        if fences.is_open(to.name.as_str()).map_err(of_file)? {
            return Ok(Outcome::Busy);
        }
        let token = tx.prepare_cached(&sql.take_over)?.query_row(
            (
                to.name.as_str(),
                &*to.holder,
                to.grant.as_str(),
                &*to.metadata,
                modifier(to.length),
                what.token.get(),
                what.grant.as_deref(),
            ),
            |row| row.get(0),
        );
        if let Some(token) = token.optional()? {
            return Ok(Outcome::Granted {
                token: Token::from_db(token),
                length: to.length,
            });
        }
        let row = look(&mut tx.prepare_cached(&sql.look)?, &to.name)?;
        Ok(row.map_or(Outcome::Busy, |row| row.not_taken_over(what)))
    })
}

pub(crate) fn resume(worker: &mut Worker, what: &ResumeCommand) -> Result<Renewal, StoreError> {
    let to = &what.to;
    worker.write_unless_fenced(|tx, sql, fences| {
        if !fences.is_open(to.name.as_str()).map_err(of_file)? {
            let taken = tx.prepare_cached(&sql.resume)?.execute((
                to.name.as_str(),
                what.token.get(),
                what.from.as_str(),
                to.grant.as_str(),
                &*to.holder,
                &*to.metadata,
                modifier(to.length),
            ))?;
            if taken == 1 {
                return Ok(Renewal::Renewed);
            }
        }
        let row = look(&mut tx.prepare_cached(&sql.look)?, &to.name)?;
        Ok(judge_ticket(what, row.as_ref()))
    })
}

pub(crate) fn force(worker: &mut Worker, name: &LockName) -> Result<Force, StoreError> {
    worker.write_unless_fenced(|tx, sql, fences| {
        let row = look(&mut tx.prepare_cached(&sql.look)?, name)?;
        if row.as_ref().is_some_and(LockRow::is_held)
            && fences.is_open(name.as_str()).map_err(of_file)?
        {
            return Ok(Force::Busy);
        }
        // Past the greatest integer it would be a float, which nobody could read any more.
        let mut force = tx.prepare_cached(&sql.force)?;
        let freed: Option<i64> = force
            .query_row([name.as_str()], |row| row.get("token"))
            .optional()?;
        Ok(match row {
            Some(row) if freed.is_some() => Force::Freed(row.holder()),
            _ => Force::WasFree,
        })
    })
}

pub(crate) fn prune(
    worker: &mut Worker,
    since: &str,
    unknown: bool,
    after: Option<i64>,
) -> Result<Pruned, StoreError> {
    let first = after.unwrap_or(i64::MIN);
    worker.write_unless_fenced(|tx, sql, fences| {
        if after.is_none() {
            fences.sweep();
        }
        let mut end = tx.prepare_cached(&sql.page_end)?;
        let Some(last) = end.query_row([first], |row| row.get::<_, Option<i64>>(0))? else {
            return Ok(Pruned::default());
        };
        let mut idle = tx.prepare_cached(&sql.idle)?;
        let page = (since, unknown, first, last);
        let found = idle.query_map(page, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let found: Vec<(i64, String)> = found.collect::<Result<_, _>>()?;
        let (mut delete, mut deleted) = (tx.prepare_cached(&sql.prune)?, 0);
        for (id, name) in found {
            if !fences.is_open(&name).map_err(of_file)? {
                deleted += delete.execute([id])? as u64;
            }
        }
        let last = Some(last);
        Ok(Pruned { deleted, last })
    })
}

/// Lock the file of the fence, and then see whether the grant is there: see [`fence`].
pub(crate) fn open_fence(
    worker: &mut Worker,
    grant: &Grant,
) -> Result<Result<Barrier, Gone>, StoreError> {
    let opened = worker.write_unless_fenced(|tx, sql, fences| {
        let Some(open) = fences.open(grant.name.as_str()).map_err(of_file)? else {
            return Ok(None);
        };
        let row = look(&mut tx.prepare_cached(&sql.look)?, &grant.name)?;
        Ok(Some(match judge(grant, row.as_ref()) {
            Renewal::Lost(gone) => Err(gone),
            Renewal::Busy | Renewal::Renewed => Ok(Barrier::new(open)),
        }))
    });
    opened?.ok_or_else(|| StoreError::Contention("its file is just being removed".into()))
}

pub(crate) fn page(
    worker: &mut Worker,
    filter: &ListFilter,
    after: Option<i64>,
) -> Result<Page, StoreError> {
    let after = after.unwrap_or(i64::MIN);
    worker.with(|connection, sql| {
        let mut end = connection.prepare_cached(&sql.page_end)?;
        let Some(last) = end.query_row([after], |row| row.get::<_, Option<i64>>(0))? else {
            return Ok(Page::default());
        };
        let mut page = connection.prepare_cached(&sql.page)?;
        let rows = page.query_map((after, last, filter.not_free, &filter.prefix), seen)?;
        let infos = rows.map(|row| row.map(LockRow::into_info));
        Ok(Page {
            rows: infos.collect::<Result<_, _>>()?,
            last: Some(last),
        })
    })
}

pub(crate) fn read(worker: &mut Worker, names: &[LockName]) -> Result<Vec<LockInfo>, StoreError> {
    let rows: Vec<LockRow> = worker.with(|connection, sql| {
        let mut statement = connection.prepare_cached(&sql.look)?;
        names
            .iter()
            .filter_map(|name| look(&mut statement, name).transpose())
            .collect()
    })?;
    let mut infos: Vec<LockInfo> = rows.into_iter().map(LockRow::into_info).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}
