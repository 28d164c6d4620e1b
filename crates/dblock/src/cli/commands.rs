//! The grammar of the command line; what is said of each word is `--help`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use database_locks::{LockName, Ttl};

use super::task::{OnLost, Wish};
use super::{help, values};
use crate::exit;

/// Of the options in `--help`: what each command has stands below what is its own.
const LAST: usize = 900;

/// Run a command under a lock that lives in your SQL database
#[derive(Debug, Parser)]
#[command(name = "dblock", version, after_help = help::WHOLE, max_term_width = 100,
          disable_help_subcommand = true)]
pub(super) struct Cli {
    /// Where the locks are: sqlite:///path, postgres://…, mysql://… [env: DATABASE_LOCKS_URL]
    #[arg(long, global = true, display_order = LAST)]
    pub(super) url: Option<String>,
    /// A file with the URL, read at each connect [env: DATABASE_LOCKS_URL_FILE]
    #[arg(long, global = true, display_order = LAST, value_name = "FILE", conflicts_with = "url")]
    pub(super) url_file: Option<PathBuf>,
    /// The table, if it has another name than database_locks_lock: NAME or SCHEMA.NAME [env:
    /// DATABASE_LOCKS_TABLE]
    #[arg(long, global = true, display_order = LAST, value_name = "NAME")]
    pub(super) table: Option<String>,
    /// Report on stderr every wait, who holds the lock, and every outage
    #[arg(short, long, global = true, display_order = LAST, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Print errors only, and what was asked for
    #[arg(short, long, global = true, display_order = LAST)]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) command: Words,
}

#[derive(Debug, Subcommand)]
pub(super) enum Words {
    /// Run CMD while holding the lock NAME
    #[command(after_help = help::RUN, override_usage = "dblock run [OPTIONS] <NAME> -- <CMD>...")]
    Run(RunWords),
    /// Hold a lock across the steps of a script: prints the ticket to renew and release it with
    #[command(after_help = help::ACQUIRE)]
    Acquire {
        /// The lock: 1 to 255 characters
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// How long the lock is held unless it is renewed: 100ms to 10 years, or `inf`: until it
        /// is released [default: 10m]
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::ttl)]
        ttl: Option<Ttl>,
        #[command(flatten)]
        wish: WishWords,
        /// One JSON object: the ticket and all about the grant
        #[arg(long)]
        json: bool,
    },
    /// Go on holding a lock that was acquired
    #[command(after_help = help::RENEW)]
    Renew {
        /// The lock
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// The ticket, or `-`: the first line of standard input [default: $DBLOCK_TICKET]
        #[arg(long)]
        ticket: Option<String>,
        /// For how long from now on [default: as long as before]
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::ttl)]
        ttl: Option<Ttl>,
    },
    /// Give back a lock that was acquired, or by force take one from its holder
    #[command(after_help = help::RELEASE)]
    Release {
        /// The lock
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// The ticket, or `-`: the first line of standard input
        #[arg(long, conflicts_with = "force")]
        ticket: Option<String>,
        /// Take the lock from its holder. Make sure first that it is dead or stopped
        #[arg(long)]
        force: bool,
    },
    /// Show who holds what, since when, for how long yet, and what for
    #[command(after_help = help::LIST)]
    List {
        /// Free locks too
        #[arg(short, long)]
        all: bool,
        /// One JSON array: times in RFC 3339 UTC, durations in seconds, null for none or no end
        #[arg(long)]
        json: bool,
    },
    /// Show all about one lock; exit code 1 if it was never held
    #[command(after_help = help::SHOW)]
    Show {
        /// The lock
        #[arg(value_parser = values::lock_name)]
        name: LockName,
        /// One JSON object, as in `list`
        #[arg(long)]
        json: bool,
    },
    /// Make the table; a second run changes nothing
    #[command(after_help = help::INIT)]
    Init,
    /// Delete the rows of locks that have been free for long
    #[command(after_help = help::PRUNE)]
    Prune {
        /// For how long: 30d, 12h; 0 for all that are free
        #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::duration)]
        older_than: Duration,
        /// Free rows of django-database-locks 0.5 too, which do not say since when they are free
        #[arg(long, alias = "include-unknown")]
        include_legacy: bool,
    },
    /// Print what a shell needs to complete the words of dblock
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of dblock, or of one of its commands
    #[command(after_help = help::MAN)]
    Man {
        /// One of the commands
        command: Option<String>,
    },
    /// Look for what is wrong with the database, and say what to do; exit code 1 for an error
    #[command(after_help = help::DOCTOR)]
    Doctor {
        /// Exit code 1 for a warning too
        #[arg(long)]
        strict: bool,
        /// Leave this finding out, by its id: no-delete, standby-async, …; any number of times
        #[arg(long, value_name = "ID", value_parser = values::finding)]
        ignore: Vec<&'static str>,
        /// One JSON object: `checks`, what was looked at, and `findings`, with what to do
        #[arg(long)]
        json: bool,
    },
    /// Print the help of dblock, or of one of its commands
    #[command(after_help = help::HELP)]
    Help {
        /// One of the commands
        command: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct RunWords {
    /// The lock: 1 to 255 characters
    #[arg(value_parser = values::lock_name)]
    pub(super) name: LockName,
    /// What to run, and its arguments. There is no shell: for `|`, `>`, `$` use sh -c '…'
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(super) command: Vec<OsString>,
    /// How long the lock stays held when dblock dies: 100ms to 10 years, or `inf`: until
    /// it is released by force
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true, value_parser = values::ttl)]
    pub(super) ttl: Ttl,
    #[command(flatten)]
    pub(super) wish: WishWords,
    /// Go on with a lock that was acquired, whose ticket this is (`-`: the first line of standard
    /// input); it is released when CMD ends
    #[arg(long, conflicts_with_all = ["no_wait", "wait", "conflict_exit_code"])]
    pub(super) ticket: Option<String>,
    /// What happens to CMD when the lock is lost while it runs
    #[arg(long, value_name = "WHAT", default_value = "term")]
    pub(super) on_lost: OnLost,
    /// How long CMD has between TERM and KILL; less than half of the ttl [default: 5s, or a quarter
    /// of a ttl below 20s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::duration)]
    pub(super) grace: Option<Duration>,
}

/// What `run` and `acquire` have in common.
#[derive(Debug, Args)]
pub(super) struct WishWords {
    /// Do not wait: neither for the lock nor for a database that is away
    #[arg(short, long, conflicts_with = "wait")]
    no_wait: bool,
    /// How long to wait for the lock, and for a database that is away [default: as long as it takes]
    #[arg(short, long, value_name = "DURATION", allow_hyphen_values = true, value_parser = values::wait)]
    wait: Option<Ttl>,
    /// The exit code where another client has the lock; with 0 `run` prints nothing then
    #[arg(short = 'E', long, value_name = "N", default_value_t = exit::BUSY,
          allow_hyphen_values = true, value_parser = values::exit_code)]
    conflict_exit_code: u8,
    /// Who holds the lock, for people to read [default: host.pid.random]
    #[arg(long, alias = "owner", value_name = "WHO")]
    holder: Option<String>,
    /// Something to be shown with the lock; any number of times
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::key_and_value)]
    meta: Vec<(String, String)>,
}

impl WishWords {
    pub(super) fn of(self, name: LockName, ttl: Ttl) -> Wish {
        Wish {
            name,
            ttl,
            wait: match self.wait {
                _ if self.no_wait => Some(Duration::ZERO),
                Some(Ttl::Finite(limit)) => Some(limit),
                Some(Ttl::Infinite) | None => None,
            },
            busy_exit: self.conflict_exit_code,
            holder: self.holder,
            meta: self.meta,
        }
    }
}
