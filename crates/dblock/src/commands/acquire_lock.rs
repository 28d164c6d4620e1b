//! Acquires a lock or several within the wait, or resumes one by its ticket, for `run` and
//! `acquire`.

use std::future::Future;
use std::io;
use std::time::Duration;

use database_locks::{Error, LockGuard, LockInfo, LockName, LockState, Locks, Ticket};
use tokio::time::{sleep, timeout};

use crate::cli::AcquireArgs;
use crate::exit::Failure;
use crate::notices::Notices;
use crate::process::Signals;
use crate::target::Target;
use crate::time::{human, now};

use super::nested;
use super::wanted::{Settings, Wanted};

/// The time limit of a read that only adds the holder to a message.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a lock without a holder is tried before it counts as blocked.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// The pause between two such tries.
const BLOCKED_PAUSE: Duration = Duration::from_millis(50);

/// Connects, and acquires the lock or the locks, or resumes it if its ticket is given. The guards are
/// in the order in which the names were given.
///
/// The wait covers the first connection: while the database is away, it is tried again.
pub(super) async fn acquire_lock(
    target: &Target,
    args: &AcquireArgs,
    ticket: Option<&Ticket>,
    signals: &mut Signals,
    notices: &Notices,
    settings: Settings,
) -> Result<(Locks, Vec<LockGuard>), Failure> {
    let locks = match ticket {
        // A lock is resumed at once or not at all.
        Some(_) => until_signal(signals, target.connect()).await??,
        None => target.connect_lazy()?,
    };
    let guards = acquire_on(&locks, args, ticket, signals, notices, settings).await?;
    Ok((locks, guards))
}

/// Acquires the lock or the locks, or resumes it if its ticket is given.
pub(super) async fn acquire_on(
    locks: &Locks,
    args: &AcquireArgs,
    ticket: Option<&Ticket>,
    signals: &mut Signals,
    notices: &Notices,
    settings: Settings,
) -> Result<Vec<LockGuard>, Failure> {
    let wanted = Wanted::new(locks, args, settings);
    notices.waiting(&args.name, args.limit.is_some());
    let acquired = async {
        match (&wanted, ticket) {
            (Wanted::One(lock), Some(ticket)) => match lock.resume(ticket).await {
                Ok(guard) => Ok(vec![guard]),
                Err(error) => Err(ticket_failure(locks, error).await),
            },
            _ => acquire_unless_nested(locks, &wanted, args).await,
        }
    };
    // A try that was not answered may still be granted. The library cancels it, or releases the
    // lock, before the process ends.
    let guards = until_signal(signals, acquired).await??;
    notices.acquired();
    Ok(guards)
}

pub(super) fn cannot_listen(error: io::Error) -> Failure {
    Failure::unavailable(format!("cannot listen for signals: {error}"))
}

/// Acquires, and fails if an outer `dblock run` holds one of the locks: this one would wait for
/// ever.
async fn acquire_unless_nested(
    locks: &Locks,
    wanted: &Wanted,
    args: &AcquireArgs,
) -> Result<Vec<LockGuard>, Failure> {
    let outer = nested::outer_grants();
    // A semaphore may have a permit for this one, too.
    if outer.is_empty() || args.limit.is_some() {
        return acquire_or_blocked(locks, wanted, args).await;
    }
    // Sharing the lock with the outer one, this one would be granted it before the read below.
    if args.shared
        && let Ok(Some(name)) = nested::held(locks, args, &outer).await
    {
        return Err(nested::refusal(&name));
    }
    tokio::select! {
        biased;
        name = nested::wait_until_known_held(locks, args, &outer) => Err(nested::refusal(&name)),
        acquired = acquire_or_blocked(locks, wanted, args) => match acquired {
            // A try without a wait may have been faster than the read.
            Err(failure) => Err(match nested::held(locks, args, &outer).await {
                Ok(Some(name)) => nested::refusal(&name),
                _ => failure,
            }),
            acquired => acquired,
        },
    }
}

/// Acquires. A lock that no client holds and that cannot be acquired counts as blocked.
///
/// While another client is acquiring it, any lock seems blocked for a moment. So a try without a
/// wait is repeated.
async fn acquire_or_blocked(
    locks: &Locks,
    wanted: &Wanted,
    args: &AcquireArgs,
) -> Result<Vec<LockGuard>, Failure> {
    let once = args.wait.is_some_and(|wait| wait.is_zero());
    let began = now();
    loop {
        let error = match wanted.acquire(args).await {
            Ok(guards) => return Ok(guards),
            Err(error) => error,
        };
        let no_holder = matches!(
            error,
            Error::TimedOut {
                holder: None,
                held_for: None,
                rests_for: None,
                permits: None,
                row_locker: None,
                ..
            }
        );
        if !no_holder || is_busy(locks, args).await {
            return Err(acquire_failure(error, args));
        }
        if !once || began.elapsed() >= BLOCKED_AFTER {
            return Err(Failure::blocked(&args.what(), &error));
        }
        sleep(BLOCKED_PAUSE).await;
    }
}

/// Whether a row names a holder. One whose lease has expired counts: a transaction of its own may
/// keep the row locked.
async fn is_busy(locks: &Locks, args: &AcquireArgs) -> bool {
    for name in args.names() {
        let row = read_row(locks, name, None).await;
        if row.is_some_and(|row| row.state != LockState::Free) {
            return true;
        }
    }
    false
}

/// Runs `work` until it ends; the first signal fails it, since there is no CMD to forward it to.
pub(super) async fn until_signal<T>(
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        signal = signals.next_ending() => Err(Failure::interrupted(signal as i32)),
        done = work => Ok(done),
    }
}

fn acquire_failure(mut error: Error, args: &AcquireArgs) -> Failure {
    let wait = args.wait.filter(|wait| !wait.is_zero());
    // The message shows the wait as it was given.
    if let (Error::TimedOut { waited, .. }, Some(wait)) = (&mut error, wait) {
        *waited = wait;
    }
    match (&error, wait) {
        (Error::TimedOut { .. }, _) => {
            let mut failure = Failure::from(error);
            failure.code = args.conflict_exit_code;
            // Code 0 is no failure, and cron sends mail for a line on stderr.
            if failure.code == 0 {
                failure.message.clear();
            }
            failure
        }
        (Error::Conflict { .. }, _) => Failure::blocked(&args.what(), &error),
        (Error::Unavailable { .. }, Some(wait)) => {
            let failure = Failure::from(error);
            Failure::unavailable(format!(
                "gave up after {}: {}",
                human(wait),
                failure.message
            ))
        }
        _ => error.into(),
    }
}

/// The failure of a call with a ticket. It names the present holder if the ticket is dead.
pub(super) async fn ticket_failure(locks: &Locks, error: Error) -> Failure {
    let now = match &error {
        Error::Lost { name, loss, .. } => match loss.now_held_by() {
            Some(now) => Some(now.to_string()),
            None => read_row(locks, name, loss.slot())
                .await
                .map(|row| row.holder_summary()),
        },
        _ => None,
    };
    Failure::of_ticket(error, now.as_deref())
}

/// The row of a lock, or of the permit `slot`, for a message; `None` if it cannot be read in time.
pub(super) async fn read_row(
    locks: &Locks,
    name: &LockName,
    slot: Option<u16>,
) -> Option<LockInfo> {
    let read = async {
        if slot.is_none() {
            return locks.show(name.as_str()).await.ok()?;
        }
        let semaphore = locks.show_semaphore(name.as_str()).await.ok()?;
        let mut permits = semaphore.permits.into_iter();
        permits.find(|permit| permit.slot == slot)
    };
    timeout(READ_TIMEOUT, read).await.ok()?
}

/// The row while the ticket's grant has it, for a message; `None` if it cannot be read.
pub(super) async fn row_of_ticket(locks: &Locks, ticket: &Ticket) -> Option<LockInfo> {
    let name = ticket.name().as_str();
    let lock = locks.show(name).await.ok()?;
    // Shared holders have the same token.
    let text = ticket.to_string();
    let grant = text.split('.').nth(1);
    let is_its = |row: &LockInfo| row.token == ticket.token() && row.grant.as_deref() == grant;
    if let Some(row) = lock.filter(is_its) {
        return Some(row);
    }
    let shared = locks.show_shared(name).await.unwrap_or_default();
    if let Some(row) = shared.into_iter().find(is_its) {
        return Some(row);
    }
    let semaphore = locks.show_semaphore(name).await.ok()?;
    semaphore.permits.into_iter().find(is_its)
}
