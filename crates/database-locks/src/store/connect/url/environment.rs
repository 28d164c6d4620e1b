//! The environment and the home folder.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The environment, where missing parts of a URL are looked up.
pub(crate) struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    /// Whether more is looked up than the files that the URL names.
    open: bool,
}

impl<'a> Environment<'a> {
    /// Without `open`, only the files that the URL names are read.
    pub(crate) fn new(variable: &'a dyn Fn(&str) -> Option<String>, open: bool) -> Self {
        Self { variable, open }
    }

    /// A variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let set = self.open.then(|| (self.variable)(name))?;
        set.filter(|value| !value.is_empty())
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.open
    }

    /// A file in the home folder.
    pub(crate) fn at_home(&self, name: &str) -> Option<PathBuf> {
        let home = (self.variable)("HOME").filter(|home| home.starts_with('/'))?;
        Some(Path::new(&home).join(name))
    }
}

/// A variable of this process. A value that is not UTF-8 counts as not set.
pub(crate) fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Turn an error about the URL into one about another source.
pub(crate) fn with_source<T>(source: &'static str, result: Result<T, Error>) -> Result<T, Error> {
    result.map_err(|error| match error {
        Error::Config { got, allowed, .. } => {
            Error::config(source, got.replace("`value`", "value"), allowed)
        }
        other => other,
    })
}
