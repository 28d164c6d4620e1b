//! What callers of the doctor get: checks and findings.

use std::fmt;

use serde_json::json;

/// What was examined, and what was found; see [`Locks::doctor`](crate::Locks::doctor).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What was examined and is fine, and what could not be examined.
    pub checks: Vec<Check>,
    /// What is wrong, errors first.
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

/// Something that was examined.
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

/// Something that is wrong, or could be better.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A stable identifier: `table-missing`, ….
    pub id: &'static str,
    /// The subject, as in [`Check::area`].
    pub area: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and its consequence.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Locks cannot be used, or a promise is not kept.
    Error,
    /// Locks work and could do better.
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
