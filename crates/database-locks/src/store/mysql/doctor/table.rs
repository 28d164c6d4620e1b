//! A table: the user's rights, its definition, its rows.

use mysql_async::Params;

use crate::doctor;
use crate::store::api::StoreError;
use crate::store::connect::table::Rows;
use crate::store::doctor::{Column, Counts, FoundType, Index, ReportBuilder};
use crate::store::mysql::connection::session::Session;
use crate::store::mysql::connection::table::option;
use crate::store::mysql::error::is_code;
use crate::store::schema::ColumnType;

/// The errors if a right on the table, a column or the database is missing.
const DENIED: [u16; 3] = [1142, 1143, 1044];

/// They are not carried out, but refused if the right is missing.
const PROBES: [(&str, &str); 4] = [
    ("SELECT", "EXPLAIN SELECT name FROM {table}"),
    ("INSERT", "EXPLAIN INSERT INTO {table} (name) VALUES ('')"),
    ("UPDATE", "EXPLAIN UPDATE {table} SET expires_at = NULL"),
    ("DELETE", "EXPLAIN DELETE FROM {table}"),
];

const ENGINE: &str = "
    SELECT IFNULL(engine, '') FROM information_schema.tables
     WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table";

const COLUMNS: &str = "
    SELECT column_name, data_type, column_type, IFNULL(character_maximum_length, 0),
           IFNULL(datetime_precision, 0), IFNULL(character_set_name, ''),
           IFNULL(collation_name, ''),
           is_nullable = 'NO' AND column_default IS NULL AND extra = ''
      FROM information_schema.columns
     WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table
     ORDER BY ordinal_position";

/// An index that cuts names off (`sub_part`) makes different names collide, so it does not count.
const INDEXES: &str = "
    SELECT index_name, GROUP_CONCAT(IFNULL(column_name, '') ORDER BY column_name),
           MAX(non_unique) = 0 AND MAX(sub_part) IS NULL
      FROM information_schema.statistics
     WHERE table_schema = IFNULL(:schema, DATABASE()) AND table_name = :table
     GROUP BY index_name ORDER BY index_name <> 'name', index_name";

/// `{grace}`: on a cluster the clock of this node may be ahead by more than a minute.
const COUNTS: &str = "
    SELECT COUNT(*), COUNT(CASE WHEN {live} AND NOT rests THEN 1 END),
           COUNT(CASE WHEN expires_at <= UTC_TIMESTAMP(6) - INTERVAL {grace}
                       AND NOT rests THEN 1 END),
           MIN(CASE WHEN expires_at <= UTC_TIMESTAMP(6) - INTERVAL {grace}
                     AND NOT rests THEN name END),
           COUNT(CASE WHEN expires_at = TIMESTAMP'9999-12-31 00:00:00'
                       AND acquired_at <= UTC_TIMESTAMP(6) - INTERVAL 1 DAY THEN 1 END),
           MIN(CASE WHEN expires_at = TIMESTAMP'9999-12-31 00:00:00'
                     AND acquired_at <= UTC_TIMESTAMP(6) - INTERVAL 1 DAY THEN name END),
           COUNT(CASE WHEN expires_at > UTC_TIMESTAMP(6)
                       AND NOT granted_until <=> expires_at THEN 1 END),
           MIN(CASE WHEN expires_at > UTC_TIMESTAMP(6)
                     AND NOT granted_until <=> expires_at THEN name END)
      FROM (SELECT *, grant_id IS NULL AND granted_until <=> expires_at AS rests
              FROM {table}{? WHERE slot >= 0?}) l";

impl Session {
    /// Examine a table; answers whether the statements can use it.
    pub(crate) async fn table(&mut self, report: &mut ReportBuilder) -> Result<bool, StoreError> {
        let usable = self.rights(report).await? && self.definition(report).await?;
        if usable {
            self.locks(report).await?;
        }
        Ok(usable)
    }

    /// Answers whether there is a table that can be read.
    async fn rights(&mut self, report: &mut ReportBuilder) -> Result<bool, StoreError> {
        let mut lacking = Vec::new();
        for (right, probe) in PROBES {
            match self.rows(report.of(), probe, Params::Empty).await {
                Ok(_) => {}
                // Unavailable: it existed before, so its absence may be temporary.
                Err(StoreError::Rejected { source, .. } | StoreError::Unavailable(source))
                    if source.to_string().ends_with("(error 1146)") =>
                {
                    report.table_missing("");
                    return Ok(false);
                }
                Err(failure) if is_code(&failure, &DENIED) => lacking.push(right),
                // Of the binary log. It has a finding of its own.
                Err(failure) if is_code(&failure, &[1665]) => {}
                Err(StoreError::Rejected { source, .. }) => report.unseen("rights", source),
                Err(failure) => return Err(failure),
            }
        }
        let readable = !lacking.contains(&"SELECT");
        let may_delete = !lacking.contains(&"DELETE");
        lacking.retain(|right| *right != "DELETE");
        report.rights("this user", &lacking, may_delete);
        Ok(readable)
    }

    /// Answers whether the statements can use it.
    async fn definition(&mut self, report: &mut ReportBuilder) -> Result<bool, StoreError> {
        let (rows, table) = (report.of(), report.table().to_owned());
        let engine: Vec<String> = self.rows_as(ENGINE, self.table_params(rows)).await?;
        if let Some(engine) = engine.first().filter(|engine| *engine != "InnoDB") {
            report.found(
                &doctor::NOT_INNODB,
                format!("the engine of {table} is {engine}"),
            );
        }
        let create_table = self.create_table(rows).await?;
        let mut columns = Vec::new();
        type Described = (String, String, String, u64, u64, String, String, bool);
        for row in self
            .rows_as::<Described>(COLUMNS, self.table_params(rows))
            .await?
        {
            let (name, of, shown, length, precision, charset, collation, unfilled) = row;
            let at = FoundColumn {
                name,
                of,
                shown,
                length,
                precision,
                charset,
            };
            if at.name == "id" {
                let next =
                    option(&create_table, "AUTO_INCREMENT").and_then(|next| next.parse().ok());
                report.ids(next.unwrap_or_default(), at.greatest());
            }
            if at.name == "name" && collation != self.collation() {
                let what = format!("the collation of the column name is {collation}");
                let what = format!("{what}, must be {}", self.collation());
                report.found(&doctor::NAME_COLLATION, what);
            }
            columns.push(Column {
                mismatch: at.mismatch(rows),
                name: at.name,
                unfilled,
            });
        }
        let complete = report.columns(&columns);
        self.indexes(report).await?;
        report.shape();
        Ok(complete)
    }

    async fn indexes(&mut self, report: &mut ReportBuilder) -> Result<(), StoreError> {
        let of = report.of();
        let key = match of {
            Rows::Locks => "name",
            Rows::Permits => "name,slot",
        };
        let found: Vec<(String, String, bool)> =
            self.rows_as(INDEXES, self.table_params(of)).await?;
        let index = |(name, columns, unique): (String, String, bool)| Index {
            primary: name == "PRIMARY",
            keeps_names: unique && columns == key,
            columns: columns.split(',').map(str::to_owned).collect(),
            name,
        };
        let indexes: Vec<Index> = found.into_iter().map(index).collect();
        report.indexes(&indexes);
        let index = indexes.iter().find(|index| index.keeps_names);
        let named = index.is_none_or(|index| index.name == "name");
        if let Some(index) = index.filter(|_| !named) {
            let what = format!("the unique index on {key} is called {}", index.name);
            report.found(&doctor::INDEX_RENAMED, what);
        }
        Ok(())
    }

    async fn locks(&mut self, report: &mut ReportBuilder) -> Result<(), StoreError> {
        for found in self.try_query("locks", COUNTS, report).await? {
            let (rows, held, expired, which, infinite, which_infinite, legacy, which_legacy) =
                found;
            report.locks(&Counts {
                rows,
                held,
                expired: (expired, which),
                infinite: (infinite, which_infinite),
                legacy: (legacy, which_legacy),
            });
        }
        Ok(())
    }
}

/// A column, as the server describes it.
struct FoundColumn {
    name: String,
    of: String,
    shown: String,
    length: u64,
    precision: u64,
    charset: String,
}

impl FoundColumn {
    /// The greatest number of such a column.
    fn greatest(&self) -> i64 {
        let bits = match &*self.of {
            "tinyint" => 7,
            "smallint" => 15,
            "mediumint" => 23,
            "int" => 31,
            _ => 63,
        };
        let bits = bits + u32::from(bits < 63 && self.shown.contains("unsigned"));
        i64::MAX >> (63 - bits)
    }

    fn mismatch(&self, table: Rows) -> Option<String> {
        let ascii = self.name == "grant_id" || table == Rows::Permits && self.name == "metadata";
        let fits = ascii || self.charset == "utf8mb4";
        let found = match &*self.of {
            "varchar" | "char" if fits => FoundType::Text(self.length),
            text if fits && text.ends_with("text") => FoundType::Text(self.length),
            "bigint" => FoundType::BigInt,
            "tinyint" => FoundType::Flag,
            "datetime" if self.precision == 6 => FoundType::Time,
            _ => FoundType::Other,
        };
        let charset = match &*self.charset {
            "" => String::new(),
            charset => format!(" of {charset}"),
        };
        let shown = format!("{}{charset}", self.shown);
        Column::mismatch(&self.name, found, &shown, declaration)
    }
}

/// The declaration of a column in a new table.
fn declaration(name: &str, required: ColumnType) -> &'static str {
    match (name, required) {
        ("name", _) => "varchar(255) of utf8mb4",
        ("grant_id", _) => "char(32)",
        (_, ColumnType::Text(_)) => "longtext of utf8mb4",
        (_, ColumnType::Id | ColumnType::BigInt) => "bigint",
        (_, ColumnType::Time) => "datetime(6)",
        (_, ColumnType::Flag) => "tinyint(1)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_id_depends_on_the_type() {
        for (shown, most) in [
            ("mediumint(9)", 8_388_607),
            ("int(11)", i64::from(i32::MAX)),
            ("int", i64::from(i32::MAX)),
            ("int(10) unsigned", i64::from(u32::MAX)),
            ("bigint(20)", i64::MAX),
            ("bigint unsigned", i64::MAX),
        ] {
            let found = FoundColumn {
                name: "id".into(),
                of: shown.split([' ', '(']).next().unwrap_or_default().into(),
                shown: shown.into(),
                length: 0,
                precision: 0,
                charset: String::new(),
            };
            assert_eq!(found.greatest(), most, "{shown}");
        }
    }
}
