//! The guarded tables, and what is wrong with their guards.

use std::collections::{BTreeMap, BTreeSet};

use super::guarded_table::Trigger;
use super::guarded_table_body::{Body, EVENTS};
use super::guarded_table_cascades::Cascade;
use super::guarded_table_target::Target;
use crate::store::api::StoreError;
use crate::store::mysql::connection::session::Session;
use protocol::{LockName, TableGuard};

/// Whether a trigger refuses what one with the other body does. That of a renamed table has another
/// message.
fn refuses_as(body: &str, other: &str) -> bool {
    Body::but_for_the_message(body) == Body::but_for_the_message(other)
}

/// What is wrong with the triggers of a lock that guards a table, which should have this body.
fn gaps(triggers: &[&Trigger], body: &str) -> Vec<String> {
    let mut gaps = Vec::new();
    for event in EVENTS {
        let of_event = triggers.iter().filter(|one| one.event == event);
        let names: Vec<&str> = of_event.clone().map(|one| &*one.name).collect();
        let refuses = of_event.clone().any(|one| refuses_as(&one.body, body));
        match &*names {
            [] => gaps.push(format!("{event} passes: its trigger is missing")),
            [name, ..] if !refuses => gaps.push(format!(
                "the trigger {name} is of another version or kind of server, and may let writes pass"
            )),
            [_] => {}
            several => gaps.push(format!(
                "{event} is checked by {} triggers, {}, where one is enough: guard the table again",
                several.len(),
                several.join(", ")
            )),
        }
    }
    gaps
}

impl Session {
    const SCHEMA_OF_SESSION: &str = "SELECT IFNULL(DATABASE(), '')";

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
            let target = self.find_table(Some(&schema), &table).await?;
            let target = target.unwrap_or_else(|| Target::unseen(&schema, &table, &own_schema));
            let shown = match schema == own_schema {
                true => table,
                false => format!("{schema}.{table}"),
            };
            let locks: BTreeSet<&LockName> = triggers
                .iter()
                .filter_map(|one| one.lock.as_ref())
                .collect();
            for &lock in &locks {
                let mut guard = TableGuard::intact(shown.clone(), lock.clone());
                let others = locks.iter().filter(|other| **other != lock);
                guard.gaps.extend(others.map(|other| {
                    format!(
                        "the lock \"{other}\" guards the table too, and a write has to show both: \
                         `dblock unguard`, then guard it by one of them"
                    )
                }));
                let body = self.guard_body(&target, lock);
                let of_lock = triggers
                    .iter()
                    .filter(|one| one.lock.as_ref() == Some(lock));
                let of_lock: Vec<&Trigger> = of_lock.collect();
                guard.gaps.extend(gaps(&of_lock, &body));
                // It was altered since.
                guard
                    .gaps
                    .extend(target.engine_without_transactions().map(|engine| {
                    format!(
                        "the table is of the engine {engine}, whose writes are in no transaction: \
                         ALTER TABLE … ENGINE = InnoDB, or unguard it"
                    )
                }));
                for Cascade { key, parent, .. } in self.cascades(&target, lock).await? {
                    guard.bypasses.push(format!(
                        "a write to {parent} passes by the cascade of {key}"
                    ));
                }
                guards.push(guard);
            }
        }
        Ok(guards)
    }

    async fn own_schema(&mut self) -> Result<String, StoreError> {
        let found: Vec<String> = self
            .rows_as(Self::SCHEMA_OF_SESSION, mysql_async::Params::Empty)
            .await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }
}
