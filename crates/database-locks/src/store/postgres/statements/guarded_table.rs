//! Guarded tables: triggers that refuse a write in a transaction that does not hold the lock.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Row, SimpleQueryMessage};

use crate::store::connect::table::Table;
use crate::store::postgres::connection::session::{Param, Session};
use crate::store::postgres::error::{Kind, ServerError};
use protocol::{GuardCommand, LockName, TableGuard};

/// The published scripts are what runs.
pub(crate) const FUNCTION: &str = include_str!("../../../../schema/postgres_guard_function.sql");
const GUARD: &str = include_str!("../../../../schema/postgres_guard.sql");
const UNGUARD: &str = include_str!("../../../../schema/postgres_unguard.sql");

/// `CREATE TRIGGER` waits for the transactions that write to the table, and every later one waits
/// behind it. The client tries again.
const LOCK_TIMEOUT: &str = "200ms";

/// The SQLSTATE of a refusal by the scripts, with a message for people.
const REFUSED: &str = "DL002";

/// Each table with a trigger of a guard, and each part of one: `$1` table of locks, `$2` name of the
/// function, `$3` its body. It asks for no right: `to_regprocedure` would demand USAGE on every schema
/// whose name the planner has it look up. The numbers of `tgtype` are those of `postgres_guard.sql`.
const LIST: &str = r"
WITH RECURSIVE guard AS (
    SELECT p.oid, p.prosecdef AND p.proconfig = ARRAY['search_path=pg_catalog, pg_temp']
               AND p.prosrc = replace($3, '[locks]', format('%I.%I', n.nspname, c.relname)) AS is_current,
           pg_catalog.has_table_privilege(p.proowner, c.oid, 'SELECT')
               AND pg_catalog.has_any_column_privilege(p.proowner, c.oid, 'UPDATE') AS has_rights
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = $2 AND p.pronargs = 0
     WHERE c.oid = to_regclass($1)
), guarded AS (
    SELECT t.tgrelid AS id, g.is_current, g.has_rights,
           convert_from(substring(t.tgargs FROM 1 FOR octet_length(t.tgargs) - 1),
                        getdatabaseencoding()) AS lock,
           bool_or(t.tgtype & 1 = 0) AS has_statement,
           bool_or(e.is_whole AND t.tgtype = 62) AS statement,
           bool_or(e.is_whole AND t.tgtype = 29) AS each_row
      FROM pg_trigger t JOIN guard g ON g.oid = t.tgfoid
      CROSS JOIN LATERAL (SELECT t.tgenabled IN ('O', 'A') AND t.tgqual IS NULL
                             AND t.tgattr::text = '' AS is_whole) e
     WHERE t.tgnargs = 1
     GROUP BY 1, 2, 3, 4
), tree AS (
    SELECT g.id AS top, g.lock, g.is_current, g.has_rights, g.id AS part FROM guarded g
     WHERE NOT EXISTS (
        SELECT FROM pg_inherits i JOIN guarded p ON p.id = i.inhparent AND p.lock = g.lock
         WHERE i.inhrelid = g.id)
    UNION
    SELECT t.top, t.lock, t.is_current, t.has_rights, i.inhrelid
      FROM tree t JOIN pg_inherits i ON i.inhparent = t.part
), outside AS (
    SELECT t.top, t.lock, t.part, array_agg(i.inhparent::regclass::text ORDER BY i.inhparent) AS parents
      FROM tree t JOIN pg_inherits i ON i.inhrelid = t.part
      LEFT JOIN tree o ON o.top = t.top AND o.lock = t.lock AND o.part = i.inhparent
     WHERE o.part IS NULL
     GROUP BY 1, 2, 3
)
SELECT t.top::regclass::text AS top, t.lock, t.is_current, t.has_rights,
       t.part::regclass::text AS part,
       t.part = t.top OR coalesce(g.has_statement, false) AS had_statement,
       coalesce(g.statement, false) AS statement,
       coalesce(g.each_row, false) AS each_row, c.relkind = 'p' AS is_partitioned,
       c.relkind = 'f' AS is_foreign, coalesce(o.parents, ARRAY[]::text[]) AS parents
  FROM tree t JOIN pg_class c ON c.oid = t.part
  LEFT JOIN guarded g ON g.id = t.part AND g.lock = t.lock
  LEFT JOIN outside o ON o.top = t.top AND o.lock = t.lock AND o.part = t.part
 ORDER BY 1, 2, t.part <> t.top, 5";

/// The triggers that call the function (`$1`, `$2` as in [`LIST`]) with other arguments than the name of
/// one lock, without the clones of row triggers. Nothing else makes such triggers.
const ODD: &str = r"
SELECT t.tgrelid::regclass::text AS part, t.tgname::text AS name
  FROM pg_class c JOIN pg_proc p ON p.pronamespace = c.relnamespace AND p.proname = $2 AND p.pronargs = 0
  JOIN pg_trigger t ON t.tgfoid = p.oid AND t.tgnargs <> 1
 WHERE c.oid = to_regclass($1)
   AND NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_trigger o ON o.tgrelid = i.inhparent
    WHERE i.inhrelid = t.tgrelid AND o.tgfoid = p.oid AND o.tgnargs <> 1)
 ORDER BY 1, 2";

/// The statement that puts a table under guard.
pub(crate) fn guard_script(table: &Table, of: &str, lock: &str) -> String {
    let script = GUARD
        .replace("{body}", FUNCTION)
        .replace("{guard}", &table.guard())
        .replace("{trigger}", &table.guard());
    // The texts of the user last, so that nothing in them is replaced.
    table
        .fill(&script)
        .replace("{of_lock}", &literal(lock))
        .replace("{of_table}", &literal(of))
}

/// The statement that removes a guard.
pub(crate) fn unguard_script(table: &Table, of: &str) -> String {
    let home = table.as_str().rsplit_once('.');
    let home = home.map_or(String::new(), |(schema, _)| format!("{schema}."));
    let script = UNGUARD
        .replace("{home}", &home)
        .replace("{guard}", &table.guard());
    table.fill(&script).replace("{of_table}", &literal(of))
}

/// A literal, whatever `standard_conforming_strings` is. The text has no NUL. Without `$`, it cannot
/// end the script's own quoting, and without braces it is no placeholder.
fn literal(text: &str) -> String {
    let mut literal = String::from("E'");
    for c in text.chars() {
        match c {
            '\\' | '\'' | '$' | '{' | '}' => literal.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => literal.push(c),
        }
    }
    literal + "'"
}

pub(crate) async fn guard_table(
    session: &Session,
    table: &Table,
    command: &GuardCommand,
) -> Result<(), ServerError> {
    let script = guard_script(table, &command.table, command.lock.as_str());
    run(session, &script).await.map(drop)
}

pub(crate) async fn unguard_table(
    session: &Session,
    table: &Table,
    of: &str,
) -> Result<bool, ServerError> {
    let number = run(session, &unguard_script(table, of)).await?;
    Ok(number.is_some_and(|number| number != "0"))
}

/// Run a script as one transaction, and return its result.
async fn run(session: &Session, script: &str) -> Result<Option<String>, ServerError> {
    // Each statement sees the parts that were added while it waited.
    let script = format!(
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;\n\
         SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', true);\n{script}\n\
         SELECT current_setting('database_locks.guard_result', true);"
    );
    let done = session.client.simple_query(&script).await;
    let rows = done.map_err(refusal)?;
    let last = rows.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(last)
}

fn refusal(error: tokio_postgres::Error) -> ServerError {
    let Some(db) = error.as_db_error() else {
        return error.into();
    };
    if db.code().code() == REFUSED {
        let hint = db.hint().map_or(String::new(), |hint| format!("; {hint}"));
        return ServerError::rejected(format!("{}{hint}", db.message()), None);
    }
    // Another client is doing the same. Some of these have no code of their own.
    let raced = [SqlState::DUPLICATE_OBJECT, SqlState::INTERNAL_ERROR];
    let is_raced = raced.contains(db.code());
    let error = ServerError::from(error);
    match is_raced {
        true => ServerError {
            kind: Kind::Contention,
            ..error
        },
        false => error,
    }
}

pub(crate) async fn guarded_tables(
    session: &Session,
    table: &Table,
) -> Result<Vec<TableGuard>, ServerError> {
    let (name, function) = (table.as_str(), &*table.guard());
    let params: [&dyn Param; 3] = [&name, &function, &FUNCTION];
    let mut guards: BTreeMap<(String, String), TableGuard> = BTreeMap::new();
    let mut of_part = HashMap::new();
    for row in session.query(LIST, &params).await? {
        let of: (String, String) = (row.try_get("top")?, row.try_get("lock")?);
        let part: String = row.try_get("part")?;
        let guard = guards.entry(of.clone()).or_insert_with(|| new(&of));
        if part == of.0 {
            guard.gaps.extend(gaps_of_function(&row)?);
        }
        guard.gaps.extend(gaps_of(&part, &row)?);
        guard.bypasses.extend(bypasses_of(&part, &row)?);
        of_part.entry(part).or_insert(of);
    }
    for row in session.query(ODD, &params[..2]).await? {
        let (part, trigger): (String, String) = (row.try_get("part")?, row.try_get("name")?);
        let gap = format!("the trigger {trigger} of {part} names no lock, or more than one");
        let of = of_part.entry(part.clone()).or_insert((part, String::new()));
        let guard = guards.entry(of.clone()).or_insert_with(|| new(of));
        guard.gaps.push(gap);
    }
    Ok(guards.into_values().collect())
}

fn new((table, lock): &(String, String)) -> TableGuard {
    TableGuard::intact(table.clone(), LockName::from_db(lock.clone()))
}

fn gaps_of_function(row: &Row) -> Result<Vec<String>, ServerError> {
    let mut gaps = Vec::new();
    if !row.try_get::<_, bool>("is_current")? {
        gaps.push("the trigger function is of another version, or was changed".into());
    }
    if !row.try_get::<_, bool>("has_rights")? {
        gaps.push(
            "the owner of the trigger function lacks SELECT or UPDATE on the table of locks, so \
             writes fail: GRANT it both"
                .into(),
        );
    }
    Ok(gaps)
}

/// What guarding the table again does not close: writes that fire no trigger of a table, or of a part
/// of one.
fn bypasses_of(part: &str, row: &Row) -> Result<Vec<String>, ServerError> {
    let parents: Vec<String> = row.try_get("parents")?;
    let mut bypasses: Vec<String> = parents
        .iter()
        .map(|parent| format!("a write to {parent}, of which {part} is a part, passes"))
        .collect();
    if row.try_get("is_foreign")? {
        bypasses.push(format!(
            "a write to the foreign table {part} at its own server passes"
        ));
    }
    Ok(bypasses)
}

/// What passes by the triggers of a table, or of a part of one.
fn gaps_of(part: &str, row: &Row) -> Result<Vec<String>, ServerError> {
    let is = |column| row.try_get::<_, bool>(column);
    let mut gaps = Vec::new();
    if is("is_foreign")? {
        return Ok(gaps);
    }
    if is("had_statement")? && !is("statement")? {
        gaps.push(format!(
            "the trigger of {part} is missing, disabled or was changed"
        ));
    } else if !is("statement")? {
        gaps.push(match is("each_row")? {
            true => format!("TRUNCATE of the later part {part} passes"),
            false => format!("a direct write to the later part {part} passes"),
        });
    }
    // It would be cloned to them.
    if is("is_partitioned")? && !is("each_row")? {
        gaps.push(format!(
            "the row trigger of {part} is missing, disabled or was changed: a direct write to a \
             partition that is added later passes"
        ));
    }
    Ok(gaps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_user_ends_its_literal() {
        assert_eq!(literal("a'b\\ä"), r"E'a\x27b\x5cä'");
        assert_eq!(
            literal("$install${of_table}"),
            r"E'\x24install\x24\x7bof_table\x7d'"
        );
    }

    #[test]
    fn the_scripts_name_the_table_of_locks() {
        let table = Table::new("app.jobs_lock").unwrap();
        let script = guard_script(&table, "invoices", "ledger");
        assert!(script.contains("to_regclass('app.jobs_lock')"), "{script}");
        assert!(script.contains("to_regclass('app.jobs_permit')"));
        assert!(
            script.contains("'jobs_guard'") && !script.contains('{'),
            "{script}"
        );
        assert!(!unguard_script(&table, "invoices").contains('{'));
    }
}
