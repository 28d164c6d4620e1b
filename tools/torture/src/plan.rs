//! The plan of the faults: a pure function of engine, seed, length and processes.

use std::time::Duration;

use crate::engine::Engine;
use crate::worker::Client;

/// The kinds of faults, in the order of the lists in `docs/evidence.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL of a process that holds a lock.
    KillHolding,
    /// SIGKILL of a process within its fenced transaction.
    KillInFence,
    /// SIGKILL of a process that waits.
    KillWaiting,
    /// SIGSTOP of a holder for longer than the ttl. It writes first when it goes on.
    FreezeHolding,
    /// SIGSTOP of a process within its fenced transaction, for longer than the ttl.
    FreezeInFence,
    /// A fenced transaction that is open for longer than the ttl.
    LongFence,
    /// SIGSTOP of a holder that has shown its ticket, until another process was granted the lock. It
    /// writes to the guarded table first when it goes on.
    FreezeBeforeGuarded,
    /// SIGSTOP of a process between its write to the guarded table and the COMMIT, for longer than the
    /// ttl.
    FreezeInGuarded,
    /// SIGKILL of a process between its write to the guarded table and the COMMIT.
    KillInGuarded,
    /// All connections of a process are closed between its write to the guarded table and the COMMIT.
    CutInGuarded,
    /// The COMMIT of a write to the guarded table is carried out, its reply lost and the connection
    /// closed.
    LoseGuardedReply,
    /// Nothing passes, for less than the ttl.
    StallShort,
    /// Nothing passes, for longer than the ttl.
    StallLong,
    /// The statements of a holder are carried out, and the replies held back for longer than the
    /// ttl.
    StallReplies,
    /// A lock is granted, and the reply held back until trust has ended.
    LateGrant,
    /// All connections of a process are closed.
    Cut,
    /// All connections of a process are closed, and new ones refused for a while.
    Refuse,
    /// A request is carried out, its reply lost and the connection closed.
    LoseReply,
    /// A request is lost and the connection closed.
    LoseRequest,
    /// The wall clock of a process jumps by five minutes, ahead or back.
    Clock,
    /// A process stays for longer than the ttl between its look at a free lock and its claim.
    SlowClaim,
    /// The operator lowers the limit of the semaphore, pauses it, raises it, and removes the limit.
    Limit,
    /// The server is stopped and started again.
    Restart,
    /// The server is killed and started again.
    KillServer,
    /// The server is frozen for longer than the leases.
    FreezeServer,
    /// The rows of free locks are put back to an older copy, as a restored backup would.
    Restore,
    /// SQLite: another writer has the write lock of the file for a second.
    BusyFile,
    /// Galera: a node is killed and started again.
    KillNode,
    /// Galera: a node is frozen for longer than the leases.
    FreezeNode,
    /// Galera: a node is cut off from the others.
    CutNode,
    /// Galera: the wrong clock of a node jumps by ten minutes.
    ClockOfNode,
}

impl Kind {
    /// Its name in tables and timelines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KillHolding => "kill -9 of a holder",
            Self::KillInFence => "kill -9 in a fenced transaction",
            Self::KillWaiting => "kill -9 of a waiter",
            Self::FreezeHolding => "freeze of a holder past its ttl",
            Self::FreezeInFence => "freeze in a fenced transaction past its ttl",
            Self::LongFence => "fenced transaction longer than the ttl",
            Self::FreezeBeforeGuarded => "freeze before a guarded write until taken over",
            Self::FreezeInGuarded => "freeze in a guarded transaction past its ttl",
            Self::KillInGuarded => "kill -9 in a guarded transaction",
            Self::CutInGuarded => "connections cut in a guarded transaction",
            Self::LoseGuardedReply => "reply to a guarded commit lost",
            Self::StallShort => "stall shorter than the ttl",
            Self::StallLong => "stall longer than the ttl",
            Self::StallReplies => "replies stalled longer than the ttl",
            Self::LateGrant => "grant heard of after the end of trust",
            Self::Cut => "connections cut",
            Self::Refuse => "connections cut and refused",
            Self::LoseReply => "reply lost",
            Self::LoseRequest => "request lost",
            Self::Clock => "clock jump of a client",
            Self::SlowClaim => "pause between look and claim",
            Self::Limit => "operator's limit changed",
            Self::Restart => "server restarted",
            Self::KillServer => "server killed",
            Self::FreezeServer => "server frozen past the ttl",
            Self::Restore => "rows put back to an older copy",
            Self::BusyFile => "file locked by another writer",
            Self::KillNode => "node killed",
            Self::FreezeNode => "node frozen",
            Self::CutNode => "node cut off",
            Self::ClockOfNode => "clock jump of a node",
        }
    }

    /// Its abbreviation in timelines.
    pub fn abbreviation(self) -> &'static str {
        match self {
            Self::KillHolding => "K",
            Self::KillInFence => "Kf",
            Self::KillWaiting => "Kw",
            Self::FreezeHolding => "Z",
            Self::FreezeInFence => "Zf",
            Self::LongFence => "F",
            Self::FreezeBeforeGuarded => "Zg",
            Self::FreezeInGuarded => "Zw",
            Self::KillInGuarded => "Kg",
            Self::CutInGuarded => "Cg",
            Self::LoseGuardedReply => "Lg",
            Self::StallShort => "s",
            Self::StallLong => "S",
            Self::StallReplies => "Sr",
            Self::LateGrant => "Sg",
            Self::Cut => "C",
            Self::Refuse => "Cr",
            Self::LoseReply => "L",
            Self::LoseRequest => "Lq",
            Self::Clock => "T",
            Self::SlowClaim => "P",
            Self::Limit => "N",
            Self::Restart => "R",
            Self::KillServer => "X",
            Self::FreezeServer => "ZS",
            Self::Restore => "O",
            Self::BusyFile => "B",
            Self::KillNode => "XN",
            Self::FreezeNode => "ZN",
            Self::CutNode => "CN",
            Self::ClockOfNode => "TN",
        }
    }

    /// Whether it is a fault of the server, for all processes.
    pub fn of_the_server(self) -> bool {
        matches!(
            self,
            Self::Limit
                | Self::Restart
                | Self::KillServer
                | Self::FreezeServer
                | Self::Restore
                | Self::BusyFile
                | Self::KillNode
                | Self::FreezeNode
                | Self::CutNode
                | Self::ClockOfNode
        )
    }

    /// Whether a process cannot make progress because of it.
    pub fn delays(self) -> bool {
        self != Self::Limit
    }

    /// The faults of a holder alone, such as a freeze in a fenced transaction.
    pub fn of_a_holder(engine: Engine) -> Vec<Self> {
        let kinds = [
            Self::KillHolding,
            Self::KillInFence,
            Self::FreezeHolding,
            Self::FreezeInFence,
            Self::LongFence,
            Self::StallReplies,
            Self::Cut,
        ];
        let fits = |kind: &Self| kind.is_for(engine);
        kinds.into_iter().filter(fits).collect()
    }

    /// The faults of a holder that writes to the guarded table.
    pub fn of_a_guarded_write() -> Vec<Self> {
        let guarded = |kind: &Self| kind.is_in_guarded();
        KINDS.into_iter().filter(guarded).collect()
    }

    /// Whether it hits a process in a write to the guarded table.
    pub fn is_in_guarded(self) -> bool {
        matches!(
            self,
            Self::FreezeBeforeGuarded
                | Self::FreezeInGuarded
                | Self::KillInGuarded
                | Self::CutInGuarded
                | Self::LoseGuardedReply
        )
    }

    /// Whether it is a fault of a node of a cluster.
    fn of_a_node(self) -> bool {
        use Kind::{ClockOfNode, CutNode, FreezeNode, KillNode};
        matches!(self, KillNode | FreezeNode | CutNode | ClockOfNode)
    }

    /// Whether an engine can have it.
    fn is_for(self, engine: Engine) -> bool {
        let needs_server = matches!(
            self,
            Self::StallShort
                | Self::StallLong
                | Self::StallReplies
                | Self::LateGrant
                | Self::Cut
                | Self::Refuse
                | Self::LoseReply
                | Self::LoseRequest
                | Self::Restart
                | Self::KillServer
                | Self::FreezeServer
        );
        let whole = matches!(self, Self::Restart | Self::KillServer | Self::FreezeServer);
        match engine {
            // The client's clock is that of the database, for whose jumps nothing is promised.
            Engine::Sqlite => {
                !needs_server && !self.is_in_guarded() && self != Self::Clock && !self.of_a_node()
            }
            // A node whose clock is ahead grants greater tokens than the next one whose clock is
            // right, so that older copies prove nothing there.
            Engine::Galera => !whole && !matches!(self, Self::BusyFile | Self::Restore),
            _ => self != Self::BusyFile && !self.of_a_node(),
        }
    }
}

/// All kinds, in their order.
pub const KINDS: [Kind; 31] = [
    Kind::KillHolding,
    Kind::KillInFence,
    Kind::KillWaiting,
    Kind::FreezeHolding,
    Kind::FreezeInFence,
    Kind::LongFence,
    Kind::FreezeBeforeGuarded,
    Kind::FreezeInGuarded,
    Kind::KillInGuarded,
    Kind::CutInGuarded,
    Kind::LoseGuardedReply,
    Kind::StallShort,
    Kind::StallLong,
    Kind::StallReplies,
    Kind::LateGrant,
    Kind::Cut,
    Kind::Refuse,
    Kind::LoseReply,
    Kind::LoseRequest,
    Kind::Clock,
    Kind::SlowClaim,
    Kind::Limit,
    Kind::Restart,
    Kind::KillServer,
    Kind::FreezeServer,
    Kind::Restore,
    Kind::BusyFile,
    Kind::KillNode,
    Kind::FreezeNode,
    Kind::CutNode,
    Kind::ClockOfNode,
];

/// The faults of a run: for the library all kinds, for a control those that expose its mistake.
pub fn kinds(client: Client, engine: Engine) -> Vec<Kind> {
    let some: &[Kind] = match client {
        Client::Rust | Client::Python => &KINDS,
        Client::Correct => &[
            Kind::FreezeHolding,
            Kind::FreezeInFence,
            Kind::StallReplies,
            Kind::LateGrant,
            Kind::Clock,
            Kind::SlowClaim,
        ],
        Client::RenewalAcquires => &[Kind::FreezeHolding],
        Client::TrustFromReply => &[Kind::StallReplies],
        Client::ClientClock => &[Kind::Clock],
        Client::HandsOutEnded => &[Kind::LateGrant],
        Client::Unfenced => &[Kind::FreezeInFence],
        Client::CountsThenEnters | Client::LooksThenEnters => &[Kind::SlowClaim],
        Client::Unguarded => &[Kind::FreezeBeforeGuarded, Kind::FreezeInGuarded],
        Client::Legacy => &[Kind::FreezeHolding, Kind::FreezeInFence],
    };
    some.iter()
        .copied()
        .filter(|kind| kind.is_for(engine))
        // The library looks and claims in one statement.
        .filter(|kind| !client.is_library() || *kind != Kind::SlowClaim)
        .collect()
}

/// A planned fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, in milliseconds from the start.
    pub at: u64,
    /// Its kind.
    pub kind: Kind,
    /// The process; without meaning for a fault of the server.
    pub victim: usize,
    /// Its length in milliseconds, if the kind has one.
    pub lasting: u64,
}

/// The milliseconds before the first fault, until all processes have begun.
const QUIET: u64 = 700;

/// The processes of a run, which have numbers from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// How many there are.
    pub count: usize,
    /// Those whose clocks can be set.
    pub clocks: Vec<usize>,
    /// Those that write to the guarded table.
    pub guarded: Vec<usize>,
}

/// Plans the faults of a run. Each of `kinds` comes at least once, however short the run is.
pub fn plan(
    mut kinds: Vec<Kind>,
    seed: u64,
    run: Duration,
    ttl: Duration,
    processes: &Processes,
) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let end = (run.as_millis() as u64).saturating_sub(QUIET);
    // A fault takes some three seconds, so that about a third of the processes have one at any
    // time; a run that is too short for one of each kind has more.
    let apart = 8000 / processes.count as u64;
    let many = (end.saturating_sub(QUIET) / apart).max(kinds.len() as u64);
    let step = end.saturating_sub(QUIET) / many;
    let ttl = ttl.as_millis() as u64;
    let mut planned: Vec<Planned> = Vec::new();
    random.shuffle(&mut kinds);
    for number in 0..many {
        let at = number as usize % kinds.len();
        if at == 0 && number > 0 {
            random.shuffle(&mut kinds);
        }
        let kind = kinds[at];
        let recent: Vec<usize> = planned
            .iter()
            .rev()
            .take(processes.count / 2)
            .map(|fault| fault.victim)
            .collect();
        let free: Vec<usize> = match kind {
            Kind::Clock => processes.clocks.clone(),
            _ => (0..processes.count)
                .filter(|one| !recent.contains(one))
                .filter(|one| !kind.is_in_guarded() || processes.guarded.contains(one))
                .collect(),
        };
        planned.push(Planned {
            at: QUIET + number * step + random.u64(0..=step / 2),
            kind,
            victim: free[random.usize(0..free.len())],
            lasting: match kind {
                Kind::StallShort => random.u64(200..ttl / 2),
                Kind::BusyFile => random.u64(500..ttl),
                Kind::Refuse => random.u64(200..ttl),
                Kind::Limit => random.u64(400..1000),
                Kind::FreezeServer => ttl + random.u64(100..600),
                _ => ttl + random.u64(500..1500),
            },
        });
    }
    planned
}

#[cfg(test)]
mod tests;
