//! What is checked: the kind of database, the mistake of a wrong variant, and the bounds of a walk.

use crate::decide::TTL;

/// How a kind of database goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One primary; renewals go on under an open fence. SQLite and `memory` are like that too.
    Postgres,
    /// One primary; nothing gets past an open fence, so renewals are held back.
    MySql,
    /// Several primaries with a clock each: a lease is taken over that was watched for its length.
    Cluster,
}

/// What a wrong implementation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing: the protocol as it is.
    None,
    /// A renewal takes the lock where it finds it free or expired, and the client goes on.
    RenewalAcquires,
    /// Trust counts from the moment at which the reply came.
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
    /// A watch begins anew with each look.
    WatchAnew,
    /// An acquire hands out what was granted, although trust has ended before the reply came.
    HandsOutEnded,
    /// Taking a ticket up does; an acquire does not.
    ResumesEnded,
}

/// The protocol with its surroundings.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Which database.
    pub kind: Kind,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// How many clients there are.
    pub clients: u8,
    /// How many grants there are at most.
    pub grants: u8,
    /// How many statements and replies are under way at most.
    pub net: usize,
    /// By how many ticks the clock of a holder lags behind over the length of a lease; none: any number.
    pub slow: Option<u8>,
    /// By how many ticks the clock of a contender runs ahead while it watches a lease.
    pub fast: u8,
    /// Whether a holder may hand its lock over by a ticket.
    pub tickets: bool,
    /// What the clock of each node is ahead by. Of each client's instead with [`Flaw::ClientClock`].
    pub ahead: &'static [i8],
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client asks for the lock.
    Ask(u8),
    /// It waits for the reply no longer, and sends a release after it.
    GiveUp(u8),
    /// It sends a renewal.
    Renew(u8),
    /// It waits for that reply no longer.
    Forget(u8),
    /// It releases the lock, or what may be left of it.
    Release(u8),
    /// The guard is handed out and the body begins; where trust has ended the grant is given back.
    Enter(u8),
    /// Its body ends, and a ticket takes the place of the guard.
    HandOver(u8),
    /// It asks for the lock with the ticket.
    Resume(u8),
    /// It ends, and begins again with nothing.
    Crash(u8),
    /// It sees that it has the lock, and is about to write.
    Look(u8),
    /// Its fence is carried out; with `true` on a node that has not heard yet of what came last.
    Fence(u8, bool),
    /// It writes without a fence.
    Write(u8),
    /// Its transaction is committed.
    Commit(u8),
    /// Its transaction is rolled back, by itself or by a server that finds its client dead.
    Abort(u8),
    /// A statement is carried out, by that node. It may be once more.
    Execute(u8, u8),
    /// A reply comes.
    Receive(u8),
    /// What is under way is lost, or will not come again.
    Lose(u8),
    /// Time passes; the clocks of the clients in the first set stand still, of the second leap.
    Tick(u8, u8),
}

impl Protocol {
    /// What an `expires_at` is clamped to, from now: below it no clock and no statement tells a difference.
    pub(crate) fn long_ago(&self) -> i8 {
        let least = self.ahead.iter().min().copied().unwrap_or(0);
        match (self.kind, self.flaw) {
            (_, Flaw::ClientClock | Flaw::NodeClock) => least.min(0),
            // Only a renewal goes by it there, and lengthens it at least to this.
            (Kind::Cluster, _) => least + TTL as i8,
            _ => 0,
        }
    }

    /// The longest that any lease is watched.
    pub(crate) fn longest_watch(&self) -> u8 {
        let most = self.ahead.iter().max().copied().unwrap_or(0);
        let least = self.ahead.iter().min().copied().unwrap_or(0);
        TTL + (most - least).unsigned_abs()
    }
}
