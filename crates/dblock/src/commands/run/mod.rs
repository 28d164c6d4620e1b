//! `dblock run NAME… -- CMD…`

mod finish;
mod held;
mod margin;
mod supervisor;

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use database_locks::LockGuard;

use crate::cli::RunArgs;
use crate::exit::{self, Failure};
use crate::notices::Notices;
use crate::output::without_secrets;
use crate::process::{Child, End, Ignored, Signals, Terminal};
use crate::target::Target;
use crate::ticket;

use self::finish::finish;
use self::held::Held;
use self::margin::margin;
use self::supervisor::{Outcome, Supervisor};
use super::acquire_lock::{acquire_lock, cannot_listen};
use super::nested;
use super::release_notice::ReleaseNotice;
use super::wanted::Settings;

/// Acquires the lock or the locks, runs CMD and releases them, in this order.
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
    // Without arguments, which may contain passwords.
    let program = (args.command.first())
        .map(Path::new)
        .and_then(Path::file_name);
    let settings = Settings {
        command: program.map(|program| program.to_string_lossy().into_owned()),
        margin: Some(margin),
    };
    let acquired = acquire_lock(
        target,
        &args.lock,
        ticket.as_ref(),
        &mut signals,
        notices,
        settings,
    );
    let (locks, guards) = acquired.await?;
    if let Some(notice) = notice {
        notice.done();
    }
    signals.listen_to_all().map_err(cannot_listen)?;

    let held: Vec<Held> = guards.into_iter().map(Held::new).collect();
    let terminal = Terminal::open();
    let child = match start(&args, &held, ignored, terminal.as_ref()) {
        Ok(child) => child,
        Err(failure) => {
            // Only the failure to start is reported.
            for one in held {
                let _ = one.guard.release().await;
            }
            return Err(failure);
        }
    };

    let mut supervisor = Supervisor::new(&args, held, notices, child, signals, terminal);
    let outcome = supervisor.supervise().await;
    notices.lock_is_over();
    let by_signal = matches!(
        outcome,
        Outcome::Stopped(..) | Outcome::Ended(End::Signal(_))
    );
    let held = supervisor.finish(by_signal);
    Ok(finish(&locks, held, outcome, &args).await)
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
        let name = lost.name();
        let message = format!("lock `{name}` was lost before CMD was started: try again");
        return Err(Failure::new(exit::LOST, message));
    }
    let list = |of: &dyn Fn(&LockGuard) -> String| guards().map(of).collect::<Vec<_>>().join(",");
    let holder = guards().next().map_or("", LockGuard::holder);
    let environment = [
        ("DBLOCK_NAME", &*list(&|guard| guard.name().to_string())),
        ("DBLOCK_TOKEN", &*list(&|guard| guard.token().to_string())),
        ("DBLOCK_GRANT", &*list(&|guard| guard.grant_id().to_owned())),
        (
            nested::VARIABLE,
            &*nested::grants_with(guards().map(LockGuard::grant_id)),
        ),
        ("DBLOCK_HOLDER", holder),
        (
            ticket::VARIABLE,
            &*list(&|guard| guard.ticket().to_string()),
        ),
    ];
    let environment = environment.map(|(name, value)| (name, OsStr::new(value)));
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
