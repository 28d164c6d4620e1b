//! From the arguments of the process to a task.

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser as _};

use super::commands::{Cli, Command};
use super::task::{
    AcquireArgs, DEFAULT_ACQUIRE_TTL, DoctorArgs, Invocation, PruneArgs, RunArgs, Task, Verbosity,
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
    let Cli {
        url,
        url_file,
        table,
        verbose,
        quiet,
        command,
    } = Cli::try_parse_from(&arguments)
        .map_err(|error| usage_error::to_failure(error, &arguments))?;
    let verbosity = match (verbose, quiet) {
        (true, _) => Verbosity::Verbose,
        (_, true) => Verbosity::Quiet,
        _ => Verbosity::Normal,
    };
    Ok(Invocation {
        target: Target::new(url, url_file, table, |name| std::env::var_os(name))?,
        verbosity,
        task: task(command)?,
    })
}

fn task(command: Command) -> Result<Task, Failure> {
    Ok(match command {
        Command::Run(run) => Task::Run(RunArgs {
            lock: run.options.into_args(run.name, run.ttl),
            ticket: run.ticket.map(TicketSource::from_option),
            command: without_separator(run.command),
            on_lost: run.on_lost,
            leads: false,
            grace: run.grace,
        }),
        Command::Lead(lead) => Task::Lead(RunArgs {
            lock: lead.options.into_args(lead.name, lead.ttl),
            ticket: None,
            command: without_separator(lead.command),
            on_lost: lead.on_lost.into(),
            leads: true,
            grace: lead.grace,
        }),
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
            name, force: true, ..
        } => Task::ForceRelease { name },
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
        Command::Show { name, json } => Task::Show { name, json },
        Command::Init => Task::Init,
        Command::Prune {
            older_than,
            include_legacy,
        } => Task::Prune(PruneArgs {
            older_than,
            include_legacy,
        }),
        Command::Completions { shell } => Task::Print(generate::completions(Cli::command(), shell)),
        Command::Man { command } => {
            let page = generate::man(Cli::command(), command.as_deref());
            Task::Print(page.ok_or_else(|| unknown_command(command))?)
        }
        Command::Help { command } => return Err(help(command)),
        Command::Doctor {
            json,
            strict,
            ignore,
        } => Task::Doctor(DoctorArgs {
            json,
            strict,
            ignored: ignore,
        }),
    })
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
