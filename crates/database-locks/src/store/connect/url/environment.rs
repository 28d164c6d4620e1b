//! The environment and the home folder.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The environment, in which missing parts of a URL are looked up.
pub(crate) struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    /// Whether anything is looked up that the URL does not name.
    open: bool,
}

impl<'a> Environment<'a> {
    /// Without `open`, nothing is looked up but the files that the URL names.
    pub(crate) fn new(variable: &'a dyn Fn(&str) -> Option<String>, open: bool) -> Self {
        Self { variable, open }
    }

    /// A variable that is set, and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let set = self.open.then(|| (self.variable)(name))?;
        set.filter(|value| !value.is_empty())
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.open
    }

    /// A file of the user's.
    pub(crate) fn at_home(&self, name: &str) -> Option<PathBuf> {
        let home = (self.variable)("HOME").filter(|home| home.starts_with('/'))?;
        Some(Path::new(&home).join(name))
    }
}

/// A variable of this process. What is not UTF-8 counts as not set: nothing that is looked up here
/// can be anything else.
pub(crate) fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The same complaint of another source than the URL.
pub(crate) fn with_source<T>(source: &'static str, result: Result<T, Error>) -> Result<T, Error> {
    result.map_err(|error| match error {
        Error::Config { got, allowed, .. } => {
            Error::config(source, got.replace("`value`", "value"), allowed)
        }
        other => other,
    })
}
