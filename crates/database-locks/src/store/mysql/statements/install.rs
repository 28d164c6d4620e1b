//! Creating the table, or adding missing columns to it.

use std::time::Duration;

use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::error::is_code;
use crate::store::schema::new_columns;

/// The published schema is what runs.
const SCHEMA: &str = include_str!("../../../../schema/mysql.sql");
const PERMIT_SCHEMA: &str = include_str!("../../../../schema/mysql_permit.sql");
/// The pause before another attempt, after another client was altering or had locked the table.
const PAUSE: Duration = Duration::from_millis(50);

/// The line of the schema that defines this column.
fn definition(column: &str) -> Option<&'static str> {
    SCHEMA
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .find(|line| line.split(' ').next() == Some(column))
}

impl Session {
    /// Create the table, or add missing columns. If nothing is missing this only reads.
    pub(crate) async fn install(&mut self) -> Result<(), StoreError> {
        // The caller's deadline ends it.
        loop {
            let Some(change) = self.lacking().await? else {
                return Ok(());
            };
            match self.execute_unprepared(&change).await {
                Ok(()) => {}
                Err(StoreError::Contention(message)) => {
                    tracing::debug!("waiting to install: {message}")
                }
                // Another client has just created the table, added the column or key, or renamed
                // the key.
                Err(failure) if is_code(&failure, &[1050, 1060, 1061, 1176]) => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    const ENGINE: &str = "
        SELECT IFNULL(engine, ''), IFNULL(row_format, '') FROM information_schema.tables
         WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table";
    const COLUMNS: &str = "
        SELECT column_name, IFNULL(character_set_name, ''), IFNULL(collation_name, '')
          FROM information_schema.columns
         WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table";
    /// Unique indexes on the name and nothing else.
    const KEYS: &str = "
        SELECT index_name FROM information_schema.statistics
         WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table
         GROUP BY index_name
        HAVING MAX(non_unique) = 0 AND COUNT(*) = 1
           AND MAX(column_name) = 'name' AND MAX(sub_part) IS NULL";

    /// The one statement that creates or alters the table; `None` if nothing is missing.
    ///
    /// MySQL has no `ADD COLUMN IF NOT EXISTS`, so the columns are queried first.
    async fn lacking(&mut self) -> Result<Option<String>, StoreError> {
        let of_locks = self.table_params(Rows::Locks);
        let engine: Vec<(String, String)> = self.rows_as(Self::ENGINE, of_locks.clone()).await?;
        let Some((engine, format)) = engine.into_iter().next() else {
            return Ok(Some(self.fill(Rows::Locks, SCHEMA)));
        };
        let columns: Vec<(String, String, String)> =
            self.rows_as(Self::COLUMNS, of_locks.clone()).await?;
        let keys: Vec<String> = self.rows_as(Self::KEYS, of_locks).await?;
        let column = |name: &str| columns.iter().find(|(found, ..)| found == name);
        let mut changes = Vec::new();
        let mut alter = |how: &str, column: &str| {
            changes.extend(definition(column).map(|of| format!("{how} {of}")));
        };
        for name in new_columns().filter(|name| column(name).is_none()) {
            alter("ADD COLUMN", name);
        }
        if column("name").is_some_and(|(_, _, collation)| collation != self.collation()) {
            alter("MODIFY", "name");
        }
        if column("locked_by").is_some_and(|(_, charset, _)| charset != "utf8mb4") {
            alter("MODIFY", "locked_by");
        }
        // The statements name the index.
        match keys.first() {
            None => changes.push("ADD UNIQUE KEY name (name)".into()),
            Some(_) if keys.iter().any(|key| key == "name") => {}
            Some(key) => changes.push(format!("RENAME INDEX `{}` TO name", key.replace('`', "``"))),
        }
        // Other engines have no row locks.
        if engine != "InnoDB" {
            changes.push("ENGINE = InnoDB".into());
        }
        // The index on names of utf8mb4 is too long for the older formats.
        if matches!(&*format.to_lowercase(), "compact" | "redundant" | "fixed") {
            changes.push("ROW_FORMAT = DYNAMIC".into());
        }
        let change = format!("ALTER TABLE {{table}} {}", changes.join(", "));
        if !changes.is_empty() {
            return Ok(Some(self.fill(Rows::Locks, &change)));
        }
        let permits_missing =
            self.rows_as::<(String, String)>(Self::ENGINE, self.table_params(Rows::Permits));
        let permits_missing = permits_missing.await?.is_empty();
        Ok(permits_missing.then(|| self.fill(Rows::Locks, PERMIT_SCHEMA)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_that_is_added_stands_in_the_schema() {
        for column in new_columns().chain(["name", "locked_by"]) {
            let line = definition(column).unwrap();
            assert!(
                line.ends_with("NULL") || line.ends_with("DEFAULT 0"),
                "{line}"
            );
        }
    }
}
