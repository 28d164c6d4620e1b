//! Guarded tables: triggers that refuse a write in a transaction that does not hold the lock.

use std::collections::{BTreeMap, BTreeSet};

use mysql_async::params;

use super::guard_body::{Body, Written, create_trigger, quoted, trigger_name};
use super::guard_error::{explained, incomplete, is_code};
use crate::store::api::StoreError;
use crate::store::connect::table::Table;
use crate::store::mysql::connection::session::Session;
use protocol::{GuardCommand, LockName, TableGuard};

/// The events that a guard refuses.
const EVENTS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

/// How many names are tried for a trigger. Its name may be that of another one, for example of a
/// table that was renamed.
const NAMES: u32 = 9;

/// A trigger of a guard.
struct Trigger {
    schema: String,
    table: String,
    name: String,
    event: String,
    body: String,
}

/// Whether a trigger refuses what one with the other body does. That of a renamed table has another
/// message.
fn refuses_as(body: &str, other: &str) -> bool {
    Body::but_for_the_message(body) == Body::but_for_the_message(other)
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
        if !command.allow_cascades {
            self.refuse_cascades(&schema, &table, &command.lock).await?;
        }
        let body = self.guard_body(&schema, &table, &command.lock).await?;
        self.may_check(&schema).await?;
        // This connection has no other use.
        self.execute_unprepared(format!("USE {}", quoted(&schema)))
            .await?;
        let mut created = Vec::new();
        for event in EVENTS {
            let of_event = found.iter().filter(|trigger| trigger.event == event);
            if of_event.clone().any(|trigger| trigger.body == body) {
                continue;
            }
            match self.create_guard_trigger(&table, event, &body).await {
                Ok(name) => created.push((event, name)),
                Err(failure) => {
                    let failure = explained(failure, &schema, &table);
                    return Err(match self.take_back(&schema, &found, created).await {
                        true => failure,
                        false => incomplete(failure, "is incomplete", &table),
                    });
                }
            }
        }
        // Those of an earlier version, when the new ones are there.
        for outdated in found.iter().filter(|trigger| trigger.body != body) {
            self.drop_trigger(&schema, &outdated.name).await?;
        }
        Ok(())
    }

    /// Drop the triggers that were created before one could not be: half a guard would refuse writes
    /// by chance. Answers whether the table has a whole guard or none, as far as is known: on a busy
    /// table this fails for the same reason. What was `found` stays, since it is not known why it is
    /// not whole.
    async fn take_back(
        &mut self,
        schema: &str,
        found: &[Trigger],
        created: Vec<(&str, String)>,
    ) -> bool {
        let mut covered: BTreeSet<&str> = found.iter().map(|one| &*one.event).collect();
        for (event, name) in created {
            if self.drop_trigger(schema, &name).await.is_err() {
                covered.insert(event);
            }
        }
        covered.is_empty() || EVENTS.iter().all(|event| covered.contains(event))
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
            let Some(lock) = triggers.first().and_then(|one| Body::lock_in(&one.body)) else {
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
                    Some(_) if of_event.any(|one| refuses_as(&one.body, &body)) => {}
                    Some(one) => guard.gaps.push(format!(
                        "the trigger {} is of another version or kind of server, and may let \
                         writes pass",
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
        table: &str,
        event: &str,
        body: &str,
    ) -> Result<String, StoreError> {
        let mut attempt = 0;
        loop {
            let statement = create_trigger(table, event, attempt, body);
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

    /// The triggers of guards by this table of locks, of one table or of all. A table of locks of the
    /// same name in another schema has the same label.
    async fn triggers(&mut self, of: Option<(&str, &str)>) -> Result<Vec<Trigger>, StoreError> {
        let own_schema = self.own_schema().await?;
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
        let ours = |trigger: &Trigger| {
            let locks = self.locks_name(&trigger.schema, &own_schema);
            trigger.body.contains(&format!(" {locks} l "))
        };
        Ok(found
            .filter(|found| of.is_none_or(|(_, table)| found.table == table))
            .filter(ours)
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
                "guard {parent} by the same lock first, or make the key RESTRICT; `--allow-cascades` guards \
                 {table} all the same"
            )),
        ))
    }
}

/// The statements that create the triggers of a guard, with the default table of locks in the same
/// schema. For people to read: names of triggers that are taken are not avoided.
pub(crate) fn guard_triggers(table: &str, lock: &str, mariadb: bool, cluster: bool) -> Vec<String> {
    let locks = Table::default();
    let body = Body {
        guard: &label(&locks),
        locks: &quoted(locks.as_str()),
        collation: match mariadb {
            true => "utf8mb4_nopad_bin",
            false => "utf8mb4_0900_bin",
        },
        mariadb,
        cluster,
    };
    let body = body.text(table, lock);
    EVENTS
        .map(|event| create_trigger(table, event, 0, &body))
        .to_vec()
}

/// The statements that drop the triggers which [`guard_triggers`] creates. Not those with further
/// names, which may be of the guard of another table.
pub(crate) fn unguard_triggers(table: &str) -> Vec<String> {
    let drop = |event| {
        let trigger = quoted(&trigger_name(table, event, 0));
        format!("DROP TRIGGER IF EXISTS {trigger}")
    };
    EVENTS.map(drop).to_vec()
}

/// The label of the bodies, by which guards are found.
fn label(table: &Table) -> String {
    table.guard()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_triggers_are_those_of_the_kind_of_server() {
        for mariadb in [false, true] {
            let single = guard_triggers("invoices", "ledger", mariadb, false).concat();
            let cluster = guard_triggers("invoices", "ledger", mariadb, true).concat();
            assert!(!single.contains("UPDATE `database_locks_lock`"), "{single}");
            assert!(
                cluster.contains("UPDATE `database_locks_lock`"),
                "{cluster}"
            );
        }
        let created = guard_triggers("a`b", "ledger", true, false);
        for (create, drop) in created.iter().zip(unguard_triggers("a`b")) {
            let name = drop.trim_start_matches("DROP TRIGGER IF EXISTS ");
            assert!(
                create.starts_with(&format!("CREATE TRIGGER {name} BEFORE")),
                "{drop}"
            );
        }
    }
}
