//! Giving a lock back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Inner;
use crate::client::acquire::queue::Waiters;
use crate::client::direct::DIRECT_TIMEOUT;
use crate::client::pending::Pending;
use crate::client::renewal::grant_state::ms;
use crate::error::Error;
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::Here;
use crate::store::api::StoreError;
use crate::store::retry::while_contended;
use protocol::{
    BootInstant, Force, Holder, LockName, REQUEST_TIMEOUT, ReleaseCommand, Released, Token, Ttl,
};

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// The longest pause after a refusal: rights are seldom given back within seconds.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// Release, again and again until the database has answered, or the lease has ended by itself; in the
/// background.
///
/// If the row is locked while a fence of this grant is open, the transaction that locks it is the
/// caller's own: the answer is [`Released::Busy`] at once, and the release is done when that
/// transaction ends.
///
/// It counts as pending from now on, and not from when it is first polled: a drain that begins after the drop
/// of a guard waits for it.
///
/// `held_for` is for the log; none for an acquire that was given up, whose grant nobody ever held.
///
/// # Errors
///
/// What stood in the way at the last try.
pub(crate) fn give_back(
    inner: Arc<Inner>,
    what: ReleaseCommand,
    ttl: Ttl,
    held_for: Option<Duration>,
) -> impl Future<Output = Result<Released, Error>> + Send + 'static {
    GiveBack::new(inner, what, ttl, held_for).carry_on()
}

/// A grant that is being given back. Dropped before it is, that is carried on in the background.
#[derive(Debug)]
pub(crate) struct GiveBack(Option<Here<Task>>);

#[derive(Debug)]
struct Task {
    inner: Arc<Inner>,
    what: ReleaseCommand,
    end: BootInstant,
    held_for: Option<Duration>,
    /// The lane's answer; that it is late, while its request is unanswered.
    first: Option<Result<Released, StoreError>>,
    _pending: Pending,
}

impl GiveBack {
    pub(crate) fn new(
        inner: Arc<Inner>,
        what: ReleaseCommand,
        ttl: Ttl,
        held_for: Option<Duration>,
    ) -> Self {
        let end = match ttl {
            Ttl::Finite(ttl) => clock::now() + ttl,
            Ttl::Infinite => BootInstant::MAX,
        };
        Self(Some(Here::new(Task {
            _pending: inner.pending.clone(),
            inner,
            what,
            end,
            held_for,
            first: None,
        })))
    }

    /// One try on the lane, where the caller's runtime is its home; what came of it, if that was an answer.
    pub(crate) async fn directly(&mut self) -> Option<Released> {
        let task = self.0.as_mut()?.here_mut()?;
        let entry = task.inner.direct.as_ref()?.enter()?;
        // Until it is answered.
        task.first = Some(Err(StoreError::late(DIRECT_TIMEOUT)));
        match entry.release(task.what.clone()).await {
            // The background repeats it.
            None => None,
            Some(Ok(done @ (Released::Freed | Released::Awaited | Released::NotHeld))) => {
                let done = freed(&task.inner, &task.what, done, false, task.held_for);
                self.0 = None;
                Some(done)
            }
            // Nothing was sent. The background may have a connection.
            Some(Err(failure)) if failure.is_undone() && !failure.is_answer() => {
                task.first = None;
                None
            }
            Some(answer) => {
                task.first = Some(answer);
                None
            }
        }
    }

    /// Until it is done, in the background.
    pub(crate) fn carry_on(
        mut self,
    ) -> impl Future<Output = Result<Released, Error>> + Send + 'static {
        let task = self.0.take().and_then(Here::into_inner);
        async move {
            match task {
                Some(task) => task.carry_on().await,
                None => Ok(Released::NotHeld),
            }
        }
    }
}

impl Task {
    async fn carry_on(self) -> Result<Released, Error> {
        let Self {
            what,
            end,
            held_for,
            first,
            ..
        } = self;
        until_answered(&self.inner, what, end, held_for, Try::First, first).await
    }
}

impl Drop for GiveBack {
    fn drop(&mut self) {
        if let Some(task) = self.0.take().and_then(Here::into_inner) {
            let _ = runtime::spawn(task.carry_on());
        }
    }
}

/// It is free, or another's; what its caller is told.
///
/// `unsure`: an earlier try whose reply was lost may have been the one that freed it.
fn freed(
    inner: &Inner,
    what: &ReleaseCommand,
    done: Released,
    unsure: bool,
    held_for: Option<Duration>,
) -> Released {
    let waiters = match done {
        Released::Awaited => Waiters::Notified,
        // The earlier try may have notified.
        _ if unsure => Waiters::Notified,
        Released::Freed if inner.store.waiters_poll() => Waiters::Poll,
        _ => Waiters::None,
    };
    inner.queues.released(
        &what.name,
        what.token,
        waiters,
        held_for.unwrap_or_default(),
    );
    let done = if unsure { Released::Freed } else { done };
    let said = match (done, held_for) {
        (Released::NotHeld, _) => "nothing left to release",
        (_, Some(_)) => "lock released",
        (_, None) => "given back what a given-up acquire got",
    };
    tracing::debug!(
        lock.name = what.name.as_str(),
        lock.token = what.token.map(Token::get),
        lock.holder = &*what.holder,
        lock.held_ms = held_for.map(ms),
        "{said}"
    );
    done
}

/// What came before the present tries of one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    First,
    /// A fence of the same grant was open; the caller has its answer.
    AfterFence,
    /// The database refused it; the caller has its answer, and another refusal does not end it.
    AfterRefusal,
}

async fn until_answered(
    inner: &Arc<Inner>,
    what: ReleaseCommand,
    end: BootInstant,
    held_for: Option<Duration>,
    which: Try,
    mut first: Option<Result<Released, StoreError>>,
) -> Result<Released, Error> {
    let (name, holder) = (what.name.clone(), Arc::clone(&what.holder));
    let token = what.token.map(Token::get);
    let (mut pause, mut unsure, mut told) = (FIRST_RETRY, false, false);
    loop {
        let sent = clock::now();
        let answer = match first.take() {
            Some(answer) => answer,
            None => inner.returns.ask(what.clone()).await,
        };
        let failure = match answer {
            Ok(done @ (Released::Freed | Released::Awaited | Released::NotHeld)) => {
                return Ok(freed(inner, &what, done, unsure, held_for));
            }
            Ok(Released::Busy) if inner.fences.end_of(what.grant).is_some() => {
                if which != Try::AfterFence {
                    note_fence(&what);
                }
                let _ = runtime::spawn(after_fence(Arc::clone(inner), what, end, held_for));
                return Ok(Released::Busy);
            }
            Ok(Released::Busy) => {
                StoreError::Contention("its row is locked by another transaction".into())
            }
            Err(failure) => {
                unsure |= matches!(failure, StoreError::Unavailable(_));
                failure
            }
        };
        let refused = matches!(failure, StoreError::Rejected { .. });
        let over = clock::now() + pause >= end;
        if over || (refused && which != Try::AfterRefusal) {
            let error = failure.into_error(format!("release lock `{name}`"));
            let then = match over {
                true => "it stays held until its lease ends",
                // Rights come back, and a lease without end would stay held for ever.
                false => "trying on in the background",
            };
            tracing::warn!(
                lock.name = name.as_str(),
                lock.token = token,
                lock.holder = &*holder,
                "not released, {then}: {}",
                error.chain()
            );
            if !over {
                let _ = runtime::spawn(go_on(Arc::clone(inner), what, end, held_for));
            }
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::debug!(
                lock.name = name.as_str(),
                lock.token = token,
                lock.holder = &*holder,
                "release failed, trying again: {failure}"
            );
        }
        // What takes long keeps others from the connection, such as an acquire of a lock that is held.
        let took = (clock::now() - sent).min(LONGEST_RETRY);
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0).max(took)).await;
        pause = (pause * 2).min(match refused {
            true => LONGEST_REFUSED,
            false => LONGEST_RETRY,
        });
    }
}

/// Go on with a release that was refused. The caller has its answer.
fn go_on(
    inner: Arc<Inner>,
    what: ReleaseCommand,
    end: BootInstant,
    held_for: Option<Duration>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _ = until_answered(&inner, what, end, held_for, Try::AfterRefusal, None).await;
    })
}

/// Release when the open fence of this grant ends. The caller has its answer.
fn after_fence(
    inner: Arc<Inner>,
    what: ReleaseCommand,
    end: BootInstant,
    held_for: Option<Duration>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        if let Some(fence) = inner.fences.end_of(what.grant) {
            // The fence may be kept for longer than its transaction.
            let _ = tokio::time::timeout(LONGEST_RETRY, fence.wait()).await;
        }
        let pending = inner
            .fences
            .end_of(what.grant)
            .is_none()
            .then(|| inner.pending.clone());
        // The lease may have ended under the fence; the row is the grant's until another takes it.
        let end = end.max(clock::now() + REQUEST_TIMEOUT);
        let _ = until_answered(&inner, what, end, held_for, Try::AfterFence, None).await;
        drop(pending);
    })
}

fn note_fence(what: &ReleaseCommand) {
    tracing::info!(
        lock.name = what.name.as_str(),
        lock.token = what.token.map(Token::get),
        lock.holder = &*what.holder,
        "lock released while its own fenced transaction is open: it is free when that ends"
    );
}

/// A release of a grant whose row is locked, done when the open fence of that grant ends.
///
/// Whether there is such a fence in this process. Without one nothing is done.
pub(crate) fn defer(inner: &Arc<Inner>, what: &ReleaseCommand) -> bool {
    let open = inner.fences.end_of(what.grant).is_some();
    if open {
        note_fence(what);
        let end = clock::now();
        let _ = runtime::spawn(after_fence(Arc::clone(inner), what.clone(), end, None));
    }
    open
}

/// Release by force when the open fence of the lock's grant ends, if this process has one open.
///
/// Answers with who has the lock. Without such a fence nothing is done.
pub(crate) fn force_after_fence(inner: &Arc<Inner>, name: &LockName) -> Option<Holder> {
    let held = inner.fences.of_lock(name)?;
    let fence = inner.fences.end_of(held.grant.id)?;
    let holder = Holder {
        holder: Some(held.grant.holder.as_ref().to_owned()),
        token: Some(held.grant.token),
        held_for: Some(held.held_for()),
        ..Holder::default()
    };
    tracing::warn!(
        lock.name = name.as_str(),
        lock.token = held.grant.token.get(),
        lock.holder = &*held.grant.holder,
        "lock to be released by force when its own fenced transaction ends"
    );
    let inner = Arc::clone(inner);
    let _ = runtime::spawn(async move {
        fence.wait().await;
        let pending = inner.pending.clone();
        let (name, grant) = (&held.grant.name, held.grant.id.as_str());
        let forced = while_contended(REQUEST_TIMEOUT, || async {
            let row = inner
                .store
                .read(std::slice::from_ref(name), REQUEST_TIMEOUT)
                .await?;
            // Another grant of the lock is not meant.
            if row.first().and_then(|row| row.grant.as_deref()) != Some(grant) {
                return Ok(());
            }
            match inner.store.force(name, REQUEST_TIMEOUT).await? {
                Force::Freed(_) | Force::WasFree => Ok(()),
                Force::Busy => Err(StoreError::Contention("its row is locked".into())),
            }
        });
        match forced.await {
            Ok(()) => inner.queues.wake(name),
            Err(failure) => tracing::warn!(
                lock.name = name.as_str(),
                "not released by force: {failure}"
            ),
        }
        drop(pending);
    });
    Some(holder)
}
