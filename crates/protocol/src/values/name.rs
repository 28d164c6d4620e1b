//! The name of a lock.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::values::invalid::InvalidSetting;

/// The longest name, in characters: the width of the column, and of the package that we replace.
pub const MAX_CHARS: usize = 255;

/// The name of a lock: 1 to 255 characters, any Unicode without NUL.
///
/// Distinct names are distinct locks on every engine, byte for byte: `Job`, `job`, `job ` and `jöb`
/// in its two normal forms are five locks. Nothing is trimmed, folded or normalized.
///
/// # Errors
///
/// [`LockName::new`] returns [`InvalidSetting`] for an empty name, one of more than 255 characters,
/// or one with a NUL, which PostgreSQL cannot store.
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
    /// Check a name.
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

    /// A name that stands in the table. Other programs may have written it.
    #[doc(hidden)]
    pub fn from_db(name: String) -> Self {
        Self(name.into())
    }

    /// The name as it was given.
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
    fn length_is_counted_in_characters_not_bytes() {
        assert!(LockName::new("𝄞".repeat(255)).is_ok());
        assert!(LockName::new("a".repeat(256)).is_err());
    }

    #[test]
    fn a_refusal_says_what_is_allowed() {
        for bad in ["", "a\0b", &"x".repeat(300)] {
            let said = LockName::new(bad).unwrap_err().to_string();
            assert!(said.contains("1 to 255 characters"), "{said}");
        }
    }
}
