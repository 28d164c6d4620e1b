//! A request for several locks, and the grants that are requested together.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::Attempt;
use super::request::{AcquireRequest, op};
use crate::client::Client;
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::error::loss::Loss;
use crate::runtime::join::join_all;
use crate::store::api::StoreError;
use protocol::{
    AcquireCommand, AllOutcome, Holder, LockName, Outcome, REQUEST_TIMEOUT, Slot, Timing, Token,
};

/// A request for several locks, with all settings checked: they differ in their names alone. There
/// is one at least, their names are in order, and none occurs twice.
#[derive(Clone, Debug)]
pub(crate) struct AllRequest(pub(crate) Vec<Arc<AcquireRequest>>);

/// So many names are listed in messages.
const NAMES_SHOWN: usize = 5;

impl AllRequest {
    /// The request for the first of them, for the settings that are the same for all.
    pub(super) fn first(&self) -> &AcquireRequest {
        &self.0[0]
    }

    pub(crate) fn names(&self) -> Vec<LockName> {
        self.0.iter().map(|one| one.name.clone()).collect()
    }

    /// The operation as named in errors.
    pub(super) fn op(&self) -> String {
        match &*self.0 {
            [one] => op(&one.name, Slot::Lock),
            all => {
                let shown = all.iter().take(NAMES_SHOWN);
                let names: Vec<String> = shown.map(|one| format!("`{}`", one.name)).collect();
                let more = match all.len().saturating_sub(NAMES_SHOWN) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                format!("acquire locks {}{more}", names.join(", "))
            }
        }
    }

    pub(super) fn with_wait(&self, wait: Option<Duration>) -> Self {
        Self(self.0.iter().map(|one| one.with_wait(wait)).collect())
    }
}

/// The grants that are being requested together, until their outcome is known. Dropping them while
/// it is unknown releases all of them in the background.
pub(super) struct AllAttempt(Vec<Attempt>);

impl AllAttempt {
    pub(super) fn new(client: &Arc<Client>, request: &AllRequest) -> Result<Self, Error> {
        let all = request.0.iter().map(|one| Attempt::new(client, one));
        all.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Attempt> {
        self.0.get_mut(at)
    }

    /// Ask for all of them. Also returns whether these grants have to be given up for new ones: an
    /// earlier request had been granted them, and one has been taken away since.
    pub(super) async fn send(&mut self, client: &Client) -> (Result<AllOutcome, StoreError>, bool) {
        let unknown: Vec<bool> = self.0.iter_mut().map(Attempt::prepare).collect();
        let commands: Vec<AcquireCommand> =
            (self.0.iter()).map(|one| one.command().clone()).collect();
        let mut answer = client.store.acquire_all(&commands, REQUEST_TIMEOUT).await;
        let mut spoiled = false;
        let each = self.0.iter_mut().zip(unknown);
        match &mut answer {
            Ok(AllOutcome::Granted {
                tokens,
                length,
                confirmed_by,
                ..
            }) => {
                for ((one, unknown), token) in each.zip(tokens) {
                    let granted = Outcome::Granted {
                        slot: Slot::Lock,
                        token: *token,
                        length: *length,
                        is_shared: false,
                        confirmed_by: *confirmed_by,
                    };
                    let _ = one.answered(unknown, Ok(granted));
                }
            }
            Ok(AllOutcome::NotGranted(holders)) => {
                for ((one, unknown), holder) in each.zip(holders) {
                    let grant = one.command().grant;
                    let is_own = |holder: &Holder| holder.grant.as_deref() == Some(grant.as_str());
                    let own = holder.as_ref().is_some_and(is_own);
                    spoiled |= own;
                    let outcome = match holder.take() {
                        Some(holder) if !own => Outcome::Held(holder),
                        // The drop of the attempt releases it.
                        _ => Outcome::Busy,
                    };
                    if let Ok(Outcome::Held(known)) = one.answered(unknown || own, Ok(outcome)) {
                        *holder = Some(known);
                    }
                }
            }
            Err(failure) => {
                for (one, unknown) in each {
                    let _ = one.answered(unknown, Err(failure.duplicate()));
                }
            }
        }
        (answer, spoiled)
    }

    /// Turn the grants into guards, or release them all if trust in one has ended.
    pub(super) async fn granted(
        &mut self,
        client: &Client,
        tokens: &[Token],
        length: Duration,
        timing: Timing,
    ) -> Result<Vec<LockGuard>, (LockName, Loss)> {
        let names: Vec<LockName> = (self.0.iter())
            .map(|one| one.command().name.clone())
            .collect();
        for name in &names {
            client.queues(Slot::Lock).acquired(name);
        }
        let each = self.0.iter_mut().zip(tokens);
        let each = each.map(|(one, token)| one.granted(Slot::Lock, *token, length, timing));
        let guards = join_all(each).await;
        let (mut held, mut lost) = (Vec::with_capacity(guards.len()), None);
        for (name, guard) in names.into_iter().zip(guards) {
            match guard {
                Ok(guard) => held.push(guard),
                Err(loss) => {
                    client.queues(Slot::Lock).left(&name);
                    lost.get_or_insert((name, loss));
                }
            }
        }
        match lost {
            None => Ok(held),
            // Dropping the guards releases the others.
            Some(lost) => Err(lost),
        }
    }
}
