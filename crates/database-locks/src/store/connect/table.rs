//! The name of the table.

use crate::error::Error;

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
            (1..=63).contains(&part.len())
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
        let allowed = "NAME or SCHEMA.NAME of letters, digits and _, 63 characters each at most";
        Err(Error::config("table", got, allowed))
    }

    /// The name as it stands in statements.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Put the name into a statement.
    pub(crate) fn fill(&self, statement: &str) -> String {
        statement.replace("{table}", &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
