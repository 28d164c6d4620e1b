//! The examination by `doctor`: the report, and the checks that all engines share.

mod clock;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod guards;
mod report;
mod table;

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite-unbundled"))]
pub(crate) use clock::{CLOCK_READINGS, ClockReading, round_trip};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use report::Limit;
pub(crate) use report::ReportBuilder;
pub(crate) use table::Counts;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use table::FoundType;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite-unbundled"))]
pub(crate) use table::{Column, Index};
