//! The report of an examination that is under way.

use std::fmt;
use std::time::Duration;

use crate::doctor::{
    self, Check, Finding, IDLE_TIMEOUT, IDS_RUN_OUT, Kind, NO_DELETE, RIGHTS_MISSING, Report,
    STATEMENT_TIMEOUT, TABLE_MISSING,
};
use crate::store::connect::table::{Rows, Table};

/// A time limit that the server sets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// The lifetime of an idle connection.
    Idle,
    Statement,
}

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
    of: Rows,
    /// The number of findings when the examination of this table began.
    before: usize,
    report: Report,
}

impl ReportBuilder {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: table.into(),
            of: Rows::Locks,
            before: 0,
            report: Report::default(),
        }
    }

    /// Go on with the table of permits.
    pub(crate) fn turn_to_permits(&mut self, table: &Table) {
        self.table = table.permits();
        self.of = Rows::Permits;
        self.before = self.report.findings.len();
    }

    /// The table that is examined.
    pub(crate) fn of(&self) -> Rows {
        self.of
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
        let mut findings = self.report.findings.iter().skip(self.before);
        if !findings.any(|found| found.area == area) {
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

    /// Record a finding. One about the table of permits has its own kind if it does not concern
    /// locks.
    pub(crate) fn found(&mut self, kind: &Kind, what: impl fmt::Display) {
        let kind = match (self.of, kind.id) {
            (Rows::Locks, _) => kind,
            (_, "table-missing") => &doctor::PERMITS_MISSING,
            (_, "rights-missing") => &doctor::PERMITS_RIGHTS,
            (
                _,
                "not-innodb" | "columns-missing" | "column-type" | "column-unfilled"
                | "name-collation" | "name-not-unique" | "index-renamed",
            ) => &doctor::PERMITS_UNFIT,
            _ => kind,
        };
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
            let what = format!("{user} lacks {} on {}", lacking.join(", "), self.table);
            self.found(&RIGHTS_MISSING, what);
        }
        // A user of locks alone gets one finding for the table of permits.
        if !may_delete && (self.of == Rows::Locks || lacking.is_empty()) {
            let what = format!("{user} lacks DELETE on {}", self.table);
            self.found(&NO_DELETE, what);
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
