//! `dblock run NAME -- CMD…`

mod finish;
mod margin;
mod supervisor;

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use database_locks::{Lock, LockGuard, Locks};

use crate::cli::RunArgs;
use crate::exit::{self, Failure};
use crate::notices::Notices;
use crate::output::without_secrets;
use crate::process::{Child, End, Ignored, Signals, Terminal};
use crate::target::Target;
use crate::ticket;

use self::finish::finish;
pub(super) use self::margin::margin;
use self::supervisor::{Outcome, Supervisor};
use super::acquire_lock::{acquire_lock, cannot_listen};
use super::nested;
use super::release_notice::{Listener, ReleaseNotice};

/// Acquires the lock, runs CMD and releases the lock, in this order.
pub(crate) async fn run(target: &Target, args: RunArgs, notices: &Notices) -> Result<u8, Failure> {
    let ticket = match &args.ticket {
        Some(source) => Some(source.read(&args.lock.name)?),
        None => None,
    };
    let ignored = Ignored::at_start();
    let mut signals = Signals::listen(ignored).map_err(cannot_listen)?;
    let margin = margin(args.lock.ttl, args.grace())?;

    // For the `dblock run` of the ticket, the resumption is a release and no loss.
    let notice = ticket.as_ref().map(ReleaseNotice::begin);
    let acquired = acquire_lock(
        target,
        &args.lock,
        ticket.as_ref(),
        &mut signals,
        notices,
        |lock| with_command(lock, &args).margin(margin),
    );
    let (locks, guard) = acquired.await?;
    if let Some(notice) = notice {
        notice.done();
    }
    let done = run_command(&args, &locks, guard, notices, &mut signals, ignored).await?;
    Ok(done.code)
}

/// Shows the program with the lock, without its arguments, which may contain passwords.
pub(super) fn with_command(lock: Lock, args: &RunArgs) -> Lock {
    let program = args
        .command
        .first()
        .map(Path::new)
        .and_then(Path::file_name);
    match program {
        Some(program) => lock.metadata("command", program.to_string_lossy()),
        None => lock,
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

/// Runs CMD under the lock until it has ended, and then releases the lock or reports its loss.
pub(super) async fn run_command(
    args: &RunArgs,
    locks: &Locks,
    guard: LockGuard,
    notices: &Notices,
    signals: &mut Signals,
    ignored: Ignored,
) -> Result<Done, Failure> {
    signals.listen_to_all().map_err(cannot_listen)?;
    let listener = Listener::bind(&guard.ticket());
    let terminal = Terminal::open();
    // Ctrl-C has to reach a `dblock` that would start CMD again.
    let of_child = terminal.as_ref().filter(|_| !args.leads);
    let child = match start(args, &guard, ignored, of_child) {
        Ok(child) => child,
        Err(failure) => {
            // Only the failure to start is reported.
            let _ = guard.release().await;
            return Err(failure);
        }
    };

    let mut supervisor = Supervisor::new(args, &guard, notices, child, signals, terminal, listener);
    let outcome = supervisor.supervise().await;
    notices.lock_is_over();
    let is_lost = matches!(outcome, Outcome::Stopped(..));
    let by_signal = match outcome {
        Outcome::Ended(End::Signal(signal)) => Some(signal),
        _ => None,
    };
    let had_terminal = supervisor.child_has_terminal();
    let mut listener = supervisor.finish(is_lost || by_signal.is_some());
    Ok(Done {
        code: finish(locks, guard, outcome, args, &mut listener).await,
        is_lost,
        at_terminal: by_signal.filter(|_| had_terminal),
        by_signal,
    })
}

/// Starts CMD, with the lock in its environment.
fn start(
    args: &RunArgs,
    guard: &LockGuard,
    ignored: Ignored,
    terminal: Option<&Terminal>,
) -> Result<Child, Failure> {
    let name = args.lock.name.as_str();
    if !guard.is_held() {
        let message = format!("lock `{name}` was lost before CMD was started: try again");
        return Err(Failure::new(exit::LOST, message));
    }
    let token = guard.token().to_string();
    let ticket = guard.ticket().to_string();
    let grants = nested::grants_with(guard.grant_id());
    let environment = [
        ("DBLOCK_NAME", OsStr::new(name)),
        ("DBLOCK_TOKEN", OsStr::new(&token)),
        ("DBLOCK_GRANT", OsStr::new(guard.grant_id())),
        (nested::VARIABLE, OsStr::new(&grants)),
        ("DBLOCK_HOLDER", OsStr::new(guard.holder())),
        (ticket::VARIABLE, OsStr::new(&ticket)),
    ];
    let terminal = terminal.filter(|terminal| terminal.goes_to_child());
    Child::start(&args.command, &environment, ignored, terminal).map_err(|error| {
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
    })
}
