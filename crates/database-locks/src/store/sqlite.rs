//! SQLite: one file for all processes of one machine.
//!
//! A connection is a thread of its own, since SQLite blocks: a disk that hangs must not delay what
//! the scheduler has to say. Each call has its deadline, and the one thread hangs on alone. Its clock is
//! the machine's, read by SQLite itself while it has the write lock. Everything that writes begins with
//! that lock (`BEGIN IMMEDIATE`), which is what `FOR UPDATE SKIP LOCKED` is elsewhere; a file that is busy
//! is contention, tried again.

use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::{
    CachedStatement, Connection, ErrorCode, OptionalExtension, Row, TransactionBehavior,
};

use self::thread::Thread;
use super::rows::{Seen, judge, judge_ticket};
use super::{
    Ask, Barrier, Force, Gone, Grant, NO_TOKEN, Occupant, Outcome, Page, Pruned, Released, Renewal,
    Reply, Return, Store, StoreError, Table, TakeOver, TakeUp, bounded,
};
use crate::doctor::Report;
use crate::fork;
use crate::info::{ListFilter, LockInfo};
use crate::name::LockName;
use crate::timing::Ttl;
use crate::token::Token;

mod doctor;
mod fence;
mod thread;

use fence::Fences;

/// What a DBA reads is what runs.
const INSTALL: &str = include_str!("../../schema/sqlite.sql");

/// How long SQLite itself tries where the file is busy, before the caller may do something else:
/// enough for other processes' writes, short enough that a renewal does not queue long behind it.
const BUSY_TIMEOUT: Duration = Duration::from_millis(50);

/// A row as `Seen` wants it. `unixepoch` answers NULL for what is no time.
macro_rules! seen {
    ($rest:literal) => {
        concat!(
            "SELECT name, locked_by, token, grant_id,
                    unixepoch(expires_at, 'subsec') - unixepoch('now', 'subsec'),
                    expires_at LIKE '9999-12-31 00:00:00%',
                    granted_until IS expires_at,
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

/// Take a lock that is new, free, or whose lease has run out. One row: granted. No row: somebody
/// holds it.
///
/// The token is the greater of the old one + 1 and the clock in milliseconds: so it exceeds those of a
/// row that was deleted, and of one that a backup or a copied table has put back.
const ACQUIRE: &str = "
    INSERT INTO {table} AS l
           (name, locked_by, grant_id, metadata, token,
            expires_at, granted_until, acquired_at, renewed_at)
    VALUES (?1, ?2, ?3, ?4, CAST(unixepoch('now', 'subsec') * 1000 AS integer),
            strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5), strftime('%Y-%m-%d %H:%M:%f000', 'now', ?5),
            strftime('%Y-%m-%d %H:%M:%f000', 'now'), strftime('%Y-%m-%d %H:%M:%f000', 'now'))
    ON CONFLICT (name) DO UPDATE SET
           locked_by = excluded.locked_by, grant_id = excluded.grant_id,
           metadata = excluded.metadata,
           token = max(l.token + 1, excluded.token),
           expires_at = excluded.expires_at, granted_until = excluded.granted_until,
           acquired_at = excluded.acquired_at, renewed_at = excluded.renewed_at
     WHERE l.expires_at IS NULL
        OR l.expires_at <= strftime('%Y-%m-%d %H:%M:%f000', 'now')
    RETURNING token";

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
const TAKE_UP: &str = "
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
pub(super) const PUBLISHED: &[(&str, &str)] = &[
    ("read", LOOK),
    ("find the end of a page", PAGE_END),
    ("read a page", PAGE),
    ("acquire", ACQUIRE),
    ("renew", RENEW),
    ("take over from the same holder", TAKE_OVER),
    ("take up", TAKE_UP),
    ("release", RELEASE),
    ("release by force", FORCE),
    ("look for what is to be pruned", IDLE),
    ("prune", PRUNE),
];

/// The statements with the table's name in them.
#[derive(Clone)]
struct Statements {
    look: String,
    page_end: String,
    page: String,
    acquire: String,
    renew: String,
    take_over: String,
    take_up: String,
    release: String,
    force: String,
    idle: String,
    prune: String,
    install: String,
}

/// A length as SQLite's date functions add it. Rounded up: never shorter than what is trusted.
fn modifier(length: Duration) -> String {
    let ms = length.as_micros().div_ceil(1000);
    format!("+{}.{:03} seconds", ms / 1000, ms % 1000)
}

/// The same backwards.
fn ago(length: Duration) -> String {
    let ms = bounded(length).as_micros().div_ceil(1000);
    format!("-{}.{:03} seconds", ms / 1000, ms % 1000)
}

fn seen(row: &Row<'_>) -> rusqlite::Result<Seen> {
    let micros = |i| -> rusqlite::Result<Option<i64>> {
        Ok(row
            .get::<_, Option<f64>>(i)?
            .map(|secs| (secs * 1e6) as i64))
    };
    Ok(Seen {
        name: row.get(0)?,
        holder: row.get(1)?,
        token: row.get(2)?,
        grant: row.get(3)?,
        expires_in: micros(4)?,
        endless: row.get::<_, Option<bool>>(5)?.unwrap_or_default(),
        intact: row.get(6)?,
        held_for: micros(7)?,
        acquired_at: micros(8)?,
        renewed_at: micros(9)?,
        expires_at: micros(10)?,
        metadata: row.get(11)?,
        ..Seen::default()
    })
}

/// An open file.
struct File {
    connection: Connection,
    /// Device and inode: whether the path still leads here.
    identity: (u64, u64),
}

/// What the thread of a connection works with.
struct Worker {
    path: PathBuf,
    fences: Fences,
    statements: Statements,
    file: Option<File>,
    /// The table has been used.
    used: bool,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

impl Worker {
    /// The file, opened if it is not yet.
    ///
    /// A file that was deleted or replaced under us is given up: its locks would exclude nobody but
    /// those who have it open still.
    fn connection(&mut self) -> Result<(&mut Connection, &Statements), StoreError> {
        let gone = self
            .file
            .as_ref()
            .is_some_and(|f| identity(&self.path) != Some(f.identity));
        let file = match self.file.take() {
            Some(file) if !gone => file,
            _ => self.open()?,
        };
        Ok((&mut self.file.insert(file).connection, &self.statements))
    }

    fn open(&self) -> Result<File, StoreError> {
        // SQLite keeps account of its file locks for the whole process, and a forked child inherits
        // the account without the locks: https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
        static OPENED_IN: OnceLock<u64> = OnceLock::new();
        let generation = fork::generation();
        if *OPENED_IN.get_or_init(|| generation) != generation {
            let said = "SQLite was in use when this process was forked";
            let hint = "connect in the child only, or let it exec";
            return Err(StoreError::rejected(said, Some(hint)));
        }
        let shown = self.path.display();
        // For its owner only, whatever the umask: who can write it can take every lock.
        // Closed again before SQLite opens it, and by one thread at a time: closing any descriptor of
        // a file gives up all locks that this process has on it, SQLite's among them.
        // https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
        static MAKING: Mutex<()> = Mutex::new(());
        let alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
            .map(drop);
        drop(alone);
        if let Err(error) = made
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            if passes(&error) {
                return Err(StoreError::cannot_serve(format!(
                    "cannot make {shown}: {error}"
                )));
            }
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => "make its folder first",
                _ => "the folder must be writable by this user",
            };
            return Err(StoreError::rejected(
                format!("cannot make {shown}: {error}"),
                Some(hint),
            ));
        }
        let open = || {
            let connection = Connection::open(&self.path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Readers, who look at a lock that is held, then neither wait for a writer nor stop one.
            connection.pragma_update(None, "journal_mode", "wal")?;
            // A commit that a power cut forgets would let a token come twice.
            connection.pragma_update(None, "synchronous", "full")?;
            let tables = "SELECT count(*) FROM sqlite_schema";
            let empty = connection.query_row(tables, [], |row| row.get::<_, i64>(0))? == 0;
            if empty {
                connection.execute_batch(&self.statements.install)?;
            }
            Ok(connection)
        };
        let connection = open().map_err(|error| self.explain(error, self.used))?;
        match identity(&self.path) {
            Some(identity) => Ok(File {
                connection,
                identity,
            }),
            None => Err(StoreError::Contention(
                format!("{shown} was deleted just now").into(),
            )),
        }
    }

    /// What an error means; `used`: the file has been used, so what is lacking now may come back.
    fn explain(&self, error: rusqlite::Error, used: bool) -> StoreError {
        // Of what is wrong at some place of a statement the driver shows the whole statement, and gives
        // no code by itself.
        let (message, code) = match &error {
            rusqlite::Error::SqlInputError { error, msg, .. } => (msg.clone(), Some(error.code)),
            other => (other.to_string(), other.sqlite_error_code()),
        };
        let shown = self.path.display();
        let said = format!("{shown}: {message}");
        let Some(code) = code else {
            if let rusqlite::Error::ToSqlConversionFailure(source) = &error
                && source.downcast_ref().is_some_and(passes)
            {
                return StoreError::cannot_serve(said);
            }
            let token = said.contains("name: token");
            return StoreError::rejected(said, token.then_some(NO_TOKEN));
        };
        let missing = said.contains("no such table") || said.contains("no such column");
        let hint = match code {
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::SchemaChanged => return StoreError::Contention(said.into()),
            ErrorCode::DiskFull => {
                return StoreError::cannot_serve(format!("{shown}: the disk is full"));
            }
            // A disk that fails, memory that is short, a statement that was interrupted.
            ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted => return StoreError::cannot_serve(said),
            // Too many open files, a disk that is full or mounted read-only for a while.
            ErrorCode::CannotOpen | ErrorCode::ReadOnly if used => {
                return StoreError::cannot_serve(said);
            }
            _ if missing && used => return StoreError::cannot_serve(said),
            ErrorCode::CannotOpen => Some("the file and its folder must be writable by this user"),
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => {
                Some("the file and its folder must be writable by this user")
            }
            ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => {
                Some("give a file of its own, or none: it is made where it is missing")
            }
            _ if missing => Some("make its table with `dblock init` or `locks.migrate()`"),
            _ if said.contains("unknown database") => {
                Some("SQLite has no schemas: give the table's NAME alone")
            }
            _ => None,
        };
        StoreError::rejected(said, hint)
    }

    /// Carry out `work` on the open file.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Connection, &Statements) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let (connection, statements) = self.connection()?;
        let done = work(connection, statements);
        done.map_err(|error| {
            let error = self.explain(error, self.used);
            if matches!(error, StoreError::Unavailable(_)) {
                self.file = None;
            }
            error
        })
    }

    /// The same with the write lock, committed at the end.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&Connection, &Statements) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.write_unless_fenced(|tx, statements, _| work(tx, statements))
    }

    /// The same for what gives a lock to somebody, which an open fence keeps out.
    fn write_unless_fenced<T>(
        &mut self,
        work: impl FnOnce(&Connection, &Statements, &Fences) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let fences = self.fences.clone();
        let done = self.with(|connection, statements| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&tx, statements, &fences)?;
            tx.commit()?;
            Ok(done)
        })?;
        self.used = true;
        Ok(done)
    }
}

/// Whether an error of the file system is one that passes, or is seen to: no space, no quota, too many
/// open files.
fn passes(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::MFILE,
        Errno::NFILE,
        Errno::IO,
    ]
    .iter()
    .any(|passing| code == Some(*passing))
}

/// An error of the files of fences, as one of SQLite.
fn of_file(error: std::io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

fn look(statement: &mut CachedStatement<'_>, name: &LockName) -> rusqlite::Result<Option<Seen>> {
    statement.query_row([name.as_str()], seen).optional()
}

fn look_at(worker: &mut Worker, names: &[LockName]) -> Result<Vec<Option<Occupant>>, StoreError> {
    worker.with(|connection, sql| {
        let mut statement = connection.prepare_cached(&sql.look)?;
        let rows = names.iter().map(|name| look(&mut statement, name));
        let rows: Vec<Option<Seen>> = rows.collect::<Result<_, _>>()?;
        let rows: Vec<Seen> = rows.into_iter().flatten().collect();
        Ok(Seen::occupants(names, &rows))
    })
}

fn acquire(worker: &mut Worker, asks: &[Ask]) -> Result<Vec<Outcome>, StoreError> {
    let refusal = |row: Option<Seen>, ask: &Ask| {
        row.map_or(Outcome::Busy, |row| row.refusal(ask.grant.as_str()))
    };
    let looked = worker.with(|connection, sql| {
        let mut statement = connection.prepare_cached(&sql.look)?;
        asks.iter()
            .map(|ask| Ok(refusal(look(&mut statement, &ask.name)?, ask)))
            .collect()
    });
    let mut outcomes: Vec<Outcome> = looked?;
    worker.used = true;
    if !outcomes.contains(&Outcome::Busy) {
        return Ok(outcomes);
    }
    worker.write_unless_fenced(|tx, sql, fences| {
        let mut take = tx.prepare_cached(&sql.acquire)?;
        let mut read = tx.prepare_cached(&sql.look)?;
        for (ask, outcome) in asks.iter().zip(&mut outcomes) {
            if *outcome != Outcome::Busy || fences.is_open(ask.name.as_str()).map_err(of_file)? {
                continue;
            }
            let token = take.query_row(
                (
                    ask.name.as_str(),
                    &*ask.holder,
                    ask.grant.as_str(),
                    &*ask.metadata,
                    modifier(ask.length),
                ),
                |row| row.get(0),
            );
            *outcome = match token.optional()? {
                Some(token) => Outcome::Granted {
                    token: Token::from_db(token),
                    length: ask.length,
                },
                None => refusal(look(&mut read, &ask.name)?, ask),
            };
        }
        Ok(())
    })?;
    Ok(outcomes)
}

fn renew(worker: &mut Worker, grants: &[(Grant, Ttl)]) -> Result<Vec<Renewal>, StoreError> {
    worker.write(|tx, sql| {
        let mut renew = tx.prepare_cached(&sql.renew)?;
        let mut read = tx.prepare_cached(&sql.look)?;
        let one = |(grant, ttl): &(Grant, Ttl)| {
            let length = match ttl {
                Ttl::Lasting(length) => Some(modifier(*length)),
                Ttl::Endless => None,
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

fn release(worker: &mut Worker, returns: &[Return]) -> Result<Vec<Released>, StoreError> {
    worker.write(|tx, sql| {
        let mut release = tx.prepare_cached(&sql.release)?;
        let one = |what: &Return| {
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
                Released::NotOurs
            })
        };
        returns.iter().map(one).collect()
    })
}

fn take_over(worker: &mut Worker, what: &TakeOver) -> Result<Outcome, StoreError> {
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

fn take_up(worker: &mut Worker, what: &TakeUp) -> Result<Renewal, StoreError> {
    let to = &what.to;
    worker.write_unless_fenced(|tx, sql, fences| {
        if !fences.is_open(to.name.as_str()).map_err(of_file)? {
            let taken = tx.prepare_cached(&sql.take_up)?.execute((
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

fn force(worker: &mut Worker, name: &LockName) -> Result<Force, StoreError> {
    worker.write_unless_fenced(|tx, sql, fences| {
        let row = look(&mut tx.prepare_cached(&sql.look)?, name)?;
        if row.as_ref().is_some_and(Seen::is_held)
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
            Some(row) if freed.is_some() => Force::Freed(row.occupant()),
            _ => Force::WasFree,
        })
    })
}

fn prune(
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
fn open_fence(worker: &mut Worker, grant: &Grant) -> Result<Result<Barrier, Gone>, StoreError> {
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

fn page(worker: &mut Worker, filter: &ListFilter, after: Option<i64>) -> Result<Page, StoreError> {
    let after = after.unwrap_or(i64::MIN);
    worker.with(|connection, sql| {
        let mut end = connection.prepare_cached(&sql.page_end)?;
        let Some(last) = end.query_row([after], |row| row.get::<_, Option<i64>>(0))? else {
            return Ok(Page::default());
        };
        let mut page = connection.prepare_cached(&sql.page)?;
        let rows = page.query_map((after, last, filter.not_free, &filter.prefix), seen)?;
        let infos = rows.map(|row| row.map(Seen::into_info));
        Ok(Page {
            rows: infos.collect::<Result<_, _>>()?,
            last: Some(last),
        })
    })
}

fn read(worker: &mut Worker, names: &[LockName]) -> Result<Vec<LockInfo>, StoreError> {
    let rows: Vec<Seen> = worker.with(|connection, sql| {
        let mut statement = connection.prepare_cached(&sql.look)?;
        names
            .iter()
            .filter_map(|name| look(&mut statement, name).transpose())
            .collect()
    })?;
    let mut infos: Vec<LockInfo> = rows.into_iter().map(Seen::into_info).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}

/// The engine `sqlite:`.
pub(super) struct Sqlite {
    table: Table,
    thread: Thread,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite")
            .field("path", &self.thread.path())
            .finish_non_exhaustive()
    }
}

impl Sqlite {
    pub(super) fn new(path: PathBuf, table: &Table) -> Self {
        let statements = Statements {
            look: table.fill(LOOK),
            page_end: table.fill(PAGE_END),
            page: table.fill(PAGE),
            acquire: table.fill(ACQUIRE),
            renew: table.fill(RENEW),
            take_over: table.fill(TAKE_OVER),
            take_up: table.fill(TAKE_UP),
            release: table.fill(RELEASE),
            force: table.fill(FORCE),
            idle: table.fill(IDLE),
            prune: table.fill(PRUNE),
            install: table.fill(INSTALL),
        };
        // A relative path must not change its meaning with the program's folder.
        let path = std::path::absolute(&path).unwrap_or(path);
        let fences = Fences::beside(&path, table.as_str());
        Self {
            table: table.clone(),
            thread: Thread::new(path, fences, statements),
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl FnOnce(&mut Worker) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.thread.call(within, work).await
    }
}

impl Store for Sqlite {
    fn leaves_no_gap(&self) -> bool {
        true
    }

    fn connect(&self, within: Duration) -> Reply<'_, ()> {
        Box::pin(async move {
            let until = crate::clock::now().saturating_add(within);
            loop {
                match self
                    .call(within, |worker| worker.connection().map(|_| ()))
                    .await
                {
                    // Sixteen processes that make the same file at once.
                    Err(StoreError::Contention(_)) if crate::clock::now() < until => {
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(2..20))).await;
                    }
                    done => return done,
                }
            }
        })
    }

    fn acquire<'a>(&'a self, asks: &'a [Ask], within: Duration) -> Reply<'a, Vec<Outcome>> {
        let asks = asks.to_vec();
        Box::pin(self.call(within, move |worker| acquire(worker, &asks)))
    }

    fn renew<'a>(
        &'a self,
        grants: &'a [(Grant, Ttl)],
        within: Duration,
    ) -> Reply<'a, Vec<Renewal>> {
        let grants = grants.to_vec();
        Box::pin(self.call(within, move |worker| renew(worker, &grants)))
    }

    fn release<'a>(&'a self, returns: &'a [Return], within: Duration) -> Reply<'a, Vec<Released>> {
        let returns = returns.to_vec();
        Box::pin(self.call(within, move |worker| release(worker, &returns)))
    }

    fn read<'a>(&'a self, names: &'a [LockName], within: Duration) -> Reply<'a, Vec<LockInfo>> {
        let names = names.to_vec();
        Box::pin(self.call(within, move |worker| read(worker, &names)))
    }

    fn page<'a>(
        &'a self,
        filter: &'a ListFilter,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'a, Page> {
        let filter = filter.clone();
        Box::pin(self.call(within, move |worker| page(worker, &filter, after)))
    }

    fn look<'a>(
        &'a self,
        names: &'a [LockName],
        within: Duration,
    ) -> Reply<'a, Vec<Option<Occupant>>> {
        let names = names.to_vec();
        Box::pin(self.call(within, move |worker| look_at(worker, &names)))
    }

    fn take_over<'a>(&'a self, what: &'a TakeOver, within: Duration) -> Reply<'a, Outcome> {
        let what = what.clone();
        Box::pin(self.call(within, move |worker| take_over(worker, &what)))
    }

    fn take_up<'a>(&'a self, what: &'a TakeUp, within: Duration) -> Reply<'a, Renewal> {
        let what = what.clone();
        Box::pin(self.call(within, move |worker| take_up(worker, &what)))
    }

    fn prune(
        &self,
        idle: Duration,
        unknown: bool,
        after: Option<i64>,
        within: Duration,
    ) -> Reply<'_, Pruned> {
        let since = ago(idle);
        Box::pin(self.call(within, move |worker| prune(worker, &since, unknown, after)))
    }

    fn open_fence<'a>(
        &'a self,
        grant: &'a Grant,
        within: Duration,
    ) -> Reply<'a, Result<Barrier, Gone>> {
        let grant = grant.clone();
        Box::pin(self.call(within, move |worker| open_fence(worker, &grant)))
    }

    fn force<'a>(&'a self, name: &'a LockName, within: Duration) -> Reply<'a, Force> {
        let name = name.clone();
        Box::pin(self.call(within, move |worker| force(worker, &name)))
    }

    fn install(&self, within: Duration) -> Reply<'_, ()> {
        let install = |worker: &mut Worker| {
            worker.with(|connection, sql| connection.execute_batch(&sql.install))
        };
        Box::pin(self.call(within, install))
    }

    fn examine(&self, within: Duration) -> Reply<'_, Report> {
        let table = self.table.clone();
        Box::pin(self.call(within, move |worker| {
            doctor::examine(worker, table.as_str())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// One test counts the threads of this process.
    pub(super) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    fn ask(name: &str) -> Ask {
        Ask {
            name: LockName::new(name).unwrap(),
            grant: crate::token::GrantId::random().unwrap(),
            holder: "me".into(),
            length: SOON,
            metadata: "x".repeat(2000).into(),
            lapsed: None,
        }
    }

    /// A file that may not grow stands for a disk that is full: SQLite says the same of both.
    #[tokio::test]
    async fn a_full_disk_is_called_so_and_passes() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::new(folder.path().join("locks.sqlite3"), &Table::default());
        sqlite.connect(SOON).await.unwrap();
        let fill = |worker: &mut Worker| {
            let (connection, _) = worker.connection()?;
            connection
                .pragma_update(None, "max_page_count", 1)
                .map_err(|error| StoreError::Unavailable(error.into()))
        };
        sqlite.call(SOON, fill).await.unwrap();
        let asks: Vec<Ask> = (0..50).map(|at| ask(&format!("lock {at}"))).collect();
        let failure = sqlite.acquire(&asks, SOON).await.unwrap_err();
        assert!(matches!(failure, StoreError::Unavailable(_)), "{failure:?}");
        let said = failure.into_error("acquire lock `job`").chain();
        assert!(said.ends_with(": the disk is full"), "{said}");
        assert!(!said.contains("cannot be reached"), "{said}");
        // The file is opened anew, and now there is room.
        let outcomes = sqlite.acquire(&asks, SOON).await.unwrap();
        assert!(matches!(outcomes[49], Outcome::Granted { .. }));
    }

    #[tokio::test]
    async fn a_table_that_goes_while_it_is_used_may_come_back_and_one_that_never_was_is_refused() {
        let _alone = ALONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks.sqlite3");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE other (x)")
            .unwrap();
        let sqlite = Sqlite::new(path.clone(), &Table::default());
        let first = sqlite.acquire(&[ask("job")], SOON).await.unwrap_err();
        assert!(matches!(first, StoreError::Rejected { hint: Some(_), .. }));
        sqlite.install(SOON).await.unwrap();
        sqlite.acquire(&[ask("job")], SOON).await.unwrap();
        let rename = |to: &str, from: &str| {
            let file = Connection::open(&path).unwrap();
            let rename = format!("ALTER TABLE {from} RENAME TO {to}");
            file.execute_batch(&rename).unwrap();
        };
        rename("away", "database_locks_lock");
        let later = sqlite.acquire(&[ask("other")], SOON).await.unwrap_err();
        assert!(matches!(later, StoreError::Unavailable(_)), "{later:?}");
        rename("database_locks_lock", "away");
        sqlite.acquire(&[ask("other")], SOON).await.unwrap();
    }

    #[test]
    fn a_length_is_never_rounded_down() {
        assert_eq!(modifier(Duration::from_micros(1_500_001)), "+1.501 seconds");
        assert_eq!(
            modifier(Duration::from_secs(315_576_000)),
            "+315576000.000 seconds"
        );
    }
}
