//! The protocol of `docs/algorithm.md` as a state machine, which a model checker walks completely.
//!
//! One lock, a few clients, one database or a cluster of nodes whose clocks differ. A statement is
//! executed late, more than once or never; a reply is late or lost; a client stops at any point for
//! any time, or crashes; time passes. [`Protocol`] is the protocol, [`Flaw`] the mistakes of wrong
//! variants, and `tests/model.rs` the walks.
//!
//! | file | content |
//! | --- | --- |
//! | `spec` | the kinds of database, the mistakes, the bounds of a walk, the actions |
//! | `state`, `canonical` | a state, and which states are equal |
//! | `actions` | which actions are possible |
//! | `transitions`, `decide` | what a client does; it asks the `Lease` of the library |
//! | `database` | what a database does |
//! | `properties`, `checker` | what must hold, and the model for stateright |
//!
//! [`semaphore`] and [`shared`] are models of their own, without fences of the former and without
//! clocks that lag: the slots of a semaphore, and readers and writers of one lock.
//!
//! A client's conclusions are those of the library itself (crate `database-locks-protocol`). The
//! rules of the *database* are restated here, because the library has them as SQL; the store
//! contract and the torture test hold the SQL to the same rules on real servers.

mod actions;
mod canonical;
mod checker;
mod database;
mod decide;
mod properties;
pub mod semaphore;
pub mod shared;
mod spec;
mod state;
mod transitions;

pub use spec::{Action, Flaw, Kind, Protocol};
pub use state::{Body, Client, Content, Hold, Message, Row, State, Ticket, Tx, Watch, Work};
