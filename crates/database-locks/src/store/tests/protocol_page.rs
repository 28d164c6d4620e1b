//! Compares the statements in `docs/protocol.md` with those that are sent.

use crate::store::connect::table::{Rows, Table};
use crate::store::{mysql, postgres, sqlite};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");
const BEGIN: &str = "<!-- The statements: a test compares them with the code. -->\n";
const END: &str = "<!-- The end of the statements. -->";

/// Without the indentation that all its lines share.
fn pasteable(what: &str, sql: &str) -> String {
    let of_permits = ["permit", "limit"].iter().any(|word| what.contains(word));
    let of = match of_permits {
        true => Rows::Permits,
        false => Rows::Locks,
    };
    let sql = Table::default().fill_in(of, sql);
    let lines: Vec<&str> = sql
        .lines()
        .skip_while(|line| line.trim().is_empty())
        .collect();
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let least = lines
        .iter()
        .filter(|line| !line.trim().is_empty())
        .map(indent)
        .min();
    let cut = |line: &&str| {
        line.get(least.unwrap_or(0)..)
            .unwrap_or_default()
            .to_owned()
    };
    lines
        .iter()
        .map(cut)
        .collect::<Vec<_>>()
        .join("\n")
        .trim_end()
        .to_owned()
}

fn owned(statements: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let owned = statements
        .iter()
        .map(|(what, sql)| (*what, (*sql).to_owned()));
    owned.collect()
}

fn statements() -> String {
    let mut text = String::new();
    let engines = [
        (
            "PostgreSQL",
            [
                include_str!("../../../schema/postgres.sql"),
                include_str!("../../../schema/postgres_permit.sql"),
            ],
            postgres::published(),
        ),
        (
            "MySQL and MariaDB",
            [
                include_str!("../../../schema/mysql.sql"),
                include_str!("../../../schema/mysql_permit.sql"),
            ],
            owned(mysql::PUBLISHED),
        ),
        (
            "SQLite",
            [
                include_str!("../../../schema/sqlite.sql"),
                include_str!("../../../schema/sqlite_permit.sql"),
            ],
            owned(sqlite::PUBLISHED),
        ),
    ];
    for (engine, [locks, permits], published) in engines {
        text += &format!("\n## {engine}\n");
        let tables = owned(&[("the table", locks), ("the table of permits", permits)]);
        for (what, sql) in tables.into_iter().chain(published) {
            text += &format!(
                "\n### {engine}: {what}\n\n```sql\n{}\n```\n",
                pasteable(what, &sql)
            );
        }
    }
    text + "\n"
}

/// With `UPDATE_PROTOCOL=1` it writes them there instead.
#[test]
fn the_published_statements_are_those_that_are_sent() {
    let (before, rest) = DOCUMENT
        .split_once(BEGIN)
        .expect("where the statements begin");
    let (published, after) = rest.split_once(END).expect("where they end");
    if std::env::var_os("UPDATE_PROTOCOL").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md");
        let text = format!("{before}{BEGIN}{}{END}{after}", statements());
        std::fs::write(path, text).expect("writes the document");
        return;
    }
    for (is, says) in statements().lines().zip(published.lines()) {
        assert_eq!(
            is, says,
            "run the test with UPDATE_PROTOCOL=1, and read what has changed"
        );
    }
    assert_eq!(statements().lines().count(), published.lines().count());
}

/// The script for MariaDB has the whole statement in it, with variables in place of the parameters.
#[test]
fn the_script_that_fences_has_the_statement_that_is_sent() {
    let (_, sql) = mysql::PUBLISHED
        .iter()
        .find(|(what, _)| *what == "fence")
        .expect("it is published");
    let mut sql = pasteable("fence", sql);
    for variable in ["@name", "@token", "@grant_id"] {
        sql = sql.replacen('?', variable, 1);
    }
    assert!(DOCUMENT.contains(&format!("BEGIN;\n{sql};\n")), "{sql}");
}

/// What is asked of catalogs, to make the table and for `doctor`, is no part of the protocol.
#[test]
fn every_statement_that_mysql_is_sent_is_published() {
    let sources = [
        include_str!("../mysql/cluster.rs"),
        include_str!("../mysql/connection/handshake.rs"),
        include_str!("../mysql/connection/session.rs"),
        include_str!("../mysql/statements/acquire.rs"),
        include_str!("../mysql/statements/batch.rs"),
        include_str!("../mysql/statements/fence.rs"),
        include_str!("../mysql/statements/handover.rs"),
        include_str!("../mysql/statements/mariadb.rs"),
        include_str!("../mysql/statements/prune.rs"),
        include_str!("../mysql/statements/read.rs"),
        include_str!("../mysql/statements/release.rs"),
        include_str!("../mysql/statements/renew.rs"),
        include_str!("../mysql/statements/several.rs"),
    ];
    let list = include_str!("../mysql/statements/mod.rs");
    let (_, list) = list.split_once("const PUBLISHED").expect("the list");
    let (list, _) = list.split_once("];").expect("its end");
    let mut found = 0;
    for source in sources {
        for constant in source.split("const ").skip(1) {
            let Some((name, text)) = constant.split_once(": &str =") else {
                continue;
            };
            let (text, _) = text.split_once(';').unwrap_or((text, ""));
            let first = |word: &str| text.contains(&format!("{word} "));
            let words = [
                "SELECT", "UPDATE", "INSERT", "DELETE", "SET", "SHOW", "read!(",
            ];
            if name.contains(char::is_lowercase) || !words.iter().any(|word| first(word)) {
                continue;
            }
            found += 1;
            let published = |end| list.contains(&format!("::{name}{end}"));
            assert!(published(')') || published(','), "{name} is not published");
        }
    }
    assert!(found > 30, "{found}");
}
