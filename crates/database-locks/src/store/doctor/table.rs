//! The columns, indexes and rows of the table.

use super::report::ReportBuilder;
use crate::doctor::{
    COLUMN_TYPE, COLUMN_UNFILLED, COLUMNS_MISSING, HELD_WITHOUT_END, INDEX_ON_CHANGING,
    INDEX_UNUSED, LEASES_EXPIRED, MANY_ROWS, NAME_NOT_UNIQUE, OLD_WRITERS,
};
use crate::store::connect::table::Rows;
use crate::store::schema::{ColumnType, column_type, columns};

/// The number of rows from which the table counts as large.
const LARGE_TABLE: i64 = 100_000;

/// A column of the table.
pub(crate) struct Column {
    pub(crate) name: String,
    /// The type and the required type, if they differ: `integer, must be bigint`.
    pub(crate) mismatch: Option<String>,
    /// NOT NULL without a default: an INSERT that does not name the column fails.
    pub(crate) unfilled: bool,
}

/// The type of a column, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundType {
    /// A string of at most so many characters.
    Text(u64),
    BigInt,
    /// A point in time, to the microsecond.
    Time,
    Flag,
    Other,
}

impl Column {
    /// Compare the type of a column with the required one. `shown` is its declaration,
    /// `declaration` names the declaration of a column in a new table.
    pub(crate) fn mismatch(
        name: &str,
        found: FoundType,
        shown: &str,
        declaration: fn(&str, ColumnType) -> &'static str,
    ) -> Option<String> {
        let required = column_type(name)?;
        let fits = match (required, found) {
            (ColumnType::Id, _)
            | (ColumnType::BigInt, FoundType::BigInt)
            | (ColumnType::Time, FoundType::Time)
            | (ColumnType::Flag, FoundType::Flag) => true,
            (ColumnType::Text(least), FoundType::Text(length)) => length >= least,
            _ => false,
        };
        (!fits).then(|| format!("{shown}, must be {}", declaration(name, required)))
    }
}

/// An index of the table.
pub(crate) struct Index {
    pub(crate) name: String,
    /// All columns and expressions of its definition.
    pub(crate) columns: Vec<String>,
    pub(crate) primary: bool,
    /// Whether it makes names unique.
    pub(crate) keeps_names: bool,
}

/// The number of locks in each state, with the name of one of them.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) rows: i64,
    pub(crate) held: i64,
    /// Expired for more than a minute.
    pub(crate) expired: (i64, Option<String>),
    /// Infinite leases acquired more than a day ago.
    pub(crate) infinite: (i64, Option<String>),
    /// Held by legacy clients (django-database-locks 0.5).
    pub(crate) legacy: (i64, Option<String>),
}

impl ReportBuilder {
    /// Compare the columns with those required. Returns whether the statements can use the table.
    pub(crate) fn columns(&mut self, found: &[Column]) -> bool {
        let has = |name: &str| found.iter().any(|column| column.name == name);
        let required = columns(self.of()).map(|(name, _)| name);
        let missing: Vec<&str> = required.filter(|name| !has(name)).collect();
        if !missing.is_empty() {
            let what = format!("the table {} lacks {}", self.table(), missing.join(", "));
            self.found(&COLUMNS_MISSING, what);
        }
        for column in found {
            if let Some(mismatch) = &column.mismatch {
                self.found(
                    &COLUMN_TYPE,
                    format!("the column {} is {mismatch}", column.name),
                );
            }
            // The library's INSERT fills all of its own columns.
            let own = self.is_own(&column.name);
            if column.unfilled && (!own || ["id", "waiting_until"].contains(&&*column.name)) {
                let what = format!(
                    "the column {} must not be null and has no default",
                    column.name
                );
                self.found(&COLUMN_UNFILLED, what);
            }
        }
        missing.is_empty()
    }

    /// Check the required index, and look for superfluous ones.
    pub(crate) fn indexes(&mut self, found: &[Index]) {
        let needed = found.iter().position(|index| index.keeps_names);
        if needed.is_none() {
            let (rows, table) = (self.rows_word(), self.table());
            let what = format!("no unique index keeps the {rows} of {table} apart");
            self.found(&NAME_NOT_UNIQUE, what);
        }
        for (at, index) in found.iter().enumerate() {
            if index.primary || Some(at) == needed {
                continue;
            }
            let constant = ["id", "name", "slot"];
            let changes = |column: &String| self.is_own(column) && !constant.contains(&&**column);
            match index.columns.iter().find(|column| changes(column)) {
                Some(on) => self.found(
                    &INDEX_ON_CHANGING,
                    format!("there is an index {} on {on}", index.name),
                ),
                None => self.found(
                    &INDEX_UNUSED,
                    format!("there is an index {} more", index.name),
                ),
            }
        }
    }

    /// Close the area of the table.
    pub(crate) fn shape(&mut self) {
        let message = format!(
            "{} has its columns, unique {} and no index too many",
            self.table(),
            self.rows_word()
        );
        self.otherwise_fine("table", message);
    }

    /// Check the states of the locks or permits.
    pub(crate) fn locks(&mut self, counts: &Counts) {
        let (area, one, of) = match self.of() {
            Rows::Locks => ("locks", "lock", ""),
            Rows::Permits => ("permits", "permit", "of "),
        };
        let such = |(n, name): &(i64, Option<String>)| {
            let name = name.as_deref().unwrap_or_default();
            let plural = if *n == 1 { "" } else { "s" };
            format!("{n} {one}{plural} (such as {of}`{name}`)")
        };
        if counts.expired.0 > 0 {
            let what = format!(
                "the lease of {} ran out more than a minute ago and was not released",
                such(&counts.expired)
            );
            self.found(&LEASES_EXPIRED, what);
        }
        if counts.infinite.0 > 0 {
            let what = format!(
                "{} held without end for more than a day",
                such(&counts.infinite)
            );
            self.found(&HELD_WITHOUT_END, what);
        }
        if counts.legacy.0 > 0 {
            let what = format!("{} held by django-database-locks 0.5", such(&counts.legacy));
            self.found(&OLD_WRITERS, what);
        }
        if counts.rows > LARGE_TABLE {
            self.found(
                &MANY_ROWS,
                format!("the table {} has {} rows", self.table(), counts.rows),
            );
        }
        self.fine(
            area,
            format!("{} in the table, {} of them held", counts.rows, counts.held),
        );
    }

    /// What a unique index tells apart.
    fn rows_word(&self) -> &'static str {
        match self.of() {
            Rows::Locks => "names",
            Rows::Permits => "permits",
        }
    }

    /// Whether a column is one of the library's.
    fn is_own(&self, name: &str) -> bool {
        columns(self.of()).any(|(own, _)| own == name)
    }
}
