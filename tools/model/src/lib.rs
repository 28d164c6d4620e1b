//! The protocol of `docs/algorithm.md` as a state machine, for a model checker to walk to its end.
//!
//! One lock, a few clients, one database or a cluster of nodes whose clocks differ. Whatever can happen
//! next may happen next: a statement may be carried out late, more than once or never, its reply may come
//! late or be lost, a client may stop at any point for as long as it likes, or crash; time may pass.
//! [`Protocol`] says what a client and a database do, [`Flaw`] what a wrong implementation would do
//! instead, and `tests/model.rs` what must never come of it.
//!
//! What a client makes of an answer is not restated here: [`decide`] asks the core's own `lease` module,
//! which is included by its path, since it is nobody's business outside of the core. What the *database*
//! does is restated, because there it is SQL; the store contract and the torture hold that to real
//! servers.

// The tests of what is included run where it lives.
#![cfg(not(test))]

pub mod decide;
mod protocol;
mod state;

pub use protocol::{Act, Flaw, Kind, Protocol};
pub use state::{Body, Client, Hold, Msg, Row, Said, State, Ticket, Tx, Watch, Work};

/// What the core's modules below expect around them.
mod clock {
    pub(crate) type Time = std::time::Duration;
}

/// Likewise: errors without the words.
mod error {
    use std::fmt;
    use std::time::Duration;

    /// A setting that is out of range.
    #[derive(Debug)]
    #[allow(unreachable_pub, reason = "as public as the types of `timing`")]
    pub struct Error;

    impl Error {
        pub(crate) fn config(
            _setting: &'static str,
            _got: impl Into<String>,
            _allowed: impl Into<String>,
        ) -> Self {
            Self
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum LostReason {
        Expired,
        Unreachable,
        Refused,
    }

    pub(crate) struct Human(pub(crate) Duration);

    impl fmt::Display for Human {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?}", self.0)
        }
    }
}

#[path = "../../../crates/database-locks/src/lease.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the model needs a part of it; the core all of it"
)]
mod lease;

#[path = "../../../crates/database-locks/src/timing.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    reason = "the model needs a part of it; the core all of it"
)]
mod timing;
