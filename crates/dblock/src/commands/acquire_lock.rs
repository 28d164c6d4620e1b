//! Acquires a lock within the wait, or resumes it by its ticket, for `run` and `acquire`.

use std::future::Future;
use std::io;
use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, LockInfo, LockName, LockState, Locks, Ticket};
use tokio::time::{sleep, timeout};

use crate::cli::AcquireArgs;
use crate::exit::Failure;
use crate::notices::Notices;
use crate::process::Signals;
use crate::target::Target;
use crate::time::{human, now};

use super::nested;

/// The time limit of a read that only adds the holder to a message.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a lock without a holder is tried before it counts as blocked.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// The pause between two such tries.
const BLOCKED_PAUSE: Duration = Duration::from_millis(50);

/// Connects, and acquires the lock, or resumes it if its ticket is given. `configure` adds settings
/// of the command.
///
/// The wait covers the first connection: while the database is away, it is tried again.
pub(super) async fn acquire_lock(
    target: &Target,
    args: &AcquireArgs,
    ticket: Option<&Ticket>,
    signals: &mut Signals,
    notices: &Notices,
    configure: impl FnOnce(Lock) -> Lock,
) -> Result<(Locks, LockGuard), Failure> {
    let locks = match ticket {
        // A lock is resumed at once or not at all.
        Some(_) => until_signal(signals, target.connect()).await??,
        None => target.connect_lazy()?,
    };
    let guard = acquire_on(&locks, args, ticket, signals, notices, configure).await?;
    Ok((locks, guard))
}

/// Acquires the lock, or resumes it if its ticket is given.
pub(super) async fn acquire_on(
    locks: &Locks,
    args: &AcquireArgs,
    ticket: Option<&Ticket>,
    signals: &mut Signals,
    notices: &Notices,
    configure: impl FnOnce(Lock) -> Lock,
) -> Result<LockGuard, Failure> {
    let lock = configure(locks.lock(args.name.as_str()).ttl(args.ttl));
    let lock = with_options(lock, args);
    notices.waiting(&args.name);
    let acquired = async {
        match ticket {
            Some(ticket) => match lock.resume(ticket).await {
                Ok(guard) => Ok(guard),
                Err(error) => Err(ticket_failure(locks, error).await),
            },
            None => acquire_unless_nested(locks, &lock, args).await,
        }
    };
    // A try that was not answered may still be granted. The library cancels it, or releases the
    // lock, before the process ends.
    let guard = until_signal(signals, acquired).await??;
    notices.acquired();
    Ok(guard)
}

pub(super) fn cannot_listen(error: io::Error) -> Failure {
    Failure::unavailable(format!("cannot listen for signals: {error}"))
}

/// Acquires, and fails if an outer `dblock run` holds the lock: this one would wait for ever.
async fn acquire_unless_nested(
    locks: &Locks,
    lock: &Lock,
    args: &AcquireArgs,
) -> Result<LockGuard, Failure> {
    let outer = nested::outer_grants();
    if outer.is_empty() {
        return acquire_or_blocked(locks, lock, args).await;
    }
    tokio::select! {
        biased;
        () = nested::wait_until_known_held(locks, &args.name, &outer) => {
            Err(nested::refusal(&args.name))
        }
        acquired = acquire_or_blocked(locks, lock, args) => match acquired {
            // A try without a wait may have been faster than the read.
            Err(_) if nested::is_held(locks, &args.name, &outer).await => {
                Err(nested::refusal(&args.name))
            }
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
    lock: &Lock,
    args: &AcquireArgs,
) -> Result<LockGuard, Failure> {
    let once = args.wait.is_some_and(|wait| wait.is_zero());
    let began = now();
    loop {
        let error = match lock.acquire().await {
            Ok(guard) => return Ok(guard),
            Err(error) => error,
        };
        let no_holder = matches!(
            error,
            Error::TimedOut {
                holder: None,
                held_for: None,
                ..
            }
        );
        if !no_holder || is_busy(locks, &args.name).await {
            return Err(acquire_failure(error, args));
        }
        if !once || began.elapsed() >= BLOCKED_AFTER {
            return Err(Failure::blocked(&args.name, &error));
        }
        sleep(BLOCKED_PAUSE).await;
    }
}

/// Whether the row names a holder. One whose lease has expired counts: a transaction of its own may
/// keep the row locked.
async fn is_busy(locks: &Locks, name: &LockName) -> bool {
    let row = read_row(locks, name).await;
    row.is_some_and(|row| row.state != LockState::Free)
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

fn with_options(mut lock: Lock, args: &AcquireArgs) -> Lock {
    for (key, value) in &args.meta {
        lock = lock.metadata(key.as_str(), value.as_str());
    }
    if let Some(holder) = &args.holder {
        lock = lock.holder(holder.as_str());
    }
    match args.wait {
        Some(limit) => lock.wait(limit),
        None => lock,
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
        (Error::Conflict { .. }, _) => Failure::blocked(&args.name, &error),
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
            None => read_row(locks, name).await.map(|row| row.holder_summary()),
        },
        _ => None,
    };
    Failure::of_ticket(error, now.as_deref())
}

/// The row of a lock for a message; `None` if it cannot be read in time.
pub(super) async fn read_row(locks: &Locks, name: &LockName) -> Option<LockInfo> {
    let row = timeout(READ_TIMEOUT, locks.show(name.as_str()))
        .await
        .ok()?;
    row.ok()?
}

/// The row while the ticket's grant has it, for a message; `None` if it cannot be read.
pub(super) async fn row_of_ticket(locks: &Locks, ticket: &Ticket) -> Option<LockInfo> {
    let row = locks.show(ticket.name().as_str()).await.ok()??;
    (row.token == ticket.token()).then_some(row)
}
