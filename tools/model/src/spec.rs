//! A walk: its kind of database, its mistake and its bounds; and the actions.

use crate::decide::TTL;

/// The kinds of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One primary; renewals go on under an open fence. So do SQLite and `memory`.
    Postgres,
    /// One primary; an open fence blocks all statements, so that renewals wait.
    MySql,
    /// Several primaries with a clock each: a contender takes over a lease after it has observed it
    /// unchanged for its length.
    Cluster,
}

/// The mistake of a wrong variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No mistake.
    None,
    /// A renewal takes a lock that is free or expired, and the client goes on.
    RenewalAcquires,
    /// Trust counts from the reply.
    TrustFromReply,
    /// Clients judge by their own wall clocks whether a lease has ended, and write by them.
    ClientClock,
    /// A node of a cluster judges by its own clock.
    NodeClock,
    /// Writes are not fenced.
    Unfenced,
    /// A take-over does not skip a row that a fence has locked.
    PassesFence,
    /// A release forgets the token.
    ReleaseForgets,
    /// An observation begins anew with each poll.
    WatchAnew,
    /// An acquire hands out a grant although trust ended before the reply.
    HandsOutEnded,
    /// Resuming a ticket does; an acquire does not.
    ResumesEnded,
}

/// The protocol, a kind of database, and the bounds of a walk.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The kind of database.
    pub kind: Kind,
    /// The mistake.
    pub flaw: Flaw,
    /// The number of clients.
    pub clients: u8,
    /// The greatest number of grants.
    pub grants: u8,
    /// The greatest number of statements and replies under way.
    pub net: usize,
    /// By how many ticks the clock of a holder lags behind over a lease; `None`: any number.
    pub slow: Option<u8>,
    /// By how many ticks the clock of a contender runs ahead while it observes a lease.
    pub fast: u8,
    /// Whether a holder may hand its lock over by a ticket.
    pub tickets: bool,
    /// By how much the clock of each node is ahead; with [`Flaw::ClientClock`], of each client.
    pub ahead: &'static [i8],
}

/// An action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client requests the lock.
    Ask(u8),
    /// It stops waiting for the reply, and sends a release.
    GiveUp(u8),
    /// It sends a renewal.
    Renew(u8),
    /// It stops waiting for the reply to the renewal.
    Forget(u8),
    /// It releases the lock, which it may have lost.
    Release(u8),
    /// The guard is handed out and the body begins; if trust has ended, the lock is released
    /// instead.
    Enter(u8),
    /// Its body ends, and a ticket takes the place of the guard.
    HandOver(u8),
    /// It resumes the ticket.
    Resume(u8),
    /// It crashes, and starts again without state.
    Crash(u8),
    /// It checks that it holds the lock, and is about to write.
    Look(u8),
    /// Its fence is executed; with `true`, by a node that lacks the latest commit.
    Fence(u8, bool),
    /// It writes without a fence.
    Write(u8),
    /// Its transaction is committed.
    Commit(u8),
    /// Its transaction is rolled back, by the client or by a server whose client is dead.
    Abort(u8),
    /// A node executes a statement, which may be executed again later.
    Execute(u8, u8),
    /// A reply arrives.
    Receive(u8),
    /// A message is lost, or not delivered again.
    Lose(u8),
    /// A tick passes; the clocks of the clients in the first set stand still, those in the second
    /// advance twice.
    Tick(u8, u8),
}

impl Protocol {
    /// The lower bound of `expires_at` from now: below it no clock and no statement differs.
    pub(crate) fn long_ago(&self) -> i8 {
        let least = self.ahead.iter().min().copied().unwrap_or(0);
        match (self.kind, self.flaw) {
            (_, Flaw::ClientClock | Flaw::NodeClock) => least.min(0),
            // Only a renewal reads it there, and extends it at least to this.
            (Kind::Cluster, _) => least + TTL as i8,
            _ => 0,
        }
    }

    /// How long a lease is observed at most.
    pub(crate) fn longest_watch(&self) -> u8 {
        let most = self.ahead.iter().max().copied().unwrap_or(0);
        let least = self.ahead.iter().min().copied().unwrap_or(0);
        TTL + (most - least).unsigned_abs()
    }
}
