//! The report of an examination that is under way.

use std::fmt;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use std::time::Duration;

use crate::doctor::{Check, Finding, Kind, Report};
#[cfg(any(feature = "mysql", feature = "postgres"))]
use crate::doctor::{
    IDLE_TIMEOUT, IDS_RUN_OUT, NO_DELETE, RIGHTS_MISSING, STATEMENT_TIMEOUT, TABLE_MISSING,
};

/// A time limit that the server sets.
#[cfg(any(feature = "mysql", feature = "postgres"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// The lifetime of an idle connection.
    Idle,
    Statement,
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl Limit {
    /// What a lower limit leads to, and the least that does no harm.
    fn least(self) -> (&'static Kind, Duration) {
        match self {
            Self::Idle => (&IDLE_TIMEOUT, Duration::from_secs(60)),
            // A server that cancels statements before their request times out interferes with it.
            Self::Statement => (&STATEMENT_TIMEOUT, protocol::REQUEST_TIMEOUT),
        }
    }
}

/// A report that is being written.
pub(crate) struct ReportBuilder {
    table: String,
    report: Report,
}

impl ReportBuilder {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: table.into(),
            report: Report::default(),
        }
    }

    /// The name of the table.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Record that an area has no problem.
    pub(crate) fn fine(&mut self, area: &'static str, message: impl Into<String>) {
        self.report.checks.push(Check {
            area,
            seen: true,
            message: message.into(),
        });
    }

    /// Record that an area has no problem, unless there are findings in it.
    pub(crate) fn otherwise_fine(&mut self, area: &'static str, message: impl Into<String>) {
        if !self.report.findings.iter().any(|found| found.area == area) {
            self.fine(area, message);
        }
    }

    /// Record that an area could not be examined.
    pub(crate) fn unseen(&mut self, area: &'static str, why: impl fmt::Display) {
        self.report.checks.push(Check {
            area,
            seen: false,
            message: format!("not checked: {why}"),
        });
    }

    /// Record a finding.
    pub(crate) fn found(&mut self, kind: &Kind, what: impl fmt::Display) {
        self.report.findings.push(Finding {
            id: kind.id,
            area: kind.area,
            severity: kind.severity,
            message: format!("{what}: {}", kind.impact),
            fix: kind.fix.replace("{table}", &self.table),
        });
    }

    pub(crate) fn into_report(self) -> Report {
        let mut report = self.report;
        report.findings.sort_by_key(|found| found.severity);
        report
    }
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl ReportBuilder {
    /// Record that there is no table; `elsewhere` says where there is one of that name.
    pub(crate) fn table_missing(&mut self, elsewhere: &str) {
        let what = format!("there is no table {}{elsewhere}", self.table);
        self.found(&TABLE_MISSING, what);
    }

    /// Record what `user` may do with the table: the rights that are lacking, and whether it may
    /// delete rows.
    pub(crate) fn rights(&mut self, user: &str, lacking: &[impl AsRef<str>], may_delete: bool) {
        if !lacking.is_empty() {
            let lacking: Vec<_> = lacking.iter().map(AsRef::as_ref).collect();
            let what = format!("{user} lacks {}", lacking.join(", "));
            self.found(&RIGHTS_MISSING, what);
        }
        if !may_delete {
            self.found(&NO_DELETE, format!("{user} lacks DELETE"));
        }
        let message = format!(
            "{user} has SELECT, INSERT, UPDATE and DELETE on {}",
            self.table
        );
        self.otherwise_fine("rights", message);
    }

    /// Record how much of the id range is used.
    pub(crate) fn ids(&mut self, latest: i64, greatest: i64) {
        if latest > greatest / 2 {
            let what = format!("{latest} of {greatest} ids of {} are used", self.table);
            self.found(&IDS_RUN_OUT, what);
        }
    }

    /// Close the area of durability.
    pub(crate) fn durability(&mut self) {
        let message = "a grant is on disk before it is answered, and pages are written whole";
        self.otherwise_fine("durability", message);
    }

    /// Record time limits of the server that are too low, each with its text for people.
    pub(crate) fn limits(&mut self, limits: impl IntoIterator<Item = (Limit, Duration, String)>) {
        for (limit, length, shown) in limits {
            let (kind, least) = limit.least();
            if length < least {
                self.found(kind, shown);
            }
        }
        let message = "the server lets connections be idle and statements take time";
        self.otherwise_fine("timeouts", message);
    }
}
