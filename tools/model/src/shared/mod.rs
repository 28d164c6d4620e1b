//! Readers and writers of one lock, by *flag, then check*.
//!
//! | step | statement |
//! | --- | --- |
//! | mark | sets `shared` in the row of the lock, once a name |
//! | flag | a reader inserts its row if the lock is marked and free. What it reads is older than the moment from which others see its row: [`Content::Flag`], then [`Content::Flagging`] |
//! | check | in a later statement: the row of the lock is free as it was; else the reader deletes its row |
//! | take | a writer takes the row of the lock, as ever. If that is not marked it is in |
//! | count | else, in later statements: no row of a reader is left, live or dead |
//! | retire | rows whose lease has ended are freed: that of a reader is deleted, that of a writer released. Rows under an open fence are skipped |
//! | downgrade | a writer flags while the lock is its own, checks that it still is, and releases it |
//!
//! The model has one primary. Renewals go on under an open fence. The clocks of clients do not lag:
//! that is the model of the exclusive lock.

mod canonical;
mod checker;
mod client;
mod database;
mod properties;

/// The mistake of a wrong variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No mistake.
    None,
    /// A reader checks before others can see its row.
    CheckFirst,
    /// A reader is in as soon as it has its row.
    NoCheck,
    /// The check compares no token, so that a writer may have come and gone since the flag.
    ChecksNoToken,
    /// A flag takes a lease that has ended for a free lock, although a fence may be open.
    FlagsBesideDeadWriter,
    /// A writer is in as soon as it has the row of the lock.
    NoCount,
    /// A writer counts live rows only.
    CountsLive,
    /// The rows of dead readers are deleted under an open fence.
    RetiresFenced,
    /// A renewal makes the row anew.
    RenewalRevives,
    /// A node of a cluster checks and counts what it has applied so far.
    ReadsBehind,
    /// Rows of shared locks are pruned.
    PrunesMarked,
    /// A downgrade does not check after its flag.
    DowngradeUnchecked,
    /// A downgrade releases before it flags.
    DowngradeReleasesFirst,
}

/// The protocol and the bounds of a walk.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The mistake.
    pub flaw: Flaw,
    /// The number of clients.
    pub clients: u8,
    /// How many times a client asks.
    pub asks: u8,
    /// The greatest token.
    pub tokens: u8,
    /// The greatest number of statements and replies under way.
    pub net: usize,
    /// Whether a writer may become a reader.
    pub downgrades: bool,
    /// Whether a client may write in fenced transactions.
    pub fences: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The row of the lock.
    pub main: Main,
    /// The rows of the readers.
    pub readers: Vec<ReaderRow>,
    /// The clients.
    pub clients: Vec<Client>,
    /// How many times a client has asked.
    pub asks: u8,
    /// The messages under way.
    pub net: Vec<Message>,
    /// The greatest token of a writer, and of a reader, that was granted.
    pub top: (u8, u8),
    /// The violation that has happened.
    pub broken: Option<&'static str>,
}

/// The row of the lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Main {
    /// Whether a reader has ever used the name.
    pub marked: bool,
    /// The remaining ticks of the lease.
    pub left: u8,
    /// The token of the latest grant.
    pub token: u8,
    /// The grant id; 0 is null.
    pub grant: u8,
    /// Whether it was free before the latest change: what a node sees that lags behind.
    pub was_free: bool,
}

/// The row of a reader.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderRow {
    /// The remaining ticks of the lease.
    pub left: u8,
    /// Its token.
    pub token: u8,
    /// Its grant id.
    pub grant: u8,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    /// Where it is.
    pub hold: Hold,
    /// Its fenced transaction.
    pub tx: Option<Tx>,
}

/// How a client holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// With other readers.
    Reader,
    /// Alone.
    Writer,
}

/// Where a client is. Ages count from the request that made the lease.
#[allow(missing_docs, reason = "the names of the fields say what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hold {
    /// Nowhere.
    Idle,
    /// A reader that has sent its flag.
    Flagging { grant: u8, age: u8 },
    /// A reader whose row is there, and that has sent its check.
    Checking { token: u8, grant: u8, age: u8 },
    /// A writer that has asked for the row of the lock.
    Taking { grant: u8, age: u8 },
    /// A writer that has it, and counts readers.
    Waiting { token: u8, grant: u8, age: u8 },
    /// It holds the lock.
    In {
        role: Role,
        token: u8,
        grant: u8,
        trust: u8,
        /// The age of a renewal that is under way.
        renewal: Option<u8>,
    },
    /// A writer that becomes a reader.
    Downgrading {
        /// The grant of the writer.
        own: u8,
        /// The remaining trust of the writer.
        trust: u8,
        /// The grant of the reader.
        grant: u8,
        age: u8,
        /// The token of the reader, once its row is there.
        token: Option<u8>,
    },
}

/// An open transaction that passed the fence of a grant.
#[allow(missing_docs, reason = "the names of the fields say what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tx {
    pub role: Role,
    pub token: u8,
    pub grant: u8,
    /// Whether its client is dead.
    pub orphan: bool,
}

/// A statement or a reply under way.
#[allow(missing_docs, reason = "the names of the fields say what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub client: u8,
    pub content: Content,
    /// Whether the client still awaits the reply.
    pub heard: bool,
}

/// The content of a message. `grant` is the grant of the request.
#[allow(missing_docs, reason = "the names of the fields say what they are")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Statement: insert the row of a reader. `own`: the lock is not free, but of this grant.
    Flag { grant: u8, own: u8 },
    /// A flag that has read the row of the lock, and is not committed.
    Flagging { grant: u8, token: u8, left: u8 },
    /// Statement: is the lock still free, or of the grant `own`, with the token before this one?
    Check { grant: u8, token: u8, own: u8 },
    /// Statement: take the row of the lock.
    Take { grant: u8 },
    /// Statement: is no reader left?
    Count { grant: u8, token: u8 },
    /// Statement: renew.
    Renew { role: Role, token: u8, grant: u8 },
    /// Statement: release.
    Release { role: Role, grant: u8 },
    /// Reply to a flag or a take.
    Granted { grant: u8, token: u8, marked: bool },
    /// Reply to a check or a count: it is in.
    Clear { grant: u8 },
    /// Reply to a flag, a check or a count: it is not.
    NotClear { grant: u8 },
    /// Reply to a renewal.
    Renewed { grant: u8 },
    /// Reply to a renewal.
    Lost { grant: u8 },
}

/// An action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client asks.
    Ask(u8, Role),
    /// A writer counts again.
    Count(u8),
    /// It stops waiting, and releases what it may have.
    GiveUp(u8),
    /// It sends a renewal.
    Renew(u8),
    /// It releases.
    Release(u8),
    /// A writer becomes a reader.
    Downgrade(u8),
    /// It crashes.
    Crash(u8),
    /// Its fence is executed.
    Fence(u8),
    /// Its transaction is committed.
    Commit(u8),
    /// Its transaction is rolled back.
    Abort(u8),
    /// A statement is executed; with `true` by a node that lags behind.
    Execute(u8, bool),
    /// A reply arrives.
    Receive(u8),
    /// A message is lost, or not delivered again.
    Lose(u8),
    /// A dead reader's row is deleted.
    RetireReader(u8),
    /// A dead writer's row is released.
    RetireWriter,
    /// The row of the lock is pruned.
    Prune,
    /// Time passes.
    Tick,
}
