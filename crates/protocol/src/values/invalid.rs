//! A setting that is out of range.

use std::fmt;

/// A setting that is out of range: its name, the value that was given, and the allowed values.
///
/// It is found before any I/O. In a function that returns `database_locks::Error`, `?` turns it
/// into `Error::Config`.
///
/// ```
/// let error = database_locks::LockName::new("").unwrap_err();
/// assert_eq!(error.to_string(), "`name` is empty, must be 1 to 255 characters without NUL");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidSetting {
    /// The name of the setting.
    pub setting: &'static str,
    /// The value that was given, such as `0ms`, or its fault, such as `has the unknown option …`.
    pub got: String,
    /// The allowed values, or what to do instead.
    pub allowed: String,
}

impl InvalidSetting {
    /// The refusal of `got`. A `got` that begins with `has ` is a fault, any other a value.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_and_a_fault_are_told_apart_in_the_message() {
        let value = InvalidSetting::new("margin", "5s", "less than 1s");
        assert_eq!(value.to_string(), "`margin` is 5s, must be less than 1s");
        let fault = InvalidSetting::new("url", "has the unknown option `x`", "known is `y`");
        assert_eq!(
            fault.to_string(),
            "`url` has the unknown option `x`; known is `y`"
        );
    }
}
