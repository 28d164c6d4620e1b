//! The database's clock, compared with itself and with this machine's.

use std::time::{Duration, SystemTime};

use super::report::ReportBuilder;
use crate::doctor::{CLOCK_NOT_STEADY, CLOCK_OFF};
use crate::runtime::clock;
use protocol::{BootInstant, Human};

/// The number of readings: enough for a median, and for a step to be seen.
pub(crate) const CLOCK_READINGS: usize = 7;

/// One reading of the database's clock.
pub(crate) struct ClockReading {
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

impl ClockReading {
    /// Start, just before the query is sent.
    pub(crate) fn begin() -> Self {
        Self {
            sent: clock::now(),
            took: Duration::ZERO,
            wall: wall(),
            database: 0,
        }
    }

    /// End, with the database's answer.
    pub(crate) fn end(mut self, database: i64) -> Self {
        self.took = clock::now() - self.sent;
        self.database = database;
        self
    }
}

/// The median of the round trips.
pub(crate) fn round_trip(readings: &[ClockReading]) -> String {
    let mut took: Vec<Duration> = readings.iter().map(|reading| reading.took).collect();
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    format!("{:.1} ms a round trip", median.as_secs_f64() * 1e3)
}

impl ReportBuilder {
    /// Compare the database's clock with itself and with this machine's, from consecutive readings.
    pub(crate) fn clock(&mut self, readings: &[ClockReading]) {
        let steps = readings
            .windows(2)
            .map(|two| two[1].database - two[0].database);
        if let Some(back) = steps.clone().filter(|step| *step < 0).min() {
            let back = Human(Duration::from_micros(back.unsigned_abs()));
            let what = format!("the database's clock went back by {back} between two reads");
            return self.found(&CLOCK_NOT_STEADY, what);
        }
        // A round trip takes more than a microsecond.
        if readings.len() > 1 && steps.sum::<i64>() == 0 {
            let what = format!(
                "the database's clock stood still during {} reads",
                readings.len()
            );
            return self.found(&CLOCK_NOT_STEADY, what);
        }
        let Some(best) = readings.iter().min_by_key(|reading| reading.took) else {
            return;
        };
        let half = i64::try_from(best.took.as_micros() / 2).unwrap_or(i64::MAX);
        let off = best.database - best.wall - half;
        let length = Human(Duration::from_micros(off.unsigned_abs()));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(readings: &[i64]) -> Vec<&'static str> {
        let mut report = ReportBuilder::new("t");
        let at = wall();
        let measured = |reading: &i64| ClockReading {
            sent: BootInstant::ZERO,
            took: Duration::from_millis(2),
            wall: at,
            database: at + reading,
        };
        report.clock(&readings.iter().map(measured).collect::<Vec<_>>());
        let found = report.into_report().findings.into_iter();
        found.map(|found| found.id).collect()
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
