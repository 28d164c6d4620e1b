//! What `run` and `acquire` have in common: connect, and have the lock, within the wait.

use std::future::Future;
use std::io;
use std::time::Duration;

use database_locks::{Error, Lock, LockGuard, LockInfo, LockName, Locks, Ticket, Ttl};
use tokio::time::timeout;

use crate::args::Wish;
use crate::exit::{self, Failure};
use crate::place::Place;
use crate::signals::Signals;

/// How long what is given back in the background may take before we end all the same. The lease
/// then frees the lock.
const DRAIN: Duration = Duration::from_secs(2);

/// Connect, and wait for the lock as it is wished for, with settings of the command's own; or go on
/// with it, where somebody has its ticket.
pub(super) async fn take(
    place: &Place,
    wish: &Wish,
    ticket: Option<&Ticket>,
    signals: &mut Signals,
    settings: impl FnOnce(Lock) -> Lock,
) -> Result<(Locks, LockGuard), Failure> {
    let (locks, wait) = connect(place, wish.wait, signals).await?;
    let lock = settings(locks.lock(wish.name.as_str()).ttl(wish.ttl));
    let lock = wanted(lock, wish, wait);
    let work = async {
        match ticket {
            Some(ticket) => match lock.take_up(ticket).await {
                Ok(guard) => Ok(guard),
                Err(error) => Err(of_ticket(&locks, error).await),
            },
            None => lock.acquire().await.map_err(|error| refused(error, wish)),
        }
    };
    match until_signal(signals, work).await {
        Ok(taken) => Ok((locks, taken?)),
        Err(interrupted) => {
            drain(&locks).await;
            Err(interrupted)
        }
    }
}

pub(super) fn cannot_listen(error: io::Error) -> Failure {
    Failure::unavailable(format!("cannot listen to signals: {error}"))
}

/// Connect, within the wait; what is left of that is for the lock.
async fn connect(
    place: &Place,
    wait: Option<Duration>,
    signals: &mut Signals,
) -> Result<(Locks, Option<Duration>), Failure> {
    let Some(wait) = wait.filter(|wait| !wait.is_zero()) else {
        return Ok((until_signal(signals, place.connect()).await??, wait));
    };
    #[allow(clippy::disallowed_methods, reason = "no lease is measured by it")]
    let began = std::time::Instant::now();
    let connecting = until_signal(signals, timeout(wait, place.connect())).await?;
    let locks = connecting.map_err(|_| {
        let said = format!(
            "the database did not answer within the wait of {}",
            Ttl::from(wait)
        );
        Failure::unavailable(format!(
            "{said}: wait longer, or check --url or DATABASE_LOCKS_URL"
        ))
    })??;
    Ok((locks, Some(wait.saturating_sub(began.elapsed()))))
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

fn wanted(mut lock: Lock, wish: &Wish, wait: Option<Duration>) -> Lock {
    for (key, value) in &wish.meta {
        lock = lock.metadata(key.as_str(), value.as_str());
    }
    if let Some(holder) = &wish.owner {
        lock = lock.holder(holder.as_str());
    }
    match wait {
        Some(limit) => lock.wait(limit),
        None => lock,
    }
}

fn refused(mut error: Error, wish: &Wish) -> Failure {
    // The wait as it was asked for, the time to connect included.
    if let (Error::TimedOut { waited, .. }, Some(wait)) = (&mut error, wish.wait) {
        *waited = wait;
    }
    let mut failure = Failure::from(error);
    if failure.code == exit::BUSY {
        failure.code = wish.busy_exit;
        // Who wants it to be no failure is not told of one: cron sends mail for a line on stderr.
        if failure.code == 0 {
            failure.said.clear();
        }
    }
    failure
}

/// What a call with a ticket came to, and who has the lock now if that is dead.
pub(super) async fn of_ticket(locks: &Locks, error: Error) -> Failure {
    let now = match &error {
        Error::Lost { name, loss, .. } => match loss.now_held_by() {
            Some(now) => Some(now.to_string()),
            None => row(locks, name).await.map(|row| row.whose()),
        },
        _ => None,
    };
    Failure::of_ticket(error, now.as_deref())
}

/// How the lock stands, to be told with a loss; none where that cannot be had soon.
pub(super) async fn row(locks: &Locks, name: &LockName) -> Option<LockInfo> {
    let row = timeout(DRAIN, locks.show(name.as_str())).await.ok()?;
    row.ok()?
}

pub(super) async fn drain(locks: &Locks) {
    // Over time: the lease ends by itself.
    let _ = timeout(DRAIN, locks.drain()).await;
}
