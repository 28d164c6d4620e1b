//! The task of a command line, as typed options.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};
use database_locks::{LockName, Ttl};

use super::values::{self, Limit};
use crate::target::Target;
use crate::ticket::TicketSource;

/// The ttl of `dblock acquire`, whose lock is not renewed in the background. With a shorter one
/// other clients may acquire the lock while the script still works, and with a longer one they wait
/// longer after a crash of the script.
pub(crate) const DEFAULT_ACQUIRE_TTL: Duration = Duration::from_secs(600);

/// The default grace. A ttl below four times this has a shorter one.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// A task, and the options that all commands have.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) target: Target,
    pub(crate) verbosity: Verbosity,
    pub(crate) task: Task,
}

/// How much is reported on stderr besides errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// `--quiet`: nothing.
    Quiet,
    /// The result of the command, the beginning and end of an outage, and on a terminal a wait of
    /// more than a second.
    #[default]
    Normal,
    /// `--verbose`: also every wait, and who holds the lock.
    Verbose,
}

#[derive(Debug)]
pub(crate) enum Task {
    Run(RunArgs),
    /// Always with `leads`, and without a ticket.
    Lead(RunArgs),
    Acquire {
        args: AcquireArgs,
        json: bool,
    },
    Renew {
        name: LockName,
        ticket: TicketSource,
        ttl: Option<Ttl>,
    },
    Release {
        name: LockName,
        ticket: TicketSource,
    },
    ForceRelease {
        name: LockName,
        slot: Option<u16>,
        shared: bool,
    },
    Limit {
        name: LockName,
        limit: Limit,
    },
    List {
        all: bool,
        json: bool,
    },
    Show {
        name: LockName,
        json: bool,
    },
    Guard(GuardArgs),
    Guards {
        json: bool,
    },
    Unguard {
        table: String,
    },
    Prune(PruneArgs),
    Init,
    /// A completion script or a manual page.
    Print(String),
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// End with 1 for warnings too
    #[arg(long)]
    pub(crate) strict: bool,
    /// Leave out a finding, by its id, such as no-delete; may be repeated
    #[arg(long, value_name = "ID", value_parser = values::finding)]
    pub(crate) ignore: Vec<&'static str>,
    /// Print one JSON object: `checks` and `findings`
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) struct GuardArgs {
    /// As SQL writes it.
    pub(crate) table: String,
    pub(crate) lock: LockName,
    /// Whether cascades of foreign keys that pass by the guard are accepted.
    pub(crate) allow_cascades: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// How long a lock must have been free: 0 to 10 years, as in 30d or 12h
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::duration)]
    pub(crate) older_than: Duration,
    /// Include free rows of django-database-locks 0.5, which do not say since when they are
    /// free
    #[arg(long, alias = "include-unknown")]
    pub(crate) include_legacy: bool,
}

/// The lock to acquire, for `run` and `acquire`; for `run` also several.
#[derive(Debug)]
pub(crate) struct AcquireArgs {
    /// The lock, or the first of several.
    pub(crate) name: LockName,
    /// The others, in the order in which they were given, each once.
    pub(crate) others: Vec<LockName>,
    pub(crate) ttl: Ttl,
    /// `None` waits without limit, zero tries once.
    pub(crate) wait: Option<Duration>,
    pub(crate) conflict_exit_code: u8,
    /// The number of permits of a semaphore; `None` for a lock.
    pub(crate) limit: Option<u32>,
    /// Whether the lock is shared with others.
    pub(crate) shared: bool,
    pub(crate) holder: Option<String>,
    pub(crate) meta: Vec<(String, String)>,
}

impl AcquireArgs {
    /// All names, in the order in which they were given.
    pub(crate) fn names(&self) -> impl Iterator<Item = &LockName> {
        std::iter::once(&self.name).chain(&self.others)
    }

    /// What is acquired, for messages.
    pub(crate) fn what(&self) -> String {
        match self.limit {
            None => format!("lock `{}`", self.name),
            Some(_) => format!("semaphore `{}`", self.name),
        }
    }
}

#[derive(Debug)]
pub(crate) struct RunArgs {
    pub(crate) lock: AcquireArgs,
    /// The ticket of a lock that is held already, which is resumed.
    pub(crate) ticket: Option<TicketSource>,
    pub(crate) command: Vec<OsString>,
    /// How long the lock stays unavailable from the grant on.
    pub(crate) at_least: Duration,
    /// The period in which CMD runs once.
    pub(crate) once_per: Option<Duration>,
    pub(crate) on_lost: OnLost,
    /// Whether CMD shows its grants to guarded tables by `PGOPTIONS`.
    pub(crate) pgoptions: bool,
    /// Whether CMD runs again and again, while this `dblock` leads.
    pub(crate) leads: bool,
    /// `None`: the default for the ttl.
    pub(super) grace: Option<Duration>,
}

impl RunArgs {
    /// The time that CMD has between TERM and KILL; zero if it gets no TERM.
    pub(crate) fn grace(&self) -> Duration {
        match self.on_lost {
            OnLost::Term => self.grace.unwrap_or_else(|| default_grace(self.lock.ttl)),
            OnLost::Kill | OnLost::Ignore => Duration::ZERO,
        }
    }
}

/// A quarter of a short ttl: three quarters are left for renewals.
fn default_grace(ttl: Ttl) -> Duration {
    match ttl {
        Ttl::Finite(ttl) => DEFAULT_GRACE.min(ttl / 4),
        Ttl::Infinite => DEFAULT_GRACE,
    }
}

/// What happens to CMD when the lock is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// TERM to its process group, and KILL after the grace
    Term,
    /// KILL to its process group at once
    Kill,
    /// Nothing: CMD runs on, possibly beside another holder
    Ignore,
}
