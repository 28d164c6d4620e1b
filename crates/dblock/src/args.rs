//! From words to typed options; nothing below this sees clap.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use database_locks::{LockName, Ttl, parse_duration};

use crate::exit::{self, Failure};
use crate::place::Place;
use crate::ticket::TicketFrom;
use crate::{output, pages};

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
  dblock help run                               all about one command
  dblock doctor                                 what is wrong with the database, what to do

Without a URL the locks are kept in a file that is made when it is needed,
$XDG_STATE_HOME/dblock/locks.sqlite3 or ~/.local/state/dblock/locks.sqlite3:
they exclude the processes of this user on this machine. With a URL of a database
server they exclude everybody who uses the same table; make it with `dblock init`.

Exit codes:
  0    done                            75   somebody else has the lock (run, acquire; see -E)
  1    show: no such lock;             76   the lock was lost, CMD was stopped (run);
       doctor: something is wrong           or the ticket is dead
  2    usage, a bad URL or setting    126   CMD cannot be run (run)
  69   the database cannot be         127   CMD is not there (run)
       reached, or refuses            128+n signal n has ended it
  `run` ends with the exit code of CMD in all other cases.

Environment:
  DATABASE_LOCKS_URL   the database, unless --url is given; better than --url for a URL
                       with a password, since everybody can see a process's arguments
  XDG_STATE_HOME       where the file is kept without a URL
  NO_COLOR             if it is set, no colours in a terminal";

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

CMD may give the lock back before it ends, with `dblock release` and its ticket: it goes on
without being stopped, and others can have the lock.

Durations: 500ms, 30s, 5m, 2h, 1d, or bare seconds (30, 1.5); `inf` is without end.

Exit codes: CMD's own; 128+n when signal n has ended CMD, or dblock before CMD was started;
75 (or -E) somebody else has the lock; 76 lost, CMD was stopped, or the ticket is dead; 69 the
database cannot be reached, or refuses; 2 usage; 126 CMD cannot be run; 127 CMD is not there.

Environment of CMD:
  DBLOCK_NAME    NAME
  DBLOCK_TOKEN   a number that grows with each grant of the lock: store it with what CMD
                 writes, and refuse a smaller one
  DBLOCK_GRANT   the random id of this grant
  DBLOCK_HOLDER  who holds it, as `dblock list` shows it
  DBLOCK_TICKET  all it takes to release this lock, or to go on with it: keep it to yourself

Examples:
  dblock run deploy -- make deploy
  dblock run -w 10m --ttl 1m deploy -- make deploy
  dblock run -n backup --meta why=weekly -- sh -c 'pg_dump app > /backup/app.sql'
  dblock run report -- sh -c './make.sh && dblock release report --ticket \"$DBLOCK_TICKET\" && ./mail.sh'
  printf '%s\\n' \"$TICKET\" | dblock run deploy --ticket - -- make deploy";

const ACQUIRE_AFTER_HELP: &str = "\
Prints the ticket, and nothing else, on standard output. Where one command will do, `dblock run`
is better: it renews the lock, notices when it is lost, and frees it when it is killed.

Nobody renews what was acquired so. When the ttl ends, others can have the lock, and nobody
tells you: renew in time, and before a step that must not run beside another one. `renew` ends
with 76 if it is too late. With a long ttl, others wait that long for a script that has crashed,
or until somebody releases the lock by force. Hence the default of 10 minutes, and not the 30
seconds of `run`.

The ticket goes on with the lock anywhere: `renew`, `release` and `run --ticket` on any machine
that uses the same database, or the library. Whoever reads it can release the lock. Arguments
can be read by everybody on a machine: `--ticket -` reads it from standard input instead.

--json prints one object: ticket, name, token, grant, holder, expires_at (RFC 3339 UTC, by the
clock of the database) and free_in (seconds); the last two are null for a ttl without end.

Exit codes: 0 acquired; 75 (or -E) somebody else has the lock; 1 the ticket could not be printed
(the lock is released again); 69 the database cannot be reached, or refuses; 2 usage.

Examples:
  TICKET=$(dblock acquire deploy -w 5m --ttl 20m) || exit
  trap 'dblock release deploy --ticket \"$TICKET\"' EXIT
  ./build.sh
  dblock renew deploy --ticket \"$TICKET\" || exit
  ./publish.sh";

const RENEW_AFTER_HELP: &str = "\
The lock is held for the ttl from now on, or longer if it was before: renewing never shortens.

Exit codes: 0 renewed; 76 the ticket is dead: the lease has expired, or the lock was released,
taken up or taken over; nothing is changed then. 69 the database cannot be reached, or refuses;
2 usage.

Examples:
  dblock renew deploy --ticket \"$TICKET\"
  dblock renew deploy --ticket \"$TICKET\" --ttl 1h
  printf '%s\\n' \"$TICKET\" | dblock renew deploy --ticket -
  dblock run deploy -- sh -c './step1 && dblock renew deploy --ttl 2h && ./step2'";

const RELEASE_AFTER_HELP: &str = "\
One of --ticket and --force must be given: a ticket in the environment (DBLOCK_TICKET) is not
used by itself.

By force a lock is taken from whoever has it. The holder goes on with its work until its next
renewal (a third of its ttl) tells it: make sure first that it is dead, or stopped.

Exit codes: 0 released, or, with --force, free already; 76 the ticket is dead: the lock was
released, taken up or taken over; nothing is changed then. 69 the database cannot be reached, or
refuses; 2 usage.

Examples:
  dblock release deploy --ticket \"$TICKET\"
  printf '%s\\n' \"$TICKET\" | dblock release deploy --ticket -
  dblock release nightly --force";

const LIST_AFTER_HELP: &str = "\
States: held; expired (its holder did not renew it, whoever comes next gets it); free.

Of each lock --json has: name, state, holder (or the last one), token, grant, held_for and
free_in (seconds; null where there is none, or no end), acquired_at, renewed_at, expires_at
(RFC 3339 UTC, by the clock of the database), metadata (what the holder says of itself).

Examples:
  dblock list
  dblock list --all
  dblock list --json | jq -r '.[] | select(.held_for > 3600) | .name'";

const SHOW_AFTER_HELP: &str = "\
Examples:
  dblock show nightly
  dblock show nightly --json | jq .free_in";

const PRUNE_AFTER_HELP: &str = "\
A lock leaves a row behind when it is released, and one that names a lock after a date or a
customer leaves many. Deleting them changes nothing about the locks: tokens go on growing if
such a lock is used again. What is held is never deleted.

Examples:
  dblock prune --older-than 30d
  dblock prune --older-than 1d --include-unknown";

const INIT_AFTER_HELP: &str = "\
Needs the right to create tables; all other commands need to read, insert and update (`prune`:
to delete). A table of django-database-locks 0.5 gets what it lacks and goes on working with it.
The file that is used without a URL needs no init.

Examples:
  DATABASE_LOCKS_URL=postgres://admin:password@db.example/app dblock init
  dblock --table ops.locks init";

const COMPLETIONS_AFTER_HELP: &str = "\
Examples:
  bash   dblock completions bash > ~/.local/share/bash-completion/completions/dblock
  zsh    dblock completions zsh > ~/.zfunc/_dblock       (with fpath+=~/.zfunc before compinit)
  fish   dblock completions fish > ~/.config/fish/completions/dblock.fish";

const MAN_AFTER_HELP: &str = "\
Examples:
  dblock man run | man -l -
  dir=~/.local/share/man/man1; mkdir -p $dir
  dblock man > $dir/dblock.1; dblock man run > $dir/dblock-run.1";

const DOCTOR_AFTER_HELP: &str = "\
It looks at the connection, the rights of this user, the table, the clock, durability, replicas,
timeouts and the locks themselves. It changes nothing and needs no special rights: what this
user may not see is `unseen`, and no finding.

  ok       is as it should be
  unseen   could not be looked at, and why
  problem  locks cannot be used, or a promise is not kept; `do` says what to do about it
  advice   locks work, and could do better; `do` says how

Exit codes: 0 nothing was found; 1 something was; 69 the database cannot be reached, or is
refused: a read-only one, one that is too old, a cluster with several primaries.

Examples:
  dblock doctor
  dblock doctor --json | jq -r '.findings[] | .id'";

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
    /// Hold a lock across the steps of a script: prints the ticket to renew and release it with
    #[command(after_help = ACQUIRE_AFTER_HELP)]
    Acquire {
        /// The lock: 1 to 255 characters
        #[arg(value_parser = lock_name)]
        name: LockName,
        /// How long the lock is held unless it is renewed: 100ms to 10 years, or `inf`: until it
        /// is released [default: 10m]
        #[arg(long, value_name = "DURATION", value_parser = ttl)]
        ttl: Option<Ttl>,
        #[command(flatten)]
        wish: WishWords,
        /// One JSON object: the ticket and all about the grant
        #[arg(long)]
        json: bool,
    },
    /// Go on holding a lock that was acquired
    #[command(after_help = RENEW_AFTER_HELP)]
    Renew {
        /// The lock
        #[arg(value_parser = lock_name)]
        name: LockName,
        /// The ticket, or `-`: the first line of standard input [default: $DBLOCK_TICKET]
        #[arg(long)]
        ticket: Option<String>,
        /// For how long from now on [default: as long as before]
        #[arg(long, value_name = "DURATION", value_parser = ttl)]
        ttl: Option<Ttl>,
    },
    /// Give back a lock that was acquired, or take one from whoever has it
    #[command(after_help = RELEASE_AFTER_HELP)]
    Release {
        /// The lock
        #[arg(value_parser = lock_name)]
        name: LockName,
        /// The ticket, or `-`: the first line of standard input
        #[arg(long, conflicts_with = "force")]
        ticket: Option<String>,
        /// Whoever has it. Make sure first that it is dead or stopped
        #[arg(long)]
        force: bool,
    },
    /// Show who holds what, since when, for how long yet, and what for
    #[command(after_help = LIST_AFTER_HELP)]
    List {
        /// Free locks too
        #[arg(short, long)]
        all: bool,
        /// One JSON array: times in RFC 3339 UTC, durations in seconds, null for none or no end
        #[arg(long)]
        json: bool,
    },
    /// Show all about one lock; exit code 1 if nobody ever locked it
    #[command(after_help = SHOW_AFTER_HELP)]
    Show {
        /// The lock
        #[arg(value_parser = lock_name)]
        name: LockName,
        /// One JSON object, as in `list`
        #[arg(long)]
        json: bool,
    },
    /// Make the table; a second run changes nothing
    #[command(after_help = INIT_AFTER_HELP)]
    Init,
    /// Delete the rows of locks that nobody has had for long
    #[command(after_help = PRUNE_AFTER_HELP)]
    Prune {
        /// For how long: 30d, 12h
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        older_than: Duration,
        /// Free rows too of which nobody knows since when: those of django-database-locks 0.5
        #[arg(long)]
        include_unknown: bool,
    },
    /// Print what a shell needs to complete the words of dblock
    #[command(after_help = COMPLETIONS_AFTER_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of dblock, or of one of its commands
    #[command(after_help = MAN_AFTER_HELP)]
    Man {
        /// One of the commands
        command: Option<String>,
    },
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
    #[command(flatten)]
    wish: WishWords,
    /// Go on with a lock that was acquired, whose ticket this is (`-`: the first line of standard
    /// input); it is released when CMD ends
    #[arg(long, conflicts_with_all = ["no_wait", "wait", "conflict_exit_code"])]
    ticket: Option<String>,
    /// What happens to CMD when the lock is lost while it runs
    #[arg(long, value_name = "WHAT", default_value = "term")]
    on_lost: OnLost,
    /// How long CMD has between TERM and KILL; less than half of the ttl
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    grace: Duration,
}

/// What `run` and `acquire` have in common.
#[derive(Debug, Args)]
struct WishWords {
    /// Do not wait for the lock if somebody has it
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
}

impl WishWords {
    fn of(self, name: LockName, ttl: Ttl) -> Wish {
        Wish {
            name,
            ttl,
            wait: match self.wait {
                _ if self.no_wait => Some(Duration::ZERO),
                Some(Ttl::Lasting(limit)) => Some(limit),
                Some(Ttl::Endless) | None => None,
            },
            busy_exit: self.conflict_exit_code,
            owner: self.owner,
            meta: self.meta,
        }
    }
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
    } = Cli::try_parse_from(&words).map_err(|error| refused(error, &words))?;
    let task = match command {
        Words::Run(run) => Task::Run(Job {
            wish: run.wish.of(run.name, run.ttl),
            ticket: run.ticket.map(TicketFrom::words),
            command: run.command,
            on_lost: run.on_lost,
            grace: run.grace,
        }),
        Words::Acquire {
            name,
            ttl,
            wish,
            json,
        } => Task::Acquire {
            wish: wish.of(name, ttl.unwrap_or(DEFAULT_HAND_TTL.into())),
            json,
        },
        Words::Renew { name, ticket, ttl } => Task::Renew {
            name,
            ticket: ticket.map_or(TicketFrom::Variable, TicketFrom::words),
            ttl,
        },
        Words::Release {
            name, force: true, ..
        } => Task::Force { name },
        Words::Release {
            name,
            ticket: Some(ticket),
            ..
        } => Task::Release {
            name,
            ticket: TicketFrom::words(ticket),
        },
        Words::Release { name, .. } => {
            return Err(Failure::usage(format!(
                "lock `{name}` is released by its holder when that ends, or with the ticket that \
                 `dblock acquire` gave (--ticket); if its holder is dead, take the lock from it \
                 with `dblock release --force`"
            )));
        }
        Words::List { all, json } => Task::List { all, json },
        Words::Show { name, json } => Task::Show { name, json },
        Words::Init => Task::Init,
        Words::Prune {
            older_than,
            include_unknown,
        } => Task::Prune {
            idle: older_than,
            unknown: include_unknown,
        },
        Words::Completions { shell } => Task::Print(pages::completions(Cli::command(), shell)),
        Words::Man { command } => {
            let page = pages::man(Cli::command(), command.as_deref());
            Task::Print(page.ok_or_else(|| {
                Failure::usage("there is no such command; see `dblock --help` for all of them")
            })?)
        }
        Words::Doctor { json } => Task::Doctor { json },
    };
    Ok(Invocation {
        place: Place { url, table },
        task,
    })
}

fn refused(error: clap::Error, words: &[OsString]) -> Failure {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::help(&styled(&error, output::on_stdout()), false);
            Failure::new(0, "")
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::help(&styled(&error, output::on_stderr()), true);
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
            // Advice that is right only for whoever wants a word that looks like an option.
            let text = text.split("\n  tip: to pass ").next().unwrap_or_default();
            let said: Vec<&str> = text.split_whitespace().collect();
            let line = said.join(" ");
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            // clap puts its advice below, as a sentence of its own.
            let line = line.replace(" tip: ", ": ");
            Failure::usage(format!("{line}; see `{} --help`", command_of(words)))
        }
    }
}

fn styled(help: &clap::Error, colours: bool) -> String {
    match colours {
        true => help.render().ansi().to_string(),
        false => help.render().to_string(),
    }
}

/// The command whose help is the one to read.
fn command_of(words: &[OsString]) -> String {
    let cli = Cli::command();
    let mut words = words.iter().filter_map(|word| word.to_str());
    match words.find_map(|word| cli.find_subcommand(word)) {
        Some(command) => format!("dblock {}", command.get_name()),
        None => "dblock".to_owned(),
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
            assert_eq!(job.wish.wait, Some(Duration::ZERO), "{words}");
            assert_eq!(
                job.command,
                ["cmd", "-n", "--ttl", "1", "--", "x", "--"],
                "{words}"
            );
            assert_eq!(
                job.wish.ttl,
                Ttl::Lasting(Duration::from_secs(30)),
                "{words}"
            );
        }
    }

    #[test]
    fn a_wait_may_be_none_some_or_without_end() {
        assert_eq!(job("dblock run j -- c").wish.wait, None);
        assert_eq!(job("dblock run -w inf j -- c").wish.wait, None);
        assert_eq!(
            job("dblock run -w 1.5 j -- c").wish.wait,
            Some(Duration::from_millis(1500))
        );
        assert_eq!(
            job("dblock run -w 0 j -- c").wish.wait,
            Some(Duration::ZERO)
        );
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
