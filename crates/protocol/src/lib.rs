//! The rules of [database-locks](https://docs.rs/database-locks), without I/O: values, the life of a lease, how a
//! lease that has ended is observed, and what a row of the table means.
//!
//! Use `database-locks`. This crate is published because that one depends on it. It is **not covered by semver**.
//!
//! Nothing here asks for the time: each function takes the instant or the length that it needs.

mod info;
mod lease;
mod lost;
mod messages;
mod observation;
mod row;
mod values;

pub use info::{ListFilter, LockInfo, LockState, Prune};
pub use lease::{Answer, Lease, Next, SHORTEST_PATIENCE};
pub use lost::{Gone, HeldBy, LostReason};
pub use messages::{
    AcquireCommand, Force, Grant, Holder, Outcome, PAGE, Page, Primary, Pruned, ReleaseCommand,
    Released, Renewal, ResumeCommand, TakeOverCommand,
};
pub use observation::{Observations, ObservedExpiry, Version, WaitExtension};
pub use row::{LockRow, judge, judge_elsewhere, judge_ticket};
pub use values::grant::{GrantId, Token};
pub use values::invalid::InvalidSetting;
pub use values::name::{LockName, MAX_CHARS};
pub use values::text::{Holding, Human, Short, escaped};
pub use values::ticket::Ticket;
pub use values::time::Time;
pub use values::timing::{MAX_FIRST_GRANT, REQUEST_TIMEOUT, Renewing, Timing, Ttl, parse_duration};
