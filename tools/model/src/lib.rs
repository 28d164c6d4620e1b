//! The protocol of `docs/algorithm.md` as a state machine, for a model checker to walk to its end.
//!
//! One lock, a few clients, one database or a cluster of nodes whose clocks differ. Whatever can happen
//! next may happen next: a statement may be carried out late, more than once or never, its reply may come
//! late or be lost, a client may stop at any point for as long as it likes, or crash; time may pass.
//! [`Protocol`] says what a client and a database do, [`Flaw`] what a wrong implementation would do
//! instead, and `tests/model.rs` what must never come of it.
//!
//! [`decide`] asks the library's own `Lease` (crate `database-locks-protocol`) what a client makes of an answer. What
//! the *database* does is restated here, since there it is SQL: the store contract and the torture tests hold the SQL to
//! the same rules on real servers.

mod actions;
mod canonical;
mod checker;
mod database;
mod decide;
mod properties;
mod spec;
mod state;
mod transitions;

pub use spec::{Action, Flaw, Kind, Protocol};
pub use state::{Body, Client, Content, Hold, Message, Row, State, Ticket, Tx, Watch, Work};
