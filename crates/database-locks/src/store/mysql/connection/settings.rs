//! Variables and status values of the server, by name.

use std::collections::HashMap;

use mysql_async::Params;

use super::session::Session;
use crate::store::api::StoreError;

/// Values by name, in lower case. Variables that a server does not have are missing.
pub(crate) struct Settings(pub(crate) HashMap<String, String>);

impl Settings {
    /// Servers write some names in upper case, and not all of them the same ones.
    pub(crate) fn new(rows: impl IntoIterator<Item = (String, String)>) -> Self {
        let lower = |(name, value): (String, String)| (name.to_lowercase(), value);
        Self(rows.into_iter().map(lower).collect())
    }

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

impl Session {
    /// The answers of these statements.
    pub(crate) async fn settings(
        &mut self,
        statements: &[&'static str],
    ) -> Result<Settings, StoreError> {
        let mut rows = Vec::new();
        for &statement in statements {
            let more: Vec<(String, String)> = self.rows_as(statement, Params::Empty).await?;
            rows.extend(more);
        }
        Ok(Settings::new(rows))
    }
}
