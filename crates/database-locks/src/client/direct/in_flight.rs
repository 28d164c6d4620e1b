//! A call on the direct connection, from its start to its answer.

use std::future::Future;
use std::pin::Pin;
use std::slice::from_ref;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{CHECK_INTERVAL, Entry};
use crate::runtime;
use crate::runtime::clock;
use crate::runtime::fork::Gated;
use crate::store::api::StoreError;
use protocol::{AcquireCommand, BootInstant, Outcome, ReleaseCommand, Released};

impl Entry {
    /// Acquire on the direct connection. See [`call`](Self::call). `under_way` is dropped when the
    /// request is answered or late, or when the runtime ends.
    pub(crate) async fn acquire(
        self,
        ask: AcquireCommand,
        wait: Option<Duration>,
        under_way: oneshot::Sender<()>,
    ) -> Option<Result<Outcome, StoreError>> {
        let (store, direct) = (self.path.store.clone(), Arc::clone(&self.path.direct));
        let reply = async move {
            let _under_way = under_way;
            only(store.acquire_on(&*direct, from_ref(&ask)).await)
        };
        self.call(reply, wait).await
    }

    /// Release on the direct connection. See [`call`](Self::call).
    pub(crate) async fn release(
        self,
        what: ReleaseCommand,
    ) -> Option<Result<Released, StoreError>> {
        let (store, direct) = (self.path.store.clone(), Arc::clone(&self.path.direct));
        let reply = async move { only(store.release_on(&*direct, from_ref(&what)).await) };
        self.call(reply, None).await
    }

    /// Wait for a reply, for `wait` at most if that is given; `None` if it has not come.
    ///
    /// # Cancel safety
    ///
    /// A request whose reply is dropped may still be carried out at any later time. So the owner's
    /// runtime completes a dropped call, and the direct connection is in use until then.
    async fn call<T: Send + 'static>(
        self,
        reply: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        wait: Option<Duration>,
    ) -> Option<Result<T, StoreError>> {
        if let Some(wait) = wait {
            if let Some(call) = self.path.state().call(self.number) {
                call.until = clock::now() + wait;
            }
            if wait < CHECK_INTERVAL {
                self.path.more.notify_one();
            }
        }
        InFlight {
            reply: Some(Gated::of(Box::pin(reply))),
            entry: Some(self),
            dropped: false,
        }
        .await
    }

    /// The state of an unanswered call.
    fn wait(&self, waker: &Waker) -> Wait {
        let mut state = self.path.state();
        let old = match state.call(self.number) {
            None => return Wait::Late,
            Some(call) if call.until <= clock::now() => return Wait::Ended,
            Some(call) if call.waker.as_ref().is_some_and(|it| it.will_wake(waker)) => None,
            Some(call) => call.waker.replace(waker.clone()),
        };
        drop(state);
        drop(old);
        Wait::Unanswered
    }

    /// Whether the direct connection was given up during the call. Blocking calls are answered in
    /// their first poll.
    fn is_late(&self) -> bool {
        !self.path.direct.blocks() && self.path.state().call(self.number).is_none()
    }

    /// End a call that was answered, or that was not sent because the direct connection is not
    /// `connected`.
    fn answered(&self, connected: bool) {
        let mut state = self.path.state();
        let Some(ended) = state.take(self.number) else {
            return;
        };
        if !connected {
            state.disable();
        } else {
            state.backoff = Duration::ZERO;
            if let Some(owner) = &mut state.owner {
                owner.first = false;
            }
        }
        drop(state);
        drop(ended);
    }
}

enum Wait {
    Unanswered,
    /// The caller has stopped waiting.
    Ended,
    /// The direct connection did not answer in time, and its connection was given up.
    Late,
}

/// The answer to the only request.
fn only<T>(answers: Result<Vec<T>, StoreError>) -> Result<T, StoreError> {
    let none = || StoreError::Unavailable("the store returned no answer".into());
    answers?.pop().ok_or_else(none)
}

type Answer<T> = dyn Future<Output = Result<T, StoreError>> + Send;

/// One call on the direct connection.
struct InFlight<T: Send + 'static> {
    /// `None`: done.
    reply: Option<Gated<Answer<T>>>,
    entry: Option<Entry>,
    /// The caller has dropped it.
    dropped: bool,
}

impl<T: Send + 'static> Future for InFlight<T> {
    /// `None`: no answer in time.
    type Output = Option<Result<T, StoreError>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let call = &mut *self;
        // Taken out, so that a panic leaves nothing to be polled again.
        let (Some(mut reply), Some(entry)) = (call.reply.take(), &call.entry) else {
            return Poll::Pending;
        };
        if !reply.is_here() {
            return Poll::Pending;
        }
        // A late call sends nothing more.
        if entry.is_late() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(answer) = Pin::new(&mut reply).poll(context) {
            let unsent = |failure: &StoreError| failure.is_undone() && !failure.is_answer();
            entry.answered(!answer.as_ref().is_err_and(unsent));
            return Poll::Ready(Some(answer));
        }
        match entry.wait(context.waker()) {
            Wait::Late => Poll::Ready(None),
            Wait::Unanswered => {
                runtime::needed();
                call.reply = Some(reply);
                Poll::Pending
            }
            Wait::Ended => {
                call.reply = Some(reply);
                Poll::Ready(None)
            }
        }
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        let (Some(reply), Some(entry)) = (self.reply.take(), self.entry.take()) else {
            return;
        };
        // In a forked child the reply is leaked. A runtime that has ended drops what is spawned on
        // it.
        if !reply.is_here() || self.dropped {
            return;
        }
        if let Some(call) = entry.path.state().call(entry.number) {
            call.until = BootInstant::MAX;
        }
        let owner = entry.owner.clone();
        let rest = InFlight {
            reply: Some(reply),
            entry: Some(entry),
            dropped: true,
        };
        let rest = owner.spawn(Gated::new(async move { drop(rest.await) }));
        runtime::finish(&owner, rest);
    }
}
