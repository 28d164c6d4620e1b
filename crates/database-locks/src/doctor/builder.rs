//! Builds a report from what an engine has read.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::doctor::findings::*;
use crate::doctor::report::{Check, Finding, Report};
use protocol::{BootInstant, Human};

/// All columns that the statements use, with their types.
pub(crate) const COLUMNS: [&str; 11] = [
    "id",
    "name",
    "locked_by",
    "expires_at",
    "token",
    "grant_id",
    "granted_until",
    "acquired_at",
    "renewed_at",
    "waiting_until",
    "metadata",
];

/// The minimum lifetime of idle connections.
pub(crate) const LEAST_IDLE: Duration = Duration::from_secs(60);
/// The timeout of a request. A server that cancels statements earlier interferes with it.
pub(crate) const LEAST_STATEMENT: Duration = protocol::REQUEST_TIMEOUT;
/// The number of rows from which the table counts as large.
const LARGE_TABLE: i64 = 100_000;

/// A column of the table.
pub(crate) struct Column {
    pub(crate) name: String,
    /// The type and what is required, if they differ: `integer, must be bigint`.
    pub(crate) unfit: Option<String>,
    /// NOT NULL without a default: an INSERT that does not name the column fails.
    pub(crate) unfilled: bool,
}

/// An index of the table.
pub(crate) struct Index {
    pub(crate) name: String,
    /// All columns and expressions of its definition.
    pub(crate) columns: Vec<String>,
    pub(crate) primary: bool,
    /// Whether it makes names unique.
    pub(crate) keeps_names: bool,
}

/// The number of locks in each state, with the name of one of them.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) rows: i64,
    pub(crate) held: i64,
    /// Expired for more than a minute.
    pub(crate) expired: (i64, Option<String>),
    /// Infinite leases acquired more than a day ago.
    pub(crate) endless: (i64, Option<String>),
    /// Held by legacy clients (django-database-locks 0.5).
    pub(crate) old: (i64, Option<String>),
}

/// One reading of the database's clock.
pub(crate) struct Beat {
    sent: BootInstant,
    took: Duration,
    /// This machine's wall clock and the database's, in microseconds since 1970.
    wall: i64,
    database: i64,
}

#[allow(
    clippy::disallowed_methods,
    reason = "only compared with the database's clock, to report a difference"
)]
fn wall() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

impl Beat {
    /// Start, just before the query is sent.
    pub(crate) fn begin(now: BootInstant) -> Self {
        Self {
            sent: now,
            took: Duration::ZERO,
            wall: wall(),
            database: 0,
        }
    }

    /// End, with the database's answer.
    pub(crate) fn end(mut self, database: i64, now: BootInstant) -> Self {
        self.took = now - self.sent;
        self.database = database;
        self
    }
}

/// The median of the round trips.
pub(crate) fn round_trip(beats: &[Beat]) -> String {
    let mut took: Vec<Duration> = beats.iter().map(|beat| beat.took).collect();
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    format!("{:.1} ms a round trip", median.as_secs_f64() * 1e3)
}

/// A duration in milliseconds for people to read.
pub(crate) fn human(length: Duration) -> String {
    Human(length).to_string()
}

/// A report that is being written.
pub(crate) struct Notes {
    table: String,
    report: Report,
}

impl Notes {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: table.into(),
            report: Report::default(),
        }
    }

    /// Record that an area has no problem.
    pub(crate) fn fine(&mut self, area: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.report.checks.push(Check {
            area,
            seen: true,
            message,
        });
    }

    /// Record how much of the id range is used.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn ids(&mut self, latest: i64, most: i64) {
        if latest > most / 2 {
            let what = format!("{latest} of {most} ids of {} are used", self.table);
            self.found(&IDS_RUN_OUT, what);
        }
    }

    /// Record that an area could not be examined.
    pub(crate) fn unseen(&mut self, area: &'static str, why: impl fmt::Display) {
        let message = format!("could not look: {why}");
        self.report.checks.push(Check {
            area,
            seen: false,
            message,
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

    /// Whether there are findings in this area.
    pub(crate) fn ill(&self, area: &str) -> bool {
        self.report.findings.iter().any(|found| found.area == area)
    }

    /// Record that an area has no problem, unless there are findings in it.
    pub(crate) fn otherwise_fine(&mut self, area: &'static str, message: impl Into<String>) {
        if !self.ill(area) {
            self.fine(area, message);
        }
    }

    /// Compare the database's clock with itself and with this machine's, from consecutive readings.
    pub(crate) fn clock(&mut self, beats: &[Beat]) {
        let steps = beats
            .windows(2)
            .map(|two| two[1].database - two[0].database);
        if let Some(back) = steps.clone().filter(|step| *step < 0).min() {
            let back = human(Duration::from_micros(back.unsigned_abs()));
            let what = format!("the database's clock went back by {back} between two reads");
            return self.found(&CLOCK_NOT_STEADY, what);
        }
        // A round trip takes more than a microsecond.
        if beats.len() > 1 && steps.sum::<i64>() == 0 {
            let what = format!(
                "the database's clock stood still during {} reads",
                beats.len()
            );
            return self.found(&CLOCK_NOT_STEADY, what);
        }
        let Some(best) = beats.iter().min_by_key(|beat| beat.took) else {
            return;
        };
        let half = i64::try_from(best.took.as_micros() / 2).unwrap_or(i64::MAX);
        let off = best.database - best.wall - half;
        let length = human(Duration::from_micros(off.unsigned_abs()));
        let way = match off {
            -999..1000 => return self.fine("clock", "the same as this machine's"),
            ..=-1000 => "behind",
            _ => "ahead of",
        };
        // When in the round trip the clock was read is unknown.
        if off.saturating_abs() - half > 1_000_000 {
            let what = format!("the database's clock is {length} {way} this machine's");
            self.found(&CLOCK_OFF, what);
        } else {
            self.fine("clock", format!("{length} {way} this machine's"));
        }
    }

    /// Compare the columns with those required. Returns whether the statements can use the table.
    pub(crate) fn columns(&mut self, found: &[Column]) -> bool {
        let missing: Vec<&str> = COLUMNS
            .into_iter()
            .filter(|name| !found.iter().any(|column| column.name == *name))
            .collect();
        if !missing.is_empty() {
            let what = format!("the table {} lacks {}", self.table, missing.join(", "));
            self.found(&COLUMNS_MISSING, what);
        }
        for column in found {
            if let Some(unfit) = &column.unfit {
                self.found(
                    &COLUMN_TYPE,
                    format!("the column {} is {unfit}", column.name),
                );
            }
            // The library's INSERT fills all of its own columns.
            let own = COLUMNS.contains(&&*column.name);
            if column.unfilled && (!own || ["id", "waiting_until"].contains(&&*column.name)) {
                let what = format!(
                    "the column {} must not be null and has no default",
                    column.name
                );
                self.found(&COLUMN_UNFILLED, what);
            }
        }
        missing.is_empty()
    }

    /// Check the required index, and look for superfluous ones.
    pub(crate) fn indexes(&mut self, found: &[Index]) {
        let needed = found.iter().position(|index| index.keeps_names);
        if needed.is_none() {
            let what = format!("no unique index keeps the names of {} apart", self.table);
            self.found(&NAME_NOT_UNIQUE, what);
        }
        for (at, index) in found.iter().enumerate() {
            if index.primary || Some(at) == needed {
                continue;
            }
            let changes = |column: &String| {
                COLUMNS.contains(&&**column) && !["id", "name"].contains(&&**column)
            };
            let on = index.columns.iter().find(|column| changes(column));
            match on {
                Some(on) => self.found(
                    &INDEX_ON_CHANGING,
                    format!("there is an index {} on {on}", index.name),
                ),
                None => self.found(
                    &INDEX_UNUSED,
                    format!("there is an index {} more", index.name),
                ),
            }
        }
    }

    /// Check the states of the locks.
    pub(crate) fn locks(&mut self, counts: &Counts) {
        let such = |(n, name): &(i64, Option<String>)| {
            let name = name.as_deref().unwrap_or_default();
            format!(
                "{n} lock{} (such as `{name}`)",
                if *n == 1 { "" } else { "s" }
            )
        };
        if counts.expired.0 > 0 {
            let what = format!(
                "the lease of {} ran out and was not released",
                such(&counts.expired)
            );
            self.found(&LEASES_EXPIRED, what);
        }
        if counts.endless.0 > 0 {
            let what = format!(
                "{} held without end for more than a day",
                such(&counts.endless)
            );
            self.found(&HELD_WITHOUT_END, what);
        }
        if counts.old.0 > 0 {
            let what = format!("{} held by django-database-locks 0.5", such(&counts.old));
            self.found(&OLD_WRITERS, what);
        }
        if counts.rows > LARGE_TABLE {
            self.found(
                &MANY_ROWS,
                format!("the table {} has {} rows", self.table, counts.rows),
            );
        }
        self.fine(
            "locks",
            format!("{} in the table, {} of them held", counts.rows, counts.held),
        );
    }

    pub(crate) fn into_report(self) -> Report {
        let mut report = self.report;
        report.findings.sort_by_key(|found| found.severity);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(readings: &[i64]) -> Vec<&'static str> {
        let mut notes = Notes::new("t");
        let at = wall();
        let beat = |reading: &i64| Beat {
            sent: BootInstant::ZERO,
            took: Duration::from_millis(2),
            wall: at,
            database: at + reading,
        };
        notes.clock(&readings.iter().map(beat).collect::<Vec<_>>());
        notes
            .into_report()
            .findings
            .into_iter()
            .map(|found| found.id)
            .collect()
    }

    #[test]
    fn a_clock_may_differ_by_a_second_but_not_go_back_or_stand() {
        assert!(clock(&[0, 1000, 2000]).is_empty());
        assert!(clock(&[900_000, 900_001]).is_empty());
        assert_eq!(clock(&[1_100_000, 1_100_001]), ["clock-off"]);
        assert_eq!(clock(&[-1_100_000, -1_099_000]), ["clock-off"]);
        assert_eq!(clock(&[0, 5, 4]), ["clock-not-steady"]);
        assert_eq!(clock(&[7, 7, 7]), ["clock-not-steady"]);
    }
}
