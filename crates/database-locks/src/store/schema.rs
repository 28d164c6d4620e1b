//! The columns of the tables.

use crate::store::connect::table::Rows;

/// The type that a column must have. Each engine has its own name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColumnType {
    /// Any integer.
    Id,
    /// A string of at least so many characters.
    Text(u64),
    BigInt,
    /// A point in time, to the microsecond.
    Time,
    Flag,
}

/// All columns that the statements use. The first four are those of a legacy table
/// (django-database-locks 0.5).
pub(crate) const COLUMNS: [(&str, ColumnType); 12] = [
    ("id", ColumnType::Id),
    ("name", ColumnType::Text(255)),
    ("locked_by", ColumnType::Text(255)),
    ("expires_at", ColumnType::Time),
    ("token", ColumnType::BigInt),
    ("grant_id", ColumnType::Text(32)),
    ("granted_until", ColumnType::Time),
    ("acquired_at", ColumnType::Time),
    ("renewed_at", ColumnType::Time),
    ("waiting_until", ColumnType::Time),
    ("metadata", ColumnType::Text(4096)),
    ("shared", ColumnType::Flag),
];

/// The columns that only the table of permits has.
const OF_PERMITS: [(&str, ColumnType); 2] = [("slot", ColumnType::Id), ("permits", ColumnType::Id)];

/// All columns of a table.
pub(crate) fn columns(of: Rows) -> impl Iterator<Item = (&'static str, ColumnType)> {
    let more = match of {
        Rows::Locks => &[][..],
        Rows::Permits => &OF_PERMITS,
    };
    COLUMNS.iter().chain(more).copied()
}

/// The columns that a legacy table lacks.
#[cfg(feature = "mysql")]
pub(crate) fn new_columns() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().skip(4).map(|(name, _)| *name)
}

/// The required type of a column; `None` for a column that is not the library's.
pub(crate) fn column_type(name: &str) -> Option<ColumnType> {
    let known = COLUMNS.iter().find(|(known, _)| *known == name);
    known.map(|(_, required)| *required)
}
