//! The examination by `doctor`: the report, and the checks that all engines share.

mod clock;
mod report;
mod table;

pub(crate) use clock::{CLOCK_READINGS, ClockReading, round_trip};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use report::Limit;
pub(crate) use report::ReportBuilder;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use table::FoundType;
pub(crate) use table::{Column, Counts, Index};
