//! The tables and the statements that are measured. Each table exists twice, with a guard and
//! without one.

use crate::servers::Engine;

/// The number of rows of a statement about many.
const MANY: u32 = 1_000;

/// A statement that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) what: &'static str,
    /// The number of rows that it writes.
    pub(super) rows: u32,
    /// The table, without the prefix of [`NAMES`].
    pub(super) table: &'static str,
    /// With the name of the table as `{t}`, and one parameter `?`: the first id.
    pub(super) sql: &'static str,
    /// Whether it inserts. Each execution then takes new ids, and the table is emptied after each
    /// round.
    pub(super) inserts: bool,
}

const fn case(what: &'static str, rows: u32, table: &'static str, sql: &'static str) -> Case {
    Case {
        what,
        rows,
        table,
        sql,
        inserts: false,
    }
}

const UPDATE_MANY: &str = "UPDATE {t} SET amount = amount + 1 WHERE id >= ?";

const CASES: [Case; 4] = [
    case(
        "UPDATE of one row",
        1,
        "old",
        "UPDATE {t} SET amount = amount + 1 WHERE id = ?",
    ),
    Case {
        inserts: true,
        ..case(
            "INSERT of one row",
            1,
            "new",
            "INSERT INTO {t} (id, amount) VALUES (?, 0)",
        )
    },
    case("UPDATE of 1,000 rows", MANY, "old", UPDATE_MANY),
    Case {
        inserts: true,
        ..case(
            "INSERT of 1,000 rows",
            MANY,
            "new",
            "INSERT INTO {t} (id, amount) SELECT n.id + ?, 0 FROM numbers n",
        )
    },
];

/// Only on PostgreSQL, where all others are checked once for each statement.
const LATE_PARTITION: Case = case(
    "UPDATE of 1,000 rows in a partition added after the guard",
    MANY,
    "parted",
    UPDATE_MANY,
);

/// The prefixes of the tables: without a guard, and with one.
pub(super) const NAMES: [&str; 2] = ["plain", "guarded"];

/// The cases of an engine.
pub(super) fn of(engine: &Engine) -> Vec<Case> {
    let mut cases = CASES.to_vec();
    cases.extend((engine.key == "postgres").then_some(LATE_PARTITION));
    cases
}

/// The tables of an engine. They are guarded when the first part has run; the second writes to them.
pub(super) fn setup(engine: &Engine) -> [Vec<String>; 2] {
    let (mut tables, mut rows) = (Vec::new(), Vec::new());
    tables.push("CREATE TABLE numbers (id int PRIMARY KEY)".to_owned());
    let numbers: Vec<String> = (1..=MANY).map(|id| format!("({id})")).collect();
    tables.push(format!("INSERT INTO numbers VALUES {}", numbers.join(", ")));
    let columns = "(id int PRIMARY KEY, amount int NOT NULL)";
    for kind in NAMES {
        tables.push(format!("CREATE TABLE {kind}_old {columns}"));
        tables.push(format!("CREATE TABLE {kind}_new {columns}"));
        rows.push(format!("INSERT INTO {kind}_old SELECT id, 0 FROM numbers"));
        if engine.key == "postgres" {
            let part = format!("PARTITION OF {kind}_parted FOR VALUES FROM");
            tables.push(format!(
                "CREATE TABLE {kind}_parted {columns} PARTITION BY RANGE (id)"
            ));
            tables.push(format!("CREATE TABLE {kind}_early {part} (-1000) TO (0)"));
            rows.push(format!("CREATE TABLE {kind}_late {part} (0) TO (10000)"));
            rows.push(format!(
                "INSERT INTO {kind}_parted SELECT id, 0 FROM numbers"
            ));
        }
    }
    [tables, rows]
}

/// The tables with a guard.
pub(super) fn guarded(engine: &Engine) -> Vec<String> {
    let mut tables: Vec<&str> = of(engine).iter().map(|case| case.table).collect();
    tables.sort_unstable();
    tables.dedup();
    let name = |table| format!("{}_{table}", NAMES[1]);
    tables.into_iter().map(name).collect()
}
