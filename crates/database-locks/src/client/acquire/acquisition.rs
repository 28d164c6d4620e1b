//! One acquisition: join this process's queue, try, classify the answer, wait.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::attempt::Attempt;
use super::progress::Progress;
use super::request::AcquireRequest;
use super::waiter::{NotGranted, OWN_HOLDER_WAIT, Waiter};
use crate::client::Client;
use crate::client::guard::LockGuard;
use crate::error::Error;
use crate::runtime::clock;
use crate::store::api::StoreError;
use protocol::{BootInstant, Outcome, REQUEST_TIMEOUT, Slot, Timing, Token};

/// One acquisition. Dropping it at any point leaves nothing held: see [`Attempt`].
pub(super) struct Acquisition<'a> {
    client: &'a Arc<Client>,
    request: &'a Arc<AcquireRequest>,
    waiter: Waiter<'a>,
    attempt: Attempt,
}

impl<'a> Acquisition<'a> {
    /// `outcome`: that of a try by this attempt, if one was answered.
    pub(super) fn new(
        client: &'a Arc<Client>,
        request: &'a Arc<AcquireRequest>,
        attempt: Attempt,
        outcome: Option<Result<Outcome, StoreError>>,
        progress: &'a Mutex<Progress>,
        deadline: Option<BootInstant>,
    ) -> Self {
        let names = vec![request.name.clone()];
        let mut waiter = Waiter::new(client, request, names, progress, deadline);
        waiter.polled = outcome;
        Self {
            client,
            request,
            waiter,
            attempt,
        }
    }

    pub(super) async fn run(mut self) -> Result<Option<LockGuard>, Error> {
        let name = &self.request.name;
        // An acquire that may preempt the holder does not wait behind those that may not.
        if !self.request.preempt {
            if self.request.is_single_try() {
                if self.waiter.polled.is_none() {
                    clock::sleep(self.waiter.queues().head_start(name)).await;
                    self.probe().await;
                }
            } else if self.waiter.queues().is_busy(name) {
                self.join_queue().await;
                // The try predates the queue slot, so a wake-up after it may have been missed.
                self.waiter.polled = None;
            }
        }
        loop {
            if let Some(slot) = &self.waiter.slot {
                // Others of the queue go first, if fewer permits were free than waiters asked.
                slot.is_first().await;
            }
            self.wait_until_due().await;
            let sent = clock::now();
            if self.waiter.polled.is_none() && self.attempt.may_have_a_permit() {
                // Repeated, the request could be granted a second permit, whose row is another one.
                self.attempt = Attempt::new(self.client, self.request)?;
            }
            let outcome = match self.waiter.polled.take() {
                Some(outcome) => outcome,
                None => self.attempt.in_background().await,
            };
            if let Ok(Outcome::Granted {
                slot,
                token,
                length,
                is_shared,
                ..
            }) = outcome
            {
                match self.granted(slot, token, length, is_shared, sent).await? {
                    Some(settled) => return Ok(settled),
                    None => continue,
                }
            }
            if let Ok(Outcome::TooRecent(latest)) = outcome {
                self.client.outages.log_answered(sent);
                return Err(self.request.already_ran(latest));
            }
            let Some(next) = self.not_granted(outcome, sent)? else {
                return Ok(None);
            };
            if self.request.is_single_try() {
                tokio::time::sleep(next.hint.polling).await;
                continue;
            }
            let first_wait = self.waiter.slot.is_none();
            if first_wait && (!self.join_queue().await || next.held_here) {
                // The try predates the queue slot, so a release within this process may have been
                // missed.
            } else if next.held_here {
                self.waiter.wait_for_own_holder = Some(next.hint.if_noticed());
            } else {
                self.wait(next, first_wait).await;
            }
        }
    }

    /// The result of a grant: the guard, or `Some(None)` if a single try has to do without the lock.
    /// `None`: the grant was lost before the guard could be returned, and the wait continues.
    async fn granted(
        &mut self,
        slot: Slot,
        token: Token,
        length: Duration,
        is_shared: bool,
        sent: BootInstant,
    ) -> Result<Option<Option<LockGuard>>, Error> {
        let (client, name) = (self.client, &self.request.name);
        client.outages.log_answered(sent);
        let timing = match is_shared {
            true => self.request.timing_while_waiting()?,
            false => self.request.timing,
        };
        client.note_acquired(self.request);
        match self.attempt.granted(slot, token, length, timing).await {
            Ok(guard) => {
                if !is_shared || self.outlast_readers(&guard, timing).await? {
                    return Ok(Some(Some(guard)));
                }
                if self.request.is_single_try() {
                    // Another try right after this one must not find this grant.
                    let _ = guard.release().await;
                    return Ok(Some(None));
                }
            }
            Err(loss) => {
                self.waiter.queues().left(name);
                // The grant that was lost is too recent for another one.
                if self.request.is_single_try() || self.request.once_per.is_some() {
                    return Err(Error::lost(name, loss));
                }
                let late = self.waiter.record_lost_grant(name, &loss, length, sent);
                late.await;
            }
        }
        // Dropping the old attempt releases its grant.
        self.attempt = Attempt::new(client, self.request)?;
        Ok(None)
    }

    /// Join the queue of this process and wait until the slot is the first; returns whether it was
    /// so at once. Waiters behind the first do not query the database.
    async fn join_queue(&mut self) -> bool {
        self.waiter.join(&self.request.name).is_first().await
    }

    /// If a guard of this process holds the lock, wait for its release. Then wait until the head
    /// start of other processes is over.
    async fn wait_until_due(&mut self) {
        let pause = self.waiter.wait_for_own_holder.take();
        let (Some(slot), None) = (&self.waiter.slot, &self.waiter.polled) else {
            return;
        };
        if let Some(pause) = pause.or_else(|| slot.is_held_here().then_some(OWN_HOLDER_WAIT)) {
            slot.woken_within(self.waiter.before_end(pause)).await;
        }
        let end = self.waiter.head_start_end();
        loop {
            let left = slot.head_start();
            let until_end = end.map_or(left, |end| end - clock::now());
            if left.is_zero() || until_end.is_zero() || self.request.preempt {
                break;
            }
            // A notification may change the head start.
            slot.woken_within(left.min(until_end)).await;
        }
        self.probe().await;
        slot.clear();
    }

    /// After a head start for processes that may not exist, check whether one of them had the lock.
    async fn probe(&self) {
        let (client, name) = (self.client, &self.request.name);
        let Some(token) = self.waiter.queues().probe(name) else {
            return;
        };
        let row = client
            .store
            .read(std::slice::from_ref(name), REQUEST_TIMEOUT)
            .await;
        if row.is_ok_and(|rows| rows.first().is_some_and(|row| row.token != token)) {
            self.waiter.queues().held_elsewhere(name);
        }
    }

    /// After an exclusive grant of a lock that was ever shared: wait until no shared grant is left.
    /// Until then the exclusive grant, which is renewed, only keeps new ones out. `false`: it was
    /// lost, or a single try found a shared grant.
    async fn outlast_readers(&mut self, guard: &LockGuard, timing: Timing) -> Result<bool, Error> {
        self.request.check_exclusive()?;
        // A minimum hold begins when it is in.
        guard.state.set_unavailable_until(BootInstant::ZERO);
        loop {
            let sent = clock::now();
            let Some(outcome) = self.attempt.readers().await else {
                let until = clock::now() + self.request.at_least;
                guard.state.set_unavailable_until(until);
                let wanted = self.request.timing;
                return Ok(wanted == timing || guard.renew_to(wanted).await.is_ok());
            };
            if !guard.is_held() {
                return Ok(false);
            }
            let Some(next) = self.not_granted(outcome, sent)? else {
                return Ok(false);
            };
            tokio::time::sleep(self.waiter.before_end(next.hint.polling)).await;
        }
    }

    /// [`Waiter::not_granted`], with the error of this request.
    fn not_granted(
        &mut self,
        outcome: Result<Outcome, StoreError>,
        sent: BootInstant,
    ) -> Result<Option<NotGranted>, Error> {
        let done = self.waiter.not_granted(&self.request.name, outcome, sent);
        done.map_err(|failure| failure.into_error(self.request.op()))
    }

    /// Wait until the lock may be free: after a notification, a release within this process, or a
    /// poll.
    ///
    /// A notification during the try that saw the lock held was missed, because there was no slot
    /// yet. So the `first` wait is always announced to the store, which then checks whether the
    /// lock is free.
    async fn wait(&mut self, next: NotGranted, first: bool) {
        let waiter = &self.waiter;
        let Some(slot) = &waiter.slot else { return };
        let polled = tokio::select! {
            biased;
            // If it was woken since the try, it need not be announced.
            () = slot.woken() => None,
            polled = waiter.pause(&self.request.name, next, first) => polled,
        };
        self.waiter.polled = polled.and_then(|polled| self.attempt.outcome_of_poll(polled));
    }
}
