//! Variables and status values of the server, by name.

use std::collections::HashMap;

/// Values by name. Variables that a server does not have are missing.
pub(crate) struct Settings(pub(crate) HashMap<String, String>);

impl Settings {
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(crate) fn on(&self, name: &str) -> bool {
        !matches!(self.get(name), "" | "0" | "OFF")
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.get(name).parse().ok()
    }

    /// Whether it exists and has another value.
    pub(crate) fn is_not(&self, name: &str, right: &str) -> bool {
        !self.get(name).is_empty() && self.get(name) != right
    }

    pub(crate) fn shown(&self, name: &str) -> String {
        format!("{name} is {}", self.get(name))
    }
}
