//! The name of a lock.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::values::invalid::InvalidSetting;

/// The length of the longest name, in characters.
///
/// It is the width of the column `name`, in tables of django-database-locks 0.5 as well.
pub const MAX_CHARS: usize = 255;

/// The name of a lock: 1 to 255 characters, any Unicode without NUL.
///
/// Names are compared byte for byte on every engine: `Job`, `job`, `job ` and `jöb` in its two
/// normal forms are five locks. No name is trimmed, folded or normalized.
///
/// # Errors
///
/// [`LockName::new`] returns [`InvalidSetting`] for an empty name, one of more than 255 characters,
/// or one that contains a NUL, which PostgreSQL cannot store.
///
/// # Example
///
/// ```
/// use database_locks::LockName;
///
/// let name: LockName = "nightly report".parse()?;
/// assert_eq!(name, "nightly report");
/// assert!(LockName::new("").is_err());
/// # Ok::<(), database_locks::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockName(Arc<str>);

impl LockName {
    /// The name, if it is allowed.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidSetting> {
        let name = name.as_ref();
        let refuse = |got: String| {
            Err(InvalidSetting::new(
                "name",
                got,
                "1 to 255 characters without NUL",
            ))
        };
        match name.chars().count() {
            0 => refuse("empty".into()),
            n if n > MAX_CHARS => refuse(format!("{n} characters long")),
            _ if name.contains('\0') => refuse("a text with a NUL in it".into()),
            _ => Ok(Self(name.into())),
        }
    }

    /// A name that was read from the table. It is not checked: other programs may have written it.
    #[doc(hidden)]
    pub fn from_db(name: String) -> Self {
        Self(name.into())
    }

    /// The name, unchanged.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for LockName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for LockName {
    type Err = InvalidSetting;

    fn from_str(name: &str) -> Result<Self, InvalidSetting> {
        Self::new(name)
    }
}

impl From<LockName> for String {
    fn from(name: LockName) -> Self {
        name.as_str().to_owned()
    }
}

impl PartialEq<str> for LockName {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for LockName {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl PartialEq<LockName> for str {
    fn eq(&self, other: &LockName) -> bool {
        *self == *other.0
    }
}

impl PartialEq<LockName> for &str {
    fn eq(&self, other: &LockName) -> bool {
        **self == *other.0
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_name_is_counted_in_characters() {
        assert!(LockName::new("𝄞".repeat(255)).is_ok());
        assert!(LockName::new("𝄞".repeat(256)).is_err());
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_is_allowed() {
        for (bad, got) in [
            ("", "empty"),
            ("a\0b", "a text with a NUL in it"),
            (&"x".repeat(300), "300 characters long"),
        ] {
            let message = LockName::new(bad).unwrap_err().to_string();
            let expected = format!("`name` is {got}, must be 1 to 255 characters without NUL");
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn a_name_is_the_text_that_it_was_made_of() {
        let name: LockName = "a \"job\"".parse().unwrap();
        assert_eq!(name, LockName::from_db("a \"job\"".to_owned()));
        assert_eq!((name.as_str(), name.as_ref()), ("a \"job\"", "a \"job\""));
        assert_eq!(name.to_string(), "a \"job\"");
        assert_eq!(format!("{name:?}"), r#""a \"job\"""#);
        assert_eq!(String::from(name), "a \"job\"");
    }

    #[test]
    fn a_name_equals_the_same_text_and_no_other() {
        let name = LockName::new("job").unwrap();
        for (text, same) in [("job", true), ("Job", false), ("job ", false)] {
            assert_eq!(
                [name == *text, name == text, *text == name, text == name],
                [same; 4]
            );
        }
    }
}
