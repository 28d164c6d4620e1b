//! Foreign keys by which a write to another table changes or deletes rows of a guarded one.

use mysql_async::params;

use super::guard_body::Body;
use crate::store::api::StoreError;
use crate::store::mysql::connection::session::Session;
use protocol::LockName;

impl Session {
    const CASCADES: &str = "
        SELECT constraint_name, unique_constraint_schema, referenced_table_name
          FROM information_schema.referential_constraints
         WHERE constraint_schema = :schema AND table_name = :table
           AND (update_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
                OR delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT'))
           AND NOT (unique_constraint_schema = :schema AND referenced_table_name = :table)";

    /// The foreign keys whose cascades pass by the guard, each with its parent: not those of a
    /// parent that is guarded by the same lock.
    pub(super) async fn cascades(
        &mut self,
        schema: &str,
        table: &str,
        lock: &LockName,
        own_schema: &str,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let these = params! { "schema" => schema, "table" => table };
        let keys: Vec<(String, String, String)> = self.rows_as(Self::CASCADES, these).await?;
        let mut passing = Vec::new();
        for (key, of, parent) in keys {
            if !self.is_guarded(&of, &parent, lock, own_schema).await? {
                passing.push((key, parent));
            }
        }
        Ok(passing)
    }

    /// Whether no transaction changes or deletes a row of this table without the lock.
    async fn is_guarded(
        &mut self,
        schema: &str,
        table: &str,
        lock: &LockName,
        own_schema: &str,
    ) -> Result<bool, StoreError> {
        let guards = self.triggers(Some((schema, table)), own_schema).await?;
        let guarded = |event: &str| {
            let mut of_event = guards.iter().filter(|one| one.event == event);
            of_event.any(|one| Body::lock_in(&one.body).as_ref() == Some(lock))
        };
        Ok(guarded("UPDATE") && guarded("DELETE"))
    }

    pub(super) async fn refuse_cascades(
        &mut self,
        schema: &str,
        table: &str,
        lock: &LockName,
        own_schema: &str,
    ) -> Result<(), StoreError> {
        let passing = self.cascades(schema, table, lock, own_schema).await?;
        let Some((key, parent)) = passing.into_iter().next() else {
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
