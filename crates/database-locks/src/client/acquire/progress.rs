//! What was learnt while waiting.

use crate::client::acquire::reports::Rarer;
use crate::client::acquire::reports::log_held;
use crate::client::acquire::request::Want;
use crate::client::acquire::request::op;
use crate::client::renewal::grant_state::ms;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{Holder, LockName, Outcome, Token};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What was learnt while waiting, for the error at its end and the log records on the way.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) holder: Option<Holder>,
    /// When that was seen.
    pub(crate) seen: protocol::BootInstant,
    pub(crate) failure: Option<StoreError>,
    /// Whose holding was logged last.
    pub(crate) logged: Option<(Option<Token>, Option<String>)>,
}

impl Progress {
    /// Take note of a try that granted nothing.
    pub(crate) fn note(&mut self, name: &LockName, outcome: Result<Outcome, StoreError>) {
        match outcome {
            Ok(Outcome::Held(holder)) => {
                let who = (holder.token, holder.holder.clone());
                if self.logged.as_ref() != Some(&who) {
                    tracing::debug!(
                        event = "busy",
                        lock.name = name.as_str(),
                        lock.token = holder.token.map(Token::get),
                        lock.holder = holder.holder.as_deref(),
                        lock.held_ms = holder.held_for.map(ms),
                        "waiting: another holder has it"
                    );
                    self.logged = Some(who);
                }
                (self.holder, self.failure) = (Some(holder), None);
                self.seen = clock::now();
            }
            Err(failure @ StoreError::Unavailable(_)) => {
                (self.holder, self.failure) = (None, Some(failure));
            }
            // The holder that was seen before counts for more than a deadlock in between.
            Err(failure) if !self.knows_holder() => self.failure = Some(failure),
            _ => {
                self.holder.get_or_insert_default();
                self.failure = None;
            }
        }
    }

    pub(crate) fn knows_holder(&self) -> bool {
        let holder = self.holder.as_ref();
        holder.is_some_and(|by| by.holder.is_some() || by.token.is_some())
    }
}

/// Log now and then that the wait goes on; never ends.
pub(crate) async fn report(want: &Want, progress: &Mutex<Progress>) -> std::convert::Infallible {
    let began = clock::now();
    let mut rarer = Rarer::new(began);
    loop {
        tokio::time::sleep(rarer.due() - clock::now()).await;
        let now = clock::now();
        rarer.told(now);
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        // An outage is told once a process, and those behind the first in line ask for nothing.
        let holder = progress.holder.as_ref();
        if let Some(by) = holder.filter(|_| progress.knows_holder()) {
            let mut by = by.clone();
            let since = now - progress.seen;
            drop(progress);
            by.held_for = by.held_for.map(|age| age + since);
            log_held(&want.name, now - began, &by);
        }
    }
}

pub(crate) fn wait_is_over(
    want: &Want,
    limit: Duration,
    waited: Duration,
    progress: Progress,
) -> Error {
    match (progress.holder, progress.failure) {
        (_, Some(failure)) => failure.into_error(op(&want.name)),
        (None, None) => Error::Unavailable {
            op: op(&want.name),
            source: format!("no answer within {}", protocol::Human(limit)).into(),
        },
        (Some(holder), None) => Error::TimedOut {
            name: want.name.clone(),
            waited,
            holder: holder.holder,
            held_for: holder.held_for,
        },
    }
}
