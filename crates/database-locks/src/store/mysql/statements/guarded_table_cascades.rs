//! Foreign keys by which a write to another table changes or deletes rows of a guarded one.

use std::collections::BTreeSet;

use mysql_async::params;

use super::guarded_table_target::Target;
use crate::store::api::StoreError;
use crate::store::mysql::connection::session::Session;
use protocol::LockName;

/// A foreign key by which a write to the parent passes by a guard.
pub(super) struct Cascade {
    pub(super) key: String,
    /// The table of the key.
    child: String,
    pub(super) parent: String,
}

impl Session {
    const CASCADES: &str = "
        SELECT constraint_name, unique_constraint_schema, referenced_table_name
          FROM information_schema.referential_constraints
         WHERE constraint_schema = :schema AND table_name = :table
           AND (update_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
                OR delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT'))
           AND NOT (unique_constraint_schema = :schema AND referenced_table_name = :table)";

    /// The foreign keys whose cascades pass by the guard: those of a parent that this lock does not
    /// guard, of this table and of the parents that it guards. A guarded parent is emptied too by
    /// the cascades into it.
    pub(super) async fn cascades(
        &mut self,
        target: &Target,
        lock: &LockName,
    ) -> Result<Vec<Cascade>, StoreError> {
        let mut passing = Vec::new();
        let mut seen = BTreeSet::from([(target.schema.clone(), target.name.clone())]);
        let mut next: Vec<_> = seen.iter().cloned().collect();
        while let Some((schema, table)) = next.pop() {
            let these = params! { "schema" => &schema, "table" => &table };
            let keys: Vec<(String, String, String)> = self.rows_as(Self::CASCADES, these).await?;
            for (key, of, parent) in keys {
                let guards = self.triggers(Some((&of, &parent)), &target.own_schema);
                let guards = guards.await?;
                // Whether the triggers refuse this event without the lock.
                let guarded = |event: &str| {
                    let mut of_event = guards.iter().filter(|one| one.event == event);
                    of_event.any(|one| one.lock.as_ref() == Some(lock))
                };
                if !guarded("UPDATE") || !guarded("DELETE") {
                    let child = table.clone();
                    passing.push(Cascade { key, child, parent });
                } else if seen.insert((of.clone(), parent.clone())) {
                    next.push((of, parent));
                }
            }
        }
        Ok(passing)
    }

    pub(super) async fn refuse_cascades(
        &mut self,
        target: &Target,
        lock: &LockName,
    ) -> Result<(), StoreError> {
        let passing = self.cascades(target, lock).await?;
        let Some(Cascade { key, child, parent }) = passing.into_iter().next() else {
            return Ok(());
        };
        let table = &target.name;
        Err(StoreError::rejected(
            format!(
                "the foreign key {key} of {child} cascades: a write to {parent} changes or deletes \
                 rows of {table}, and the server fires no trigger for them"
            ),
            Some(&format!(
                "guard {parent} by the same lock first, or make the key RESTRICT; `--allow-cascades` guards \
                 {table} all the same"
            )),
        ))
    }
}
