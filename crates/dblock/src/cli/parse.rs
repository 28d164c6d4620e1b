//! From the arguments of the process to a task.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use database_locks::LockName;

use super::commands::{Cli, Command, LeadOptions, RunOptions, parse_with_separator};
use super::task::{
    AcquireArgs, DEFAULT_ACQUIRE_TTL, GuardArgs, Invocation, RunArgs, Task, Verbosity,
};
use super::{generate, usage_error};
use crate::exit::Failure;
use crate::target::Target;
use crate::ticket::TicketSource;

/// Parses the arguments of the process.
///
/// # Errors
///
/// A usage error; also, with code 0, help and version, which have been printed.
pub(crate) fn parse_arguments() -> Result<Invocation, Failure> {
    parse(std::env::args_os().collect())
}

pub(super) fn parse(arguments: Vec<OsString>) -> Result<Invocation, Failure> {
    let (cli, names) =
        parse_words(&arguments).map_err(|error| usage_error::to_failure(error, &arguments))?;
    let Cli {
        url,
        url_file,
        table,
        verbose,
        quiet,
        command,
    } = cli;
    let verbosity = match (verbose, quiet) {
        (true, _) => Verbosity::Verbose,
        (_, true) => Verbosity::Quiet,
        _ => Verbosity::Normal,
    };
    Ok(Invocation {
        target: Target::new(url, url_file, table, |name| std::env::var_os(name))?,
        verbosity,
        task: with_names(task(command)?, names)?,
    })
}

/// The command line, and the names of a `run` that may have several.
fn parse_words(arguments: &[OsString]) -> Result<(Cli, Vec<LockName>), clap::Error> {
    if arguments.iter().any(|word| word == "--") {
        match parse_with_separator(arguments) {
            // In `run -- -NAME -- CMD` the first `--` precedes the name.
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {}
            parsed => return parsed,
        }
    }
    Ok((Cli::try_parse_from(arguments)?, Vec::new()))
}

/// The task, with all names of a `run`, each once.
fn with_names(task: Task, names: Vec<LockName>) -> Result<Task, Failure> {
    let Task::Run(mut run) = task else {
        return Ok(task);
    };
    for name in names {
        if !run.lock.names().any(|known| *known == name) {
            run.lock.others.push(name);
        }
    }
    let Some(other) = run.lock.others.first() else {
        return Ok(Task::Run(run));
    };
    let of_one = [
        ("--ticket", run.ticket.is_some()),
        ("--limit", run.lock.limit.is_some()),
        ("--shared", run.lock.shared),
        ("--at-least", !run.at_least.is_zero()),
        ("--once-per", run.once_per.is_some()),
    ];
    match of_one.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Failure::usage(format!(
            "{option} is for one lock, and `{other}` is a second one: leave it out"
        ))),
        None => Ok(Task::Run(run)),
    }
}

fn task(command: Command) -> Result<Task, Failure> {
    Ok(match command {
        Command::Run(run) => Task::Run(run_args(run)),
        Command::Lead(lead) => Task::Lead(lead_args(lead)),
        Command::Acquire {
            name,
            ttl,
            options,
            json,
        } => {
            let args = options.into_args(name, ttl.unwrap_or(DEFAULT_ACQUIRE_TTL.into()));
            refuse_success_without_the_lock(&args)?;
            Task::Acquire { args, json }
        }
        Command::Renew { name, ticket, ttl } => Task::Renew {
            name,
            ticket: ticket.map_or(TicketSource::Environment, TicketSource::from_option),
            ttl,
        },
        Command::Release {
            name,
            force: true,
            slot,
            shared,
            ..
        } => Task::ForceRelease { name, slot, shared },
        Command::Limit { name, limit } => Task::Limit { name, limit },
        Command::Release {
            name,
            ticket: Some(ticket),
            ..
        } => Task::Release {
            name,
            ticket: TicketSource::from_option(ticket),
        },
        Command::Release { name, .. } => {
            return Err(Failure::usage(format!(
                "lock `{name}` is not released: give --ticket, or --force if its holder is dead"
            )));
        }
        Command::List { all, json } => Task::List { all, json },
        Command::Guard {
            table: Some(table),
            lock: Some(lock),
            allow_cascades,
            ..
        } => Task::Guard(GuardArgs {
            table,
            lock,
            allow_cascades,
        }),
        Command::Guard { json, .. } => Task::Guards { json },
        Command::Unguard { table } => Task::Unguard { table },
        Command::Show { name, json } => Task::Show { name, json },
        Command::Init => Task::Init,
        Command::Prune(args) => Task::Prune(args),
        Command::Completions { shell } => Task::Print(generate::completions(Cli::command(), shell)),
        Command::Man { command } => {
            let page = generate::man(Cli::command(), command.as_deref());
            Task::Print(page.ok_or_else(|| unknown_command(command))?)
        }
        Command::Help { command } => return Err(help(command)),
        Command::Doctor(args) => Task::Doctor(args),
    })
}

fn run_args(run: RunOptions) -> RunArgs {
    RunArgs {
        lock: run.options.into_args(run.name, run.ttl),
        ticket: run.ticket.map(TicketSource::from_option),
        command: without_separator(run.command),
        at_least: run.at_least.unwrap_or_default(),
        once_per: run.once_per,
        on_lost: run.on_lost,
        pgoptions: run.pgoptions,
        leads: false,
        grace: run.grace,
    }
}

fn lead_args(lead: LeadOptions) -> RunArgs {
    RunArgs {
        lock: lead.options.into_args(lead.name, lead.ttl),
        ticket: None,
        command: without_separator(lead.command),
        at_least: Duration::ZERO,
        once_per: None,
        on_lost: lead.on_lost.into(),
        pgoptions: lead.pgoptions,
        leads: true,
        grace: lead.grace,
    }
}

/// In `run -- -NAME -- CMD` the first `--` precedes NAME, and clap leaves the second one in CMD.
fn without_separator(mut command: Vec<OsString>) -> Vec<OsString> {
    if command.len() > 1 && command[0] == "--" {
        command.remove(0);
    }
    command
}

/// Prints the output of `dblock COMMAND --help`.
fn help(command: Option<String>) -> Failure {
    if let Some(name) = &command
        && Cli::command().find_subcommand(name).is_none()
    {
        return unknown_command(command);
    }
    let arguments = ["dblock".to_owned()].into_iter().chain(command);
    let arguments = arguments.chain(["--help".to_owned()]);
    let arguments: Vec<OsString> = arguments.map(Into::into).collect();
    match Cli::try_parse_from(&arguments) {
        Err(help) => usage_error::to_failure(help, &arguments),
        Ok(_) => Failure::usage("there is no help"),
    }
}

fn unknown_command(name: Option<String>) -> Failure {
    let name = name.unwrap_or_default();
    Failure::usage(format!(
        "there is no command `{name}`; see `dblock --help` for all"
    ))
}

/// With exit code 0 for a held lock, a script would run on without the lock and with an empty
/// ticket.
fn refuse_success_without_the_lock(args: &AcquireArgs) -> Result<(), Failure> {
    match args.conflict_exit_code {
        0 => Err(Failure::usage(
            "-E 0 would let the script run on without the lock: leave it out, and have the script \
             end where `dblock acquire` ends with 75, as in `TICKET=$(dblock acquire -n NAME) || exit 0`",
        )),
        _ => Ok(()),
    }
}
