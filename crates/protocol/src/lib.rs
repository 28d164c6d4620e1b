//! The rules of [database-locks](https://docs.rs/database-locks) without I/O.
//!
//! Use `database-locks`. This crate is published because `database-locks` depends on it, and it is
//! **not covered by semver**.
//!
//! | module        | rules for                                                                |
//! |---------------|--------------------------------------------------------------------------|
//! | `values`      | what callers pass and get: names, tokens, tickets, durations             |
//! | `lease`       | when a lease is renewed, until when it is trusted, and when it is lost    |
//! | `observation` | how a lease ends on a cluster whose nodes have several clocks            |
//! | `row`         | the interpretation of a row of the table                                 |
//! | `failed_renewal` | why a grant that could not be renewed is lost                         |
//! | `messages`    | requests of a client to a store, and the answers                         |
//! | `several`     | a request for several locks, all or none                                 |
//! | `info`        | a lock for people and as JSON                                            |
//! | `guarded`     | tables under the guard of a lock                                         |
//!
//! No function reads a clock: each takes the instant or the length that it needs.

mod failed_renewal;
mod guarded;
mod info;
mod lease;
mod lost;
mod messages;
mod observation;
mod row;
mod several;
mod sharing;
mod values;

pub use failed_renewal::{
    failed_renewal_outcome, failed_renewal_outcome_elsewhere, failed_resume_outcome,
};
pub use guarded::{GuardCommand, TableGuard};
pub use info::{ListFilter, LockInfo, LockState, Prune, Semaphore, limit_state, limit_to_json};
pub use lease::{Answer, Lease, MIN_RENEWAL_TIMEOUT, Next};
pub use lost::{Gone, HeldBy, LostReason};
pub use messages::{
    AcquireCommand, Force, Grant, Holder, Kind, LatestGrant, Outcome, PAGE, Page, Permits, Primary,
    Pruned, Readers, ReleaseCommand, Released, Renewal, ResumeCommand, TakeOverCommand,
};
pub use observation::{Observations, ObservedExpiry, Version, WaitExtension};
pub use row::{LockRow, no_permit_free};
pub use several::AllOutcome;
pub use sharing::{Sharing, reader_in_the_way};
pub use values::grant::{GrantId, Token};
pub use values::invalid::InvalidSetting;
pub use values::name::{LockName, MAX_CHARS};
pub use values::slot::{MAX_PERMITS, Slot};
pub use values::spacing::{OncePer, checked_at_least};
pub use values::text::{Holding, Human, Resting, Short, escaped};
pub use values::ticket::Ticket;
pub use values::time::BootInstant;
pub use values::timing::{MAX_FIRST_GRANT, REQUEST_TIMEOUT, Renewing, Timing};
pub use values::ttl::{Ttl, parse_duration};
