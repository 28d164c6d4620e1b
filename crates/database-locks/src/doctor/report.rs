//! What callers of the doctor get: checks and findings.

use std::fmt;

use serde_json::json;

/// Checks and findings; see [`Locks::doctor`](crate::Locks::doctor).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Areas without a problem, and areas that could not be examined.
    pub checks: Vec<Check>,
    /// Problems, errors first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// As JSON, the form of `dblock doctor --json`: an object of `checks` (area, seen, message) and
    /// `findings` (id, area, severity, message, fix).
    pub fn to_json(&self) -> String {
        let checks = self.checks.iter().map(|check| {
            json!({ "area": check.area, "seen": check.seen, "message": check.message }).to_string()
        });
        let findings = self.findings.iter().map(|found| {
            json!({
                "id": found.id, "area": found.area, "severity": found.severity.to_string(),
                "message": found.message, "fix": found.fix,
            })
            .to_string()
        });
        let list = |objects: Vec<String>| match objects.is_empty() {
            true => "[]".to_owned(),
            false => format!("[\n{}\n]", objects.join(",\n")),
        };
        format!(
            "{{\"checks\":{},\n\"findings\":{}}}",
            list(checks.collect()),
            list(findings.collect())
        )
    }
}

/// One examination of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The subject in one word: `server`, `clock`, `rights`, ….
    pub area: &'static str,
    /// `false` if this user has no right to examine it.
    pub seen: bool,
    /// The state found, or why it could not be examined.
    pub message: String,
}

/// A problem, or a possible improvement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A stable identifier: `table-missing`, ….
    pub id: &'static str,
    /// The subject, as in [`Check::area`].
    pub area: &'static str,
    /// Its severity.
    pub severity: Severity,
    /// The problem and its consequence.
    pub message: String,
    /// How to fix it.
    pub fix: String,
}

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Locks cannot be used, or a promise is not kept.
    Error,
    /// Locks work, with a risk or a cost.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}
