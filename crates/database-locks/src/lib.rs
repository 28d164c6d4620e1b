//! Distributed locks as rows in the SQL database that you already have.

pub mod blocking;
mod acquire;
mod clock;
mod error;
mod guard;
mod holder;
mod info;
mod lease;
mod lock;
mod locks;
mod name;
mod release;
mod renew;
mod runtime;
#[cfg_attr(not(feature = "__seam"), allow(unreachable_pub, dead_code))]
mod store;
#[cfg_attr(not(feature = "__seam"), allow(unreachable_pub))]
mod timing;
#[cfg_attr(not(feature = "__seam"), allow(unreachable_pub, dead_code))]
mod token;
mod turns;

pub use error::{BoxError, Error, LostReason};
pub use guard::LockGuard;
pub use info::{LockInfo, LockState};
pub use lock::Lock;
pub use locks::{Freed, Locks};
pub use name::LockName;
pub use timing::{Ttl, parse_duration};
pub use token::Token;

/// The store seam, for the contract tests of this repository. Not covered by semver.
#[cfg(feature = "__seam")]
#[doc(hidden)]
pub mod seam {
    pub use crate::store::*;
    pub use crate::timing::MAX_FIRST_GRANT;
    pub use crate::token::GrantId;
}
