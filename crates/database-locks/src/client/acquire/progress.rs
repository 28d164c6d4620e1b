//! The progress of one wait, for its log records and its final error.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::Client;
use crate::client::acquire::reports::{ReportInterval, log_held, log_row_locked};
use crate::client::acquire::request::AcquireRequest;
use crate::client::read::locked_unheld;
use crate::client::renewal::grant_state::ms;
use crate::error::Error;
use crate::runtime::{self, clock};
use crate::store::api::StoreError;
use protocol::{BootInstant, Holder, Human, LockName, Outcome, Token};

/// A lock that no client holds, and the session that keeps its row locked.
type LockedRow = (LockName, String);

/// What the tries of one wait have shown.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The lock that the holder has: of several, the one that is waited for.
    pub(crate) name: Option<LockName>,
    pub(crate) holder: Option<Holder>,
    /// When the holder was seen.
    pub(crate) seen: BootInstant,
    pub(crate) failure: Option<StoreError>,
    /// Whether the latest try found a lock free or its lease ended, and its row locked.
    pub(crate) row_is_locked: bool,
    /// The session that has it locked, if it is known.
    pub(crate) row_locker: Option<String>,
    /// The holder in the latest log record, and whether the lock rested.
    pub(crate) logged: Option<(Option<Token>, Option<String>, bool)>,
}

impl Progress {
    /// Record a try that granted nothing.
    pub(crate) fn record(&mut self, name: &LockName, outcome: Result<Outcome, StoreError>) {
        self.row_is_locked = matches!(outcome, Ok(Outcome::Busy));
        match outcome {
            Ok(Outcome::Held(holder)) => {
                let identity = (holder.token, holder.holder.clone(), holder.is_resting);
                if self.logged.as_ref() != Some(&identity) {
                    tracing::debug!(
                        event = "busy",
                        lock.name = name.as_str(),
                        lock.token = holder.token.map(Token::get),
                        lock.holder = holder.holder.as_deref(),
                        lock.held_ms = holder.held_for.filter(|_| !holder.is_resting).map(ms),
                        lock.rests_ms = holder.free_in.filter(|_| holder.is_resting).map(ms),
                        "waiting: {}",
                        match holder.is_resting {
                            true => "it rests after its latest holder",
                            false if holder.readers.is_some() => "other holders share it",
                            false => "another holder has it",
                        }
                    );
                    self.logged = Some(identity);
                }
                self.name = Some(name.clone());
                (self.holder, self.failure) = (Some(holder), None);
                self.seen = clock::now();
            }
            Err(failure @ StoreError::Unavailable(_)) => {
                (self.holder, self.failure) = (None, Some(failure));
            }
            // A known holder explains the wait better than a conflict in between.
            Err(failure) if !self.knows_holder() => self.failure = Some(failure),
            _ => {
                self.holder.get_or_insert_default();
                self.failure = None;
            }
        }
    }

    pub(crate) fn knows_holder(&self) -> bool {
        let holder = self.holder.as_ref();
        holder.is_some_and(|holder| {
            holder.holder.is_some()
                || holder.token.is_some()
                || holder.permits.is_some()
                || holder.readers.is_some()
        })
    }
}

pub(super) fn locked(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Log at growing intervals that the wait continues. Never returns.
pub(crate) async fn report(
    client: &Arc<Client>,
    request: &AcquireRequest,
    names: &[LockName],
    progress: &Mutex<Progress>,
) -> std::convert::Infallible {
    let began = clock::now();
    let mut schedule = ReportInterval::new(began);
    loop {
        tokio::time::sleep(schedule.due() - clock::now()).await;
        let now = clock::now();
        schedule.reported(now);
        if let Some((name, session)) = locker_in_the_way(client, names, progress).await {
            log_row_locked(&name, now - began, &session);
            continue;
        }
        let progress = locked(progress);
        // An outage is logged once a process, and only the first waiter of a queue knows the
        // holder.
        let holder = progress.holder.as_ref();
        if let Some(holder) = holder.filter(|_| progress.knows_holder()) {
            let mut holder = holder.clone();
            let name = progress.name.clone();
            let since = now - progress.seen;
            drop(progress);
            holder.held_for = holder.held_for.map(|age| age + since);
            holder.free_in = holder.free_in.map(|left| left.saturating_sub(since));
            let name = name.as_ref().unwrap_or(&request.name);
            log_held(name, now - began, &holder);
        }
    }
}

/// Of these locks, the one whose lease has ended and whose row is locked all the same, and the session
/// that has it locked, if the latest try found a locked row.
///
/// Boxed: each caller's future contains it, and hardly any runs it.
pub(crate) fn locker_in_the_way<'a>(
    client: &'a Arc<Client>,
    names: &'a [LockName],
    progress: &'a Mutex<Progress>,
) -> Pin<Box<dyn Future<Output = Option<LockedRow>> + Send + 'a>> {
    if !locked(progress).row_is_locked {
        return Box::pin(std::future::ready(None));
    }
    let (client, names) = (Arc::clone(client), names.to_vec());
    Box::pin(async move {
        // In the background, where connections belong.
        let found =
            runtime::run(async move { Ok::<_, Error>(locked_unheld(&client, &names).await) });
        found.await.ok().flatten()
    })
}

/// The error of a wait that is over.
pub(crate) fn wait_error(
    request: &AcquireRequest,
    op: String,
    waited: Duration,
    progress: Progress,
) -> Error {
    match (progress.holder, progress.failure) {
        (_, Some(failure)) => failure.into_error(op),
        (None, None) => Error::Unavailable {
            op,
            source: format!(
                "no answer within {}",
                Human(request.wait.unwrap_or_default())
            )
            .into(),
        },
        (Some(holder), None) => {
            let since = clock::now() - progress.seen;
            let rest = holder.free_in.filter(|_| holder.is_resting);
            Error::TimedOut {
                name: progress.name.unwrap_or_else(|| request.name.clone()),
                waited,
                holder: holder.holder,
                held_for: holder.held_for.filter(|_| !holder.is_resting),
                permits: holder.permits.map(|permits| permits.limit),
                shared_by: holder.readers.map(|readers| readers.held),
                rests_for: rest.map(|left| left.saturating_sub(since)),
                row_locker: progress.row_locker.map(Into::into),
            }
        }
    }
}
