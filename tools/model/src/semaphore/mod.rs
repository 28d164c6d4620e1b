//! The slots of a semaphore: its limit, which an operator changes; holders that have died; requests
//! that are repeated with their grant id.
//!
//! Each slot is a row, as that of a lock. An acquire takes one slot below the limit that is free, in
//! one statement; on a cluster a slot whose lease has ended is free if it was observed unchanged for
//! the length of its lease. The clocks of clients do not lag: that is the model of the lock.

mod canonical;
mod checker;
mod steps;

use crate::spec::Kind;

/// The mistake of a wrong variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No mistake.
    None,
    /// A client looks which slot is free, and takes it by another statement.
    LooksThenTakes,
    /// A repeated request gets another slot, although its grant id has one.
    RepeatTakesAnother,
    /// A repeated request that finds its own grant trusts it for a whole ttl.
    RepeatTrustsWhole,
    /// A renewal asks for the slot only.
    RenewsBySlot,
    /// A release forgets the token of its slot.
    ReleaseForgets,
    /// A client asks for slots below the limit that it has read before.
    OldLimit,
    /// A node of a cluster judges by its own clock.
    NodeClock,
    /// The observation of one slot counts for another.
    ObservesAnother,
}

/// The protocol and the bounds of a walk.
#[derive(Clone, Debug)]
pub struct Semaphore {
    /// The kind of database. MySQL is as PostgreSQL: no fence is modelled.
    pub kind: Kind,
    /// The mistake.
    pub flaw: Flaw,
    /// The number of clients.
    pub clients: u8,
    /// The number of slots: the limit of the callers.
    pub slots: u8,
    /// The limits that the operator sets, one after another.
    pub limits: &'static [u8],
    /// How many times a client asks.
    pub asks: u8,
    /// The greatest token of a slot.
    pub tokens: u8,
    /// The greatest number of statements and replies under way.
    pub net: usize,
    /// By how much the clock of each node is ahead.
    pub ahead: &'static [i8],
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The slots.
    pub rows: Vec<Row>,
    /// How many limits the operator has set.
    pub limited: u8,
    /// The clients.
    pub clients: Vec<Client>,
    /// How many times a client has asked.
    pub asks: u8,
    /// The messages under way.
    pub net: Vec<Message>,
    /// The violation that has happened.
    pub broken: Option<&'static str>,
}

/// The row of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    /// The end of its lease from now, by a correct clock.
    pub left: i8,
    /// The token of its latest grant.
    pub token: u8,
    /// The greatest token that was ever granted.
    pub top: u8,
    /// The grant id; 0 is null.
    pub grant: u8,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of the fields say what they are")]
pub enum Client {
    /// It asks for nothing.
    Idle,
    /// It has asked, and observes the lease of a slot on a cluster: for how long it still has to be
    /// unchanged.
    Asking {
        grant: u8,
        age: u8,
        watch: Option<(u8, u8)>,
    },
    /// It has a permit.
    Held {
        slot: u8,
        token: u8,
        grant: u8,
        trust: u8,
        /// The age of a renewal that is under way.
        renewal: Option<u8>,
    },
}

/// A statement or a reply under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    /// Its client.
    pub client: u8,
    /// Its content.
    pub content: Content,
    /// Whether the client still awaits the reply.
    pub heard: bool,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of the fields say what they are")]
pub enum Content {
    /// Statement: take a free slot. `observed`: this one may be taken as its lease has ended,
    /// unless its row was changed since.
    Acquire {
        grant: u8,
        observed: Option<u8>,
        /// The limit that the client knows of.
        limit: u8,
    },
    /// Statement of a wrong variant: take this slot.
    Take { grant: u8, slot: u8 },
    /// Statement: renew.
    Renew { grant: u8, slot: u8, token: u8 },
    /// Statement: release; without a slot if the reply to the acquire was lost.
    Release { grant: u8, slot: Option<u8> },
    /// Reply: granted, for so long.
    Granted {
        grant: u8,
        slot: u8,
        token: u8,
        length: u8,
    },
    /// Reply of a wrong variant: this slot is free.
    Free { grant: u8, slot: u8 },
    /// Reply: none is free; this one is held.
    Busy { grant: u8, slot: u8 },
    /// Reply to a renewal.
    Renewed { grant: u8 },
    /// Reply to a renewal.
    Lost { grant: u8 },
}

/// An action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client asks for a permit.
    Ask(u8),
    /// It asks again with the same grant id: for the reply was lost, or a slot may be free now.
    Repeat(u8),
    /// It stops waiting, and releases what it may have.
    GiveUp(u8),
    /// It sends a renewal.
    Renew(u8),
    /// It releases its permit.
    Release(u8),
    /// It crashes.
    Crash(u8),
    /// A node executes a statement, on the slot of that number where several are possible.
    Execute(u8, u8, u8),
    /// A reply arrives.
    Receive(u8),
    /// A message is lost, or not delivered again.
    Lose(u8),
    /// The operator sets the next limit.
    Limit,
    /// Time passes.
    Tick,
}
