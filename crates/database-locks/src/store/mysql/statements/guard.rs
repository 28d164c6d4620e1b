//! Guarded tables: triggers that refuse a write in a transaction that does not hold the lock.

use std::collections::BTreeMap;

use mysql_async::params;

use crate::store::api::StoreError;
use crate::store::connect::table::Table;
use crate::store::mysql::connection::session::Session;
use protocol::{GuardCommand, LockName, TableGuard};

/// The published body of the triggers, with its comment.
pub(crate) const SCHEMA: &str = include_str!("../../../../schema/mysql_guard.sql");

/// The condition that the transaction shows the grant that holds the lock. Of the row only the index
/// on the name is read.
macro_rules! shown {
    () => {
        "
         WHERE l.name = CONVERT({lock} USING utf8mb4) COLLATE {collation}
           AND LENGTH(l.grant_id) = 32
           AND LOCATE(l.grant_id, CONVERT(@database_locks_ticket USING ascii)) > 0
           AND l.granted_until = l.expires_at"
    };
}

/// Locks the row against other clients' acquires until the end of the transaction, as a fence does.
/// Other transactions of the holder pass.
pub(crate) const CHECK: &str = concat!(
    "SELECT l.id INTO dl_held FROM {locks} l FORCE INDEX (name)",
    shown!(),
    "
           {share};"
);

/// On a cluster a row lock is not seen by the other nodes. A changed row is: of two transactions
/// that change it one fails. It sets what a fence sets.
pub(crate) const CHECK_ON_CLUSTER: &str = concat!(
    "UPDATE {locks} l FORCE INDEX (name)
           SET l.expires_at = IF(l.expires_at = TIMESTAMP'9999-12-31 00:00:00', l.expires_at,
                   GREATEST(UTC_TIMESTAMP(6), l.renewed_at + INTERVAL 1 MICROSECOND)
                       + INTERVAL TIMESTAMPDIFF(MICROSECOND, l.renewed_at, l.expires_at) MICROSECOND),
               l.granted_until = IF(l.granted_until = TIMESTAMP'9999-12-31 00:00:00', l.granted_until,
                   GREATEST(UTC_TIMESTAMP(6), l.renewed_at + INTERVAL 1 MICROSECOND)
                       + INTERVAL TIMESTAMPDIFF(MICROSECOND, l.renewed_at, l.granted_until) MICROSECOND),
               l.renewed_at = GREATEST(UTC_TIMESTAMP(6), l.renewed_at + INTERVAL 1 MICROSECOND)",
    shown!(),
    "
           AND l.renewed_at <= l.expires_at;
        SET dl_held = NULLIF(GREATEST(ROW_COUNT(), 0), 0);"
);

/// The events that a guard refuses.
const EVENTS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

/// How many names are tried for a trigger. Its name may be that of another one, for example of a
/// table that was renamed.
const NAMES: u32 = 9;

/// A table as its user wrote it: a schema, unless it is the one of the session, and a name.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    schema: Option<String>,
    name: String,
}

impl Written {
    /// `NAME` or `SCHEMA.NAME`, each part in backticks or without.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        loop {
            let (part, after) = match rest.strip_prefix('`') {
                None => {
                    let end = rest.find('.').unwrap_or(rest.len());
                    (rest[..end].to_owned(), &rest[end..])
                }
                Some(quoted) => quoted_part(quoted)?,
            };
            let is_possible = (1..=64).contains(&part.chars().count()) && !part.ends_with(' ');
            if !is_possible || part.contains('`') && !rest.starts_with('`') {
                return None;
            }
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return None,
            }
        }
        let name = parts.pop()?;
        let schema = parts.pop();
        parts.is_empty().then_some(Self { schema, name })
    }
}

/// What stands before the closing backtick, and what follows it.
fn quoted_part(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('`')?;
        part.push_str(before);
        match after.strip_prefix('`') {
            Some(next) => {
                part.push('`');
                rest = next;
            }
            None => return Some((part, after)),
        }
    }
}

/// An identifier in backticks.
fn quoted(identifier: &str) -> String {
    format!("`{}`", identifier.replace('`', "``"))
}

fn hex(text: &str) -> String {
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// At most so many characters.
fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 3).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

/// What the body of a trigger depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    /// The label.
    pub(crate) guard: &'a str,
    /// The table of locks, quoted.
    pub(crate) locks: &'a str,
    pub(crate) collation: &'a str,
    pub(crate) mariadb: bool,
    pub(crate) cluster: bool,
}

impl Body<'_> {
    /// The body of the triggers of a table that is guarded by this lock.
    pub(crate) fn text(&self, table: &str, lock: &str) -> String {
        // 66 characters besides the two names, and 128 in all.
        let message = format!(
            "table {} is guarded by lock \"{}\", which this transaction does not hold",
            shortened(table, 24),
            shortened(lock, 38)
        );
        let body = SCHEMA.trim_end();
        let body = body.find("{guard}: BEGIN").map_or("", |at| &body[at..]);
        let check = if self.cluster {
            CHECK_ON_CLUSTER
        } else {
            CHECK
        };
        let share = if self.mariadb {
            "LOCK IN SHARE MODE"
        } else {
            "FOR SHARE"
        };
        body.replace("{check}", check)
            .replace("{share}", share)
            .replace("{collation}", self.collation)
            .replace("{guard}", self.guard)
            .replace("{locks}", self.locks)
            .replace("{lock}", &hex(lock))
            .replace("{message}", &hex(&message))
    }

    /// The lock in such a body.
    fn lock_in(body: &str) -> Option<LockName> {
        let (_, rest) = body.split_once("l.name = CONVERT(0x")?;
        let (digits, _) = rest.split_once(' ')?;
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        let text = String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()?;
        Some(LockName::from_db(text))
    }
}

/// The statement that creates a trigger of a guard.
pub(crate) fn create_trigger(
    schema: &str,
    table: &str,
    event: &str,
    attempt: u32,
    body: &str,
) -> String {
    let (schema, trigger) = (quoted(schema), quoted(&trigger_name(table, event, attempt)));
    let table = quoted(table);
    format!(
        "CREATE TRIGGER {schema}.{trigger} BEFORE {event} ON {schema}.{table} FOR EACH ROW\n{body}"
    )
}

/// The name of a trigger: at most 64 characters.
fn trigger_name(table: &str, event: &str, attempt: u32) -> String {
    let event = event.to_lowercase();
    let stem: String = table.chars().take(48).collect();
    match attempt {
        0 => format!("{stem}_guard_{event}"),
        _ => format!("{stem}_guard_{event}_{}", attempt + 1),
    }
}

/// A trigger of a guard.
struct Trigger {
    schema: String,
    table: String,
    name: String,
    event: String,
    body: String,
}

/// Whether a statement was refused with one of these errors.
fn is_code(failure: &StoreError, codes: &[u16]) -> bool {
    let StoreError::Rejected { source, .. } = failure else {
        return false;
    };
    let text = source.to_string();
    codes
        .iter()
        .any(|code| text.ends_with(&format!("(error {code})")))
}

/// A refusal, with what to do about it.
fn explained(failure: StoreError, schema: &str, table: &str) -> StoreError {
    let hint = if is_code(&failure, &[1142, 1143, 1227]) {
        format!(
            "this user needs the right TRIGGER on the table: GRANT TRIGGER ON {}.{} TO …",
            quoted(schema),
            quoted(table)
        )
    } else if is_code(&failure, &[1419]) {
        "the binary log of the server is on: create the trigger as a user with the right SUPER, or \
         have an administrator SET GLOBAL log_bin_trust_function_creators = 1"
            .to_owned()
    } else {
        return failure;
    };
    match failure {
        StoreError::Rejected { source, .. } => StoreError::Rejected {
            hint: Some(hint),
            source,
        },
        failure => failure,
    }
}

impl Session {
    const TARGET: &str = "
        SELECT table_schema, table_name, table_type, IFNULL(engine, ''), IFNULL(DATABASE(), '')
          FROM information_schema.tables
         WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table";

    /// Foreign keys by which a write to another table changes or deletes rows of this one.
    const CASCADES: &str = "
        SELECT constraint_name, unique_constraint_schema, referenced_table_name
          FROM information_schema.referential_constraints
         WHERE constraint_schema = :schema AND table_name = :table
           AND (update_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
                OR delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT'))
           AND NOT (unique_constraint_schema = :schema AND referenced_table_name = :table)";

    const TRIGGERS: &str = "
        SELECT event_object_schema, event_object_table, trigger_name, event_manipulation,
               action_statement
          FROM information_schema.triggers
         WHERE (:schema IS NULL OR event_object_schema = :schema AND event_object_table = :table)
           AND action_timing = 'BEFORE'
           AND LEFT(action_statement, CHAR_LENGTH(:label)) = :label
         ORDER BY event_object_schema, event_object_table, trigger_name";

    const SCHEMA_OF_SESSION: &str = "SELECT IFNULL(DATABASE(), '')";

    /// Put a table under guard.
    pub(crate) async fn guard_table(&mut self, command: &GuardCommand) -> Result<(), StoreError> {
        // The table of locks has to be there and fit.
        self.check_table().await?;
        let (schema, table) = self.target(&command.table).await?;
        let found = self.triggers(Some((&schema, &table))).await?;
        for trigger in &found {
            let other = Body::lock_in(&trigger.body);
            if let Some(other) = other.filter(|other| *other != command.lock) {
                return Err(StoreError::rejected(
                    format!("{table} is guarded by the lock \"{other}\" already"),
                    Some("remove that guard first: `dblock unguard`"),
                ));
            }
        }
        if !command.despite_cascades {
            self.refuse_cascades(&schema, &table, &command.lock).await?;
        }
        let body = self.guard_body(&schema, &table, &command.lock).await?;
        self.may_check(&schema).await?;
        let mut created = Vec::new();
        for event in EVENTS {
            let of_event = found.iter().filter(|trigger| trigger.event == event);
            if of_event.clone().any(|trigger| trigger.body == body) {
                continue;
            }
            match self
                .create_guard_trigger(&schema, &table, event, &body)
                .await
            {
                Ok(name) => created.push(name),
                Err(failure) => {
                    // Half a guard would refuse writes by chance.
                    for name in created {
                        let _ = self.drop_trigger(&schema, &name).await;
                    }
                    return Err(explained(failure, &schema, &table));
                }
            }
        }
        // Those of an earlier version, when the new ones are there.
        for outdated in found.iter().filter(|trigger| trigger.body != body) {
            self.drop_trigger(&schema, &outdated.name).await?;
        }
        Ok(())
    }

    /// Remove the guard of a table.
    pub(crate) async fn unguard_table(&mut self, table: &str) -> Result<bool, StoreError> {
        let (schema, table) = self.target(table).await?;
        let found = self.triggers(Some((&schema, &table))).await?;
        for trigger in &found {
            let dropped = self.drop_trigger(&schema, &trigger.name).await;
            dropped.map_err(|failure| explained(failure, &schema, &table))?;
        }
        Ok(!found.is_empty())
    }

    /// The guarded tables of which this user sees the triggers.
    pub(crate) async fn guarded_tables(&mut self) -> Result<Vec<TableGuard>, StoreError> {
        let own_schema = self.own_schema().await?;
        let mut tables: BTreeMap<(String, String), Vec<Trigger>> = BTreeMap::new();
        for trigger in self.triggers(None).await? {
            let key = (trigger.schema.clone(), trigger.table.clone());
            tables.entry(key).or_default().push(trigger);
        }
        let mut guards = Vec::new();
        for ((schema, table), triggers) in tables {
            let locks = format!(" {} l ", self.locks_name(&schema, &own_schema));
            let ours = |trigger: &&Trigger| trigger.body.contains(&locks);
            let Some(lock) = triggers
                .iter()
                .find(ours)
                .and_then(|one| Body::lock_in(&one.body))
            else {
                continue;
            };
            let shown = match schema == own_schema {
                true => table.clone(),
                false => format!("{schema}.{table}"),
            };
            let body = self.guard_body(&schema, &table, &lock).await?;
            let mut guard = TableGuard::intact(shown, lock.clone());
            for event in EVENTS {
                let mut of_event = triggers.iter().filter(|one| one.event == event);
                match of_event.clone().next() {
                    None => guard
                        .gaps
                        .push(format!("{event} passes: its trigger is missing")),
                    Some(_) if of_event.any(|one| one.body == body) => {}
                    Some(one) => guard.gaps.push(format!(
                        "the trigger {} is of another version or kind of server",
                        one.name
                    )),
                }
            }
            for (key, parent) in self.cascades(&schema, &table, &lock).await? {
                guard.bypasses.push(format!(
                    "a write to {parent} passes by the cascade of {key}"
                ));
            }
            guards.push(guard);
        }
        Ok(guards)
    }

    /// The schema and the name of a table that can be guarded.
    async fn target(&mut self, table: &str) -> Result<(String, String), StoreError> {
        let Some(written) = Written::parse(table) else {
            return Err(StoreError::rejected(
                format!("{table} is not the name of a table"),
                Some("TABLE or SCHEMA.TABLE, in backticks if it has other characters"),
            ));
        };
        let these = params! { "schema" => &written.schema, "table" => &written.name };
        let mut found: Vec<(String, String, String, String, String)> =
            self.rows_as(Self::TARGET, these).await?;
        // Some servers compare names here without regard to case.
        if found.iter().any(|(_, name, ..)| *name == written.name) {
            found.retain(|(_, name, ..)| *name == written.name);
        }
        let Some((schema, name, kind, engine, own_schema)) = found.pop() else {
            return Err(StoreError::rejected(
                format!("there is no table {table}, or this user has no right on it"),
                None,
            ));
        };
        let refused = |why: &str, hint| Err(StoreError::rejected(format!("{name} {why}"), hint));
        if kind.contains("VIEW") {
            return refused("is a view", Some("guard the tables that it is made of"));
        }
        if kind.contains("TEMPORARY") {
            return refused(
                "is a temporary table",
                Some("no other session can write to it"),
            );
        }
        if kind == "SEQUENCE" || engine.is_empty() {
            return refused("is no table that can be guarded", None);
        }
        if !engine.eq_ignore_ascii_case("InnoDB") {
            let why = format!("is of the engine {engine}, whose writes are in no transaction");
            return refused(&why, Some("ALTER TABLE … ENGINE = InnoDB"));
        }
        let of_locks = &self.server.table;
        let in_schema = |table: &str| match table.split_once('.') {
            Some((of, table)) => of == schema && table == name,
            None => own_schema == schema && table == name,
        };
        if in_schema(of_locks.as_str()) || in_schema(&of_locks.permits()) {
            let hint = Some("every acquire writes to it, so it cannot be guarded");
            return refused("is the table of the locks", hint);
        }
        Ok((schema, name))
    }

    async fn own_schema(&mut self) -> Result<String, StoreError> {
        let found: Vec<String> = self
            .rows_as(Self::SCHEMA_OF_SESSION, mysql_async::Params::Empty)
            .await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// The table of locks as the triggers of a schema name it: without a schema if it is in the same
    /// one, so that a dump can be restored under another name.
    fn locks_name(&self, schema: &str, own_schema: &str) -> String {
        let (of, table) = match self.server.table.as_str().split_once('.') {
            Some((of, table)) => (of, table),
            None => (own_schema, self.server.table.as_str()),
        };
        match of == schema {
            true => quoted(table),
            false => format!("{}.{}", quoted(of), quoted(table)),
        }
    }

    async fn guard_body(
        &mut self,
        schema: &str,
        table: &str,
        lock: &LockName,
    ) -> Result<String, StoreError> {
        let own_schema = self.own_schema().await?;
        let body = Body {
            guard: &label(&self.server.table),
            locks: &self.locks_name(schema, &own_schema),
            collation: self.collation(),
            mariadb: self.mariadb,
            cluster: self.cluster.is_some(),
        };
        Ok(body.text(table, lock.as_str()))
    }

    /// The triggers run with the rights of this user, so it has to be allowed what they do.
    async fn may_check(&mut self, schema: &str) -> Result<(), StoreError> {
        let own_schema = self.own_schema().await?;
        let locks = self.locks_name(schema, &own_schema);
        let locks = match locks.contains("`.`") {
            true => locks,
            false => format!("{}.{locks}", quoted(schema)),
        };
        let probe = match (self.cluster, self.mariadb) {
            (Some(_), _) => format!("UPDATE {locks} SET renewed_at = renewed_at WHERE id < 0"),
            (None, true) => format!("SELECT id FROM {locks} WHERE id < 0 LOCK IN SHARE MODE"),
            (None, false) => format!("SELECT id FROM {locks} WHERE id < 0 FOR SHARE"),
        };
        self.execute_unprepared(probe).await
    }

    async fn create_guard_trigger(
        &mut self,
        schema: &str,
        table: &str,
        event: &str,
        body: &str,
    ) -> Result<String, StoreError> {
        let mut attempt = 0;
        loop {
            let statement = create_trigger(schema, table, event, attempt, body);
            match self.execute_unprepared(statement).await {
                Ok(()) => return Ok(trigger_name(table, event, attempt)),
                // There is a trigger of that name.
                Err(failure) if is_code(&failure, &[1359]) && attempt + 1 < NAMES => attempt += 1,
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn drop_trigger(&mut self, schema: &str, name: &str) -> Result<(), StoreError> {
        let trigger = format!("{}.{}", quoted(schema), quoted(name));
        self.execute_unprepared(format!("DROP TRIGGER IF EXISTS {trigger}"))
            .await
    }

    /// The triggers of guards, of one table or of all.
    async fn triggers(&mut self, of: Option<(&str, &str)>) -> Result<Vec<Trigger>, StoreError> {
        let label = format!("{}: BEGIN", label(&self.server.table));
        let these = params! {
            "schema" => of.map(|(schema, _)| schema), "table" => of.map(|(_, table)| table),
            "label" => label,
        };
        let rows: Vec<(String, String, String, String, String)> =
            self.rows_as(Self::TRIGGERS, these).await?;
        let found = rows
            .into_iter()
            .map(|(schema, table, name, event, body)| Trigger {
                schema,
                table,
                name,
                event,
                body,
            });
        Ok(found
            .filter(|found| of.is_none_or(|(_, table)| found.table == table))
            .collect())
    }

    /// The foreign keys whose cascades pass by the guard, each with its parent: not those of a
    /// parent that is guarded by the same lock.
    async fn cascades(
        &mut self,
        schema: &str,
        table: &str,
        lock: &LockName,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let these = params! { "schema" => schema, "table" => table };
        let keys: Vec<(String, String, String)> = self.rows_as(Self::CASCADES, these).await?;
        let mut passing = Vec::new();
        for (key, of, parent) in keys {
            let guards = self.triggers(Some((&of, &parent))).await?;
            let same = |one: &Trigger| Body::lock_in(&one.body).as_ref() == Some(lock);
            let guarded = |event: &str| guards.iter().any(|one| one.event == event && same(one));
            if !(guarded("UPDATE") && guarded("DELETE")) {
                passing.push((key, parent));
            }
        }
        Ok(passing)
    }

    async fn refuse_cascades(
        &mut self,
        schema: &str,
        table: &str,
        lock: &LockName,
    ) -> Result<(), StoreError> {
        let Some((key, parent)) = self.cascades(schema, table, lock).await?.into_iter().next()
        else {
            return Ok(());
        };
        Err(StoreError::rejected(
            format!(
                "the foreign key {key} of {table} cascades: a write to {parent} changes or deletes \
                 rows of {table}, and the server fires no trigger for them"
            ),
            Some(&format!(
                "guard {parent} by the same lock first, or make the key RESTRICT; `--force` guards \
                 {table} all the same"
            )),
        ))
    }
}

/// The label of the bodies, by which guards are found.
fn label(table: &Table) -> String {
    table.guard()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(Option<String>, String)> {
        Written::parse(text).map(|written| (written.schema, written.name))
    }

    #[test]
    fn a_table_is_written_as_in_sql() {
        let name = |name: &str| (None, name.to_owned());
        assert_eq!(parsed("invoices"), Some(name("invoices")));
        assert_eq!(
            parsed("shop.invoices"),
            Some((Some("shop".into()), "invoices".into()))
        );
        assert_eq!(parsed("`a.b`"), Some(name("a.b")));
        assert_eq!(parsed("`a``b`"), Some(name("a`b")));
        assert_eq!(
            parsed("`a`.`b; DROP TABLE x`"),
            Some((Some("a".into()), "b; DROP TABLE x".into()))
        );
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "`a",
            "`a`b",
            "a`b",
            "``",
            &"x".repeat(65),
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_text_of_a_user_stands_in_a_trigger_unquoted() {
        let (table, lock) = ("a`b'; --", "it's \"a\" näme \\");
        let body = Body {
            guard: "database_locks_guard",
            locks: "`database_locks_lock`",
            collation: "utf8mb4_nopad_bin",
            mariadb: true,
            cluster: false,
        };
        let text = body.text(table, lock);
        assert!(!text.contains("it's") && !text.contains('{'), "{text}");
        assert_eq!(Body::lock_in(&text).unwrap().as_str(), lock);
        let statement = create_trigger("s", table, "INSERT", 0, &text);
        assert!(
            statement.contains("`s`.`a``b'; --_guard_insert` BEFORE INSERT ON `s`.`a``b'; --`")
        );
        let on_cluster = Body {
            cluster: true,
            ..body
        }
        .text(table, lock);
        assert_eq!(Body::lock_in(&on_cluster).unwrap().as_str(), lock);
    }

    #[test]
    fn a_message_has_at_most_128_characters() {
        let long = "ü".repeat(255);
        let message = format!(
            "table {} is guarded by lock \"{}\", which this transaction does not hold",
            shortened(&long, 24),
            shortened(&long, 38)
        );
        assert_eq!(message.chars().count(), 128);
        assert!(trigger_name(&long, "INSERT", 8).chars().count() <= 64);
    }
}
