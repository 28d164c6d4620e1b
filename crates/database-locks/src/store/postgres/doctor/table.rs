//! A table: the role's rights, its definition, its rows.

use tokio_postgres::Row;

use super::examination::Examination;
use crate::doctor;
use crate::store::connect::table::Rows;
use crate::store::doctor::{Column, Counts, FoundType, Index};
use crate::store::postgres::connection::session::Param;
use crate::store::postgres::error::{Kind, ServerError};
use crate::store::schema::ColumnType;

/// The other schemas with a table of the name `$1`.
const ELSEWHERE: &str = "
SELECT coalesce(string_agg(n.nspname::text, ', '), '') AS schemas
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = lower($1) AND c.relkind IN ('r', 'p')";

/// The table `$1`, and the role's rights on it. No row: there is no table.
///
/// An insert into a column made by `serial` needs a right on its sequence; one made by `GENERATED …
/// AS IDENTITY` does not (its `deptype` is `i`). CASE fixes the order: `has_sequence_privilege`
/// fails on an index, which may depend on the table in the same way.
const TABLE: &str = "
SELECT current_user::text AS role, array_remove(ARRAY[
           CASE WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
           CASE WHEN NOT has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
           CASE WHEN NOT has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
           (SELECT 'USAGE on the sequence ' || min(s.oid::regclass::text)
              FROM pg_depend d JOIN pg_class s ON s.oid = d.objid
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
               AND d.refobjid = c.oid AND d.deptype = 'a'
               AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE')
                   END)], NULL) AS lacking,
       has_table_privilege(c.oid, 'DELETE') AS may_delete, c.relpersistence::text AS persistence,
       row_security_active(c.oid) AS row_security,
       coalesce((SELECT option_value::boolean FROM pg_options_to_table(c.reloptions)
                  WHERE option_name = 'autovacuum_enabled'), true)
           AND current_setting('autovacuum')::boolean AS vacuumed,
       coalesce(t.n_live_tup, 0) AS live, coalesce(t.n_dead_tup, 0) AS dead
  FROM pg_class c LEFT JOIN pg_stat_all_tables t ON t.relid = c.oid
 WHERE c.oid = to_regclass($1)";

const COLUMNS: &str = "
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS unfilled,
       coalesce(NOT c.collisdeterministic, false) AS nondeterministic
  FROM pg_attribute a LEFT JOIN pg_collation c ON c.oid = a.attcollation
 WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum";

/// Indexes, with the part of their definition after USING. `$2`: the columns of the one that tells
/// rows apart.
const INDEXES: &str = "
SELECT c.relname::text AS name, i.indisprimary AS primary,
       i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND (SELECT string_agg(a.attname::text, ',' ORDER BY a.attname) FROM pg_attribute a
                 WHERE a.attrelid = i.indrelid
                   AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) = $2 AS keeps_names,
       split_part(pg_get_indexdef(i.indexrelid), ' USING ', 2) AS definition
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = to_regclass($1)
 ORDER BY i.indexrelid";

const COUNTS: &str = "
SELECT count(*) AS rows,
       count(*) FILTER (WHERE expires_at > clock_timestamp() AND NOT rests) AS held,
       count(*) FILTER (WHERE expires_at <= clock_timestamp() - interval '1 minute' AND NOT rests)
           AS expired,
       min(name) FILTER (WHERE expires_at <= clock_timestamp() - interval '1 minute' AND NOT rests)::text
           AS first_expired,
       count(*) FILTER (WHERE expires_at >= '9999-12-31 00:00:00+00'
                          AND acquired_at <= clock_timestamp() - interval '1 day') AS endless,
       min(name) FILTER (WHERE expires_at >= '9999-12-31 00:00:00+00'
                           AND acquired_at <= clock_timestamp() - interval '1 day')::text
           AS first_endless,
       count(*) FILTER (WHERE expires_at > clock_timestamp()
                          AND granted_until IS DISTINCT FROM expires_at) AS old,
       min(name) FILTER (WHERE expires_at > clock_timestamp()
                           AND granted_until IS DISTINCT FROM expires_at)::text AS first_old
  FROM (SELECT *, grant_id IS NULL AND granted_until IS NOT DISTINCT FROM expires_at AS rests
          FROM {table}{? WHERE slot >= 0?}) l";

/// The latest id, by the rows and the sequence, and the greatest id of the column and the sequence:
/// `$1` the table.
const IDS: &str = "
SELECT GREATEST((SELECT max(id)::bigint FROM {table}),
                CASE WHEN has_sequence_privilege(s.seqrelid, 'SELECT, USAGE')
                     THEN pg_sequence_last_value(s.seqrelid) END) AS latest,
       LEAST(CASE a.atttypid WHEN 'smallint'::regtype THEN 32767
                             WHEN 'integer'::regtype THEN 2147483647
                             ELSE 9223372036854775807 END, s.seqmax) AS greatest
  FROM pg_attribute a
       LEFT JOIN pg_sequence s ON s.seqrelid = pg_get_serial_sequence($1, 'id')::regclass
 WHERE a.attrelid = to_regclass($1) AND a.attname = 'id' AND NOT a.attisdropped";

/// Whether logical replication publishes the rows of the table `$1`, and whether it subscribes to
/// them.
const REPLICATED: &str = "
SELECT EXISTS (SELECT FROM pg_publication_tables p
                WHERE p.schemaname = n.nspname AND p.tablename = c.relname) AS goes,
       EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = c.oid) AS comes
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass($1)";

impl Examination<'_> {
    /// A statement about the table that is examined.
    fn fill(&self, statement: &str) -> String {
        self.table.fill_in(self.report.of(), statement)
    }

    /// Answers whether the rows can be read.
    pub(crate) async fn table(&mut self) -> Result<bool, ServerError> {
        let table = &*self.report.table().to_owned();
        let name: [&dyn Param; 1] = [&table];
        let found = match self.session.query(TABLE, &name).await {
            // The role has no right on the schema.
            Err(ServerError {
                kind: Kind::Rejected(_),
                message,
                ..
            }) => {
                self.report.found(&doctor::RIGHTS_MISSING, message);
                return Ok(false);
            }
            found => found?,
        };
        let Some(row) = found.first() else {
            let plain = table.rsplit('.').next().unwrap_or(table);
            let rows = self.session.query(ELSEWHERE, &[&plain]).await?;
            let schemas: &str = rows.first().map_or(Ok(""), |row| row.try_get("schemas"))?;
            let elsewhere = match schemas {
                "" => String::new(),
                schemas => format!(", though one of that name in schema {schemas}"),
            };
            self.report.table_missing(&elsewhere);
            return Ok(false);
        };
        self.rights(row)?;
        let Some(rows) = self.try_query("table", COLUMNS, &name).await? else {
            return Ok(false);
        };
        let mut columns = Vec::with_capacity(rows.len());
        for row in &rows {
            let (name, of): (String, &str) = (row.try_get("name")?, row.try_get("type")?);
            if name == "name" && row.try_get("nondeterministic")? {
                let what = "the collation of the column name is a nondeterministic one";
                self.report.found(&doctor::NAME_COLLATION, what);
            }
            columns.push(Column {
                mismatch: Column::mismatch(&name, found_type(of), of, declaration),
                name,
                unfilled: row.try_get("unfilled")?,
            });
        }
        let complete = self.report.columns(&columns);
        let Some(rows) = self.indexes(table).await? else {
            return Ok(false);
        };
        let mut indexes = Vec::with_capacity(rows.len());
        for row in &rows {
            let definition: &str = row.try_get("definition")?;
            let words = definition.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            indexes.push(Index {
                name: row.try_get("name")?,
                columns: words.map(str::to_owned).collect(),
                primary: row.try_get("primary")?,
                keeps_names: row.try_get("keeps_names")?,
            });
        }
        self.report.indexes(&indexes);
        if complete {
            self.ids(&name).await?;
        }
        self.report.shape();
        self.replicated(&name).await?;
        Ok(complete)
    }

    async fn indexes(&mut self, table: &str) -> Result<Option<Vec<Row>>, ServerError> {
        let key = match self.report.of() {
            Rows::Locks => "name",
            Rows::Permits => "name,slot",
        };
        self.try_query("table", INDEXES, &[&table, &key]).await
    }

    /// The rights of the role, and how the server stores the table.
    fn rights(&mut self, row: &Row) -> Result<(), ServerError> {
        let table = self.report.table().to_owned();
        let user: &str = row.try_get("role")?;
        let lacking: Vec<String> = row.try_get("lacking")?;
        let role = format!("the role {user}");
        self.report
            .rights(&role, &lacking, row.try_get("may_delete")?);
        match row.try_get("persistence")? {
            "u" => self
                .report
                .found(&doctor::TABLE_FORGETS, format!("{table} is unlogged")),
            "t" => self
                .report
                .found(&doctor::TABLE_FORGETS, format!("{table} is temporary")),
            _ => {}
        }
        if row.try_get("row_security")? {
            let what = format!("row-level security of {table} holds for the role {user}");
            self.report.found(&doctor::ROW_SECURITY, what);
        }
        if !row.try_get::<_, bool>("vacuumed")? {
            self.report.found(
                &doctor::AUTOVACUUM_OFF,
                format!("{table} is not vacuumed by itself"),
            );
        }
        let (live, dead): (i64, i64) = (row.try_get("live")?, row.try_get("dead")?);
        if dead > 10_000 && dead / 10 > live {
            let what = format!("{table} has {dead} dead rows beside {live} living ones");
            self.report.found(&doctor::DEAD_ROWS, what);
        }
        Ok(())
    }

    async fn ids(&mut self, name: &[&dyn Param]) -> Result<(), ServerError> {
        let ids = self.fill(IDS);
        let rows = self
            .try_query("table", &ids, name)
            .await?
            .unwrap_or_default();
        if let Some(row) = rows.first()
            && let Some(latest) = row.try_get("latest")?
        {
            self.report.ids(latest, row.try_get("greatest")?);
        }
        Ok(())
    }

    /// One direction suffices: replicated rows overwrite the grants made here.
    async fn replicated(&mut self, name: &[&dyn Param]) -> Result<(), ServerError> {
        let rows = self.try_query("replicas", REPLICATED, name).await?;
        let rows = rows.unwrap_or_default();
        let (goes, comes) = match rows.first() {
            Some(row) => (row.try_get("goes")?, row.try_get::<_, bool>("comes")?),
            None => (false, false),
        };
        if comes {
            let both = if goes {
                ", and publishes it as well"
            } else {
                ""
            };
            let what = format!(
                "this database subscribes to changes of {} that are made elsewhere{both}",
                self.report.table()
            );
            self.report.found(&doctor::WRITTEN_ELSEWHERE, what);
        }
        Ok(())
    }

    pub(crate) async fn locks(&mut self) -> Result<(), ServerError> {
        let counts = self.fill(COUNTS);
        let Some(rows) = self.try_query("locks", &counts, &[]).await? else {
            return Ok(());
        };
        if let Some(row) = rows.first() {
            self.report.locks(&Counts {
                rows: row.try_get("rows")?,
                held: row.try_get("held")?,
                expired: (row.try_get("expired")?, row.try_get("first_expired")?),
                infinite: (row.try_get("endless")?, row.try_get("first_endless")?),
                legacy: (row.try_get("old")?, row.try_get("first_old")?),
            });
        }
        Ok(())
    }
}

/// The declaration of a column in a new table, as the server shows it.
fn declaration(name: &str, required: ColumnType) -> &'static str {
    match (name, required) {
        ("name", _) => "character varying(255)",
        ("grant_id", _) => "character(32)",
        (_, ColumnType::Text(_)) => "text",
        (_, ColumnType::Id | ColumnType::BigInt) => "bigint",
        (_, ColumnType::Time) => TIME,
        (_, ColumnType::Flag) => "boolean",
    }
}

const TIME: &str = "timestamp with time zone";

/// The type of a column, from `format_type`.
fn found_type(shown: &str) -> FoundType {
    let length = shown
        .strip_prefix("character varying(")
        .and_then(|rest| rest.strip_suffix(')')?.parse().ok());
    match (shown, length) {
        ("text" | "character varying", _) => FoundType::Text(u64::MAX),
        (_, Some(length)) => FoundType::Text(length),
        // Longer ones would pad names.
        ("character(32)", _) => FoundType::Text(32),
        ("bigint", _) => FoundType::BigInt,
        (TIME, _) => FoundType::Time,
        ("boolean", _) => FoundType::Flag,
        _ => FoundType::Other,
    }
}
