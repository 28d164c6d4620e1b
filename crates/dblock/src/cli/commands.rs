//! The command line as clap reads it. Doc comments are the texts of `--help`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};
use clap_complete::Shell;
use database_locks::{LockName, Ttl};

use super::help;
use super::task::{AcquireArgs, DoctorArgs, OnLost, PruneArgs};
use super::values::{self, Limit};
use crate::exit;

/// Global options come after the options of a command.
const LAST: usize = 900;

/// Run a command under a lock that lives in your SQL database
#[derive(Debug, Parser)]
#[command(name = "dblock", version, after_help = help::DBLOCK, max_term_width = 100,
          disable_help_subcommand = true)]
pub(super) struct Cli {
    /// The database: sqlite:///path, postgres://…, mysql://… [default: an SQLite file] [env:
    /// DATABASE_LOCKS_URL]
    #[arg(long, global = true, display_order = LAST)]
    pub(super) url: Option<String>,
    /// A file that contains the URL; read at each connect [env: DATABASE_LOCKS_URL_FILE]
    #[arg(long, global = true, display_order = LAST, value_name = "FILE", conflicts_with = "url")]
    pub(super) url_file: Option<PathBuf>,
    /// The table: NAME or SCHEMA.NAME [default: database_locks_lock] [env: DATABASE_LOCKS_TABLE]
    #[arg(long, global = true, display_order = LAST, value_name = "NAME")]
    pub(super) table: Option<String>,
    /// Report every wait, who holds the lock, and every outage, on stderr
    #[arg(short, long, global = true, display_order = LAST, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Report errors only; a ticket, list or page is still printed
    #[arg(short, long, global = true, display_order = LAST)]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run CMD while holding the lock NAME, or all of several locks
    #[command(after_help = help::RUN, override_usage = "dblock run [OPTIONS] <NAME>... -- <CMD>...")]
    Run(RunOptions),
    /// Run CMD while leading: of all `dblock lead NAME`, one runs its CMD at a time
    #[command(after_help = help::LEAD, override_usage = "dblock lead [OPTIONS] <NAME> -- <CMD>...")]
    Lead(LeadOptions),
    /// Acquire the lock NAME and print its ticket, to hold it across the steps of a script
    #[command(after_help = help::ACQUIRE)]
    Acquire {
        /// The lock: 1 to 255 characters
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// How long the lock is held unless it is renewed: 100ms to 10 years, or `inf` (until it is
        /// released) [default: 10m]
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::ttl)]
        ttl: Option<Ttl>,
        #[command(flatten)]
        options: AcquireOptions,
        /// Print one JSON object: the ticket and the grant
        #[arg(long)]
        json: bool,
    },
    /// Extend the lease of a lock by its ticket
    #[command(after_help = help::RENEW)]
    Renew {
        /// The lock
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// The ticket; `-` reads it from the first line of standard input [env: DBLOCK_TICKET]
        #[arg(long)]
        ticket: Option<String>,
        /// How long the lock is held from now on: 100ms to 10 years, or `inf` [default: the same
        /// as before]
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::ttl)]
        ttl: Option<Ttl>,
    },
    /// Release a lock by its ticket, or by force
    #[command(after_help = help::RELEASE)]
    Release {
        /// The lock
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// The ticket; `-` reads it from the first line of standard input
        #[arg(long, conflicts_with = "force")]
        ticket: Option<String>,
        /// Take the lock from its holder: make sure first that the holder is dead or stopped
        #[arg(long)]
        force: bool,
        /// With --force: the permit of a semaphore, by its number, as `show` prints it
        #[arg(long, value_name = "N", requires = "force", allow_hyphen_values = true,
              value_parser = values::slot)]
        slot: Option<u16>,
        /// With --force: all holders that share the lock
        #[arg(long, requires = "force", conflicts_with = "slot")]
        shared: bool,
    },
    /// Set how many permits the semaphore NAME has, whatever its callers say
    #[command(after_help = help::LIMIT)]
    Limit {
        /// The semaphore
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// 0 to 65536; 0 pauses it; `none`: each caller's own --limit counts again
        #[arg(value_name = "N", allow_hyphen_values = true, value_parser = values::limit)]
        limit: Limit,
    },
    /// List the locks that are held: holder, since when, until when, and what for
    #[command(after_help = help::LIST)]
    List {
        /// Include free locks
        #[arg(short, long)]
        all: bool,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show everything about one lock
    #[command(after_help = help::SHOW)]
    Show {
        /// The lock
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put a table under guard: the database refuses every write by a transaction that does not hold
    /// the lock NAME (PostgreSQL, MySQL, MariaDB). Without TABLE, list the guarded tables
    #[command(after_help = help::GUARD, override_usage = "dblock guard [OPTIONS] <TABLE> --lock <NAME>\n       dblock guard [--json]")]
    Guard {
        /// TABLE or SCHEMA.TABLE, as SQL writes it
        // The id `table` is that of the global option.
        #[arg(
            id = "guarded",
            value_name = "TABLE",
            requires = "lock",
            conflicts_with = "json"
        )]
        table: Option<String>,
        /// The lock: 1 to 255 characters
        #[arg(long, value_name = "NAME", requires = "guarded", value_parser = values::lock_name)]
        lock: Option<LockName>,
        /// Guard the table although cascades of foreign keys pass by the guard (MySQL, MariaDB)
        #[arg(long, requires = "guarded")]
        allow_cascades: bool,
        /// Print the guarded tables as one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove the guard of a table
    #[command(after_help = help::UNGUARD)]
    Unguard {
        /// TABLE or SCHEMA.TABLE, as SQL writes it
        #[arg(id = "guarded", value_name = "TABLE")]
        table: String,
    },
    /// Create the table, or add what an older one lacks
    #[command(after_help = help::INIT)]
    Init,
    /// Delete the rows of locks that have been free for a long time
    #[command(after_help = help::PRUNE)]
    Prune(PruneArgs),
    /// Print the completion script for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of dblock, or of one command
    #[command(after_help = help::MAN)]
    Man {
        /// The command
        command: Option<String>,
    },
    /// Check the database for problems, and print how to fix them
    #[command(after_help = help::DOCTOR)]
    Doctor(DoctorArgs),
    /// Print the help of dblock, or of one command
    #[command(after_help = help::HELP)]
    Help {
        /// The command
        command: Option<String>,
    },
}

const NAME: &str = "name";
const COMMAND: &str = "command";

/// A command line with `--`: of `run`, the words before it are names, and those after it CMD.
/// Returns the names of `run`, too.
///
/// Without `--`, the first word is the name, and CMD begins with the second one. One definition for
/// clap cannot have both.
pub(super) fn parse_with_separator(
    arguments: &[OsString],
) -> Result<(Cli, Vec<LockName>), clap::Error> {
    let several = Cli::command().mut_subcommand("run", |run| {
        run.mut_arg(NAME, |name| name.num_args(1..).action(ArgAction::Append))
            .mut_arg(COMMAND, |command| {
                command.trailing_var_arg(false).last(true)
            })
    });
    let matches = several.try_get_matches_from(arguments)?;
    let names = matches
        .subcommand_matches("run")
        .and_then(|run| run.get_many(NAME));
    let names = names.into_iter().flatten().cloned().collect();
    Ok((Cli::from_arg_matches(&matches)?, names))
}

#[derive(Debug, Args)]
pub(super) struct RunOptions {
    /// The lock: 1 to 255 characters. Several locks are acquired all or none
    #[arg(id = NAME, value_name = "NAME", value_parser = values::lock_name)]
    pub(super) name: LockName,
    /// The command to run, and its arguments. No shell is involved: for `|`, `>` or `$` use sh -c
    /// '…'
    #[arg(id = COMMAND, value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
    /// How long the lock stays held if dblock dies: 100ms to 10 years, or `inf` (until it is
    /// released by force)
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true, value_parser = values::ttl)]
    pub(super) ttl: Ttl,
    #[command(flatten)]
    pub(super) options: AcquireOptions,
    /// Resume a lock that is held already, by its ticket (`-` reads it from the first line of
    /// standard input); the lock is released when CMD ends
    #[arg(long, conflicts_with_all = ["no_wait", "wait", "conflict_exit_code", "shared", "limit"])]
    pub(super) ticket: Option<String>,
    /// How long no client can acquire the lock again, from the grant on, even if CMD ends before: 0
    /// to 10 years
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::duration,
          conflicts_with = "ticket")]
    pub(super) at_least: Option<Duration>,
    /// Run CMD only once in each period, of all clients: 100ms to 10 years; if it was begun in this
    /// period already, end with 0
    #[arg(long, value_name = "PERIOD", allow_hyphen_values = true, value_parser = values::period,
          conflicts_with = "ticket")]
    pub(super) once_per: Option<Duration>,
    /// What happens to CMD if the lock is lost
    #[arg(long, value_name = "WHAT", default_value = "term")]
    pub(super) on_lost: OnLost,
    /// Let every program on libpq in CMD (psql, pg_restore, …) write to the tables that this lock
    /// guards: adds the grant to PGOPTIONS
    #[arg(long, conflicts_with_all = ["shared", "limit"])]
    pub(super) pgoptions: bool,
    /// The time from TERM to KILL; less than half of the ttl [default: 5s, or a quarter of a ttl
    /// below 20s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::duration)]
    pub(super) grace: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct LeadOptions {
    /// The lock that the leader holds: 1 to 255 characters
    #[arg(value_parser = values::lock_name)]
    pub(super) name: LockName,
    /// The command to run, and its arguments. No shell is involved: for `|`, `>` or `$` use sh -c
    /// '…'
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
    /// How long there is no leader after dblock or its machine has died: 100ms to 10 years
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true, value_parser = values::finite_ttl)]
    pub(super) ttl: Ttl,
    #[command(flatten)]
    pub(super) options: HolderOptions,
    /// How CMD is stopped if the leadership is lost
    #[arg(long, value_name = "HOW", default_value = "term")]
    pub(super) on_lost: LeaderOnLost,
    /// Let every program on libpq in CMD write to the tables that this lock guards: adds the grant
    /// to PGOPTIONS
    #[arg(long)]
    pub(super) pgoptions: bool,
    /// The time from TERM to KILL; less than half of the ttl [default: 5s, or a quarter of a ttl
    /// below 20s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::duration)]
    pub(super) grace: Option<Duration>,
}

/// How CMD is stopped when the leadership is lost. A leader never runs on.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LeaderOnLost {
    /// TERM to its process group, and KILL after the grace
    Term,
    /// KILL to its process group at once
    Kill,
}

impl From<LeaderOnLost> for OnLost {
    fn from(how: LeaderOnLost) -> Self {
        match how {
            LeaderOnLost::Term => Self::Term,
            LeaderOnLost::Kill => Self::Kill,
        }
    }
}

/// The options that `run`, `acquire` and `lead` share.
#[derive(Debug, Args)]
pub(super) struct HolderOptions {
    /// The name of the holder, shown by `list` [default: host.pid.random]
    #[arg(long, alias = "owner", value_name = "WHO")]
    holder: Option<String>,
    /// A note to show with the lock; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::key_and_value)]
    meta: Vec<(String, String)>,
}

impl HolderOptions {
    /// The arguments of a wait without limit.
    pub(super) fn into_args(self, name: LockName, ttl: Ttl) -> AcquireArgs {
        AcquireArgs {
            name,
            others: Vec::new(),
            limit: None,
            shared: false,
            ttl,
            wait: None,
            conflict_exit_code: exit::BUSY,
            holder: self.holder,
            meta: self.meta,
        }
    }
}

/// The options that `run` and `acquire` share.
#[derive(Debug, Args)]
pub(super) struct AcquireOptions {
    /// Try once: wait neither for the lock nor for a database that is away
    #[arg(short, long, conflicts_with = "wait")]
    no_wait: bool,
    /// How long to wait for the lock, and for a database that is away: 0 to 10 years, or `inf`
    /// [default: inf]
    #[arg(short, long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::wait)]
    wait: Option<Ttl>,
    /// The exit code if another client has the lock: 0 to 255; with 0 `run` prints no message
    #[arg(short = 'E', long, value_name = "N", default_value_t = exit::BUSY,
          allow_hyphen_values = true, value_parser = values::exit_code)]
    conflict_exit_code: u8,
    /// Acquire one of N permits of the semaphore NAME: up to N holders at the same time, 1 to 65536
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = values::permits)]
    limit: Option<u32>,
    /// Share the lock with others that only read; one that acquires it without this option is alone
    #[arg(long, conflicts_with = "limit")]
    shared: bool,
    #[command(flatten)]
    holder: HolderOptions,
}

impl AcquireOptions {
    pub(super) fn into_args(self, name: LockName, ttl: Ttl) -> AcquireArgs {
        AcquireArgs {
            wait: match self.wait {
                _ if self.no_wait => Some(Duration::ZERO),
                Some(Ttl::Finite(limit)) => Some(limit),
                Some(Ttl::Infinite) | None => None,
            },
            conflict_exit_code: self.conflict_exit_code,
            limit: self.limit,
            shared: self.shared,
            ..self.holder.into_args(name, ttl)
        }
    }
}
