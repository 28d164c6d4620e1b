//! Findings about the database of the locks, and how to fix them.
//!
//! ```
//! # use database_locks::Locks;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), database_locks::Error> {
//! # let locks = Locks::connect("memory:").await?;
//! for finding in locks.doctor().await?.findings {
//!     eprintln!("{}: {}; {}", finding.severity, finding.message, finding.fix);
//! }
//! # Ok(()) }
//! ```
//!
#![doc = include_str!("../../docs/doctor.md")]

mod findings;
mod report;

pub(crate) use findings::*;
pub use findings::{KINDS, Kind};
pub use report::{Check, Finding, Report, Severity};
