//! The examination by `doctor`: the report, and the checks that all engines share.

mod clock;
mod guards;
mod report;
mod table;

pub(crate) use clock::{CLOCK_READINGS, ClockReading, round_trip};
pub(crate) use report::{Limit, ReportBuilder};
pub(crate) use table::{Column, Counts, FoundType, Index};
