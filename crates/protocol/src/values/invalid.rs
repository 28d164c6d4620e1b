//! A setting that is out of range.

use std::fmt;

/// A setting that is out of range: which one, what it was, and what it may be.
///
/// Found before any I/O. `?` turns it into `database_locks::Error::Config` in a function that
/// returns the library's error.
///
/// ```
/// let error = database_locks::LockName::new("").unwrap_err();
/// assert_eq!(error.to_string(), "`name` is empty, must be 1 to 255 characters without NUL");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidSetting {
    /// Which setting.
    pub setting: &'static str,
    /// Its value, `0ms`; or what is wrong with it, `has the unknown option …`.
    pub got: String,
    /// The allowed values, or what to do.
    pub allowed: String,
}

impl InvalidSetting {
    #[doc(hidden)]
    pub fn new(setting: &'static str, got: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            setting,
            got: got.into(),
            allowed: allowed.into(),
        }
    }
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            got,
            allowed,
        } = self;
        match got.starts_with("has ") {
            true => write!(f, "`{setting}` {got}; {allowed}"),
            false => write!(f, "`{setting}` is {got}, must be {allowed}"),
        }
    }
}

impl std::error::Error for InvalidSetting {}
