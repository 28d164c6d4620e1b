//! `dblock run NAME… -- CMD…`

mod finish;
mod held;
mod margin;
mod supervisor;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use database_locks::{LockGuard, Locks};

use crate::cli::RunArgs;
use crate::exit::{self, Failure};
use crate::names;
use crate::notices::Notices;
use crate::output::without_secrets;
use crate::process::{Child, End, Ignored, Signals, Terminal, program};
use crate::target::Target;
use crate::ticket;

use self::finish::finish;
use self::held::Held;
pub(super) use self::margin::margin;
use self::supervisor::{Outcome, Supervisor};
use super::acquire_lock::{acquire_lock, cannot_listen};
use super::nested;
use super::pgoptions;
use super::release_notice::ReleaseNotice;
use super::wanted::Settings;

/// Acquires the lock or the locks, runs CMD and releases them, in this order.
pub(crate) async fn run(target: &Target, args: RunArgs, notices: &Notices) -> Result<u8, Failure> {
    if args.pgoptions {
        pgoptions::check(target)?;
    }
    let ticket = match &args.ticket {
        Some(source) => Some(source.read(&args.lock.name)?),
        None => None,
    };
    let ignored = Ignored::at_start();
    let mut signals = Signals::listen(ignored).map_err(cannot_listen)?;
    let margin = margin(args.lock.ttl, args.grace())?;
    check_program(&args)?;

    // For the `dblock run` of the ticket, the resumption is a release and no loss.
    let notice = ticket.as_ref().map(ReleaseNotice::begin);
    let acquired = acquire_lock(
        target,
        &args.lock,
        ticket.as_ref(),
        &mut signals,
        notices,
        settings(&args, margin),
    );
    let (locks, guards) = acquired.await?;
    if let Some(notice) = notice {
        notice.done();
    }
    let done = run_command(&args, &locks, guards, notices, &mut signals, ignored).await?;
    Ok(done.code)
}

/// The settings of the lock or the locks. They show the program, without its arguments, which may
/// contain passwords.
pub(super) fn settings(args: &RunArgs, margin: Duration) -> Settings {
    let program = (args.command.first())
        .map(Path::new)
        .and_then(Path::file_name);
    Settings {
        command: program.map(|program| program.to_string_lossy().into_owned()),
        margin: Some(margin),
        at_least: args.at_least,
        once_per: args.once_per,
    }
}

/// CMD has ended, and the lock is released or lost.
pub(super) struct Done {
    /// The exit code of CMD, or [`exit::LOST`].
    pub(super) code: u8,
    pub(super) is_lost: bool,
    /// The signal that ended CMD, if CMD had the terminal, where Ctrl-C sends it to CMD alone.
    pub(super) at_terminal: Option<i32>,
    /// The signal that ended CMD.
    pub(super) by_signal: Option<i32>,
}

/// Runs CMD under the lock or the locks until it has ended, and then releases them or reports a loss.
pub(super) async fn run_command(
    args: &RunArgs,
    locks: &Locks,
    guards: Vec<LockGuard>,
    notices: &Notices,
    signals: &mut Signals,
    ignored: Ignored,
) -> Result<Done, Failure> {
    signals.listen_to_all().map_err(cannot_listen)?;
    let held: Vec<Held> = guards.into_iter().map(Held::new).collect();
    let terminal = Terminal::open();
    // Ctrl-C has to reach a `dblock` that would start CMD again.
    let of_child = terminal.as_ref().filter(|_| !args.leads);
    let child = match start(args, &held, ignored, of_child) {
        Ok(child) => child,
        Err(failure) => {
            // Only the failure to start is reported.
            for one in held {
                let _ = one.guard.release().await;
            }
            return Err(failure);
        }
    };

    let mut supervisor = Supervisor::new(args, held, notices, child, signals, terminal);
    let outcome = supervisor.supervise().await;
    notices.lock_is_over();
    let is_lost = matches!(outcome, Outcome::Stopped(..));
    let by_signal = match outcome {
        Outcome::Ended(End::Signal(signal)) => Some(signal),
        _ => None,
    };
    let had_terminal = supervisor.child_has_terminal();
    let held = supervisor.finish(is_lost || by_signal.is_some());
    Ok(Done {
        code: finish(locks, held, outcome, args).await,
        is_lost,
        at_terminal: by_signal.filter(|_| had_terminal),
        by_signal,
    })
}

/// Starts CMD, with the locks in its environment. Of several, each variable is a list.
fn start(
    args: &RunArgs,
    held: &[Held],
    ignored: Ignored,
    terminal: Option<&Terminal>,
) -> Result<Child, Failure> {
    let guards = || held.iter().map(|one| &one.guard);
    if let Some(lost) = guards().find(|guard| !guard.is_held()) {
        let what = names::what(lost.name(), lost.slot());
        let message = format!("{what} was lost before CMD was started: try again");
        return Err(Failure::new(exit::LOST, message));
    }
    let list = |of: &dyn Fn(&LockGuard) -> String| {
        let each: Vec<String> = guards().map(of).collect();
        OsString::from(each.join(","))
    };
    let slot = |guard: &LockGuard| guard.slot().map_or(String::new(), |slot| slot.to_string());
    let holder = guards().next().map_or("", LockGuard::holder);
    let grants = nested::grants_with(guards().map(LockGuard::grant_id));
    let mut environment = vec![
        ("DBLOCK_NAME", list(&|guard| guard.name().to_string())),
        ("DBLOCK_TOKEN", list(&|guard| guard.token().to_string())),
        ("DBLOCK_GRANT", list(&|guard| guard.grant_id().to_owned())),
        ("DBLOCK_HOLDER", holder.into()),
        (ticket::VARIABLE, list(&|guard| guard.ticket().to_string())),
    ];
    // A lock has no slot.
    if guards().any(|guard| guard.slot().is_some()) {
        environment.push(("DBLOCK_SLOT", list(&slot)));
    }
    if args.pgoptions {
        let before = std::env::var_os(pgoptions::VARIABLE);
        let options = pgoptions::value(before.as_deref(), &grants);
        environment.push((pgoptions::VARIABLE, options));
    }
    environment.push((nested::VARIABLE, grants.into()));
    let terminal = terminal.filter(|terminal| terminal.goes_to_child());
    let started = Child::start(&args.command, environment, ignored, terminal);
    started.map_err(|error| cannot_start(args, &error))
}

/// Fails if CMD cannot be started, so that a lock is neither acquired for nothing nor used up for
/// its `--once-per`.
pub(super) fn check_program(args: &RunArgs) -> Result<(), Failure> {
    let program = args.command.first();
    let checked = program.map_or(Ok(()), |program| program::check(program));
    checked.map_err(|error| cannot_start(args, &error))
}

fn cannot_start(args: &RunArgs, error: &io::Error) -> Failure {
    let program = args
        .command
        .first()
        .map(|program| program.to_string_lossy());
    let program = without_secrets(&program.unwrap_or_default());
    match error.kind() {
        io::ErrorKind::NotFound => {
            let message = format!("`{program}` was not found: check its spelling, or PATH");
            Failure::new(exit::NOT_FOUND, message)
        }
        _ => Failure::new(
            exit::CANNOT_RUN,
            format!("`{program}` cannot be run: {error}"),
        ),
    }
}
