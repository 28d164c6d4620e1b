//! What is to be done, as typed options.

use std::ffi::OsString;
use std::time::Duration;

use clap::ValueEnum;
use database_locks::{LockName, Ttl};

use crate::place::Place;
use crate::ticket::TicketFrom;

/// The ttl of a lock that is not renewed by itself. Too short lets other clients in while the
/// script still works; too long only makes them wait for a script that has crashed.
pub(crate) const DEFAULT_HAND_TTL: Duration = Duration::from_secs(600);

/// The grace by default, where the ttl is long enough for it.
const USUAL_GRACE: Duration = Duration::from_secs(5);

/// What is to be done, and where.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) place: Place,
    pub(crate) detail: Detail,
    pub(crate) task: Task,
}

/// How much is reported besides errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Detail {
    /// `--quiet`: nothing.
    Quiet,
    /// Notices; on a terminal what is waited for; one line when an outage begins and when it ends.
    #[default]
    Usual,
    /// `--verbose`: every wait, and who holds the lock.
    Verbose,
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
        legacy: bool,
    },
    Init,
    /// A text, which is ready.
    Print(String),
    Doctor(Checkup),
}

/// What `doctor` is asked for.
#[derive(Debug)]
pub(crate) struct Checkup {
    pub(crate) json: bool,
    /// Whether warnings count as errors do.
    pub(crate) strict: bool,
    /// The ids of findings that do not count.
    pub(crate) ignored: Vec<&'static str>,
}

/// A lock as it is wanted.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) name: LockName,
    pub(crate) ttl: Ttl,
    /// None: as long as it takes; zero: try once.
    pub(crate) wait: Option<Duration>,
    pub(crate) busy_exit: u8,
    pub(crate) holder: Option<String>,
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
    /// None: by the ttl.
    pub(super) grace: Option<Duration>,
}

impl Job {
    /// How long CMD has between TERM and KILL; zero where it gets no TERM.
    pub(crate) fn grace(&self) -> Duration {
        match self.on_lost {
            OnLost::Term => self.grace.unwrap_or_else(|| usual_grace(self.wish.ttl)),
            OnLost::Kill | OnLost::Ignore => Duration::ZERO,
        }
    }
}

/// The grace where none is given: it leaves three quarters of a short ttl for the renewals.
fn usual_grace(ttl: Ttl) -> Duration {
    match ttl {
        Ttl::Finite(ttl) => USUAL_GRACE.min(ttl / 4),
        Ttl::Infinite => USUAL_GRACE,
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
