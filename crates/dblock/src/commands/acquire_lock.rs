//! What `run` and `acquire` have in common: the lock is acquired within the wait.

use std::future::Future;
use std::io;
use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, LockInfo, LockName, Locks, Ticket, Ttl};
use tokio::time::timeout;

use crate::args::Wish;
use crate::exit::Failure;
use crate::nested;
use crate::notices::{Notices, now};
use crate::place::Place;
use crate::signals::Signals;

/// For how long we ask who has a lock, to name that client in a message.
const ASKING: Duration = Duration::from_secs(2);

/// For how long a lock without a holder is tried before it counts as blocked.
const UNCLEAR: Duration = Duration::from_secs(1);
/// The pause between two such tries.
const UNCLEAR_PAUSE: Duration = Duration::from_millis(50);

/// Wait for the lock as it is wished for, with settings of the command's own; or go on with it, where
/// its ticket was given.
///
/// The wait covers the first connection: a database that is away is tried again within it.
pub(super) async fn take(
    place: &Place,
    wish: &Wish,
    ticket: Option<&Ticket>,
    signals: &mut Signals,
    notices: &Notices,
    settings: impl FnOnce(Lock) -> Lock,
) -> Result<(Locks, LockGuard), Failure> {
    let locks = match ticket {
        // It is resumed at once or not at all.
        Some(_) => until_signal(signals, place.connect()).await??,
        None => place.open()?,
    };
    let lock = settings(locks.lock(wish.name.as_str()).ttl(wish.ttl));
    let lock = wanted(lock, wish);
    notices.waiting(&wish.name);
    let work = async {
        match ticket {
            Some(ticket) => match lock.resume(ticket).await {
                Ok(guard) => Ok(guard),
                Err(error) => Err(of_ticket(&locks, error).await),
            },
            None => acquired(&locks, &lock, wish).await,
        }
    };
    match until_signal(signals, work).await {
        Ok(Ok(guard)) => {
            notices.held();
            Ok((locks, guard))
        }
        // A try that was not answered may be carried out yet: it is cancelled, or given back, before
        // this process ends. The library waits for that.
        Ok(Err(failure)) | Err(failure) => Err(failure),
    }
}

pub(super) fn cannot_listen(error: io::Error) -> Failure {
    Failure::unavailable(format!("cannot listen to signals: {error}"))
}

/// Acquire, unless a `dblock run` around this one holds the lock: its end would be waited for, which
/// in turn waits for us.
async fn acquired(locks: &Locks, lock: &Lock, wish: &Wish) -> Result<LockGuard, Failure> {
    let around = nested::grants_around();
    if around.is_empty() {
        return held_or_blocked(locks, lock, wish).await;
    }
    tokio::select! {
        biased;
        () = nested::seen_held(locks, &wish.name, &around) => Err(nested::refused(&wish.name)),
        done = held_or_blocked(locks, lock, wish) => match done {
            // A try without a wait may have been faster.
            Err(_) if nested::is_held(locks, &wish.name, &around).await => {
                Err(nested::refused(&wish.name))
            }
            done => done,
        },
    }
}

/// Acquire. A lock without a holder that could not be had is not held but blocked.
///
/// For a moment that is every lock which another client is just acquiring, so a try without a wait is
/// repeated.
async fn held_or_blocked(locks: &Locks, lock: &Lock, wish: &Wish) -> Result<LockGuard, Failure> {
    let once = wish.wait.is_some_and(|wait| wait.is_zero());
    let began = now();
    loop {
        let error = match lock.acquire().await {
            Ok(guard) => return Ok(guard),
            Err(error) => error,
        };
        let unnamed = matches!(
            error,
            Error::TimedOut {
                holder: None,
                held_for: None,
                ..
            }
        );
        if !unnamed || is_busy(locks, &wish.name).await {
            return Err(refused(error, wish));
        }
        if !once || began.elapsed() >= UNCLEAR {
            return Err(Failure::blocked(&wish.name, &error));
        }
        tokio::time::sleep(UNCLEAR_PAUSE).await;
    }
}

/// Whether the row names a holder, or one whose lease has run out: a transaction of that holder may
/// keep the row locked.
async fn is_busy(locks: &Locks, name: &LockName) -> bool {
    row(locks, name)
        .await
        .is_some_and(|row| row.state != database_locks::LockState::Free)
}

/// Before there is a CMD, a signal is for us.
async fn until_signal<T>(
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        signal = signals.next() => Err(Failure::interrupted(signal as i32)),
        done = work => Ok(done),
    }
}

fn wanted(mut lock: Lock, wish: &Wish) -> Lock {
    for (key, value) in &wish.meta {
        lock = lock.metadata(key.as_str(), value.as_str());
    }
    if let Some(holder) = &wish.holder {
        lock = lock.holder(holder.as_str());
    }
    match wish.wait {
        Some(limit) => lock.wait(limit),
        None => lock,
    }
}

fn refused(mut error: Error, wish: &Wish) -> Failure {
    let wait = wish.wait.filter(|wait| !wait.is_zero());
    // The wait as it was asked for.
    if let (Error::TimedOut { waited, .. }, Some(wait)) = (&mut error, wait) {
        *waited = wait;
    }
    match (&error, wait) {
        (Error::TimedOut { .. }, _) => {
            let mut failure = Failure::from(error);
            failure.code = wish.busy_exit;
            // Where it is no failure nothing is printed: cron sends mail for a line on stderr.
            if failure.code == 0 {
                failure.said.clear();
            }
            failure
        }
        (Error::Conflict { .. }, _) => Failure::blocked(&wish.name, &error),
        (Error::Unavailable { .. }, Some(wait)) => {
            let failure = Failure::from(error);
            let said = format!("gave up after {}: {}", Ttl::from(wait), failure.said);
            Failure::unavailable(said)
        }
        _ => error.into(),
    }
}

/// What a call with a ticket came to, and who has the lock now if that is dead.
pub(super) async fn of_ticket(locks: &Locks, error: Error) -> Failure {
    let now = match &error {
        Error::Lost { name, loss, .. } => match loss.now_held_by() {
            Some(now) => Some(now.to_string()),
            None => row(locks, name).await.map(|row| row.holder_summary()),
        },
        _ => None,
    };
    Failure::of_ticket(error, now.as_deref())
}

/// How the lock stands, to be told with a loss; none where that cannot be had soon.
pub(super) async fn row(locks: &Locks, name: &LockName) -> Option<LockInfo> {
    let row = timeout(ASKING, locks.show(name.as_str())).await.ok()?;
    row.ok()?
}
