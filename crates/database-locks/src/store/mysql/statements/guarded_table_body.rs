//! The triggers of guarded tables as text, and the names that users write.

use crate::store::connect::table::Table;
use crate::store::mysql::connection::table::collation;
use protocol::LockName;

/// The events that a guard refuses.
pub(super) const EVENTS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

/// The published body of the triggers, with its comment.
pub(crate) const SCHEMA: &str = include_str!("../../../../schema/mysql_guard.sql");

/// The condition that the transaction shows the grant that holds the lock. Of the row only the index
/// on the name is read.
macro_rules! shown {
    () => {
        "
         WHERE l.name = CONVERT({lock} USING utf8mb4) COLLATE {collation}
           AND LENGTH(l.grant_id) = 32
           AND LOCATE(l.grant_id, CONVERT(@database_locks_ticket USING ascii)) > 0
           AND l.granted_until = l.expires_at"
    };
}

/// Finds the grant in the transaction's snapshot. With a binary log in the format STATEMENT or MIXED,
/// and in SERIALIZABLE, the servers lock here too what they read.
pub(crate) const LOOK: &str = concat!(
    "SELECT l.id INTO dl_held FROM {locks} l FORCE INDEX (name)",
    shown!(),
    ";"
);

/// Locks the row against other clients' acquires until the end of the transaction, as a fence does.
/// Other transactions of the holder pass.
pub(crate) const CHECK: &str = concat!(
    "SELECT l.id INTO dl_held FROM {locks} l FORCE INDEX (name)",
    shown!(),
    "
           {share};"
);

/// On a cluster a row lock is not seen by the other nodes. A changed row is: of two transactions
/// that change it one fails. It sets what a fence sets.
pub(crate) const CHECK_ON_CLUSTER: &str = concat!(
    "UPDATE {locks} l FORCE INDEX (name)
           SET l.expires_at = IF(l.expires_at = TIMESTAMP'9999-12-31 00:00:00', l.expires_at,
                   GREATEST(UTC_TIMESTAMP(6), l.renewed_at + INTERVAL 1 MICROSECOND)
                       + INTERVAL TIMESTAMPDIFF(MICROSECOND, l.renewed_at, l.expires_at) MICROSECOND),
               l.granted_until = IF(l.granted_until = TIMESTAMP'9999-12-31 00:00:00', l.granted_until,
                   GREATEST(UTC_TIMESTAMP(6), l.renewed_at + INTERVAL 1 MICROSECOND)
                       + INTERVAL TIMESTAMPDIFF(MICROSECOND, l.renewed_at, l.granted_until) MICROSECOND),
               l.renewed_at = GREATEST(UTC_TIMESTAMP(6), l.renewed_at + INTERVAL 1 MICROSECOND)",
    shown!(),
    "
           AND l.renewed_at <= l.expires_at;
        SET dl_held = NULLIF(GREATEST(ROW_COUNT(), 0), 0);"
);

/// A table as its user wrote it: a schema, unless it is the one of the session, and a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
}

impl Written {
    /// `NAME` or `SCHEMA.NAME`, each part in backticks or without.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        loop {
            let (part, after) = match rest.strip_prefix('`') {
                None => {
                    let end = rest.find('.').unwrap_or(rest.len());
                    (rest[..end].to_owned(), &rest[end..])
                }
                Some(quoted) => quoted_part(quoted)?,
            };
            let is_possible = (1..=64).contains(&part.chars().count()) && !part.ends_with(' ');
            if !is_possible || part.contains('`') && !rest.starts_with('`') {
                return None;
            }
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return None,
            }
        }
        let name = parts.pop()?;
        let schema = parts.pop();
        parts.is_empty().then_some(Self { schema, name })
    }
}

/// What stands before the closing backtick, and what follows it.
fn quoted_part(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('`')?;
        part.push_str(before);
        match after.strip_prefix('`') {
            Some(next) => {
                part.push('`');
                rest = next;
            }
            None => return Some((part, after)),
        }
    }
}

/// An identifier in backticks.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("`{}`", identifier.replace('`', "``"))
}

fn hex(text: &str) -> String {
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

/// At most so many characters.
fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 3).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

/// The message of a refusal: at most 128 characters, 66 of them besides the two names.
fn message(table: &str, lock: &str) -> String {
    format!(
        "table {} is guarded by lock \"{}\", which this transaction does not hold",
        shortened(table, 24),
        shortened(lock, 38)
    )
}

/// What the body of a trigger depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    /// The label.
    pub(crate) guard: &'a str,
    /// The table of locks, quoted.
    pub(crate) locks: &'a str,
    pub(crate) collation: &'a str,
    pub(crate) mariadb: bool,
    pub(crate) cluster: bool,
}

impl Body<'_> {
    /// The body of the triggers of a table that is guarded by this lock.
    pub(crate) fn text(&self, table: &str, lock: &str) -> String {
        let body = SCHEMA.trim_end();
        let body = body.find("{guard}: BEGIN").map_or("", |at| &body[at..]);
        let check = match self.cluster {
            true => CHECK_ON_CLUSTER,
            false => CHECK,
        };
        let share = match self.mariadb {
            true => "LOCK IN SHARE MODE",
            false => "FOR SHARE",
        };
        body.replace("{look}", LOOK)
            .replace("{check}", check)
            .replace("{share}", share)
            .replace("{collation}", self.collation)
            .replace("{guard}", self.guard)
            .replace("{locks}", self.locks)
            .replace("{lock}", &hex(lock))
            .replace("{seen}", &hex(&format!("{} {lock} ", self.locks)))
            .replace("{message}", &hex(&message(table, lock)))
    }

    /// Such a body without its message, which has the name of the table: that of a renamed table is
    /// its former one until the table is guarded again.
    pub(crate) fn but_for_the_message(body: &str) -> String {
        const OPENING: &str = "DEFAULT CONVERT(0x";
        let split = body.split_once(OPENING);
        let split = split.and_then(|(before, rest)| Some((before, rest.split_once(' ')?.1)));
        match split {
            Some((before, after)) => format!("{before}{OPENING} {after}"),
            None => body.to_owned(),
        }
    }

    /// The lock in such a body.
    pub(crate) fn lock_in(body: &str) -> Option<LockName> {
        let (_, rest) = body.split_once("l.name = CONVERT(0x")?;
        let (digits, _) = rest.split_once(' ')?;
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        let text = String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()?;
        Some(LockName::from_db(text))
    }
}

/// The statement that creates a trigger of a guard in the schema of the session. A name with a schema
/// would stand in a dump on MariaDB, which could then be restored nowhere else.
pub(crate) fn create_trigger(table: &str, event: &str, attempt: u32, body: &str) -> String {
    let trigger = quoted(&trigger_name(table, event, attempt));
    let table = quoted(table);
    format!("CREATE TRIGGER {trigger} BEFORE {event} ON {table} FOR EACH ROW\n{body}")
}

/// The name of a trigger: at most 64 characters.
pub(crate) fn trigger_name(table: &str, event: &str, attempt: u32) -> String {
    let event = event.to_lowercase();
    let stem: String = table.chars().take(48).collect();
    match attempt {
        0 => format!("{stem}_guard_{event}"),
        _ => format!("{stem}_guard_{event}_{}", attempt + 1),
    }
}

/// The statements that create the triggers of a guard, with the default table of locks in the same
/// schema. For people to read: names of triggers that are taken are not avoided.
pub fn guard_triggers(table: &str, lock: &str, mariadb: bool, cluster: bool) -> Vec<String> {
    let locks = Table::default();
    let body = Body {
        guard: &locks.guard(),
        locks: &quoted(locks.as_str()),
        collation: collation(mariadb),
        mariadb,
        cluster,
    };
    let body = body.text(table, lock);
    EVENTS
        .map(|event| create_trigger(table, event, 0, &body))
        .to_vec()
}

/// The statements that drop the triggers which [`guard_triggers`] creates. Not those with further
/// names, which may be of the guard of another table.
pub fn unguard_triggers(table: &str) -> Vec<String> {
    let drop = |event| {
        let trigger = quoted(&trigger_name(table, event, 0));
        format!("DROP TRIGGER IF EXISTS {trigger}")
    };
    EVENTS.map(drop).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(Option<String>, String)> {
        Written::parse(text).map(|written| (written.schema, written.name))
    }

    #[test]
    fn a_table_is_written_as_in_sql() {
        let name = |name: &str| (None, name.to_owned());
        assert_eq!(parsed("invoices"), Some(name("invoices")));
        assert_eq!(
            parsed("shop.invoices"),
            Some((Some("shop".into()), "invoices".into()))
        );
        assert_eq!(parsed("`a.b`"), Some(name("a.b")));
        assert_eq!(parsed("`a``b`"), Some(name("a`b")));
        assert_eq!(
            parsed("`a`.`b; DROP TABLE x`"),
            Some((Some("a".into()), "b; DROP TABLE x".into()))
        );
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "`a",
            "`a`b",
            "a`b",
            "``",
            &"x".repeat(65),
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_text_of_a_user_stands_in_a_trigger_unquoted() {
        let (table, lock) = ("a`b'; --", "it's \"a\" näme \\");
        let body = Body {
            guard: "database_locks_guard",
            locks: "`database_locks_lock`",
            collation: "utf8mb4_nopad_bin",
            mariadb: true,
            cluster: false,
        };
        let text = body.text(table, lock);
        assert!(!text.contains("it's") && !text.contains('{'), "{text}");
        assert_eq!(Body::lock_in(&text).unwrap().as_str(), lock);
        let statement = create_trigger(table, "INSERT", 0, &text);
        assert!(statement.contains("`a``b'; --_guard_insert` BEFORE INSERT ON `a``b'; --`"));
        let on_cluster = Body {
            cluster: true,
            ..body
        }
        .text(table, lock);
        assert_eq!(Body::lock_in(&on_cluster).unwrap().as_str(), lock);
    }

    #[test]
    fn bodies_of_a_renamed_table_differ_in_the_message_alone() {
        let body = Body {
            guard: "database_locks_guard",
            locks: "`database_locks_lock`",
            collation: "utf8mb4_nopad_bin",
            mariadb: true,
            cluster: false,
        };
        let of = |table: &str, lock: &str, cluster: bool| {
            let text = Body { cluster, ..body }.text(table, lock);
            Body::but_for_the_message(&text)
        };
        let here = of("invoices", "ledger", false);
        assert_eq!(of("bills", "ledger", false), here);
        assert_ne!(of("invoices", "bank", false), here);
        assert_ne!(of("invoices", "ledger", true), here);
    }

    #[test]
    fn a_message_has_at_most_128_characters() {
        let long = "ü".repeat(255);
        assert_eq!(message(&long, &long).chars().count(), 128);
        assert!(trigger_name(&long, "INSERT", 8).chars().count() <= 64);
    }

    #[test]
    fn the_printed_triggers_are_those_of_the_kind_of_server() {
        for mariadb in [false, true] {
            let single = guard_triggers("invoices", "ledger", mariadb, false).concat();
            let cluster = guard_triggers("invoices", "ledger", mariadb, true).concat();
            assert!(!single.contains("UPDATE `database_locks_lock`"), "{single}");
            assert!(
                cluster.contains("UPDATE `database_locks_lock`"),
                "{cluster}"
            );
        }
        let created = guard_triggers("a`b", "ledger", true, false);
        for (create, drop) in created.iter().zip(unguard_triggers("a`b")) {
            let name = drop.trim_start_matches("DROP TRIGGER IF EXISTS ");
            assert!(
                create.starts_with(&format!("CREATE TRIGGER {name} BEFORE")),
                "{drop}"
            );
        }
    }
}
