//! The name of the table.

use crate::error::Error;
use protocol::Slot;

/// The table that a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// That of locks.
    Locks,
    /// That of permits and shared grants.
    Permits,
}

impl Rows {
    /// The table of this row.
    pub fn of(slot: Slot) -> Self {
        match slot {
            Slot::Lock => Self::Locks,
            Slot::Permit(_) | Slot::AnyPermit | Slot::Shared(_) => Self::Permits,
        }
    }
}

/// The name of the table, `name` or `schema.name`.
///
/// It is the only value that is put into the text of a statement, so it consists of ASCII letters,
/// digits and `_`, and does not begin with a digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(String);

impl Default for Table {
    fn default() -> Self {
        Self("database_locks_lock".into())
    }
}

impl Table {
    /// Check a name.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for one that would have to be quoted.
    pub fn new(name: &str) -> Result<Self, Error> {
        let plain = |part: &str| {
            (1..=56).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !part.starts_with(|c: char| c.is_ascii_digit())
        };
        if name.split('.').count() <= 2 && name.split('.').all(plain) {
            return Ok(Self(name.into()));
        }
        let got = format!(
            "`{}`",
            name.chars().take(80).collect::<String>().escape_debug()
        );
        let allowed = "NAME or SCHEMA.NAME of letters, digits and _, 56 characters each at most";
        Err(Error::config("table", got, allowed))
    }

    /// The name as it stands in statements.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the table of permits: with `_permit` at the end, in place of `_lock`.
    pub(crate) fn permits(&self) -> String {
        let stem = self.0.strip_suffix("_lock").unwrap_or(&self.0);
        format!("{stem}_permit")
    }

    /// The name of the triggers of guarded tables, and on PostgreSQL of their function, which is in
    /// the schema of the table: with `_guard` at the end, in place of `_lock`.
    pub(crate) fn guard(&self) -> String {
        let name = self.0.rsplit('.').next().unwrap_or_default();
        let stem = name.strip_suffix("_lock").unwrap_or(name);
        format!("{stem}_guard")
    }

    /// [`fill_in`](Self::fill_in) for a statement about locks.
    pub(crate) fn fill(&self, statement: &str) -> String {
        self.fill_in(Rows::Locks, statement)
    }

    /// Put the names of both tables into a statement: `{table}` is the one that it is about. What
    /// stands between `{?` and `?}` is for permits only.
    pub(crate) fn fill_in(&self, of: Rows, statement: &str) -> String {
        let text = replace_marked(statement, |marked| match of {
            Rows::Locks => "",
            Rows::Permits => marked,
        });
        let table = match of {
            Rows::Locks => "{locks}",
            Rows::Permits => "{permits}",
        };
        text.replace("{table}", table)
            .replace("{locks}", &self.0)
            .replace("{permits}", &self.permits())
    }

    /// [`fill_in`](Self::fill_in) for a statement about this row. `{slot}` is the number of a permit
    /// or shared grant.
    pub(crate) fn fill_for(&self, slot: Slot, statement: &str) -> String {
        let number = slot.column().unwrap_or_default().to_string();
        let text = self.fill_in(Rows::of(slot), statement);
        text.replace("{slot}", &number)
    }
}

/// Replace each part between `{?` and `?}`.
fn replace_marked<'a>(statement: &'a str, with: impl Fn(&'a str) -> &'a str) -> String {
    let mut parts = statement.split("{?");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (marked, rest) = part.split_once("?}").unwrap_or((part, ""));
        text.push_str(with(marked));
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_about_locks_or_about_permits() {
        let table = Table::default();
        let text = "SELECT{? slot,?} id FROM {table}{? AND slot = $2?}";
        assert_eq!(table.fill(text), "SELECT id FROM database_locks_lock");
        assert_eq!(
            table.fill_in(Rows::Permits, text),
            "SELECT slot, id FROM database_locks_permit AND slot = $2"
        );
        let other = Table::new("app.jobs").unwrap();
        assert_eq!(other.fill("{permits}"), "app.jobs_permit");
    }

    #[test]
    fn nothing_that_needs_quotes_gets_through() {
        for good in ["database_locks_lock", "app.locks", "_x9"] {
            assert!(Table::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.b.c",
            "a b",
            "a;drop table x",
            "9a",
            "ä",
            "\"a\"",
            &"x".repeat(64),
        ] {
            assert!(Table::new(bad).is_err(), "{bad}");
        }
    }
}
