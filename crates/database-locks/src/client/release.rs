//! Releasing a lock.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::client::acquire::head_start::Waiters;
use crate::client::direct::DIRECT_TIMEOUT;
use crate::client::own_grants::Releasing;
use crate::client::pending_releases::PendingRelease;
use crate::client::read::read_row;
use crate::client::renewal::grant_state::ms;
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::ForkSafe;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{
    BootInstant, Force, Holder, LockName, REQUEST_TIMEOUT, ReleaseCommand, Released, Slot, Token,
    Ttl,
};

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// The longest pause after a rejection: permissions are seldom restored within seconds.
const LONGEST_REJECTED: Duration = Duration::from_secs(30);

/// Release a grant in the background. Retries until the database answers or the lease has ended by
/// itself.
///
/// If the row is locked and a fence of this grant is open in this process, the fence is taken to be
/// the cause: the answer is [`Released::Busy`] at once, and the release is deferred until the fence
/// ends.
///
/// The release counts as pending from this call, not from its first poll, so that a drain after the
/// drop of a guard waits for it.
///
/// Each try lets the lock rest for what is left until `unavailable_until` when it is sent, so that
/// neither a pause nor a repetition makes the rest longer.
///
/// `held_for` is for the log; `None` if the grant comes from a cancelled acquire.
///
/// # Errors
///
/// The error of the last try.
pub(crate) fn release_grant(
    client: Arc<Client>,
    command: ReleaseCommand,
    unavailable_until: BootInstant,
    ttl: Ttl,
    held_for: Option<Duration>,
) -> impl Future<Output = Result<Released, Error>> + Send + 'static {
    ReleaseRequest::new(client, command, unavailable_until, ttl, held_for).in_background()
}

/// A release in progress. If it is dropped before it is done, the background completes it.
#[derive(Debug)]
pub(crate) struct ReleaseRequest(Option<ForkSafe<ReleaseTask>>);

impl ReleaseRequest {
    pub(crate) fn new(
        client: Arc<Client>,
        command: ReleaseCommand,
        unavailable_until: BootInstant,
        ttl: Ttl,
        held_for: Option<Duration>,
    ) -> Self {
        let end = match ttl {
            Ttl::Finite(ttl) => clock::now() + ttl,
            Ttl::Infinite => BootInstant::MAX,
        };
        let pending = Some(client.pending_releases.begin());
        // As long as no other client has acquired the lock, it can still rest.
        let end = end.max(unavailable_until);
        Self(Some(ForkSafe::new(ReleaseTask {
            pending,
            unavailable_until,
            ..ReleaseTask::new(client, command, end, held_for)
        })))
    }

    /// Try once on the direct connection, if the caller's runtime owns it. `None`: the release is
    /// not decided, and the background has to continue it.
    pub(crate) async fn directly(&mut self) -> Option<Released> {
        let task = self.0.as_mut()?.get_mut()?;
        let permit = task.client.direct.as_ref()?.enter()?;
        // Until the answer arrives, in case this future is dropped.
        task.first_answer = Some(Err(StoreError::late(DIRECT_TIMEOUT)));
        match permit.release(task.next_command()).await {
            None => None,
            Some(Ok(done @ (Released::Freed | Released::Awaited | Released::NotHeld))) => {
                let done = task.decided(done);
                self.0 = None;
                Some(done)
            }
            // Nothing was sent, for lack of a connection. The background has its own.
            Some(Err(failure)) if failure.is_undone() && !failure.is_answer() => {
                task.first_answer = None;
                None
            }
            Some(answer) => {
                task.first_answer = Some(answer);
                None
            }
        }
    }

    /// Complete the release in the background.
    pub(crate) fn in_background(
        mut self,
    ) -> impl Future<Output = Result<Released, Error>> + Send + 'static {
        let task = self.0.take().and_then(ForkSafe::into_inner);
        async move {
            match task {
                Some(task) => task.run().await,
                None => Ok(Released::NotHeld),
            }
        }
    }
}

impl Drop for ReleaseRequest {
    fn drop(&mut self) {
        if let Some(task) = self.0.take().and_then(ForkSafe::into_inner) {
            let _ = runtime::spawn(task.run());
        }
    }
}

/// Why a release is being retried after its caller has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// A fence of the same grant was open.
    AfterFence,
    /// The database rejected the release. Another rejection does not end the retries.
    AfterRejection,
}

type Background = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One release, retried until the database decides it or the lease ends.
#[derive(Debug)]
struct ReleaseTask {
    client: Arc<Client>,
    command: ReleaseCommand,
    /// Until when the lock rests after the release.
    unavailable_until: BootInstant,
    /// When the lease ends by itself, and a rest would too.
    lease_end: BootInstant,
    held_for: Option<Duration>,
    /// The answer on the direct connection, for the first iteration. While that request is
    /// unanswered: the error of a late answer.
    first_answer: Option<Result<Released, StoreError>>,
    /// `None`: the caller has no answer yet.
    retry: Option<Retry>,
    /// A try whose reply was lost may have released the lock.
    may_be_released: bool,
    logged: bool,
    /// `None`: the end of a thread or process does not wait for it.
    pending: Option<PendingRelease>,
    _releasing: Releasing,
}

impl ReleaseTask {
    fn new(
        client: Arc<Client>,
        command: ReleaseCommand,
        lease_end: BootInstant,
        held_for: Option<Duration>,
    ) -> Self {
        Self {
            _releasing: Releasing::new(command.grant, client.number),
            client,
            command,
            unavailable_until: BootInstant::ZERO,
            lease_end,
            held_for,
            first_answer: None,
            retry: None,
            may_be_released: false,
            logged: false,
            pending: None,
        }
    }

    /// The command of a try that is sent now.
    fn next_command(&self) -> ReleaseCommand {
        let rest = self.unavailable_until - clock::now();
        self.command.clone().resting(rest)
    }

    async fn run(mut self) -> Result<Released, Error> {
        let mut pause = FIRST_RETRY;
        loop {
            let sent = clock::now();
            let answer = match self.first_answer.take() {
                Some(answer) => answer,
                None => self.client.releases.ask(self.next_command()).await,
            };
            let failure = match answer {
                Ok(done @ (Released::Freed | Released::Awaited | Released::NotHeld)) => {
                    return Ok(self.decided(done));
                }
                Ok(Released::Busy) if self.client.fences.end_of(self.command.grant).is_some() => {
                    self.defer();
                    return Ok(Released::Busy);
                }
                Ok(Released::Busy) => {
                    StoreError::Contention("its row is locked by another transaction".into())
                }
                Err(failure) => {
                    self.may_be_released |= matches!(failure, StoreError::Unavailable(_));
                    failure
                }
            };
            let rejected = matches!(failure, StoreError::Rejected { .. });
            let ended = clock::now() + pause >= self.lease_end;
            if ended || (rejected && self.retry != Some(Retry::AfterRejection)) {
                return Err(self.failed(failure, ended));
            }
            self.log_retry(&failure);
            // A slow release delays other statements on the connection, so the pause is at least
            // as long.
            let took = (clock::now() - sent).min(LONGEST_RETRY);
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0).max(took)).await;
            pause = (pause * 2).min(match rejected {
                true => LONGEST_REJECTED,
                false => LONGEST_RETRY,
            });
        }
    }

    /// Wake the queue and log a release that the database has decided. Returns the caller's answer.
    fn decided(&self, done: Released) -> Released {
        let waiters = match done {
            Released::Awaited => Waiters::Notified,
            // The earlier try may have notified other processes.
            _ if self.may_be_released => Waiters::Notified,
            Released::Freed if self.client.store.waiters_poll() => Waiters::Poll,
            _ => Waiters::None,
        };
        let (name, queues) = (&self.command.name, self.client.queues(self.command.slot));
        match self.command.slot {
            Slot::Lock => {
                let held_for = self.held_for.unwrap_or_default();
                queues.released(name, self.command.token, waiters, held_for);
            }
            // Other permits may be free, so no caller waits for the sake of other processes.
            Slot::Permit(_) | Slot::AnyPermit => queues.permit_released(name),
            Slot::Shared(_) => queues.wake(name),
        }
        self.client.wake_shared(self.command.slot, name);
        let done = match self.may_be_released {
            true => Released::Freed,
            false => done,
        };
        let message = match (done, self.held_for) {
            (Released::NotHeld, _) => "nothing left to release",
            (_, Some(_)) => match self.command.slot {
                Slot::Lock => "lock released",
                Slot::Permit(_) | Slot::AnyPermit => "permit released",
                Slot::Shared(_) => "shared lock released",
            },
            (_, None) => "released the grant of a cancelled acquire",
        };
        tracing::debug!(
            lock.name = self.command.name.as_str(),
            lock.slot = self.command.slot.number(),
            lock.token = self.command.token.map(Token::get),
            lock.holder = &*self.command.holder,
            lock.held_ms = self.held_for.map(ms),
            "{message}"
        );
        done
    }

    /// Log a failure that ends the caller's wait. Unless the lease has `ended`, retries continue.
    fn failed(self, failure: StoreError, ended: bool) -> Error {
        let op = format!("release {}", self.command.slot.named(&self.command.name));
        let error = failure.into_error(op);
        let then = match ended {
            true => "it stays held until its lease ends",
            false => "trying again in the background",
        };
        tracing::warn!(
            lock.name = self.command.name.as_str(),
            lock.slot = self.command.slot.number(),
            lock.token = self.command.token.map(Token::get),
            lock.holder = &*self.command.holder,
            "not released, {then}: {}",
            error.chain()
        );
        // Permissions may be restored, and an infinite lease would otherwise stay held for ever.
        if !ended {
            let _ = runtime::spawn(self.after_rejection());
        }
        error
    }

    fn log_retry(&mut self, failure: &StoreError) {
        if !std::mem::replace(&mut self.logged, true) {
            tracing::debug!(
                lock.name = self.command.name.as_str(),
                lock.slot = self.command.slot.number(),
                lock.token = self.command.token.map(Token::get),
                lock.holder = &*self.command.holder,
                "release failed, trying again: {failure}"
            );
        }
    }

    /// Release when the open fence of this grant ends.
    fn defer(self) {
        if self.retry != Some(Retry::AfterFence) {
            tracing::info!(
                lock.name = self.command.name.as_str(),
                lock.slot = self.command.slot.number(),
                lock.token = self.command.token.map(Token::get),
                lock.holder = &*self.command.holder,
                "{} released while its own fenced transaction is open: it is free when that ends",
                self.command.slot.as_str()
            );
        }
        let _ = runtime::spawn(self.after_fence());
    }

    /// This release, continued after its caller has got an answer. It does not count as pending.
    fn detached(self, retry: Retry) -> Self {
        Self {
            retry: Some(retry),
            unavailable_until: self.unavailable_until,
            ..Self::new(self.client, self.command, self.lease_end, self.held_for)
        }
    }

    /// Continue a release that was rejected.
    fn after_rejection(self) -> Background {
        let task = self.detached(Retry::AfterRejection);
        Box::pin(async move {
            let _ = task.run().await;
        })
    }

    /// Wait for the end of the open fence, then release.
    fn after_fence(self) -> Background {
        let mut task = self.detached(Retry::AfterFence);
        Box::pin(async move {
            let grant = task.command.grant;
            if let Some(fence) = task.client.fences.end_of(grant) {
                // A caller may keep the fence longer than its transaction, so the wait is bounded.
                let _ = tokio::time::timeout(LONGEST_RETRY, fence.wait()).await;
            }
            if task.client.fences.end_of(grant).is_none() {
                task.pending = Some(task.client.pending_releases.begin());
            }
            // The lease may have ended during the fence. The grant is still in the row until
            // another client acquires the lock.
            let least = clock::now() + REQUEST_TIMEOUT;
            task.lease_end = task.lease_end.max(least);
            let _ = task.run().await;
        })
    }
}

/// If a fence of this grant is open in this process, defer the release of its locked row until the
/// fence ends. Returns whether it was deferred.
pub(crate) fn defer(client: &Arc<Client>, command: &ReleaseCommand) -> bool {
    let open = client.fences.end_of(command.grant).is_some();
    if open {
        ReleaseTask::new(Arc::clone(client), command.clone(), clock::now(), None).defer();
    }
    open
}

/// Release a lock or a permit, whichever grant holds it.
pub(crate) async fn force(
    client: &Client,
    name: &LockName,
    slot: Slot,
) -> Result<Force, StoreError> {
    client.store.force(name, slot, REQUEST_TIMEOUT).await
}

/// If a fence of the lock's grant is open in this process, release the lock by force when the fence
/// ends.
///
/// Returns the holder; `None` if no such fence is open, and nothing is done.
pub(crate) fn force_after_fence(
    client: &Arc<Client>,
    name: &LockName,
    slot: Slot,
) -> Option<Holder> {
    let state = client.fences.of_lock(name, slot)?;
    let fence = client.fences.end_of(state.grant.id)?;
    let holder = Holder {
        holder: Some(state.grant.holder.as_ref().to_owned()),
        token: Some(state.grant.token),
        held_for: Some(state.held_for()),
        ..Holder::default()
    };
    tracing::warn!(
        lock.name = name.as_str(),
        lock.slot = slot.number(),
        lock.token = state.grant.token.get(),
        lock.holder = &*state.grant.holder,
        "{} to be released by force when its own fenced transaction ends",
        slot.as_str()
    );
    let client = Arc::clone(client);
    let _ = runtime::spawn(async move {
        fence.wait().await;
        let pending = client.pending_releases.begin();
        let (name, grant) = (&state.grant.name, state.grant.id.as_str());
        let forced = while_contended(REQUEST_TIMEOUT, || async {
            let row = read_row(&client, name, slot).await?;
            // Release only the grant of the fence, not a later one.
            if row.as_ref().and_then(|row| row.grant.as_deref()) != Some(grant) {
                return Ok(());
            }
            match force(&client, name, slot).await? {
                Force::Freed(_) | Force::WasFree => Ok(()),
                Force::Busy => Err(StoreError::Contention("its row is locked".into())),
            }
        });
        match forced.await {
            Ok(()) => {
                client.queues(slot).wake(name);
                client.wake_shared(slot, name);
            }
            Err(failure) => tracing::warn!(
                lock.name = name.as_str(),
                "not released by force: {failure}"
            ),
        }
        drop(pending);
    });
    Some(holder)
}
