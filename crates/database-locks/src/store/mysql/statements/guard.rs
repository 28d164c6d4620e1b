//! Guarded tables: triggers that refuse a write in a transaction that does not hold the lock.

use std::collections::{BTreeMap, BTreeSet};

use mysql_async::params;

use super::guard_body::{Body, EVENTS, create_trigger, quoted, trigger_name};
use super::guard_cascades::Cascade;
use super::guard_error::{explained, incomplete, is_code};
use crate::store::api::StoreError;
use crate::store::mysql::connection::session::Session;
use protocol::{GuardCommand, LockName, TableGuard};

/// How many names are tried for a trigger. Its name may be that of another one, for example of a
/// table that was renamed.
const NAMES: u32 = 9;

/// A trigger of a guard.
pub(super) struct Trigger {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) event: String,
    pub(super) body: String,
}

/// Whether a trigger refuses what one with the other body does. That of a renamed table has another
/// message.
fn refuses_as(body: &str, other: &str) -> bool {
    Body::but_for_the_message(body) == Body::but_for_the_message(other)
}

fn events(triggers: &[Trigger]) -> BTreeSet<&str> {
    triggers.iter().map(|one| &*one.event).collect()
}

/// Whether a guard that refuses these events refuses all.
fn is_whole(covered: &BTreeSet<&str>) -> bool {
    EVENTS.iter().all(|event| covered.contains(event))
}

impl Session {
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
        let target = self.target(&command.table).await?;
        self.check_target(&target)?;
        let (schema, table, own_schema) = (target.schema, target.name, target.own_schema);
        let found = self.triggers(Some((&schema, &table)), &own_schema).await?;
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
            self.refuse_cascades(&schema, &table, &command.lock, &own_schema)
                .await?;
        }
        let body = self.guard_body(&schema, &table, &command.lock, &own_schema);
        self.may_check(&schema, &own_schema).await?;
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
        let mut covered = events(found);
        for (event, name) in created {
            if self.drop_trigger(schema, &name).await.is_err() {
                covered.insert(event);
            }
        }
        covered.is_empty() || is_whole(&covered)
    }

    /// Remove the guard of a table.
    pub(crate) async fn unguard_table(&mut self, table: &str) -> Result<bool, StoreError> {
        let target = self.target(table).await?;
        let (schema, table) = (target.schema, target.name);
        let found = self
            .triggers(Some((&schema, &table)), &target.own_schema)
            .await?;
        for (at, trigger) in found.iter().enumerate() {
            if let Err(failure) = self.drop_trigger(&schema, &trigger.name).await {
                let failure = explained(failure, &schema, &table);
                return Err(match is_whole(&events(&found[at..])) {
                    true => failure,
                    false => incomplete(failure, "is incomplete", &table),
                });
            }
        }
        Ok(!found.is_empty())
    }

    /// The guarded tables of which this user sees the triggers.
    pub(crate) async fn guarded_tables(&mut self) -> Result<Vec<TableGuard>, StoreError> {
        let own_schema = self.own_schema().await?;
        let mut tables: BTreeMap<(String, String), Vec<Trigger>> = BTreeMap::new();
        for trigger in self.triggers(None, &own_schema).await? {
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
            let body = self.guard_body(&schema, &table, &lock, &own_schema);
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
            let engine = self.engine_without_transactions(&schema, &table);
            if let Some(engine) = engine.await? {
                guard.gaps.push(format!(
                    "the table is of the engine {engine}, whose writes are in no transaction: \
                     ALTER TABLE … ENGINE = InnoDB, or unguard it"
                ));
            }
            let cascades = self.cascades(&schema, &table, &lock, &own_schema);
            for Cascade { key, parent, .. } in cascades.await? {
                guard.bypasses.push(format!(
                    "a write to {parent} passes by the cascade of {key}"
                ));
            }
            guards.push(guard);
        }
        Ok(guards)
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

    fn guard_body(&self, schema: &str, table: &str, lock: &LockName, own_schema: &str) -> String {
        let body = Body {
            guard: &self.server.table.guard(),
            locks: &self.locks_name(schema, own_schema),
            collation: self.collation(),
            mariadb: self.mariadb,
            cluster: self.cluster.is_some(),
        };
        body.text(table, lock.as_str())
    }

    /// The triggers run with the rights of this user, so it has to be allowed what they do.
    async fn may_check(&mut self, schema: &str, own_schema: &str) -> Result<(), StoreError> {
        let locks = self.locks_name(schema, own_schema);
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
    pub(super) async fn triggers(
        &mut self,
        of: Option<(&str, &str)>,
        own_schema: &str,
    ) -> Result<Vec<Trigger>, StoreError> {
        let label = format!("{}: BEGIN", self.server.table.guard());
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
            let locks = self.locks_name(&trigger.schema, own_schema);
            trigger.body.contains(&format!(" {locks} l "))
        };
        Ok(found
            .filter(|found| of.is_none_or(|(_, table)| found.table == table))
            .filter(ours)
            .collect())
    }
}
