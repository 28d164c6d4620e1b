//! From words to typed options; nothing below this sees clap.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use database_locks::{LockName, Ttl, parse_duration};

use crate::exit::{self, Failure};
use crate::output;
use crate::place::Place;

/// What is to be done, and where.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) place: Place,
    pub(crate) task: Task,
}

#[derive(Debug)]
pub(crate) enum Task {
    Run(Job),
    List { all: bool, json: bool },
    Show { name: LockName, json: bool },
    Release { name: LockName },
    Init,
    Doctor { json: bool },
}

/// A command to be run under a lock.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) name: LockName,
    pub(crate) command: Vec<OsString>,
    pub(crate) ttl: Ttl,
    /// None: as long as it takes; zero: try once.
    pub(crate) wait: Option<Duration>,
    pub(crate) busy_exit: u8,
    pub(crate) owner: Option<String>,
    pub(crate) meta: Vec<(String, String)>,
    pub(crate) on_lost: OnLost,
    grace: Duration,
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

const AFTER_HELP: &str = "\
Examples:
  dblock run nightly -- ./report.sh             wait for the lock, run the report
  dblock run -n nightly -- ./report.sh          skip it if somebody else is at it (exit 75)
  dblock run -n -E 0 nightly -- ./report.sh     the same for cron: that is no failure
  dblock list                                   who holds what
  dblock release nightly --force                after its holder is known to be dead
  dblock doctor                                 what is wrong with the database, what to do

Without a URL the locks are kept in a file that is made when it is needed,
$XDG_STATE_HOME/dblock/locks.sqlite3 or ~/.local/state/dblock/locks.sqlite3:
they exclude the processes of this user on this machine. With a URL of a database
server they exclude everybody who uses the same table; make it with `dblock init`.

Exit codes:
  0    done                            75   somebody else has the lock (run; see -E)
  1    show: no such lock;             76   the lock was lost, CMD was stopped (run)
       doctor: something is wrong     126   CMD cannot be run (run)
  2    usage, a bad URL or setting    127   CMD is not there (run)
  69   the database cannot be         128+n signal n has ended it
       reached, or refuses
  `run` ends with the exit code of CMD in all other cases.

Environment:
  DATABASE_LOCKS_URL   the database, unless --url is given; better than --url for a URL
                       with a password, since everybody can see a process's arguments
  XDG_STATE_HOME       where the file is kept without a URL";

const RUN_AFTER_HELP: &str = "\
CMD runs in a process group of its own, with its standard input, output and error untouched.
TERM, INT, HUP, QUIT, USR1, USR2 and the like that are sent to dblock go on to that group, and
the lock is freed after CMD has ended, not before. A signal that was ignored when dblock
started (nohup) stays ignored.

The lock is a lease: it is renewed while CMD runs. If it cannot be, because the database is
away, the machine was frozen, or somebody released it by force, then CMD is stopped, and dblock
ends with 76. The whole group gets TERM, and KILL after the grace, before the lease ends and
somebody else can have the lock: hence the ttl must be more than twice the grace.

If dblock itself is killed with -9, CMD is ended too (Linux); processes that CMD has started
may survive, and so may a CMD that changes its user (sudo). The lock is free when the ttl ends.

Environment of CMD:
  DBLOCK_NAME    NAME
  DBLOCK_TOKEN   a number that grows with each grant of the lock: store it with what CMD
                 writes, and refuse a smaller one
  DBLOCK_GRANT   the random id of this grant
  DBLOCK_HOLDER  who holds it, as `dblock list` shows it
  DBLOCK_TICKET  all it takes to go on with this lock elsewhere: keep it to yourself

Durations: 500ms, 30s, 5m, 2h, 1d, or bare seconds (30, 1.5); `inf` is without end.

Exit codes: CMD's own; 128+n when signal n has ended CMD, or dblock before CMD was started;
75 (or -E) somebody else has the lock; 76 lost, CMD was stopped; 69 the database cannot be
reached, or refuses; 2 usage; 126 CMD cannot be run; 127 CMD is not there.

Examples:
  dblock run deploy -- make deploy
  dblock run -w 10m --ttl 1m deploy -- make deploy
  dblock run -n backup --meta why=weekly -- sh -c 'pg_dump app > /backup/app.sql'";

const DOCTOR_AFTER_HELP: &str = "\
It looks at the connection, the rights of this user, the table, the clock, durability, replicas,
timeouts and the locks themselves. It changes nothing and needs no special rights: what this
user may not see is `unseen`, and no finding.

  ok       is as it should be
  unseen   could not be looked at, and why
  problem  locks cannot be used, or a promise is not kept; `do` says what to do about it
  advice   locks work, and could do better; `do` says how

Exit codes: 0 nothing was found; 1 something was; 69 the database cannot be reached, or is
refused: a read-only one, one that is too old, a cluster with several primaries.";

/// Run a command under a lock that lives in your SQL database
#[derive(Debug, Parser)]
#[command(name = "dblock", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// Where the locks are: sqlite:///path, postgres://…, mysql://… [env: DATABASE_LOCKS_URL]
    #[arg(long, global = true, env = "DATABASE_LOCKS_URL", hide_env = true)]
    url: Option<String>,
    /// The table, if it has another name than database_locks_lock: NAME or SCHEMA.NAME
    #[arg(long, global = true, value_name = "NAME")]
    table: Option<String>,
    #[command(subcommand)]
    command: Words,
}

#[derive(Debug, Subcommand)]
enum Words {
    /// Run CMD while holding the lock NAME
    #[command(after_help = RUN_AFTER_HELP)]
    Run(RunWords),
    /// Show who holds what, since when, for how long yet, and what for
    List {
        /// Free locks too
        #[arg(short, long)]
        all: bool,
        /// One JSON array: times in RFC 3339 UTC, durations in seconds, null for none or no end
        #[arg(long)]
        json: bool,
    },
    /// Show all about one lock; exit code 1 if nobody ever locked it
    Show {
        /// The lock
        #[arg(value_parser = lock_name)]
        name: LockName,
        /// One JSON object, as in `list`
        #[arg(long)]
        json: bool,
    },
    /// Take a lock from whoever has it
    Release {
        /// The lock
        #[arg(value_parser = lock_name)]
        name: LockName,
        /// Make sure first that the holder is dead or stopped: it goes on until its next renewal
        #[arg(long)]
        force: bool,
    },
    /// Make the table; a second run changes nothing
    Init,
    /// Look for what is wrong with the database, and say what to do; exit code 1 if something is
    #[command(after_help = DOCTOR_AFTER_HELP)]
    Doctor {
        /// One JSON object: `checks`, what was looked at, and `findings`, with what to do
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunWords {
    /// The lock: 1 to 255 characters
    #[arg(value_parser = lock_name)]
    name: LockName,
    /// What to run, and its arguments. There is no shell: for `|`, `>`, `$` use sh -c '…'
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
    /// How long the lock stays held when dblock dies: 100ms to 10 years, or `inf`: until
    /// somebody releases it by force
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = ttl)]
    ttl: Ttl,
    /// Do not wait for the lock: if somebody has it, run nothing
    #[arg(short, long, conflicts_with = "wait")]
    no_wait: bool,
    /// How long to wait for the lock [default: as long as it takes]
    #[arg(short, long, value_name = "DURATION", value_parser = ttl)]
    wait: Option<Ttl>,
    /// The exit code for when somebody else has the lock
    #[arg(short = 'E', long, value_name = "N", default_value_t = exit::BUSY)]
    conflict_exit_code: u8,
    /// Who holds the lock, for people to read [default: host.pid.random]
    #[arg(long, value_name = "WHO")]
    owner: Option<String>,
    /// Something to be shown with the lock; any number of times
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    meta: Vec<(String, String)>,
    /// What happens to CMD when the lock is lost while it runs
    #[arg(long, value_name = "WHAT", default_value = "term")]
    on_lost: OnLost,
    /// How long CMD has between TERM and KILL; less than half of the ttl
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    grace: Duration,
}

fn lock_name(text: &str) -> Result<LockName, String> {
    LockName::new(text).map_err(said)
}

fn ttl(text: &str) -> Result<Ttl, String> {
    text.parse()
        .map_err(|error| format!("{}, or inf", said(error)))
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(said)
}

/// Only the rule: clap says what was given, and where.
fn said(error: database_locks::Error) -> String {
    match error {
        database_locks::Error::Config { allowed, .. } => format!("must be {allowed}"),
        other => other.chain(),
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

/// Read the words of the command line.
///
/// # Errors
///
/// Help and version end the program as well, with 0; they have been printed then.
pub(crate) fn read() -> Result<Invocation, Failure> {
    parse(std::env::args_os().collect())
}

fn parse(words: Vec<OsString>) -> Result<Invocation, Failure> {
    let Cli {
        url,
        table,
        command,
    } = Cli::try_parse_from(words).map_err(refused)?;
    let task = match command {
        Words::Run(run) => Task::Run(Job {
            name: run.name,
            command: run.command,
            ttl: run.ttl,
            wait: match run.wait {
                _ if run.no_wait => Some(Duration::ZERO),
                Some(Ttl::Lasting(limit)) => Some(limit),
                Some(Ttl::Endless) | None => None,
            },
            busy_exit: run.conflict_exit_code,
            owner: run.owner,
            meta: run.meta,
            on_lost: run.on_lost,
            grace: run.grace,
        }),
        Words::List { all, json } => Task::List { all, json },
        Words::Show { name, json } => Task::Show { name, json },
        Words::Release { name, force: true } => Task::Release { name },
        Words::Release { name, force: false } => {
            return Err(Failure::usage(format!(
                "lock `{name}` is released by its holder when that ends: stop it, or, if it is \
                 dead, take the lock from it with `dblock release --force`"
            )));
        }
        Words::Init => Task::Init,
        Words::Doctor { json } => Task::Doctor { json },
    };
    Ok(Invocation {
        place: Place { url, table },
        task,
    })
}

fn refused(error: clap::Error) -> Failure {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::help(&error.to_string(), false);
            Failure::new(0, "")
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::help(&error.to_string(), true);
            Failure::usage("")
        }
        _ => {
            // What it says is of several lines, with the whole usage below.
            let text = error.to_string();
            let text = text.split("\n\nUsage:").next().unwrap_or_default();
            let text = text
                .split("\n\nFor more information")
                .next()
                .unwrap_or_default();
            let words: Vec<&str> = text.split_whitespace().collect();
            let line = words.join(" ");
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            Failure::usage(format!("{line}; see `dblock --help`, `dblock run --help`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(words: &str) -> Job {
        match parse(words.split(' ').map(Into::into).collect()).map(|read| read.task) {
            Ok(Task::Run(job)) => job,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(words: &str) -> String {
        let failure = parse(words.split(' ').map(Into::into).collect()).unwrap_err();
        assert_eq!(failure.code, 2, "{failure:?}");
        failure.said
    }

    #[test]
    fn the_grammar_holds_together() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_comes_after_the_command_belongs_to_the_command() {
        for words in [
            "dblock run -n job -- cmd -n --ttl 1 -- x --",
            "dblock run job -n -- cmd -n --ttl 1 -- x --",
            "dblock run -n job cmd -n --ttl 1 -- x --",
            "dblock run job -n cmd -n --ttl 1 -- x --",
        ] {
            let job = job(words);
            assert_eq!(job.wait, Some(Duration::ZERO), "{words}");
            assert_eq!(
                job.command,
                ["cmd", "-n", "--ttl", "1", "--", "x", "--"],
                "{words}"
            );
            assert_eq!(job.ttl, Ttl::Lasting(Duration::from_secs(30)), "{words}");
        }
    }

    #[test]
    fn a_wait_may_be_none_some_or_without_end() {
        assert_eq!(job("dblock run j -- c").wait, None);
        assert_eq!(job("dblock run -w inf j -- c").wait, None);
        assert_eq!(
            job("dblock run -w 1.5 j -- c").wait,
            Some(Duration::from_millis(1500))
        );
        assert_eq!(job("dblock run -w 0 j -- c").wait, Some(Duration::ZERO));
    }

    #[test]
    fn without_a_term_there_is_no_grace() {
        assert_eq!(job("dblock run j -- c").grace(), Duration::from_secs(5));
        assert_eq!(
            job("dblock run --on-lost kill j -- c").grace(),
            Duration::ZERO
        );
    }

    #[test]
    fn a_refusal_is_one_line_that_says_what_is_allowed() {
        let said = refusal("dblock run --ttl soon j -- c");
        assert!(
            said.contains("'soon' for '--ttl <DURATION>': must be a number with ms"),
            "{said}"
        );
        assert!(refusal("dblock run -E 256 j -- c").contains("0..=255"));
        assert!(refusal("dblock run --meta x j -- c").contains("KEY=VALUE"));
        assert!(refusal("dblock run j").contains("<CMD>"));
        assert!(refusal("dblock run -n -w 3 j -- c").contains("cannot be used with"));
        for line in [
            refusal("dblock run"),
            refusal("dblock nope"),
            refusal("dblock list --nope"),
        ] {
            assert!(!line.contains('\n') && line.contains("--help"), "{line}");
        }
        assert!(refusal("dblock release j").contains("--force"));
    }
}
