//! Giving a lock back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::{PATIENCE, Waiters};
use crate::clock::{self, Time};
use crate::error::Error;
use crate::held::ms;
use crate::inner::Inner;
use crate::locks::again;
use crate::name::LockName;
use crate::store::{Force, Occupant, Released, Return, StoreError};
use crate::timing::Ttl;
use crate::token::Token;
use crate::turns::{Next, Others};

const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// The longest pause after a refusal: rights are seldom given back within seconds.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// Release, again and again until the database has answered, or the lease has ended by itself.
///
/// If the row is locked while a fence of this grant is open, the transaction that locks it is the
/// caller's own: the answer is [`Released::Busy`] at once, and the release is done when that
/// transaction ends.
///
/// It counts as pending from now on, and not from when it is first polled: whoever drops a guard and
/// drains at once waits for it.
///
/// `held_for` is for the log; none where nobody ever held it: an acquire that was given up.
///
/// # Errors
///
/// What stood in the way at the last try.
pub(crate) fn give_back(
    inner: Arc<Inner>,
    what: Return,
    ttl: Ttl,
    held_for: Option<Duration>,
) -> impl Future<Output = Result<Released, Error>> + Send + 'static {
    let pending = inner.pending.clone();
    async move {
        let end = match ttl {
            Ttl::Finite(ttl) => clock::now().saturating_add(ttl),
            Ttl::Infinite => Time::MAX,
        };
        let done = until_answered(&inner, what, end, held_for, Try::First).await;
        drop(pending);
        done
    }
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
    mut what: Return,
    end: Time,
    held_for: Option<Duration>,
    which: Try,
) -> Result<Released, Error> {
    let (name, holder) = (what.name.clone(), Arc::clone(&what.holder));
    let token = what.token.map(Token::get);
    let (mut pause, mut unsure, mut told) = (FIRST_RETRY, false, false);
    loop {
        what.quietly = inner.turns.has_next(&what.name);
        let failure = match inner.returns.ask(what.clone()).await {
            Ok(done @ (Released::Freed | Released::Awaited | Released::NotOurs)) => {
                if done != Released::NotOurs && !what.quietly {
                    note_release(inner, &what, done == Released::Awaited || unsure, held_for);
                }
                // What was asked for quietly before may have been done.
                let others = match done {
                    _ if unsure || done == Released::Awaited => Others::Some,
                    _ if inner.store.waiters_poll() => Others::Perhaps,
                    _ => Others::Nobody,
                };
                pass_on(inner, &what, others);
                // An earlier try whose reply was lost may have been the one that freed it.
                let done = if unsure { Released::Freed } else { done };
                let said = match (done, held_for) {
                    (Released::NotOurs, _) => "nothing left to release",
                    (_, Some(_)) => "lock released",
                    (_, None) => "given back what a given-up acquire got",
                };
                tracing::debug!(
                    lock.name = name.as_str(),
                    lock.token = token,
                    lock.holder = &*holder,
                    lock.held_ms = held_for.map(ms),
                    "{said}"
                );
                return Ok(done);
            }
            Ok(Released::Busy) if inner.fences.end_of(what.grant).is_some() => {
                if which != Try::AfterFence {
                    note_fence(&what);
                }
                tokio::spawn(after_fence(Arc::clone(inner), what, end, held_for));
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
                tokio::spawn(go_on(Arc::clone(inner), what, end, held_for));
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
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(match refused {
            true => LONGEST_REFUSED,
            false => LONGEST_RETRY,
        });
    }
}

/// Go on with a release that was refused. The caller has its answer.
fn go_on(
    inner: Arc<Inner>,
    what: Return,
    end: Time,
    held_for: Option<Duration>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _ = until_answered(&inner, what, end, held_for, Try::AfterRefusal).await;
    })
}

/// Release when the open fence of this grant ends. The caller has its answer.
fn after_fence(
    inner: Arc<Inner>,
    what: Return,
    end: Time,
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
        let end = end.max(clock::now().saturating_add(PATIENCE));
        let _ = until_answered(&inner, what, end, held_for, Try::AfterFence).await;
        drop(pending);
    })
}

fn note_fence(what: &Return) {
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
pub(crate) fn defer(inner: &Arc<Inner>, what: &Return) -> bool {
    let open = inner.fences.end_of(what.grant).is_some();
    if open {
        note_fence(what);
        let end = clock::now();
        tokio::spawn(after_fence(Arc::clone(inner), what.clone(), end, None));
    }
    open
}

/// Release by force when the open fence of the lock's grant ends, if this process has one open.
///
/// Answers with who has the lock. Without such a fence nothing is done.
pub(crate) fn force_after_fence(inner: &Arc<Inner>, name: &LockName) -> Option<Occupant> {
    let held = inner.fences.of_lock(name)?;
    let fence = inner.fences.end_of(held.grant.id)?;
    let holder = Occupant {
        holder: Some(held.grant.holder.as_ref().to_owned()),
        token: Some(held.grant.token),
        held_for: Some(held.held_for()),
        ..Occupant::default()
    };
    tracing::warn!(
        lock.name = name.as_str(),
        lock.token = held.grant.token.get(),
        lock.holder = &*held.grant.holder,
        "lock to be released by force when its own fenced transaction ends"
    );
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        fence.wait().await;
        let pending = inner.pending.clone();
        let (name, grant) = (&held.grant.name, held.grant.id.as_str());
        let forced = again(PATIENCE, || async {
            let row = inner
                .store
                .read(std::slice::from_ref(name), PATIENCE)
                .await?;
            // Another grant of the lock is not meant.
            if row.first().and_then(|row| row.grant.as_deref()) != Some(grant) {
                return Ok(());
            }
            match inner.store.force(name, PATIENCE).await? {
                Force::Freed(_) | Force::WasFree => Ok(()),
                Force::Busy => Err(StoreError::Contention("its row is locked".into())),
            }
        });
        match forced.await {
            Ok(()) => inner.turns.ring(name),
            Err(failure) => tracing::warn!(
                lock.name = name.as_str(),
                "not released by force: {failure}"
            ),
        }
        drop(pending);
    });
    Some(holder)
}

/// Other processes have a head start now, whichever caller of this one asks next.
fn note_release(inner: &Inner, what: &Return, awaited: bool, held_for: Option<Duration>) {
    let waiters = match (awaited, inner.store.waiters_poll()) {
        (true, _) => Waiters::Notified,
        (false, true) => Waiters::Poll,
        (false, false) => return,
    };
    let held_for = held_for.unwrap_or_default();
    let now = clock::now();
    inner
        .head_starts
        .released(&what.name, waiters, held_for, now);
}

/// It is free, or another's: see to it that somebody takes it who waits for it.
fn pass_on(inner: &Arc<Inner>, what: &Return, others: Others) {
    let name = &what.name;
    match inner.turns.released(name, what.quietly, others) {
        Next::Nothing => {}
        Next::Behind(pause) => {
            let (inner, name) = (Arc::clone(inner), name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                inner.turns.ring(&name);
            });
        }
        Next::Owed(pause, release) => {
            let (inner, name) = (Arc::clone(inner), name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                if inner.turns.pays(&name, release) {
                    // Should it fail, they look for themselves in a few seconds.
                    let _ = inner.store.ring(&name, PATIENCE).await;
                }
            });
        }
    }
}
