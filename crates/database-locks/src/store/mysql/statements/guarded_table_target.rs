//! The table that is put under guard.

use mysql_async::params;

use super::guarded_table_body::Written;
use crate::store::api::StoreError;
use crate::store::mysql::connection::session::Session;

/// The engine whose tables can be guarded.
const TRANSACTIONAL: &str = "InnoDB";

/// A table as the server knows it.
pub(super) struct Target {
    pub(super) schema: String,
    pub(super) name: String,
    kind: String,
    engine: String,
    /// The schema of the session, in which the table of locks is unless it names another.
    pub(super) own_schema: String,
}

impl Target {
    /// A table that the server does not show now, while it is altered for example.
    pub(super) fn unseen(schema: &str, name: &str, own_schema: &str) -> Self {
        Self {
            schema: schema.to_owned(),
            name: name.to_owned(),
            kind: String::new(),
            engine: String::new(),
            own_schema: own_schema.to_owned(),
        }
    }

    /// Its engine, if writes to it are in no transaction.
    pub(super) fn engine_without_transactions(&self) -> Option<&str> {
        let engine = Some(&*self.engine).filter(|engine| !engine.is_empty());
        engine.filter(|engine| !engine.eq_ignore_ascii_case(TRANSACTIONAL))
    }
}

impl Session {
    const TARGET: &str = "
        SELECT table_schema, table_name, table_type, IFNULL(engine, ''), IFNULL(DATABASE(), '')
          FROM information_schema.tables
         WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table";

    /// The table that a user has written.
    pub(super) async fn target(&mut self, table: &str) -> Result<Target, StoreError> {
        let Some(written) = Written::parse(table) else {
            return Err(StoreError::rejected(
                format!("{table} is not the name of a table"),
                Some("TABLE or SCHEMA.TABLE, in backticks if it has other characters"),
            ));
        };
        let found = self.find_table(written.schema.as_deref(), &written.name);
        found.await?.ok_or_else(|| {
            let what = format!("there is no table {table}, or this user has no right on it");
            StoreError::rejected(what, None)
        })
    }

    pub(super) async fn find_table(
        &mut self,
        schema: Option<&str>,
        table: &str,
    ) -> Result<Option<Target>, StoreError> {
        let these = params! { "schema" => schema, "table" => table };
        let mut found: Vec<(String, String, String, String, String)> =
            self.rows_as(Self::TARGET, these).await?;
        // Some servers compare names here without regard to case.
        if found.iter().any(|(_, name, ..)| name == table) {
            found.retain(|(_, name, ..)| name == table);
        }
        let found = found.pop();
        Ok(
            found.map(|(schema, name, kind, engine, own_schema)| Target {
                schema,
                name,
                kind,
                engine,
                own_schema,
            }),
        )
    }

    /// Refuse what cannot be guarded.
    pub(super) fn check_target(&self, target: &Target) -> Result<(), StoreError> {
        let Target {
            schema,
            name,
            kind,
            engine,
            own_schema,
        } = target;
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
        if let Some(engine) = target.engine_without_transactions() {
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
        Ok(())
    }
}
