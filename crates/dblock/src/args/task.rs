//! What is to be done, as typed options.

use std::ffi::OsString;
use std::time::Duration;

use clap::ValueEnum;
use database_locks::{LockName, Ttl};

use crate::place::Place;
use crate::ticket::TicketFrom;

/// The ttl of what nobody renews. Too short lets others in while the script still works, and nobody
/// tells it; too long only makes them wait for one that has crashed.
pub(crate) const DEFAULT_HAND_TTL: Duration = Duration::from_secs(600);

/// What is to be done, and where.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) place: Place,
    pub(crate) task: Task,
}

#[derive(Debug)]
pub(crate) enum Task {
    Run(Job),
    Acquire {
        wish: Wish,
        json: bool,
    },
    Renew {
        name: LockName,
        ticket: TicketFrom,
        ttl: Option<Ttl>,
    },
    Release {
        name: LockName,
        ticket: TicketFrom,
    },
    Force {
        name: LockName,
    },
    List {
        all: bool,
        json: bool,
    },
    Show {
        name: LockName,
        json: bool,
    },
    Prune {
        idle: Duration,
        unknown: bool,
    },
    Init,
    /// A text, which is ready.
    Print(String),
    Doctor {
        json: bool,
    },
}

/// A lock as it is wanted.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) name: LockName,
    pub(crate) ttl: Ttl,
    /// None: as long as it takes; zero: try once.
    pub(crate) wait: Option<Duration>,
    pub(crate) busy_exit: u8,
    pub(crate) owner: Option<String>,
    pub(crate) meta: Vec<(String, String)>,
}

/// A command to be run under a lock.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) wish: Wish,
    /// Where the lock is held already.
    pub(crate) ticket: Option<TicketFrom>,
    pub(crate) command: Vec<OsString>,
    pub(crate) on_lost: OnLost,
    pub(super) grace: Duration,
}

impl Job {
    /// How long CMD has between TERM and KILL; zero where it gets no TERM.
    pub(crate) fn grace(&self) -> Duration {
        match self.on_lost {
            OnLost::Term => self.grace,
            OnLost::Kill | OnLost::Ignore => Duration::ZERO,
        }
    }
}

/// What happens to CMD when the lock is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// TERM to its process group, and KILL after the grace
    Term,
    /// KILL at once
    Kill,
    /// nothing: CMD goes on, though others may run at the same time
    Ignore,
}
